"""Plays episodes: many environments side by side, one batched policy call per tick, a seed per episode.

An episode depends only on its environment, policy, seed and mode, not on how many run beside it or what ran before.
Processes are in `workers.py`; files in `flows/datasets/collection.py`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import numpy as np

from refine.policies import Acts, EpisodeGenerators, Mode, Past
from storage.errors import BadInput, TrajnoteWarning
from storage.schema import Array, Episode, Space

from .actors import Actor, Crowd, choose
from .complaints import BrokenPromiseError, broken, complaint, describe_raised
from .environments import (
    Environment,
    Step,
    are_finite,
    bare_step,
    describe_rounding,
    first_observation,
    not_finite,
    plain_observation,
    plain_reward,
    spaces_of,
)
from .trust import Named

ENVIRONMENTS = 64
MAKING_S = 0.05
"""Seconds for making more environments: what is slow to make is slow to step, and gains little by company."""
LONGEST = 200_000
"""The most steps of an episode that neither its environment nor `max_steps` limits."""
_FLOATS = (float, np.float64)
_FIRST_CAPACITY = 256
_ACTING = 0x7261  # keeps a policy's random numbers apart from its environment's, which has the bare seed


Say = Callable[[str], None]


class Progress(NamedTuple):
    """How far episodes are that are played side by side."""

    ended: int
    running: int
    nbytes: int  # of all their steps

    @property
    def episodes(self) -> float:
        """What has been played, in whole episodes: on average half of each running one."""
        return self.ended + self.running / 2


Acting_co = TypeVar("Acting_co", bound=Actor | Crowd, covariant=True)


class Playing(NamedTuple, Generic[Acting_co]):
    """Episodes to play: in which environment, by which policy, on which seeds, and how."""

    env_id: Named  # as for `make_environment`
    env_kwargs: Mapping[str, Any]
    policy: Acting_co
    seeds: Sequence[int]  # one per episode, for `reset(seed=...)` and for the policy's own chance
    mode: Mode = "greedy"
    max_steps: int | None = None  # cut longer episodes there, as truncated; None leaves it to the environment
    first_id: int = 0  # `episode_id` of the first seed; the next ones count up
    envs: int = ENVIRONMENTS  # side by side at most; never changes an episode

    @property
    def options(self) -> dict[str, Any]:
        """What `rollout` and `play` are given alike."""
        return {"mode": self.mode, "max_steps": self.max_steps, "first_id": self.first_id}

    def after(self, done: int) -> Playing[Acting_co]:
        """The episodes after the first ones."""
        return self._replace(seeds=self.seeds[done:], first_id=self.first_id + done)

    def pieces(self, size: int) -> list[Playing[Acting_co]]:
        """All episodes, some at a time."""
        return [
            self._replace(seeds=self.seeds[start : start + size], first_id=self.first_id + start)
            for start in range(0, len(self.seeds), size)
        ]


Enough = Callable[[Progress], bool]
"""Asked before a lane begins another episode; if it is true, no further one begins."""


def warn_of(sentence: str) -> None:
    """Say it as a warning of this project."""
    warnings.warn(sentence, TrajnoteWarning, stacklevel=2)


def rollout(
    make_env: Callable[[], Environment],
    policy: Actor,
    seeds: Sequence[int],
    *,
    mode: Mode = "greedy",
    envs: int = ENVIRONMENTS,
    max_steps: int | None = None,
    first_id: int = 0,
    making_s: float = MAKING_S,
    enough: Enough | None = None,
) -> Generator[Episode]:
    """Play one episode per seed.

    Args:
        make_env: makes one environment; called at most `envs` times, fewer if it is slow; closed at the end.
        policy: what acts.
        seeds: seed of each episode, for `reset(seed=...)` and for the policy's own chance.
        mode: `greedy` or `sampled`.
        envs: environments side by side; more is faster up to a point; the result stays the same.
        max_steps: cut longer episodes there, as truncated; None leaves it to the environment.
        first_id: `episode_id` of the first seed; the next ones count up.
        making_s: seconds for making more environments than one; never another result.
        enough: see `Enough`; the episodes that have begun are played to their end.

    Yields:
        Episodes in the order of the seeds.

    Raises:
        BadInput: as `play` does.
    """
    environments = make_some(make_env, max(1, min(envs, len(seeds))), making_s)
    try:
        options: dict[str, Any] = {"mode": mode, "max_steps": max_steps, "first_id": first_id, "enough": enough}
        yield from play(environments, policy, seeds, **options)
    finally:
        for environment in environments:
            _close(environment)


def _close(environment: Environment) -> None:
    """Close it; a failure then loses nothing, and is a warning."""
    try:
        environment.close()
    except Exception as error:  # whatever somebody's environment raises
        warn_of(f"an environment could not be closed: {describe_raised(error)}")


def play(
    environments: Sequence[Environment],
    policy: Actor | Crowd,
    seeds: Sequence[int],
    *,
    mode: Mode = "greedy",
    max_steps: int | None = None,
    first_id: int = 0,
    say: Say | None = warn_of,
    enough: Enough | None = None,
) -> Generator[Episode]:
    """Play as `rollout` does, in environments that the caller made and closes.

    Args:
        environments: at most one episode at a time in each.
        policy: as for `rollout`, or one network for each seed.
        seeds: as for `rollout`.
        mode: as for `rollout`.
        max_steps: as for `rollout`.
        first_id: as for `rollout`.
        say: called once if observations are rounded to the dtype of their space; None: not called.
        enough: as for `rollout`.

    Raises:
        BadInput: naming episode and step, for the first episode in which the environment failed, gave what Gymnasium
            does not allow or its spaces do not promise, or a number that is not finite; after all episodes before it.
    """
    stage = _Stage(environments, seeds, max_steps, first_id, say=say, enough=enough)
    finished: dict[int, Episode | BadInput] = {}
    following = 0
    while following < stage.wanted:
        for index, episode in stage.tick(policy, mode):
            finished[index] = episode
        while following in finished:
            episode = finished.pop(following)
            if isinstance(episode, BadInput):
                raise episode
            yield episode
            following += 1


def returns_of(
    make_env: Callable[[], Environment],
    policy: Actor,
    seeds: Sequence[int],
    *,
    mode: Mode = "greedy",
    envs: int = ENVIRONMENTS,
    max_steps: int | None = None,
) -> Array:
    """Undiscounted return of one episode per seed, (S,) float64, in this process."""
    episodes = rollout(make_env, policy, seeds, mode=mode, envs=envs, max_steps=max_steps)
    return np.array([episode.return_ for episode in episodes], dtype=np.float64)


def make_some(make_env: Callable[[], Environment], at_most: int, making_s: float = MAKING_S) -> list[Environment]:
    """Make environments, fewer if that is slow. Their number changes the speed only, so a clock may decide it."""
    environments = [make_env()]
    start = time.monotonic()
    while len(environments) < at_most and time.monotonic() - start < making_s:
        environments.append(make_env())
    return environments


def acting_generator(seed: int) -> np.random.Generator:
    """The generator from which a policy draws in the episode of this seed."""
    return np.random.default_rng(np.random.SeedSequence([seed, _ACTING]))


class Columns(TypedDict):
    """One episode of T steps, as the fields of `storage.schema.Episode`."""

    observations: Array  # (T+1, n), or (T+1,) when discrete
    actions: Array  # (T, m), or (T,) when discrete
    rewards: Array  # (T,) float64
    policy_outputs: Array | None  # (T, k) float32


class RolloutBuffer:
    """Columns of ticks x lanes. Ticks count from 0 for ever; those before the oldest running episode are dropped.

    Args:
        lanes: environments side by side.
        observation_space: of each of them.
        action_space: of each of them.
    """

    def __init__(self, lanes: int, observation_space: Space, action_space: Space) -> None:
        self.lanes, self.tick = lanes, 0
        self._base = 0  # tick of row 0
        self._observations = _column(_FIRST_CAPACITY + 1, lanes, observation_space)
        self._actions = _column(_FIRST_CAPACITY, lanes, action_space)
        self._rewards = np.zeros((_FIRST_CAPACITY, lanes), dtype=np.float64)
        self._outputs: Array | None = None

    def observations(self, slots: Array | None) -> Array:
        """The current observations: of all lanes when `slots` is None, otherwise of those."""
        shown = self._observations[self.tick - self._base]
        return shown if slots is None else shown[slots]

    def before(self, slots: Array | None) -> Array:
        """The observations one tick earlier, likewise; in the first step of an episode they are of another one."""
        shown = self._observations[max(0, self.tick - self._base - 1)]
        return shown if slots is None else shown[slots]

    def begin(self, slot: int, observation: Any) -> None:
        """Put the first observation of a new episode into a lane.

        Raises:
            BrokenPromiseError: when it does not fit the observation space, or is not finite.
        """
        rows = self._observations[self.tick - self._base]
        rows[slot] = plain_observation(observation, rows.shape[1:], rows.dtype)
        if not are_finite(rows[slot]):
            raise BrokenPromiseError(f"its observation is not finite: {rows[slot].tolist()}")

    def act(self, acts: Acts, slots: Array | None) -> tuple[Array, Array]:
        """Keep what the policy did at this tick.

        Returns:
            Two views by lane, to be filled with what follows: the next observations, and the rewards of this tick.
        """
        row = self.tick - self._base
        where = slice(None) if slots is None else slots
        self._actions[row][where] = acts.actions
        if acts.outputs.shape[1]:
            self._output_column(acts.outputs)[row][where] = acts.outputs
        return self._observations[row + 1], self._rewards[row]

    @property
    def tick_bytes(self) -> int:
        """Of what one tick adds."""
        columns = (self._observations, self._actions, self._rewards, self._outputs)
        return sum(column[0].nbytes for column in columns if column is not None)

    @property
    def is_full(self) -> bool:
        """Whether `make_room` has to come before the next tick."""
        return self.tick - self._base == len(self._rewards)

    def make_room(self, oldest: int) -> None:
        """Make room for more ticks, keeping everything from tick `oldest` on."""
        used = self.tick - self._base
        start = oldest - self._base
        capacity = len(self._rewards) * (2 if used - start > len(self._rewards) // 2 else 1)
        self._observations = _moved(self._observations, start, used + 1, capacity + 1)
        self._actions = _moved(self._actions, start, used, capacity)
        self._rewards = _moved(self._rewards, start, used, capacity)
        if self._outputs is not None:
            self._outputs = _moved(self._outputs, start, used, capacity)
        self._base = oldest

    def cut(self, slot: int, first: int) -> Columns:
        """Copy out the episode that began at tick `first` in a lane and ended with the tick before this one."""
        steps = slice(first - self._base, self.tick - self._base)
        shown = slice(steps.start, steps.stop + 1)
        return Columns(
            observations=self._observations[shown, slot].copy(),
            actions=self._actions[steps, slot].copy(),
            rewards=self._rewards[steps, slot].copy(),
            policy_outputs=None if self._outputs is None else self._outputs[steps, slot].copy(),
        )

    def _output_column(self, outputs: Array) -> Array:
        if self._outputs is None:
            self._outputs = np.zeros((*self._rewards.shape, outputs.shape[1]), dtype=np.float32)
        return self._outputs


def _column(ticks: int, lanes: int, space: Space) -> Array:
    shape = (ticks, lanes) if space.is_discrete else (ticks, lanes, space.size)
    return np.zeros(shape, dtype=space.dtype)


def _moved(column: Array, start: int, stop: int, capacity: int) -> Array:
    """A column of another capacity whose first rows are rows `start` to `stop` of this one."""
    moved = np.zeros((capacity, *column.shape[1:]), dtype=column.dtype)
    moved[: stop - start] = column[start:stop]
    return moved


@dataclass(slots=True, eq=False)
class _Lane:
    """One environment and its current episode."""

    slot: int
    environment: Environment
    step: Step
    limit: int  # steps after which the environment truncates
    index: int = 0  # of the episode's seed
    first: int = 0  # tick of the episode's first step
    last: int = 0  # tick of the last step that it may take


class _Stage:
    """All lanes, the buffer of what they did, and the seeds that wait for a free one."""

    def __init__(
        self,
        environments: Sequence[Environment],
        seeds: Sequence[int],
        max_steps: int | None,
        first_id: int,
        *,
        say: Say | None,
        enough: Enough | None,
    ) -> None:
        self._say, self._enough = say, enough
        self._seeds, self._max_steps, self._first_id = seeds, max_steps, first_id
        self.wanted = len(seeds)  # episodes that are played; fewer once no further one is begun
        self._begun = 0
        self._failed: list[tuple[int, BadInput]] = []  # broken episodes, still to be reported
        self._buffer = RolloutBuffer(len(environments), *spaces_of(environments[0]))
        lanes = [_Lane(slot, environment, *bare_step(environment)) for slot, environment in enumerate(environments)]
        self._lanes: list[_Lane] = []
        self._lanes = [lane for lane in lanes if self._start(lane)]
        self._generators = EpisodeGenerators(map(self._generator_of, self._lanes))
        self._slots = self._list_slots()
        self._acting: Actor | None = None  # in the running episodes; None: one has begun or ended since

    def tick(self, policy: Actor | Crowd, mode: Mode) -> list[tuple[int, Episode | BadInput]]:
        """One step in every lane; returns the episodes that it ended or broke, each with the index of its seed."""
        if self._failed:
            return [self._failed.pop()]
        lanes, buffer = self._lanes, self._buffer
        if buffer.is_full:
            buffer.make_room(min(lane.first for lane in lanes))
        if self._acting is None:
            self._acting = self._cast(policy)
        acts = choose(self._acting, buffer.observations(self._slots), self._past, mode=mode, rngs=self._generators)
        following, rewards = buffer.act(acts, self._slots)
        ended: list[tuple[_Lane, bool, bool]] = []
        failed: dict[int, tuple[int, Exception]] = {}  # slot -> step and problem
        tick, shape, dtype = buffer.tick, following.shape[1:], following.dtype
        for lane, action in zip(lanes, acts.actions, strict=True):
            try:
                observation, reward, terminated, truncated, _ = lane.step(action)
                if observation.__class__ is not np.ndarray or observation.shape != shape or observation.dtype != dtype:
                    observation = self._plain(observation, shape, dtype)
                following[lane.slot] = observation
                rewards[lane.slot] = reward if reward.__class__ in _FLOATS else plain_reward(reward)
                if terminated or truncated or tick == lane.last:
                    ended.append((lane, bool(terminated), bool(truncated)))
            except Exception as error:  # whatever somebody's environment raises
                failed[lane.slot] = tick - lane.first, error
        if not all(map(are_finite, (following, rewards, acts.actions, acts.outputs))):
            failed |= self._not_finite(following, rewards, acts)
        buffer.tick = tick + 1
        if failed:
            ended = [each for each in ended if each[0].slot not in failed]
            self._failed += [self._drop(lane, *failed[lane.slot]) for lane in list(lanes) if lane.slot in failed]
        return [self._end(*each) for each in ended] if ended else []

    def _cast(self, policy: Actor | Crowd) -> Actor:
        """Who acts in the running lanes."""
        return policy.cast([lane.index for lane in self._lanes]) if isinstance(policy, Crowd) else policy

    def _past(self) -> Past:
        """What came before the current observations of the running lanes."""
        steps = np.array([self._buffer.tick - lane.first for lane in self._lanes], dtype=np.int64)
        return Past(self._buffer.before(self._slots), steps)

    def _not_finite(self, following: Array, rewards: Array, acts: Acts) -> dict[int, tuple[int, Exception]]:
        """The lanes whose step holds such a number."""
        found: dict[int, tuple[int, Exception]] = {}
        for row, lane in enumerate(self._lanes):
            if wrong := not_finite(following[lane.slot], rewards[lane.slot], acts, row):
                found[lane.slot] = self._buffer.tick - lane.first + wrong[0], BrokenPromiseError(wrong[1])
        return found

    def _drop(self, lane: _Lane, step: int, error: Exception) -> tuple[int, BadInput]:
        """Close the lane of an episode that cannot continue; no further episode is begun."""
        self.wanted = self._begun
        self._close(self._lanes.index(lane))
        text = complaint(error, lane.environment.unwrapped.step)
        return lane.index, broken(self._first_id + lane.index, step, text, error)

    def _start(self, lane: _Lane) -> bool:
        """Begin the next waiting episode in a lane; False when none waits, or it cannot begin."""
        if self._begun < self.wanted and self._lanes and self._enough and self._enough(self._progress()):
            self.wanted = self._begun
        if self._begun >= self.wanted:
            return False
        index, self._begun = self._begun, self._begun + 1
        try:
            result = lane.environment.reset(seed=int(self._seeds[index]))
            shown = self._buffer.observations(None)
            self._buffer.begin(lane.slot, self._plain(first_observation(result), shown.shape[1:], shown.dtype))
        except Exception as error:  # whatever somebody's environment raises
            self.wanted = self._begun
            text = complaint(error, lane.environment.unwrapped.reset)
            self._failed.append((index, broken(self._first_id + index, 0, text, error)))
            return False
        lane.index, lane.first = index, self._buffer.tick
        lane.last = lane.first + min(lane.limit, self._max_steps or min(lane.limit, LONGEST)) - 1
        return True

    def _progress(self) -> Progress:
        """How far the episodes are when one of them has ended."""
        running = len(self._lanes) - 1
        return Progress(self._begun - running, running, self._buffer.tick * self._buffer.tick_bytes)

    def _plain(self, observation: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An observation in the dtype of its space; rounding is reported once."""
        plain = plain_observation(observation, shape, dtype)
        if self._say is not None and (rounding := describe_rounding(observation, plain)):
            self._say(rounding)
            self._say = None
        return plain

    def _end(self, lane: _Lane, terminated: bool, truncated: bool) -> tuple[int, Episode | BadInput]:
        """Take the finished episode out of the buffer, and give its lane to the next seed."""
        index, length = lane.index, self._buffer.tick - lane.first
        timed_out = length == lane.limit
        if length == LONGEST and not (terminated or truncated or timed_out or self._max_steps):
            endless = BrokenPromiseError(f"it has not ended after {LONGEST:,} steps; truncate it with --max-steps")
            return self._drop(lane, length - 1, endless)
        columns = self._buffer.cut(lane.slot, lane.first)
        self._go_on(self._lanes.index(lane))
        episode = Episode(
            episode_id=self._first_id + index,
            seed=int(self._seeds[index]),
            terminated=terminated,
            truncated=truncated or timed_out or not terminated,
            **columns,
        )
        return index, episode

    def _go_on(self, row: int) -> None:
        """Give the lane of a row to the next waiting episode, or close it."""
        lane, self._acting = self._lanes[row], None
        if self._start(lane):
            self._generators.renew(row, self._generator_of(lane))
            return
        self._close(row)

    def _close(self, row: int) -> None:
        self._acting = None
        del self._lanes[row]
        self._generators.drop(row)
        self._slots = self._list_slots()

    def _generator_of(self, lane: _Lane) -> np.random.Generator:
        return acting_generator(int(self._seeds[lane.index]))

    def _list_slots(self) -> Array | None:
        """The running lanes; None when that is all of them, which spares a copy per tick."""
        slots = np.array([lane.slot for lane in self._lanes], dtype=np.intp)
        return None if len(slots) == self._buffer.lanes else slots
