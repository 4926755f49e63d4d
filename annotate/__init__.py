"""What a language model says about a trajectory: cards, prompts, requests, replies and what they cost.

It steps no environment and trains nothing.

In the order of a label: cards, prompting, parsing, providers, ledger, runs; beside them costs, importing, quality and
explain.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
