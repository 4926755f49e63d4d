from .labels import import_annotations
from .reviews import ReviewSummary, import_labels
from .rules import import_rules

__all__ = ["ReviewSummary", "import_annotations", "import_labels", "import_rules"]
