"""Replays a stored episode from its seed and its actions, bit for bit, and branches from an exact state of it.

A replay is evidence about a dataset; it changes nothing but the catalog's table `replays`. A branch is an action taken
once, then a policy; many are played side by side. What the difference means is in `labelling/label_replays.py`.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from refine.policies import Mode, Past
from storage.catalog import insert_rows
from storage.datasets import read_episode, read_manifest
from storage.errors import BadInput, DiskFailed, LeftOutWarning
from storage.schema import Array, Episode, Manifest, Space, content_id
from storage.store import Store

from .actors import Actor, choose
from .complaints import blaming
from .environments import Environment
from .envpool_engine import ENGINES
from .fingerprint import Fingerprint, take_fingerprint
from .trust import Home, Named, find_home


@dataclass(frozen=True)
class Replay:
    """The result of replaying one episode."""

    dataset_id: str
    episode_id: int
    exact: bool  # every observation, reward and flag has the same bits
    steps: int  # steps of the logged episode
    first_mismatch: int | None  # step of the first difference; step t's observation is what action t was chosen from
    detail: str  # what was compared, or the first difference and its likely cause


def replay_episode(store: Store, dataset_id: str, episode_id: int, env_id: Named | None = None) -> Replay:
    """Replay one episode of a dataset in a fresh environment, and record the result in the catalog.

    Args:
        store: the store.
        dataset_id: a dataset that was collected from an environment, with seeds.
        episode_id: one of its episodes.
        env_id: its environment, if the user has to name it; see `trust.find_home`.

    Raises:
        BadInput: for an unknown dataset or episode, or one without environment or seed.
        Prerequisite: when the environment needs a package that is not installed, or has to be named.
    """
    episode, manifest = read_episode(store, dataset_id, episode_id), read_manifest(store, dataset_id)
    check_replayable(episode, manifest)
    replay = play_again(episode, manifest, find_home(store, manifest, env_id))
    _record(store, replay)
    return replay


def play_again(episode: Episode, manifest: Manifest, home: Home) -> Replay:
    """Replay an episode in a fresh environment and compare; nothing is read or recorded.

    Args:
        episode: with the seed and the actions to play.
        manifest: of its dataset.
        home: its environment.

    Raises:
        BadInput: when the environment cannot be made.
        Prerequisite: when the environment needs a package that is not installed.
    """
    environment = make_replayable(manifest, home)
    try:
        difference = next(_differences(environment, episode, manifest), None)
        here = take_fingerprint(environment, home.env_id)
        return _judge(manifest, episode, difference, here)
    finally:
        environment.close()


def make_replayable(manifest: Manifest, home: Home) -> Environment:
    """The environment in which a dataset's episodes can be replayed; the caller closes it.

    Raises:
        BadInput: when it cannot be made.
        Prerequisite: when it needs a package that is not installed.
    """
    return ENGINES[manifest.engine](*home)


def check_replayable(episode: Episode, manifest: Manifest) -> None:
    """Refuse an episode that cannot be replayed.

    Raises:
        BadInput: when there is no environment or no seed.
    """
    if manifest.env_id is None or episode.seed is None:
        missing = "an environment" if manifest.env_id is None else "a seed"
        name = f"Episode {episode.episode_id} of {manifest.dataset_id}"
        raise BadInput(
            f"{name} cannot be replayed: it was recorded without {missing}.",
            "Episodes made by `trajnote collect` can be.",
        )


@dataclass(frozen=True)
class Difference:
    """The logged and the replayed value of one thing at one step."""

    step: int
    what: str
    logged: object
    replayed: object


def play_until(environment: Environment, episode: Episode, manifest: Manifest, step: int) -> Difference | None:
    """Bring an environment to the state in which action `step` was chosen, comparing every bit on the way.

    Returns:
        None when the environment is in that state; otherwise the first difference, where it stopped.
    """
    return next(_differences(environment, episode, manifest, step), None)


def _differences(
    environment: Environment, episode: Episode, manifest: Manifest, stop: int | None = None
) -> Iterator[Difference]:
    """Differences as they appear; what comes after the first one follows from it."""
    with blaming(episode.episode_id, 0, environment.unwrapped.reset):
        shown, _ = environment.reset(seed=episode.seed)
    yield from _compare_observations(0, episode, shown, manifest)
    for step in range(len(episode) if stop is None else stop):
        with blaming(episode.episode_id, step, environment.unwrapped.step):
            shown, reward, terminated, truncated, _ = environment.step(logged_action(episode, step))
        yield from _compare_observations(step + 1, episode, shown, manifest)
        if struct.pack("<d", float(reward)) != struct.pack("<d", float(episode.rewards[step])):
            yield Difference(step, "reward", float(episode.rewards[step]), float(reward))
        is_last = step == len(episode) - 1
        cut = is_last and manifest.max_steps == len(episode) and not terminated
        logged = (episode.terminated, episode.truncated) if is_last else (False, False)
        for what, was, now in zip(("terminated", "truncated"), logged, (terminated, truncated or cut), strict=True):
            if bool(was) != bool(now):
                yield Difference(step, what, bool(was), bool(now))


def logged_action(episode: Episode, step: int) -> Any:
    """The action as a rollout gave it to the environment: a NumPy integer, or a vector copied for the caller."""
    return episode.actions[step].copy()


def _compare_observations(step: int, episode: Episode, shown: Any, manifest: Manifest) -> Iterator[Difference]:
    logged = np.atleast_1d(episode.observations[step])
    replayed = np.atleast_1d(np.asarray(shown, dtype=logged.dtype))
    for place in np.flatnonzero(_bits(logged) != _bits(replayed)):
        yield Difference(step, f"observation {manifest.component_names[place]}", logged[place], replayed[place])


def _bits(numbers: Array) -> Array:
    """Numbers as integers of the same bits, so that -0.0 is not 0.0 and NaN is itself."""
    return np.ascontiguousarray(numbers).view(f"u{numbers.dtype.itemsize}")


def _judge(manifest: Manifest, episode: Episode, difference: Difference | None, here: Fingerprint) -> Replay:
    changes = "; ".join(here.changes_since(manifest.versions, manifest.environment_code))
    where = f"seed {episode.seed}, {len(episode)} steps of {manifest.env_id}"
    if difference is None:
        detail = f"exact: {where}; every observation, reward and flag has the same bits"
        detail += f"; the environment is not what it was: {changes}" if changes else ""
    else:
        values = f"logged {difference.logged!s}, replayed {difference.replayed!s}"
        same = "the versions are the same, so the environment may draw chance from elsewhere than its seed"
        cause = f"likely because of {changes}" if changes else same
        detail = f"step {difference.step}, {difference.what}: {values} ({where}); {cause}"
    return Replay(
        dataset_id=manifest.dataset_id,
        episode_id=episode.episode_id,
        exact=difference is None,
        steps=len(episode),
        first_mismatch=None if difference is None else difference.step,
        detail=detail,
    )


def _record(store: Store, replay: Replay) -> None:
    row: dict[str, object] = dict(vars(replay))
    row |= {"replay_id": content_id("replay_", row), "created_at": datetime.now(UTC)}
    try:
        with store.catalog.write() as con:
            insert_rows(con, "replays", [row])
    except DiskFailed as error:  # a store that can only be read
        warnings.warn(f"The replay is not recorded: {error.problem}", LeftOutWarning, stacklevel=2)


LANES = 16
_BRANCHING = 0x6272  # keeps these random numbers apart from those of rollouts


@dataclass(frozen=True)
class Branch:
    """One continuation to play."""

    number: int  # the caller's name for it
    episode: Episode
    step: int
    action: Any  # taken once, as the environment takes it
    pair: int  # branches of one state and pair number draw the same random numbers


@dataclass(frozen=True)
class Ending:
    """The result of a branch."""

    branch: Branch
    return_: float  # sum of rewards from its step on
    steps: int  # of the environment, including those up to the state
    difference: Difference | None  # why the state could not be reached; if set, nothing was measured


@dataclass
class _Lane:
    environment: Environment
    branch: Branch
    shown: Any = None
    before: Any = None  # what was shown one step earlier
    return_: float = 0.0
    steps: int = 0
    left: int = 0  # steps left
    rng: np.random.Generator = field(default_factory=np.random.default_rng)


def play_branches(
    branches: Sequence[Branch],
    manifest: Manifest,
    home: Home,
    policy: Actor,
    *,
    mode: Mode,
    horizon: int | None = None,
) -> Iterator[Ending]:
    """Play branches, in the order in which they end.

    Each replays the logged seed and actions up to its state, comparing every bit; it takes its action, and then the
    policy acts until the episode ends or is cut as in the log.

    Args:
        branches: episodes with seeds.
        manifest: of their dataset.
        home: its environment.
        policy: goes on after the one action.
        mode: how it acts.
        horizon: most steps after the branching point, its action included; None: to the end.
    """
    for branch in branches:
        check_replayable(branch.episode, manifest)
    waiting = iter(branches)
    lanes: list[_Lane] = []
    try:
        for _ in range(min(LANES, len(branches))):
            yield from _fill(lanes, waiting, manifest, horizon, make_replayable(manifest, home))
        while lanes:
            _act(lanes, policy, mode, manifest)
            for lane in [lane for lane in lanes if lane.left <= 0]:
                lanes.remove(lane)
                yield Ending(lane.branch, lane.return_, lane.steps, None)
                yield from _fill(lanes, waiting, manifest, horizon, lane.environment)
    finally:
        for lane in lanes:
            lane.environment.close()


def _fill(
    lanes: list[_Lane], waiting: Iterator[Branch], manifest: Manifest, horizon: int | None, environment: Environment
) -> Iterator[Ending]:
    """Put the next branch that does not end at once into a lane; closes the environment when none is left."""
    for branch in waiting:
        difference = play_until(environment, branch.episode, manifest, branch.step)
        if difference is not None:
            yield Ending(branch, 0.0, branch.step, difference)
            continue
        chance = np.random.SeedSequence([int(branch.episode.seed or 0), branch.step, _BRANCHING, branch.pair])
        shown = branch.episode.observations[branch.step]
        lane = _Lane(environment, branch, shown, steps=branch.step, rng=np.random.default_rng(chance))
        lane.left = min(_room(manifest, branch.step), horizon or 2**62)
        _step(lane, branch.action)
        if lane.left > 0:
            lanes.append(lane)
            return
        yield Ending(branch, lane.return_, lane.steps, None)
    environment.close()


def _room(manifest: Manifest, step: int) -> int:
    return 2**62 if manifest.max_steps is None else manifest.max_steps - step


def _act(lanes: Sequence[_Lane], policy: Actor, mode: Mode, manifest: Manifest) -> None:
    shown = _rows([lane.shown for lane in lanes], manifest.observation_space)
    acts = choose(policy, shown, lambda: _past(lanes, manifest), mode=mode, rngs=[lane.rng for lane in lanes])
    for lane, action in zip(lanes, acts.actions, strict=True):
        _step(lane, action)


def _past(lanes: Sequence[_Lane], manifest: Manifest) -> Past:
    before = _rows([lane.before for lane in lanes], manifest.observation_space)
    return Past(before, np.array([lane.steps for lane in lanes], dtype=np.int64))


def _rows(shown: Sequence[Any], space: Space) -> Array:
    rows: Array = np.array(shown, dtype=space.dtype)
    return rows if space.is_discrete else rows.reshape(len(rows), space.size)


def _step(lane: _Lane, action: Any) -> None:
    lane.before = lane.shown
    with blaming(lane.branch.episode.episode_id, lane.steps, lane.environment.unwrapped.step):
        lane.shown, reward, terminated, truncated, _ = lane.environment.step(action)
        lane.return_ += float(reward)
    lane.steps += 1
    lane.left = 0 if terminated or truncated else lane.left - 1
