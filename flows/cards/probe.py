"""Checks the claims of an environment card in the environment itself, so that its words are tested, not remembered.

It does not correct a card; it reports which claims held, with the numbers. Its experiments are wandering about, and the
same moment lived twice with different actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from annotate.cards import (
    Card,
    Claim,
    EffectClaim,
    LawClaim,
    RangeClaim,
    RateClaim,
    RewardClaim,
    TerminationClaim,
    check_card_against_spaces,
    evaluate,
)
from storage.errors import BadInput
from storage.schema import Array

from ..simulation import Environment, Named, admit, make_environment, spaces_of

_ROUNDING = 1e-6
_PATIENCE = 10  # moments tried per trial wanted
_LONGEST_HOLD = 30
_LONGEST_PREFIX = 60


@dataclass(frozen=True)
class Finding:
    """The result of testing one claim."""

    claim: Claim
    held: bool
    evidence: str


def probe_card(
    card: Card,
    *,
    env: Environment | None = None,
    env_id: Named | None = None,
    steps: int = 4000,
    trials: int = 40,
) -> list[Finding]:
    """Check every claim of a card.

    Args:
        card: the card; its spaces are compared first.
        env: the environment, closed afterwards; by default a fresh one of the card's id and arguments.
        env_id: the card's environment, if the user has to name it; see `trust.admit`.
        steps: random steps that ranges, rates, laws, rewards and terminations are checked on.
        trials: twin experiments per effect; a claim that finds less than half as many did not hold.

    Returns:
        One finding per claim, in the card's order.

    Raises:
        BadInput: if there is no such environment, it does not fit the card, or it cannot be replayed.
        Prerequisite: if the environment has to be named.
    """
    env = env or make_environment(*admit(f"The card of {card.env_id}", card.env_id, card.env_kwargs, env_id))
    try:
        check_card_against_spaces(card, *spaces_of(env))
        named = wander(env, steps=steps, resets=card.probe_resets).named(card)
        twins = {"random": Twins(env, wandered=True), "reset": Twins(env, wandered=False)}
        return [_probe(claim, card, named, twins, trials) for claim in card.claims]
    finally:
        env.close()


def _probe(claim: Claim, card: Card, named: Mapping[str, Array], twins: Mapping[str, Twins], trials: int) -> Finding:
    match claim:
        case EffectClaim():
            return _probe_effect(claim, card, twins[claim.prefix], trials)
        case RangeClaim():
            return _probe_range(claim, named)
        case RateClaim():
            return _probe_rate(claim, named)
        case LawClaim():
            return _probe_law(claim, named)
        case TerminationClaim():
            return _probe_termination(claim, named)
        case RewardClaim():
            return _probe_reward(claim, named)


def _probe_effect(claim: EffectClaim, card: Card, twins: Twins, trials: int) -> Finding:
    """The sign of the difference between holding one action and holding the other, from the same moments."""
    one, other = _held(claim, card)
    column = card.component_names.index(claim.component)
    differences: list[float] = []
    for trial in range(_PATIENCE * trials):
        if not _counts(claim, card, twins.moment(trial)):
            continue
        a, b = (twins.outcome(trial, action, steps=claim.steps) for action in (one, other))
        if a is not None and b is not None:
            differences.append(float(a[column] - b[column]))
        if len(differences) == trials:
            break
    return _judge_effect(claim, np.asarray(differences), trials)


def _held(claim: EffectClaim, card: Card) -> tuple[Array, Array]:
    if claim.dimension is None:
        indices = [card.action_names.index(str(name)) for name in (claim.action, claim.versus)]
        return np.asarray(indices[0]), np.asarray(indices[1])
    dimension = card.action_names.index(claim.dimension)
    acts = np.zeros((2, len(card.actions)))
    acts[:, dimension] = (claim.value, claim.versus)
    return acts[0], acts[1]


def _counts(claim: EffectClaim, card: Card, moment: Array | None) -> bool:
    if moment is None or claim.when is None:
        return moment is not None
    return bool(evaluate(claim.when, dict(zip(card.component_names, moment, strict=True))))


def _judge_effect(claim: EffectClaim, differences: NDArray[np.float64], trials: int) -> Finding:
    if 2 * len(differences) < trials:
        return Finding(claim, False, f"only {len(differences)} of the {trials} trials could be made")
    wanted = {"increases": 1, "decreases": -1, "keeps": 0}[claim.effect]
    agree = int(np.count_nonzero(np.sign(differences) == wanted))
    held = agree >= claim.share * len(differences)
    mean = float(np.mean(differences))
    return Finding(claim, held, f"in {agree} of {len(differences)} trials; mean difference {mean:+.4g}")


def _probe_range(claim: RangeClaim, named: Mapping[str, Array]) -> Finding:
    seen = np.concatenate([named[claim.component], named[f"next_{claim.component}"]])
    held = True
    if claim.low is not None:
        held &= bool(seen.min() >= claim.low - _ROUNDING)
    if claim.high is not None:
        held &= bool(seen.max() <= claim.high + _ROUNDING)
    if claim.values is not None:
        held &= set(np.unique(seen).tolist()) == set(claim.values)
    distinct = len(np.unique(seen))
    return Finding(claim, held, f"seen from {seen.min():.4g} to {seen.max():.4g}, {distinct} distinct values")


def _probe_rate(claim: RateClaim, named: Mapping[str, Array]) -> Finding:
    change = named[f"next_{claim.component}"] - named[claim.component]
    expected = claim.rate * np.stack([named[claim.follows], named[f"next_{claim.follows}"]])
    slack = claim.tolerance * np.abs(expected).max(axis=0) + _ROUNDING
    agree = (change >= expected.min(axis=0) - slack) & (change <= expected.max(axis=0) + slack)
    counted = _counted(claim.when, named)
    measured = claim.rate * _slope(expected[:, counted], change[counted])
    return _judge_share(claim, agree[counted], claim.share, f"measured rate {measured:.4g}")


def _slope(ends: NDArray[np.float64], change: NDArray[np.float64]) -> float:
    """The slope of `change` over the expected change: before the step, after it or between, as fits best."""
    fits: list[tuple[float, float]] = []
    for expected in (*ends, ends.mean(axis=0)):
        slope = float(np.sum(change * expected)) / max(float(np.sum(expected**2)), 1e-12)
        fits.append((float(np.sum((change - slope * expected) ** 2)), slope))
    return min(fits)[1]


def _probe_law(claim: LawClaim, named: Mapping[str, Array]) -> Finding:
    counted = _counted(claim.when, named)
    return _judge_share(claim, _truth(claim.holds, named)[counted], claim.share)


def _probe_reward(claim: RewardClaim, named: Mapping[str, Array]) -> Finding:
    counted = _counted(claim.when, named)
    error = np.abs(named["reward"] - evaluate(claim.equals, named))[counted]
    worst = f"largest difference {error.max():.3g}" if len(error) else ""
    return _judge_share(claim, error <= claim.tolerance, claim.share, worst)


def _probe_termination(claim: TerminationClaim, named: Mapping[str, Array]) -> Finding:
    ended = named["terminated"].astype(np.bool_)
    if claim.never:
        return Finding(claim, not ended.any(), f"{ended.sum()} of {len(ended)} steps terminated")
    predicted = _truth(claim.exactly or claim.whenever or "", named)
    wrong = predicted & ~ended if claim.whenever else predicted != ended
    numbers = f"predicted {predicted.sum()}, terminated {ended.sum()}, wrong {wrong.sum()} of {len(ended)} steps"
    return Finding(claim, bool(predicted.any()) and not wrong.any(), numbers)


def _judge_share(claim: Claim, agree: NDArray[np.bool_], share: float, more: str = "") -> Finding:
    if len(agree) == 0:
        return Finding(claim, False, "it never came up")
    numbers = f"on {np.count_nonzero(agree)} of {len(agree)} steps"
    return Finding(claim, bool(agree.mean() >= share), f"{numbers}; {more}" if more else numbers)


def _counted(when: str | None, named: Mapping[str, Array]) -> NDArray[np.bool_]:
    return np.ones(len(named["reward"]), dtype=np.bool_) if when is None else _truth(when, named)


def _truth(expression: str, named: Mapping[str, Array]) -> NDArray[np.bool_]:
    value = evaluate(expression, named).astype(np.bool_)
    return np.broadcast_to(value, named["reward"].shape)


@dataclass(frozen=True)
class Steps:
    """Single steps from many episodes, N in all."""

    before: NDArray[np.float64]  # (N, n) observations
    after: NDArray[np.float64]  # (N, n) observations
    actions: NDArray[np.float64]  # (N,) index of the action when discrete, else (N, m)
    rewards: NDArray[np.float64]  # (N,)
    terminated: NDArray[np.bool_]  # (N,)

    def named(self, card: Card) -> dict[str, Array]:
        """The values that a card's expressions use, (N,) each."""
        before = dict(zip(card.component_names, self.before.T, strict=True))
        after = {f"next_{name}": column for name, column in zip(card.component_names, self.after.T, strict=True)}
        if card.is_discrete:
            acts = {f"action_{name}": self.actions == index for index, name in enumerate(card.action_names)}
        else:
            acts = {f"action_{name}": self.actions[:, index] for index, name in enumerate(card.action_names)}
        acts = {name: column.astype(np.float64) for name, column in acts.items()}
        return before | after | acts | {"reward": self.rewards, "terminated": self.terminated}


def wander(env: Environment, *, steps: int, resets: Sequence[Mapping[str, Any]] = ()) -> Steps:
    """Act at random for a number of steps, in episodes of seeds 0, 1, 2, ...

    Every other episode holds each random action for up to 30 steps, which reaches more states.

    Args:
        env: the environment.
        steps: number of steps; the last episode is cut there.
        resets: options of reset, each used in turn with the plain reset.
    """
    rows: list[tuple[Array, Array, Array, float, bool]] = []
    episode = 0
    while len(rows) < steps:
        options = (None, *resets)[episode % (len(resets) + 1)]
        hold = _LONGEST_HOLD if episode // (len(resets) + 1) % 2 else 1
        rows += list(_episode(env, episode, options, hold, limit=steps - len(rows)))
        episode += 1
    before, after, actions, rewards, terminated = zip(*rows, strict=True)
    flat = [np.stack(part).reshape(len(rows), -1).astype(np.float64) for part in (before, after, actions)]
    acts = flat[2][:, 0] - _start(env) if _is_discrete(env) else flat[2]
    return Steps(flat[0], flat[1], acts, np.asarray(rewards, dtype=np.float64), np.asarray(terminated, dtype=np.bool_))


class Twins:
    """The same moment again and again, with different actions after it.

    Trial i resets with seed i and takes up to 60 random actions; the environment is deterministic given both, so that
    any difference afterwards is due to the action. Every outcome is played once and remembered.

    Args:
        env: the environment.
        wandered: whether random actions come first; otherwise the moment is right after the reset.
    """

    def __init__(self, env: Environment, *, wandered: bool) -> None:
        self._env = env
        self._wandered = wandered
        self._moments: dict[int, Array | None] = {}
        self._outcomes: dict[tuple[int, int, bytes], Array | None] = {}

    def moment(self, trial: int) -> Array | None:
        """The observation of a moment, (n,); None if the episode was over before."""
        if trial not in self._moments:
            self._moments[trial] = self._live_until(trial)
        return self._moments[trial]

    def outcome(self, trial: int, action: Array, *, steps: int) -> Array | None:
        """The observation after holding an action, (n,); None if the episode ended on the way.

        Args:
            trial: number of the moment.
            action: what is held: () for a discrete action's index, (m,) for a continuous one.
            steps: for how many steps.

        Raises:
            BadInput: if the moment is not the one seen before, so that nothing can be compared.
        """
        key = (trial, steps, action.tobytes())
        if key not in self._outcomes:
            self._outcomes[key] = self._live_on(trial, action, steps)
        return self._outcomes[key]

    def _live_until(self, trial: int) -> Array | None:
        env, rng = self._env, np.random.default_rng([trial, 1])
        observation, _ = env.reset(seed=trial)
        for action in _acts(env, rng, hold=8, count=int(rng.integers(_LONGEST_PREFIX)) if self._wandered else 0):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return None
        return _flat(observation)

    def _live_on(self, trial: int, action: Array, steps: int) -> Array | None:
        moment, again = self.moment(trial), self._live_until(trial)
        if moment is None or again is None:
            return None
        if not np.array_equal(moment, again):
            raise BadInput("The environment cannot be replayed: the same seed and actions led to two different states.")
        observation: Any = moment
        for _ in range(steps):
            observation, _, terminated, truncated, _ = self._env.step(_native(self._env, action))
            if terminated or truncated:
                return None
        return _flat(observation)


def _episode(
    env: Environment, seed: int, options: Mapping[str, Any] | None, hold: int, *, limit: int
) -> Iterator[tuple[Array, Array, Array, float, bool]]:
    before, _ = env.reset(seed=seed, options=None if options is None else dict(options))
    for action in _acts(env, np.random.default_rng([seed, 0]), hold=hold, count=limit):
        after, reward, terminated, truncated, _ = env.step(action)
        yield np.array(before), np.array(after), np.array(action), float(reward), bool(terminated)
        if terminated or truncated:
            return
        before = np.array(after)


def _acts(env: Environment, rng: np.random.Generator, *, hold: int, count: int) -> Iterator[Any]:
    """`count` actions: each drawn uniformly and held for 1 to `hold` steps."""
    left, action = 0, None
    for _ in range(count):
        if left == 0:
            left, action = int(rng.integers(1, hold + 1)), _draw(env, rng)
        left -= 1
        yield action


def _draw(env: Environment, rng: np.random.Generator) -> Any:
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.start + rng.integers(space.n)
    if isinstance(space, gymnasium.spaces.Box):
        low, high = np.nan_to_num(space.low, neginf=-1.0), np.nan_to_num(space.high, posinf=1.0)
        return rng.uniform(low, high).astype(space.dtype)
    raise BadInput(f"Actions of the kind {type(space).__name__} are not supported; only Box and Discrete are.")


def _native(env: Environment, action: Array) -> Any:
    """An action as the environment takes it, from a discrete action's index or a vector."""
    native = action.astype(env.action_space.dtype)
    return native + _start(env) if _is_discrete(env) else native


def _is_discrete(env: Environment) -> bool:
    return isinstance(env.action_space, gymnasium.spaces.Discrete)


def _start(env: Environment) -> int:
    return int(env.action_space.start) if isinstance(env.action_space, gymnasium.spaces.Discrete) else 0


def _flat(observation: Any) -> NDArray[np.float64]:
    return np.asarray(observation, dtype=np.float64).reshape(-1)
