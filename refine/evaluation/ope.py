"""What policies are worth, estimated from logged steps alone: fitted Q evaluation, refitted on resampled episodes.

It computes; what an estimate may claim is in `estimates.py`. Nothing is played and no learner is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.datasets import ENOUGH_ROWS, StepArrays, choose_rows
from storage.errors import BadInput
from storage.schema import Array

from ..policies import MlpPolicy, Mode, action_units, network_inputs
from .estimates import Estimate, OpeConfig

Floats = NDArray[np.float64]
MINIMUM_EPISODES = 5
"""Resampling fewer episodes than this says nothing about the next ones."""
_ACTION_SAMPLES = 4  # next actions per step of a continuous policy that is drawn from
_CHUNK = 65_536  # observations per call of a policy; bounds the memory
_OUTLIER = 5.0  # standard deviations at which an input is cut
_LINEAR = 0.1  # size of the plain inputs beside the random features


def estimate(
    steps: StepArrays, policies: Sequence[MlpPolicy], config: OpeConfig | None = None, *, mode: Mode = "greedy"
) -> list[Estimate]:
    """Estimate policies in this process; see `refit` for the method.

    Raises:
        BadInput: for fewer than 5 episodes.
    """
    config = config or OpeConfig()
    check_episodes(steps)
    refits = [refit(steps, policies, config, mode, number) for number in range(config.resamples)]
    return collect_refits(steps, policies, refits)


def check_episodes(steps: StepArrays) -> None:
    """Refuse a log that is too short to be resampled.

    Raises:
        BadInput: for fewer than 5 episodes.
    """
    if len(steps.episodes) < MINIMUM_EPISODES:
        raise BadInput(
            f"{len(steps.episodes)} episodes are too few to estimate from; at least {MINIMUM_EPISODES} are needed."
        )


def collect_refits(steps: StepArrays, policies: Sequence[MlpPolicy], refits: Sequence[Floats]) -> list[Estimate]:
    """Estimates from the results of `refit`, one per policy; the value is the median over the refits (bagging)."""
    values = np.array(refits)
    return [
        Estimate(float(np.median(values[:, place])), values[:, place], _support(steps, policy), len(steps.episodes))
        for place, policy in enumerate(policies)
    ]


def refit(steps: StepArrays, policies: Sequence[MlpPolicy], config: OpeConfig, mode: Mode, number: int) -> Floats:
    """Evaluate policies on one resample of the episodes, (P,).

    Fitted Q evaluation (Le, Voloshin and Yue, "Batch Policy Learning under Constraints", ICML 2019) regresses a Q
    function on `r + gamma * E_pi Q(s', .)` over logged transitions until it stays what it is. Here the Q function is
    linear in random cosine features of the state (Rahimi and Recht, NIPS 2007), with weights of its own for every
    discrete action, and what it converges to is solved for at once: `(Phi'(Phi - gamma Phi_pi) + ridge) theta = Phi' r`
    (Lagoudakis and Parr, JMLR 2003; Duan, Jia and Wang, ICML 2020). That makes room for refitting everything:
    resample k has episodes drawn with replacement (Hao et al., ICML 2021) and features of its own. Only a termination
    ends the bootstrap: an episode that was cut goes on from its final observation.

    The spread over the resamples contains that other episodes might have been logged, and the chance of the features.
    It does not contain the error that all of them share: actions that nobody logged, the features' form, the ridge, and
    a world that has changed since. Of a large log the units of the states come from a million rows, evenly spread.

    Args:
        steps: logged steps.
        policies: to be evaluated, all for the log's spaces.
        config: discount, features and seed.
        mode: how the policies act.
        number: of the resample; equal numbers have equal episodes and features.

    Returns:
        Mean discounted return from the resampled episodes' first states, kept within what logged rewards allow.
    """
    rng = np.random.default_rng([config.seed, 0x09E, number])
    drawn = np.bincount(rng.integers(0, len(steps.episodes), len(steps.episodes)), minlength=len(steps.episodes))
    log = _gather(steps, policies[0], drawn, config, rng)
    return np.array([_evaluate(steps, policy, log, config, mode) for policy in policies])


class _Log(NamedTuple):
    """One resample of the log: R transitions, and the random features of states."""

    rows: NDArray[np.int64]  # (R,)
    weights: Floats  # (R,) how often each was drawn
    inputs: Callable[[NDArray[np.int64]], Floats]  # the standardised states of rows (B,), (B, n)
    directions: Floats  # (n, D), or (n + m, D) when actions are continuous
    phases: Floats  # (D,)
    starts: NDArray[np.int64]  # first rows of the drawn episodes
    start_weights: Floats
    bounds: tuple[float, float]  # of a discounted return


def _gather(
    steps: StepArrays, policy: MlpPolicy, drawn: NDArray[np.int64], config: OpeConfig, rng: np.random.Generator
) -> _Log:
    some = network_inputs(steps.observation[:: 1 + len(steps) // ENOUGH_ROWS], policy.observation_space)
    some = some.astype(np.float64)
    mean, spread = some.mean(axis=0), some.std(axis=0)
    unit = np.where(spread > 1e-6, spread, 1.0)

    def inputs(rows: NDArray[np.int64]) -> Floats:
        seen = network_inputs(steps.observation[rows], policy.observation_space).astype(np.float64)
        return np.clip((seen - mean) / unit, -_OUTLIER, _OUTLIER)

    rows, episodes = _draw_rows(steps, drawn, config.transitions, rng)
    width = some.shape[1] + (0 if policy.action_space.is_discrete else policy.action_space.size)
    horizon = 1 / (1 - config.gamma)
    return _Log(
        rows=rows,
        weights=drawn[episodes].astype(np.float64),
        inputs=inputs,
        directions=rng.standard_normal((width, config.features)) / np.sqrt(width),
        phases=rng.uniform(0, 2 * np.pi, config.features),
        starts=steps.starts[drawn > 0],
        start_weights=drawn[drawn > 0].astype(np.float64),
        bounds=(min(0.0, float(steps.reward.min())) * horizon, max(0.0, float(steps.reward.max())) * horizon),
    )


def _draw_rows(
    steps: StepArrays, drawn: NDArray[np.int64], most: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most so many rows of the steps of drawn episodes, ascending, and the place of the episode of each."""
    lengths = np.where(drawn > 0, steps.lengths, 0)
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    places = np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))
    episodes = np.searchsorted(ends, places, side="right")
    return steps.starts[episodes] + places - (ends - lengths)[episodes], episodes


def _evaluate(steps: StepArrays, policy: MlpPolicy, log: _Log, config: OpeConfig, mode: Mode) -> float:
    following = log.rows + 1
    discounts = config.gamma * ~steps.terminated[log.rows]
    if policy.action_space.is_discrete:
        logged = _one_hot(steps.action[log.rows] - policy.action_space.start, int(policy.action_space.n or 1))
        features = _spread(_features(log, log.inputs(log.rows)), logged)
    else:
        features = _features(log, log.inputs(log.rows), _in_units(steps.action[log.rows], policy))
    expected = _expected_features(log, steps, policy, following, mode)
    weighted = features * log.weights[:, None]
    matrix = weighted.T @ (features - discounts[:, None] * expected)
    matrix[np.diag_indices_from(matrix)] += config.ridge * log.weights.sum() / matrix.shape[0]
    solution = np.linalg.solve(matrix, weighted.T @ steps.reward[log.rows])
    parts = (log.starts[start : start + _CHUNK] for start in range(0, len(log.starts), _CHUNK))
    first = np.concatenate([_expected_features(log, steps, policy, part, mode) @ solution for part in parts])
    return float(np.average(np.clip(first, *log.bounds), weights=log.start_weights))


def _features(log: _Log, inputs: Floats, actions: Floats | None = None) -> Floats:
    """Random cosines, a constant, and the plain inputs, (B, D + 1 + n)."""
    inputs = inputs if actions is None else np.concatenate([inputs, actions], axis=1)
    cosines = np.cos(inputs @ log.directions + log.phases) * np.sqrt(2 / len(log.phases))
    return np.concatenate([cosines, np.ones((len(inputs), 1)), _LINEAR * inputs], axis=1)


def _spread(features: Floats, chances: Floats) -> Floats:
    """Features in the block of each action, by its probability, (B, k * d)."""
    return (chances[:, :, None] * features[:, None, :]).reshape(len(features), -1)


def _expected_features(log: _Log, steps: StepArrays, policy: MlpPolicy, rows: NDArray[np.int64], mode: Mode) -> Floats:
    """Features of states and what the policy does there; of a continuous one that is drawn from, over a few draws."""
    if policy.action_space.is_discrete:
        return _spread(_features(log, log.inputs(rows)), _chances(policy, steps.observation[rows], mode))
    draws = _ACTION_SAMPLES if mode == "sampled" and policy.is_stochastic else 1
    rng = np.random.default_rng(0)
    found = [
        _features(log, log.inputs(rows), _in_units(_act(policy, steps.observation[rows], mode, rng), policy))
        for _ in range(draws)
    ]
    return np.mean(found, axis=0)


def _in_units(actions: Array, policy: MlpPolicy) -> Floats:
    middle, half = action_units(policy.action_space)
    return ((actions - middle) / half).astype(np.float64)


def _one_hot(actions: Array, count: int) -> Floats:
    return np.eye(count)[actions]


def _chances(policy: MlpPolicy, observations: Array, mode: Mode) -> Floats:
    """Probability of every discrete action, (B, k)."""
    outputs = _outputs(policy, observations).astype(np.float64)
    if mode == "greedy" or not policy.is_stochastic:
        return _one_hot(outputs.argmax(axis=1), outputs.shape[1])
    weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _act(policy: MlpPolicy, observations: Array, mode: Mode, rng: np.random.Generator) -> Array:
    chunks = [observations[start : start + _CHUNK] for start in range(0, len(observations), _CHUNK)]
    return np.concatenate([policy.act(chunk, mode=mode, rngs=[rng] * len(chunk)).actions for chunk in chunks])


def _outputs(policy: MlpPolicy, observations: Array) -> Array:
    chunks = range(0, len(observations), _CHUNK)
    return np.concatenate([policy.forward(observations[start : start + _CHUNK]) for start in chunks])


def _support(steps: StepArrays, policy: MlpPolicy) -> float:
    """How much of the log the policy would repeat; the rest of its estimate is extrapolation."""
    if not policy.action_space.is_discrete:
        return float("nan")
    rows = choose_rows(np.flatnonzero(~steps.is_final), ENOUGH_ROWS)
    chosen = _outputs(policy, steps.observation[rows]).argmax(axis=1) + policy.action_space.start
    return float(np.mean(chosen == steps.action[rows]))
