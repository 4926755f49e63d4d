from .images import COLUMNS, FrameSource
from .requests import MOST_UNSTREAMED_TOKENS, AnnotateConfig, Question, Request, RequestBuilder
from .selection import Method, select_episodes, spread_by_return
from .statistics import describe_dataset
from .tables import label_vector
from .templates import Kind, prompt_version

__all__ = [
    "COLUMNS",
    "MOST_UNSTREAMED_TOKENS",
    "AnnotateConfig",
    "FrameSource",
    "Kind",
    "Method",
    "Question",
    "Request",
    "RequestBuilder",
    "describe_dataset",
    "label_vector",
    "prompt_version",
    "select_episodes",
    "spread_by_return",
]
