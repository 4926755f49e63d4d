"""The chance of policies that act in many episodes at once: every row draws from a generator of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from storage.schema import Array

_AHEAD = 64  # numbers that a row draws at once; a call of a generator costs as much as forty more numbers


class Chance(Sequence[np.random.Generator]):
    """One generator per row, whose uniform numbers are drawn ahead.

    What `uniforms` gives are the numbers that one `random()` of every row's generator would give at each call. The
    generators run ahead of it, so whoever uses it for a row draws nothing else from that row.
    """

    def __init__(self, rngs: Iterable[np.random.Generator]) -> None:
        self._rngs = list(rngs)
        self._drawn = np.empty((_AHEAD, len(self._rngs)))
        self._used = _AHEAD  # rows of `_drawn` that were given out; nothing is drawn before it is asked for

    def uniforms(self) -> Array:
        """One number in [0, 1) of every row, (N,) float64."""
        if self._used == _AHEAD:
            self._drawn = np.stack([rng.random(_AHEAD) for rng in self._rngs], axis=1)
            self._used = 0
        self._used += 1
        return self._drawn[self._used - 1]

    def renew(self, row: int, rng: np.random.Generator) -> None:
        """Give a row the generator of another episode."""
        self._rngs[row] = rng
        if self._used < _AHEAD:
            self._drawn[self._used :, row] = rng.random(_AHEAD - self._used)

    def drop(self, row: int) -> None:
        """Have a row less; those behind it move up."""
        del self._rngs[row]
        self._drawn = np.delete(self._drawn, row, axis=1)

    def __len__(self) -> int:
        return len(self._rngs)

    @overload
    def __getitem__(self, index: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.random.Generator]: ...
    def __getitem__(self, index: int | slice) -> np.random.Generator | list[np.random.Generator]:
        return self._rngs[index]


def draw_uniforms(rngs: Sequence[np.random.Generator]) -> Array:
    """One number in [0, 1) of every row's generator, (N,) float64."""
    return rngs.uniforms() if isinstance(rngs, Chance) else np.array([rng.random() for rng in rngs])
