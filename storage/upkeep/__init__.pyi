from .garbage import delete_garbage, find_garbage
from .verify import verify_store

__all__ = ["delete_garbage", "find_garbage", "verify_store"]
