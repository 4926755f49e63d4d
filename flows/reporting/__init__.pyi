from .figures import draw_figures
from .page import write_report
from .review import WrittenReview, write_review
from .status import draw, look, watch
from .tracking import enter_run, load_tracker

__all__ = [
    "WrittenReview",
    "draw",
    "draw_figures",
    "enter_run",
    "load_tracker",
    "look",
    "watch",
    "write_report",
    "write_review",
]
