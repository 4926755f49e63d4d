from .collection import CollectConfig
from .exports import export_dataset
from .recordings import gather, take_in

__all__ = ["CollectConfig", "export_dataset", "gather", "take_in"]
