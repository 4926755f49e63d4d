from .pull import pull_store
from .push import push_store
from .remote import local_copy
from .snapshots import export_tables

__all__ = ["export_tables", "local_copy", "pull_store", "push_store"]
