"""Are critical steps special? How large advantages and TD errors are there, by a value function fitted to the rewards.

The value function is a ridge regression of the discounted return on the standardised state, its products of two and
the time that has passed, fitted on other episodes than it is used on. It is crude: what it says is evidence, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays

from .fitting import clustered_error, features_of, fit_numbers, fold_of
from .notes import Bools, Floats, Notes, state_rows

GAMMA = 0.99
MOST_ROWS = 200_000


@dataclass(frozen=True)
class Salience:
    """Size of |advantage| and |TD error| at critical steps, against the other steps of the same episodes."""

    critical: int  # critical labels
    advantage_ratio: float  # mean at critical steps / mean over all steps of the labelled episodes
    advantage_rank: float  # mean rank within the episode, 0.5 by chance
    td_ratio: float
    td_rank: float
    rank_error: float  # standard error of td_rank, by episodes
    explained: float  # share of the return's variance that the value function explains, out of fold


def measure_salience(notes: Notes, steps: StepArrays, gamma: float = GAMMA) -> Salience | None:
    """Compare critical steps with the others; None without two episodes or any critical label.

    advantage = G_t - V(s_t) with the discounted return G_t of the log; TD error = r_t + gamma V(s_t+1) - V(s_t), where
    V is 0 after a termination (Sutton and Barto, Reinforcement Learning, section 6.1).
    """
    rows = notes.rows[notes.critical]
    if not len(rows) or len(steps.episodes) < 2 or len(steps) > MOST_ROWS:
        return None
    returns = discounted_returns(steps, gamma)
    values = _fitted_values(steps, returns)
    acted = ~steps.is_final
    following = np.append(values[1:], 0.0) * ~steps.terminated
    advantages = np.abs(returns - values)
    errors = np.abs(steps.reward + gamma * following - values)
    inside = acted & np.isin(steps.episode_id, notes.episodes)
    ranks = _ranks_within_episodes(errors, steps, acted)[rows]
    return Salience(
        critical=len(rows),
        advantage_ratio=float(advantages[rows].mean() / advantages[inside].mean()),
        advantage_rank=float(_ranks_within_episodes(advantages, steps, acted)[rows].mean()),
        td_ratio=float(errors[rows].mean() / errors[inside].mean()),
        td_rank=float(ranks.mean()),
        rank_error=clustered_error(ranks, notes.episodes[notes.critical]),
        explained=float(1 - ((returns - values)[acted] ** 2).mean() / max(returns[acted].var(), 1e-12)),
    )


def discounted_returns(steps: StepArrays, gamma: float) -> Floats:
    """G_t = r_t + gamma G_t+1 within each episode, (N,); 0 on final rows."""
    returns = np.zeros(len(steps))
    for row in range(len(steps) - 2, -1, -1):
        if not steps.is_final[row]:
            returns[row] = steps.reward[row] + gamma * returns[row + 1]
    return returns


def _fitted_values(steps: StepArrays, returns: Floats) -> Floats:
    """V of every row, by fits on other episodes; final rows are predicted, not fitted."""
    states = np.column_stack([state_rows(steps), steps.step.astype(np.float64)])
    features = features_of(states)
    folds = fold_of(steps.episode_id)
    known = ~steps.is_final
    values = np.zeros(len(steps))
    for fold in range(folds.max() + 1):
        predict = fit_numbers(features[known & (folds != fold)], returns[known & (folds != fold), None])
        values[folds == fold] = predict(features[folds == fold])[:, 0]
    return values


def _ranks_within_episodes(sizes: Floats, steps: StepArrays, acted: Bools) -> Floats:
    """The mid-rank of each step among those of its episode, in (0, 1), (N,)."""
    ranks: NDArray[np.float64] = np.full(len(steps), np.nan)
    for start, length in zip(steps.starts.tolist(), steps.lengths.tolist(), strict=True):
        part = sizes[start : start + length]
        below = np.searchsorted(np.sort(part), part, side="left")
        upto = np.searchsorted(np.sort(part), part, side="right")
        ranks[start : start + length] = (below + upto) / 2 / max(length, 1)
    return np.where(acted, ranks, np.nan)
