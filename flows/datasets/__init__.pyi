from .collection import CollectConfig, collect, gather
from .recordings import export_dataset, take_in

__all__ = ["CollectConfig", "collect", "export_dataset", "gather", "take_in"]
