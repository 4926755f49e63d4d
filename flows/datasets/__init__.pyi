from .collection import CollectConfig
from .recordings import export_dataset, gather, take_in

__all__ = ["CollectConfig", "export_dataset", "gather", "take_in"]
