from .answers import FileProvider, RecordedProvider, export_requests, parse_result
from .anthropic import AnthropicProvider, read_key
from .batch import (
    MOST_BYTES,
    RESULTS_KEPT_DAYS,
    BatchServer,
    BrokenOffError,
    NothingCreatedError,
    NotThereError,
    OutcomeUnknownError,
    RemoteBatch,
    ServerBusyError,
)
from .protocol import Late, Limited, Provider, Reply, Threaded, Written

__all__ = [
    "MOST_BYTES",
    "RESULTS_KEPT_DAYS",
    "AnthropicProvider",
    "BatchServer",
    "BrokenOffError",
    "FileProvider",
    "Late",
    "Limited",
    "NotThereError",
    "NothingCreatedError",
    "OutcomeUnknownError",
    "Provider",
    "RecordedProvider",
    "RemoteBatch",
    "Reply",
    "ServerBusyError",
    "Threaded",
    "Written",
    "export_requests",
    "parse_result",
    "read_key",
]
