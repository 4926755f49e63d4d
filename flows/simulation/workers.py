"""Plays many policies on several workers, for the gate. Whole episodes for a dataset are in `whole_episodes.py`.

Results are bit for bit the same with any number of processes. Playing loads NumPy and Gymnasium, no learner.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from refine.policies import MlpPolicy, Mode
from storage.schema import Array

from ..runtime import core_count, parallel_map
from .actors import Actor, Crowd
from .environments import Environment, EnvironmentMaker
from .rollouts import make_some, play
from .trust import Named

_MOST, _LEAST = 32, 4  # episodes of a task, side by side in one process: more would be heard of late
_MAKING_S = 0.5  # seconds for making environments that stay for the next tasks
Advance = Callable[[int, int], None]
_Summary = tuple[float, int]
"""Return and steps of an episode."""


class _Task(NamedTuple):
    """Some episodes, of one policy or of networks of one shape."""

    env_id: Named
    env_kwargs: str  # canonical JSON, so that it can be a key
    policy: Actor | Crowd
    seeds: tuple[int, ...]
    mode: Mode
    max_steps: int | None


class _Share(NamedTuple):
    """Whose episodes a task has, and their places among all."""

    policy: Actor | Crowd
    places: range


def play_policies(
    env_id: Named,
    env_kwargs: Mapping[str, Any] | None,
    policies: Sequence[Actor],
    seeds: Sequence[int] | Sequence[Sequence[int]],
    mode: Mode = "greedy",
    workers: int | None = None,
    *,
    max_steps: int | None = None,
    advance: Advance | None = None,
    lengths: list[int] | None = None,
) -> Generator[Array]:
    """Play every policy on its seeds.

    Other processes find your own environment only by `module:EnvId`, since they share no memory with this one.

    Args:
        env_id: as for `make_environment`.
        env_kwargs: as for `make_environment`.
        policies: P of them.
        seeds: the same for every policy, so that returns can be compared in pairs; or P sequences, one for each.
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
    own = _seeds_of_each(seeds, len(policies))
    episodes = [(policy, seed) for policy, each in zip(policies, own, strict=True) for seed in each]
    shares = list(_share_out([policy for policy, _ in episodes], workers or core_count()))
    tasks = [
        _Task(env_id, kwargs, policy, tuple(episodes[place][1] for place in places), mode, max_steps)
        for policy, places in shares
    ]
    alone = workers == 1 or len(tasks) <= 1
    shared = _play_here(tasks) if alone else parallel_map(_play_in_worker, tasks, workers, threadsafe=True)
    with closing(shared) as played:
        summaries = _in_order(played, chain.from_iterable(share.places for share in shares), len(episodes), advance)
        for each in own:
            found = list(islice(summaries, len(each)))
            if lengths is not None:
                lengths += [length for _, length in found]
            yield np.array([return_ for return_, _ in found], dtype=np.float64)


def _seeds_of_each(seeds: Sequence[int] | Sequence[Sequence[int]], policies: int) -> list[Sequence[int]]:
    """The seeds of every policy, its own or those of all."""
    own = [each for each in seeds if isinstance(each, Sequence)]
    return own or [[int(seed) for seed in seeds if not isinstance(seed, Sequence)]] * policies


def _in_order(
    played: Generator[list[_Summary]], places: Iterator[int], total: int, advance: Advance | None
) -> Iterator[_Summary]:
    """The episodes by their places among all; the listener hears of them as they come."""
    found: dict[int, _Summary] = {}
    done = following = 0
    for summaries in played:
        found.update((next(places), summary) for summary in summaries)
        done += len(summaries)
        if advance is not None:
            advance(done, total)
        while following in found:
            yield found.pop(following)
            following += 1


def _share_out(policies: Sequence[Actor], workers: int) -> Generator[_Share]:
    """Deal episodes, given by their policies, to the workers like cards, so that none waits long for another.

    A tick has a price of its own, about that of a step of LunarLander. Few episodes share it when most of a task have
    ended, so there are few large tasks. Networks of one shape share a task; what else acts has tasks of its own.
    """
    begin = 0
    while begin < len(policies):
        first, end = _kind(policies[begin]), begin + 1
        while end < min(begin + workers * _MOST, len(policies)) and _kind(policies[end]) == first:
            end += 1
        tasks = min(workers, -(-(end - begin) // _LEAST))
        for turn in range(tasks):
            places = range(begin + turn, end, tasks)
            yield _Share(_together([policies[place] for place in places]), places)
        begin = end


def _together(policies: Sequence[Actor]) -> Actor | Crowd:
    networks = [policy for policy in policies if isinstance(policy, MlpPolicy)]
    return Crowd(networks) if any(network is not networks[0] for network in networks) else policies[0]


def _kind(policy: Actor) -> str | int:
    return policy.shape if isinstance(policy, MlpPolicy) else id(policy)


def _play_here(tasks: Sequence[_Task]) -> Generator[list[_Summary]]:
    """Episode by episode, so that those before an interruption are known."""
    environments: list[Environment] = []
    try:
        for task in tasks:
            environments = environments or _make(task.env_id, task.env_kwargs)
            yield from ([summary] for summary in _play(task, environments))
    finally:
        for environment in environments:
            environment.close()


def _play_in_worker(task: _Task) -> list[_Summary]:
    return list(_play(task, kept_environments(task.env_id, task.env_kwargs)))


class _Kept(threading.local):
    """Environments of a worker, made once and reused for its tasks; each thread has its own."""

    key: tuple[str, str] | None = None
    environments: Sequence[Environment] = ()


_kept = _Kept()


def kept_environments(env_id: Named, env_kwargs: str) -> Sequence[Environment]:
    """Up to 64 environments, made by the first task that needs them; `env_kwargs` is JSON."""
    if _kept.key != (env_id, env_kwargs):
        for environment in _kept.environments:
            environment.close()
        _kept.key, _kept.environments = None, ()
        _kept.environments = _make(env_id, env_kwargs)
        _kept.key = env_id, env_kwargs
    return _kept.environments


def _make(env_id: Named, env_kwargs: str) -> list[Environment]:
    return make_some(EnvironmentMaker(env_id, json.loads(env_kwargs)), _MOST, _MAKING_S)


def _play(task: _Task, environments: Sequence[Environment]) -> Iterator[_Summary]:
    playing = environments[: len(task.seeds)]
    episodes = play(playing, task.policy, task.seeds, mode=task.mode, max_steps=task.max_steps, say=None)
    return ((episode.return_, len(episode)) for episode in episodes)
