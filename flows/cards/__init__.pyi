from .draft import card_path, write_draft
from .probe import probe_card

__all__ = ["card_path", "probe_card", "write_draft"]
