"""How much of the long checks runs: all of it with TRAJNOTE_SOAK=1 (`make soak`), else a part spread over it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

Case = TypeVar("Case")

SOAK = os.environ.get("TRAJNOTE_SOAK", "0") not in ("", "0")


def full_or(full: int, short: int) -> int:
    """The first number in a soak, else the second."""
    return full if SOAK else short


def every(cases: Sequence[Case], n: int) -> Sequence[Case]:
    """All cases in a soak, else each n-th, the first one included."""
    return cases if SOAK else cases[::n]


in_soak = pytest.mark.skipif(not SOAK, reason="runs in make soak")
"""For a test or a case whose promise is held by a shorter one, too."""
