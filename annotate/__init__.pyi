from . import cards, costs, explain, importing, ledger, parsing, prompting, providers, quality, runs

__all__ = ["cards", "costs", "explain", "importing", "ledger", "parsing", "prompting", "providers", "quality", "runs"]
