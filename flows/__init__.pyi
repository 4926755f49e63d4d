from . import cards, commands, datasets, deployment, labelling, policies, refinement, reporting, runtime, simulation

__all__ = [
    "cards",
    "commands",
    "datasets",
    "deployment",
    "labelling",
    "policies",
    "refinement",
    "reporting",
    "runtime",
    "simulation",
]
