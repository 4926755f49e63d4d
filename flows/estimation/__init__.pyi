from .appraisal import AppraiseConfig
from .estimate import appraise
from .present import estimate_json, estimate_rows, estimate_sentences

__all__ = ["AppraiseConfig", "appraise", "estimate_json", "estimate_rows", "estimate_sentences"]
