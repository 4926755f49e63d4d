"""The mean over training seeds and episodes at once, with an interval that knows that both were drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from storage.errors import BadInput

from .gate import CONFIDENCE, ROUNDING, Interval, interval


def interval_over_seeds(returns: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Estimate the mean return over all trainings and all episodes of which a few were drawn.

    Every training is judged on the same episodes, so the design is crossed and both are random effects. With `MS_t`,
    `MS_e` and `MS_r` the mean squares of trainings, episodes and the rest, the variance of the grand mean is estimated
    by `(MS_t + MS_e - MS_r) / (S * E)` (Searle, Casella and McCulloch, "Variance Components", 1992, ch. 4), never below
    the larger of its parts alone, and Student's t has Satterthwaite's degrees of freedom (Biometrics Bulletin 1946).
    A bootstrap of two to five trainings would be far too sure of itself.

    Args:
        returns: (S, E), one row per training seed, one column per episode seed.
        confidence: probability that the interval covers the true mean.

    Returns:
        The interval; `n` is E. With one training, or equal ones, it is that of `gate.interval` over the episodes.

    Raises:
        BadInput: for another shape, fewer than two episodes, or a return that is not finite.
    """
    table = np.asarray(returns, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise BadInput(f"Returns have shape {table.shape}; (trainings, episodes) is expected.")
    if np.ptp(table, axis=0).max() <= ROUNDING * max(1.0, float(np.abs(table).max())):
        return interval(table[0], confidence=confidence)
    if not np.isfinite(table).all():
        raise BadInput(f"{int((~np.isfinite(table)).sum())} of {table.size} returns are not finite numbers.")
    mean = float(table.mean())
    variance, freedom = _variance_of_mean(table)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half, table.shape[1])


def _variance_of_mean(table: np.ndarray) -> tuple[float, float]:
    """Variance of the grand mean of (S, E) returns, and its degrees of freedom."""
    seeds, episodes = table.shape
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + grand
    ms_rows = episodes * ((rows - grand) ** 2).sum() / (seeds - 1)
    ms_columns = seeds * ((columns - grand) ** 2).sum() / (episodes - 1)
    ms_rest = (rest**2).sum() / ((seeds - 1) * (episodes - 1))
    total = max(ms_rows, ms_columns, ms_rows + ms_columns - ms_rest)
    spread = ms_rows**2 / (seeds - 1) + ms_columns**2 / (episodes - 1) + ms_rest**2 / ((seeds - 1) * (episodes - 1))
    return float(total / (seeds * episodes)), float(total**2 / spread)
