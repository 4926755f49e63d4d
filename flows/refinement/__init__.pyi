from .ablation import AblateConfig, ablate
from .arms import CHANCE
from .comparison import GateConfig
from .estimation import EstimateConfig, estimate_refinement
from .evaluator import EvaluateConfig, evaluate
from .present import Overview, arm_title, show_ablation, show_comparison, show_estimate, show_relabelling, show_rounds
from .refinement import ImproveConfig, Outcome, improve
from .relabelling import Relabelled, improve_and_relabel
from .rounds import RoundsConfig, Series, Work, run_rounds

__all__ = [
    "CHANCE",
    "AblateConfig",
    "EstimateConfig",
    "EvaluateConfig",
    "GateConfig",
    "ImproveConfig",
    "Outcome",
    "Overview",
    "Relabelled",
    "RoundsConfig",
    "Series",
    "Work",
    "ablate",
    "arm_title",
    "estimate_refinement",
    "evaluate",
    "improve",
    "improve_and_relabel",
    "run_rounds",
    "show_ablation",
    "show_comparison",
    "show_estimate",
    "show_relabelling",
    "show_rounds",
]
