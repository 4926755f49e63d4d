from .ablation import AblateConfig, ablate
from .ablation_table import ablation_json, ablation_rows, ablation_sentences
from .arms import PLACEBOS, ArmDraw, Material, labels_of, list_draws, train_draw
from .comparison import GateConfig
from .evaluation import EvaluateConfig, evaluate
from .evaluator import Candidate
from .lineage import learner_versions
from .present import arm_title, comparison_json, comparison_rows, comparison_sentences
from .refinement import ImproveConfig, Outcome, gather_material, improve
from .rounds import RoundsConfig, Series, Work, run_rounds
from .rounds_table import rounds_json, rounds_rows, rounds_sentences

__all__ = [
    "PLACEBOS",
    "AblateConfig",
    "ArmDraw",
    "Candidate",
    "EvaluateConfig",
    "GateConfig",
    "ImproveConfig",
    "Material",
    "Outcome",
    "RoundsConfig",
    "Series",
    "Work",
    "ablate",
    "ablation_json",
    "ablation_rows",
    "ablation_sentences",
    "arm_title",
    "comparison_json",
    "comparison_rows",
    "comparison_sentences",
    "evaluate",
    "gather_material",
    "improve",
    "labels_of",
    "learner_versions",
    "list_draws",
    "rounds_json",
    "rounds_rows",
    "rounds_sentences",
    "run_rounds",
    "train_draw",
]
