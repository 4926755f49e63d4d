from .feedback import Copied, Measured, PlayedList, describe_feedback
from .rendering import Kind, label_vector, prompt_version, render_playbook, render_rows, with_action_indices
from .requests import COLUMNS, MOST_UNSTREAMED_TOKENS, AnnotateConfig, FrameSource, Question, Request, RequestBuilder
from .selection import Method, describe_dataset, select_episodes, spread_by_return

__all__ = [
    "COLUMNS",
    "MOST_UNSTREAMED_TOKENS",
    "AnnotateConfig",
    "Copied",
    "FrameSource",
    "Kind",
    "Measured",
    "Method",
    "PlayedList",
    "Question",
    "Request",
    "RequestBuilder",
    "describe_dataset",
    "describe_feedback",
    "label_vector",
    "prompt_version",
    "render_playbook",
    "render_rows",
    "select_episodes",
    "spread_by_return",
    "with_action_indices",
]
