"""Losses of a training as d3rlpy's own loggers write them: CSV files, and events for TensorBoard.

The events need tensorboardX. Nothing is logged by default. Whole models are not kept here; candidates are.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .d3rlpy_setup import (
    CombineAdapterFactory,
    FileAdapterFactory,
    LoggerAdapterFactory,
    NoopAdapterFactory,
    TensorboardAdapterFactory,
)


@dataclass(frozen=True)
class TrainingLogger:
    """Where one training is logged."""

    factory: LoggerAdapterFactory
    name: str  # d3rlpy appends the time


def training_logger(log_dir: Path | None, name: str) -> TrainingLogger:
    """The logger of one training.

    Args:
        log_dir: `NAME_TIME/*.csv` and `runs/NAME_TIME` go there; None logs nothing.
        name: of the training.
    """
    if log_dir is None:
        return TrainingLogger(NoopAdapterFactory(), name)
    factories: list[LoggerAdapterFactory] = [FileAdapterFactory(str(log_dir))]
    if importlib.util.find_spec("tensorboardX"):
        factories.append(TensorboardAdapterFactory(str(log_dir)))
    return TrainingLogger(CombineAdapterFactory(factories), name)
