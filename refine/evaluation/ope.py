"""What policies are worth, estimated from logged steps alone: fitted Q evaluation, refitted on resampled episodes.

Also what an estimate may claim: its interval and the two verdicts without a simulator. Nothing is played and no learner
is loaded, and every sentence says so: an estimate is never `accepted`, and where it speaks of better it says `estimated
better`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second
from numpy.typing import NDArray
from pydantic import Field

from storage.datasets import ENOUGH_ROWS, StepArrays, choose_rows
from storage.errors import BadInput
from storage.schema import Array, Frozen

from ..policies import MlpPolicy, Mode, network_inputs
from ..training import in_network_units
from .gate import CONFIDENCE, Interval, Verdict

Floats = NDArray[np.float64]
CAVEAT = (
    "an estimate from logged steps, not played; its intervals cover the chance of which episodes were logged,"
    " not the error for actions that were never logged"
)


class OpeConfig(Frozen):
    """How much work an estimate takes."""

    gamma: float = Field(default=0.99, gt=0, lt=1, description="discount per step; the estimate is of this return")
    resamples: int = Field(default=20, ge=5, description="refits on resampled episodes, from which the intervals come")
    features: int = Field(default=128, ge=8, description="random features of the Q function, for every action")
    ridge: float = Field(default=0.01, gt=0, description="ridge penalty, relative to a feature's mean size")
    transitions: int = Field(default=20_000, ge=100, description="largest number of transitions in one refit")
    seed: int = Field(default=0, ge=0, description="of the resampling and of the features")


@dataclass(frozen=True)
class Estimate:
    """What a policy is worth as far as the log can tell."""

    value: float  # mean discounted return from the logged starts
    refits: Floats  # (K,) the same from K resamples of the episodes; refit k of any policy has the same episodes
    support: (
        float  # share of logged steps at which the policy would most likely take the logged action; nan if continuous
    )
    episodes: int  # behind it

    @property
    def interval(self) -> Interval:
        """The value with its interval."""
        return estimated_interval(self.value, self.refits, self.episodes)


def estimated_interval(value: float, refits: Floats, episodes: int) -> Interval:
    """A bootstrap interval from few refits: Student's t around the value, with the refits' spread.

    Raises:
        BadInput: for fewer than two refits.
    """
    if len(refits) < 2:
        raise BadInput(f"{len(refits)} refits have no spread; at least 2 are needed.")
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(refits) - 1) * refits.std(ddof=1))
    return Interval(value, value - half, value + half, episodes)


def estimated_gain(policy: Estimate, other: Estimate) -> Interval:
    """What a policy is estimated to be ahead of another, refit by refit on the same episodes."""
    return estimated_interval(policy.value - other.value, policy.refits - other.refits, policy.episodes)


def judge_estimated_improvement(policy: Estimate, baseline: Estimate) -> Verdict:
    """First verdict: is the policy estimated to be better than the baseline?"""
    gain = estimated_gain(policy, baseline)
    if gain.is_above_zero:
        return Verdict("yes", f"estimated better than the baseline by {gain} (not played)", {"baseline": gain})
    reason = f"not estimated better than the baseline: {gain} does not lie above zero (not played)"
    return Verdict("not shown", reason, {"baseline": gain})


def judge_estimated_labels(policy: Estimate, placebos: Mapping[str, Sequence[Estimate]]) -> Verdict:
    """Second verdict: are the labels estimated to have done it, that is, better than every draw of every placebo?

    The estimate must also lie above the one-sided 95% prediction bound for one more draw of each placebo that was drawn
    several times (Hahn and Meeker, "Statistical Intervals", 1991): an estimate of one policy is no rank.

    Raises:
        BadInput: without a placebo.
    """
    if not placebos:
        raise BadInput("Without a placebo arm nothing can be said about the labels.")
    differences = {
        arm if len(draws) == 1 else f"{arm} {number}": estimated_gain(policy, draw)
        for arm, draws in placebos.items()
        for number, draw in enumerate(draws, start=1)
    }
    beaten = sum(difference.is_above_zero for difference in differences.values())
    closest = min(differences, key=lambda arm: differences[arm].low)
    evidence = (
        f"estimated better than {beaten} of {len(differences)} placebos; "
        f"the closest one is {closest}, behind by {differences[closest]} (not played)"
    )
    in_reach = [arm for arm, draws in placebos.items() if _next_draw(draws) >= policy.value]
    if beaten == len(differences) and not in_reach:
        return Verdict("yes", f"the labels are estimated to have done it: {evidence}", differences)
    if beaten == len(differences):
        evidence += f"; but its draws leave open that another {in_reach[0]} one reaches as much"
    return Verdict("not shown", f"the labels are not estimated to have done it: {evidence}", differences)


def _next_draw(draws: Sequence[Estimate]) -> float:
    """The estimate that one more draw exceeds with probability 0.05; a single draw tells nothing beyond itself."""
    values = np.array([draw.value for draw in draws])
    if len(values) < 2:
        return float(values.mean())
    spread = float(values.std(ddof=1)) * np.sqrt(1 + 1 / len(values))
    return float(values.mean() + scipy.stats.t.ppf(CONFIDENCE, len(values) - 1) * spread)


MINIMUM_EPISODES = 5
"""Resampling fewer episodes than this says nothing about the next ones."""
_ACTION_SAMPLES = 4  # next actions per step of a continuous policy that is drawn from
CHUNK = 65_536  # observations per call of a policy; bounds the memory
_OUTLIER = 5.0  # standard deviations at which an input is cut
_LINEAR = 0.1  # size of the plain inputs beside the random features


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
        features = _features(log, log.inputs(log.rows), in_network_units(steps.action[log.rows], policy.action_space))
    expected = _expected_features(log, steps, policy, following, mode)
    weighted = features * log.weights[:, None]
    matrix = weighted.T @ (features - discounts[:, None] * expected)
    matrix[np.diag_indices_from(matrix)] += config.ridge * log.weights.sum() / matrix.shape[0]
    solution = np.linalg.solve(matrix, weighted.T @ steps.reward[log.rows])
    first = _in_chunks(lambda rows: _expected_features(log, steps, policy, rows, mode) @ solution, log.starts)
    return float(np.average(np.clip(first, *log.bounds), weights=log.start_weights))


def _features(log: _Log, inputs: Floats, actions: Array | None = None) -> Floats:
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
    rng, seen = np.random.default_rng(0), steps.observation[rows]

    def act(chunk: Array) -> Array:
        return policy.act(chunk, mode=mode, rngs=[rng] * len(chunk)).actions

    actions = (in_network_units(_in_chunks(act, seen), policy.action_space) for _ in range(draws))
    return np.mean([_features(log, log.inputs(rows), drawn) for drawn in actions], axis=0)


def _one_hot(actions: Array, count: int) -> Floats:
    return np.eye(count)[actions]


def _chances(policy: MlpPolicy, observations: Array, mode: Mode) -> Floats:
    """Probability of every discrete action, (B, k)."""
    outputs = _in_chunks(policy.forward, observations).astype(np.float64)
    if mode == "greedy" or not policy.is_stochastic:
        return _one_hot(outputs.argmax(axis=1), outputs.shape[1])
    weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _in_chunks(ask: Callable[[Array], Array], observations: Array) -> Array:
    """What a policy says, of so many observations at a time."""
    chunks = range(0, len(observations), CHUNK)
    return np.concatenate([ask(observations[start : start + CHUNK]) for start in chunks])


def _support(steps: StepArrays, policy: MlpPolicy) -> float:
    """How much of the log the policy would repeat; the rest of its estimate is extrapolation."""
    if not policy.action_space.is_discrete:
        return float("nan")
    rows = choose_rows(np.flatnonzero(~steps.is_final), ENOUGH_ROWS)
    chosen = _in_chunks(policy.forward, steps.observation[rows]).argmax(axis=1) + policy.action_space.start
    return float(np.mean(chosen == steps.action[rows]))
