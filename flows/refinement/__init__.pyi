from .ablation import AblateConfig, ablate
from .comparison import GateConfig
from .estimation import AppraiseConfig, appraise
from .evaluator import EvaluateConfig, evaluate
from .present import Overview, arm_title, show_ablation, show_comparison, show_estimate, show_rounds
from .refinement import ImproveConfig, Outcome, improve
from .rounds import RoundsConfig, Series, Work, run_rounds

__all__ = [
    "AblateConfig",
    "AppraiseConfig",
    "EvaluateConfig",
    "GateConfig",
    "ImproveConfig",
    "Outcome",
    "Overview",
    "RoundsConfig",
    "Series",
    "Work",
    "ablate",
    "appraise",
    "arm_title",
    "evaluate",
    "improve",
    "run_rounds",
    "show_ablation",
    "show_comparison",
    "show_estimate",
    "show_rounds",
]
