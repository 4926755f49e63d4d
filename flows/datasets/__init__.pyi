from .collection import CollectConfig, collect
from .recordings import export_dataset, gather, take_in

__all__ = ["CollectConfig", "collect", "export_dataset", "gather", "take_in"]
