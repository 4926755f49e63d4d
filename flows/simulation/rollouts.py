"""Plays episodes: many environments side by side, one batched policy call per tick, a seed per episode.

An episode depends only on its environment, policy, seed and mode, not on how many run beside it or what ran before.
Processes are in `workers.py`; files in `flows/datasets/collection.py`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from refine.policies import Acts, EpisodeGenerators, Mode, Past
from storage.errors import BadInput, TrajnoteWarning
from storage.schema import Array, Episode

from .actors import Actor, Crowd, choose
from .complaints import BrokenPromiseError, broken, complaint, describe_raised
from .environments import Environment, Step, bare_step, spaces_of
from .rollout_buffer import (
    Tape,
    are_finite,
    describe_rounding,
    first_observation,
    not_finite,
    plain_observation,
    plain_reward,
)
from .trust import Named

ENVIRONMENTS = 64
MAKING_S = 0.05
"""Seconds for making more environments: what is slow to make is slow to step, and gains little by company."""
LONGEST = 200_000
"""The most steps of an episode that neither its environment nor `max_steps` limits."""
_FLOATS = (float, np.float64)
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
        self._tape = Tape(len(environments), *spaces_of(environments[0]))
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
        lanes, tape = self._lanes, self._tape
        if tape.is_full:
            tape.make_room(min(lane.first for lane in lanes))
        if self._acting is None:
            self._acting = self._cast(policy)
        acts = choose(self._acting, tape.observations(self._slots), self._past, mode=mode, rngs=self._generators)
        following, rewards = tape.act(acts, self._slots)
        ended: list[tuple[_Lane, bool, bool]] = []
        failed: dict[int, tuple[int, Exception]] = {}  # slot -> step and problem
        tick, shape, dtype = tape.tick, following.shape[1:], following.dtype
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
        tape.tick = tick + 1
        if failed:
            ended = [each for each in ended if each[0].slot not in failed]
            self._failed += [self._drop(lane, *failed[lane.slot]) for lane in list(lanes) if lane.slot in failed]
        return [self._end(*each) for each in ended] if ended else []

    def _cast(self, policy: Actor | Crowd) -> Actor:
        """Who acts in the running lanes."""
        return policy.cast([lane.index for lane in self._lanes]) if isinstance(policy, Crowd) else policy

    def _past(self) -> Past:
        """What came before the current observations of the running lanes."""
        steps = np.array([self._tape.tick - lane.first for lane in self._lanes], dtype=np.int64)
        return Past(self._tape.before(self._slots), steps)

    def _not_finite(self, following: Array, rewards: Array, acts: Acts) -> dict[int, tuple[int, Exception]]:
        """The lanes whose step holds such a number."""
        found: dict[int, tuple[int, Exception]] = {}
        for row, lane in enumerate(self._lanes):
            if wrong := not_finite(following[lane.slot], rewards[lane.slot], acts, row):
                found[lane.slot] = self._tape.tick - lane.first + wrong[0], BrokenPromiseError(wrong[1])
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
            shown = self._tape.observations(None)
            self._tape.begin(lane.slot, self._plain(first_observation(result), shown.shape[1:], shown.dtype))
        except Exception as error:  # whatever somebody's environment raises
            self.wanted = self._begun
            text = complaint(error, lane.environment.unwrapped.reset)
            self._failed.append((index, broken(self._first_id + index, 0, text, error)))
            return False
        lane.index, lane.first = index, self._tape.tick
        lane.last = lane.first + min(lane.limit, self._max_steps or min(lane.limit, LONGEST)) - 1
        return True

    def _progress(self) -> Progress:
        """How far the episodes are when one of them has ended."""
        running = len(self._lanes) - 1
        return Progress(self._begun - running, running, self._tape.tick * self._tape.tick_bytes)

    def _plain(self, observation: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An observation in the dtype of its space; rounding is reported once."""
        plain = plain_observation(observation, shape, dtype)
        if self._say is not None and (rounding := describe_rounding(observation, plain)):
            self._say(rounding)
            self._say = None
        return plain

    def _end(self, lane: _Lane, terminated: bool, truncated: bool) -> tuple[int, Episode | BadInput]:
        """Take the finished episode out of the buffer, and give its lane to the next seed."""
        index, length = lane.index, self._tape.tick - lane.first
        timed_out = length == lane.limit
        if length == LONGEST and not (terminated or truncated or timed_out or self._max_steps):
            endless = BrokenPromiseError(f"it goes on after {LONGEST:,} steps; cut it with --max-steps")
            return self._drop(lane, length - 1, endless)
        columns = self._tape.cut(lane.slot, lane.first)
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
        return None if len(slots) == self._tape.lanes else slots
