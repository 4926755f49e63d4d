"""Plays episodes on several workers: returns of many policies for the gate, and whole episodes for a dataset.

Results are bit for bit the same with any number of processes. Playing loads NumPy and Gymnasium, no learner.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from refine.policies import Mode
from storage.errors import BadInput
from storage.schema import Array, Episode

from ..runtime import parallel_map
from .actors import Actor
from .environments import Environment, EnvironmentMaker
from .rollouts import play, warn_of
from .trust import Named

_CHUNK = 8  # seeds of one task, side by side in one process: small enough to balance the load
Advance = Callable[[int, int], None]
_Summary = tuple[float, int]
"""Return and steps of an episode."""


class _Task(NamedTuple):
    """Some seeds of one policy."""

    env_id: Named
    env_kwargs: str  # canonical JSON, so that it can be a key
    policy: Actor
    seeds: tuple[int, ...]
    mode: Mode
    max_steps: int | None


class _Played(NamedTuple):
    """The result of a task."""

    episodes: list[Episode]  # before the one that failed, if any
    said: list[str]  # for the user
    failure: BadInput | None


def play_policies(
    env_id: Named,
    env_kwargs: Mapping[str, Any] | None,
    policies: Sequence[Actor],
    seeds: Sequence[int],
    mode: Mode = "greedy",
    workers: int | None = None,
    *,
    max_steps: int | None = None,
    advance: Advance | None = None,
    lengths: list[int] | None = None,
) -> Generator[Array]:
    """Play every policy on every seed.

    Other processes find your own environment only by `module:EnvId`, since they share no memory with this one.

    Args:
        env_id: as for `make_environment`.
        env_kwargs: as for `make_environment`.
        policies: P of them.
        seeds: S of them, the same for every policy, so that returns can be compared in pairs.
        mode: `greedy` or `sampled`.
        workers: as for `parallel_map`.
        max_steps: cut longer episodes there.
        advance: called with episodes played and episodes in all.
        lengths: the steps of each episode are added to it, before the returns of its policy are yielded.

    Yields:
        (S,) float64, undiscounted return of each episode, policy after policy.

    Raises:
        TrajnoteError: when a process died, for example because memory ran out.
    """
    kwargs = json.dumps(dict(env_kwargs or {}), sort_keys=True)
    chunks = [tuple(seeds[start : start + _CHUNK]) for start in range(0, len(seeds), _CHUNK)]
    tasks = [_Task(env_id, kwargs, policy, chunk, mode, max_steps) for policy in policies for chunk in chunks]
    alone = workers == 1 or len(tasks) <= 1
    returns: list[float] = []
    shared = _play_here(tasks) if alone else parallel_map(_play_in_worker, tasks, workers, threadsafe=True)
    with closing(shared) as played:
        for number, episodes in enumerate(played, start=1):
            returns += [return_ for return_, _ in episodes]
            if lengths is not None:
                lengths += [length for _, length in episodes]
            if advance is not None:
                advance(len(seeds) * ((number - 1) // len(chunks)) + len(returns), len(policies) * len(seeds))
            if number % len(chunks) == 0:
                yield np.array(returns, dtype=np.float64)
                returns = []


def play_episodes(
    env_id: Named, env_kwargs: Mapping[str, Any], policy: Actor, seeds: Sequence[int], **options: Any
) -> Generator[Episode]:
    """Play a policy on every seed as `rollout` does, on the workers of the chosen runner.

    Args:
        env_id: as for `make_environment`.
        env_kwargs: as for `make_environment`.
        policy: what acts.
        seeds: one per episode.
        options: `mode`, `max_steps`, and `first_id`, the id of the first episode.

    Yields:
        Episodes in the order of the seeds, the same bits as from `rollout`.

    Raises:
        BadInput: as `play` does, after all episodes before the one that failed.
    """
    kwargs = json.dumps(dict(env_kwargs), sort_keys=True)
    mode, max_steps, first_id = options["mode"], options["max_steps"], options["first_id"]
    chunks = [tuple(seeds[start : start + _CHUNK]) for start in range(0, len(seeds), _CHUNK)]
    tasks = [
        (_Task(env_id, kwargs, policy, chunk, mode, max_steps), first_id + number * _CHUNK)
        for number, chunk in enumerate(chunks)
    ]
    with closing(parallel_map(_play_whole, tasks, threadsafe=True)) as played:
        for episodes, said, failure in played:
            yield from episodes
            for sentence in said:
                warn_of(sentence)
            if failure is not None:
                raise failure


def _play_whole(numbered: tuple[_Task, int]) -> _Played:
    task, first_id = numbered
    playing = _kept_environments(task.env_id, task.env_kwargs)[: len(task.seeds)]
    played = _Played([], [], None)
    options: dict[str, Any] = {
        "mode": task.mode,
        "max_steps": task.max_steps,
        "first_id": first_id,
        "say": played.said.append,
    }
    try:
        played.episodes.extend(play(playing, task.policy, task.seeds, **options))
    except BadInput as error:
        if error.__cause__ is not None:  # which does not travel
            error.add_note("".join(traceback.format_exception(error.__cause__)))
        return played._replace(failure=error)
    return played


def _play_here(tasks: Sequence[_Task]) -> Generator[list[_Summary]]:
    environments: list[Environment] = []
    try:
        for task in tasks:
            environments = environments or _make(task.env_id, task.env_kwargs)
            yield _play(task, environments)
    finally:
        for environment in environments:
            environment.close()


def _play_in_worker(task: _Task) -> list[_Summary]:
    return _play(task, _kept_environments(task.env_id, task.env_kwargs))


class _Kept(threading.local):
    """Environments of a worker, made once and reused for its tasks; each thread has its own."""

    key: tuple[str, str] | None = None
    environments: Sequence[Environment] = ()


_kept = _Kept()


def _kept_environments(env_id: Named, env_kwargs: str) -> Sequence[Environment]:
    if _kept.key != (env_id, env_kwargs):
        for environment in _kept.environments:
            environment.close()
        _kept.key, _kept.environments = None, ()
        _kept.environments = _make(env_id, env_kwargs)
        _kept.key = env_id, env_kwargs
    return _kept.environments


def _make(env_id: Named, env_kwargs: str) -> list[Environment]:
    make = EnvironmentMaker(env_id, json.loads(env_kwargs))
    return [make() for _ in range(_CHUNK)]


def _play(task: _Task, environments: Sequence[Environment]) -> list[_Summary]:
    playing = environments[: len(task.seeds)]
    episodes = play(playing, task.policy, task.seeds, mode=task.mode, max_steps=task.max_steps, say=None)
    return [(episode.return_, len(episode)) for episode in episodes]
