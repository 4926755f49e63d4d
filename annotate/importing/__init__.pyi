from .labels import import_annotations
from .rules import import_rules

__all__ = ["import_annotations", "import_rules"]
