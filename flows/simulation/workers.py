"""Plays episodes on several workers: whole ones for a dataset, and the returns of many policies for the gate.

Episodes and returns are bit for bit the same wherever they are played. Playing loads NumPy and Gymnasium, no learner.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from refine.policies import MlpPolicy, Mode
from storage.errors import BadInput, TrajnoteError
from storage.schema import Array, Episode

from ..runtime import are_waiting, chosen_runner, core_count, parallel_map, working
from .actors import Actor, Crowd, ForeignActor
from .environments import Environment, EnvironmentMaker
from .fingerprint import Fingerprint, look_up_fingerprint
from .rollouts import Enough, Playing, Progress, Say, make_some, play, rollout, warn_of
from .trust import Named

_CHUNK, _MOST = 8, 512  # whole episodes of a task: of unknown size, and at most
_TRAVEL_BYTES, _TRAVEL_S = 16_000_000, 2.0  # about what the steps of a task may weigh, and take
_MOST_ABREAST, _LEAST = 32, 4  # episodes of a task of the gate, side by side; more would report their progress late
_MAKING_S = 0.5  # seconds for making environments that stay for the next tasks
TRIAL_S = 0.5
"""Seconds of playing after which it shows how long the rest would take."""
WORTH_S = 4.0
"""Seconds of playing from which on other processes are worth their start."""
Advance = Callable[[int, int], None]
_Summary = tuple[float, int]
"""Return and steps of an episode."""


class _Task(NamedTuple):
    """Whole episodes, and what their environment has to be."""

    playing: Playing[Actor]
    home: str | None  # hash of the environment's fingerprint, which is another one where it was changed

    def after(self, done: int) -> _Task:
        """The episodes after the first ones."""
        return self._replace(playing=self.playing.after(done))

    def pieces(self, size: int) -> list[_Task]:
        """All episodes in tasks of some."""
        return [self._replace(playing=piece) for piece in self.playing.pieces(size)]


class _Played(NamedTuple):
    """The result of a task."""

    episodes: list[Episode]  # before the one that failed, if any
    said: list[str]  # for the user
    failure: TrajnoteError | None
    has_begun: bool = True  # False: there is no such environment where it was played


def play_episodes(
    playing: Playing[Actor], *, workers: int | None = None, home: Fingerprint | None = None
) -> Generator[Episode]:
    """Play one episode per seed as `rollout` does: on the workers of the chosen runner, or as is fastest here.

    Without a chosen runner this process plays the first episodes, and shares the others out to processes if they would
    take long, or if the processes are there already. With one environment or worker it plays them all, and so it does
    with external code, which may remember what it was asked.

    Args:
        playing: the episodes; their policy acts for all of them.
        workers: processes at most; one per core when None.
        home: what the environment has to be in other processes, too.

    Yields:
        Episodes in the order of the seeds, the same bits as from `rollout`.

    Raises:
        BadInput: as `play` does, after all episodes before the one that failed.
    """
    task = _Task(playing, home.sha256 if home else None)
    if chosen_runner() is not None:
        try:
            with working(_play_there, task.pieces(_CHUNK), threadsafe=True) as played:
                yield from _unpacked(played, warn_of)
        except _WorkersError as error:
            raise error.__cause__ or error from None
        return
    alone = playing.envs == 1 or isinstance(playing.policy, ForeignActor)
    workers = 1 if alone else workers or core_count()
    if workers == 1:
        yield from _play_here(playing, None)
        return
    with ExitStack() as stack:
        episodes = stack.enter_context(closing(_Trial(task, workers, stack).episodes()))
        done = 0
        try:
            for episode in episodes:
                yield episode
                done += 1
        except _WorkersError as error:
            warn_of(f"{error} The other episodes are played in this process.")
            yield from _play_here(playing.after(done), None)


class _WorkersError(TrajnoteError):
    """Why other processes cannot play these episodes."""


class _Trial:
    """The first episodes, played here, which show whether the others are worth the start of other processes.

    Args:
        task: all episodes.
        workers: how many processes there are, or would be.
        stack: closed when no more episodes are wanted.
    """

    def __init__(self, task: _Task, workers: int, stack: ExitStack) -> None:
        self._task, self._workers, self._stack = task, workers, stack
        self._patience = (0.0, TRIAL_S) if are_waiting(workers) else (TRIAL_S, WORTH_S)
        self._start = time.monotonic()
        self._played: Iterator[_Played] = iter(())

    def is_over(self, so_far: Progress) -> bool:
        """As `Enough`; if it is, the waiting episodes begin in other processes."""
        spent, (least, worth) = time.monotonic() - self._start, self._patience
        waiting, each_s = len(self._task.playing.seeds) - so_far.ended - so_far.running, spent / so_far.episodes
        if spent <= least or waiting * each_s <= worth:
            return False
        by_time, by_size = _TRAVEL_S / each_s, _TRAVEL_BYTES * so_far.episodes / so_far.nbytes
        size = max(1, int(min(by_time, by_size, _MOST, waiting / (3 * self._workers))))
        others = self._task.after(so_far.ended + so_far.running).pieces(size)
        with _among_processes():
            self._played = self._stack.enter_context(working(_play_there, others, self._workers, threadsafe=True))
        return True

    def episodes(self) -> Generator[Episode]:
        """All episodes, wherever they are played."""
        yield from _play_here(self._task.playing, self.is_over)
        yield from _unpacked(self._played, None)


def _play_here(playing: Playing[Actor], enough: Enough | None) -> Generator[Episode]:
    make = EnvironmentMaker(playing.env_id, playing.env_kwargs)
    return rollout(make, playing.policy, playing.seeds, envs=playing.envs, enough=enough, **playing.options)


def _unpacked(played: Iterator[_Played], say: Say | None) -> Generator[Episode]:
    """The episodes of tasks that were played elsewhere; what is said there is said once.

    Raises:
        BadInput: as `play_episodes` does.
        _WorkersError: when there is no such environment there, or a process died.
    """
    known: set[str] = set()
    with _among_processes():
        for episodes, said, failure, has_begun in played:
            yield from episodes
            for sentence in said:
                if say is not None and sentence not in known:
                    say(sentence)
            known.update(said)
            if failure is not None:
                raise failure if has_begun else _WorkersError(f"{failure}") from failure


@contextmanager
def _among_processes() -> Generator[None]:
    """Processes that die are no reason to end."""
    try:
        yield
    except TrajnoteError as error:
        if isinstance(error.__cause__, BrokenProcessPool):
            raise _WorkersError(error.problem) from error
        raise


def _play_there(task: _Task) -> _Played:
    playing, played = task.playing, _Played([], [], None)
    try:
        environments = _keep_environments(playing)
        _require_home(task)
    except TrajnoteError as error:
        return played._replace(failure=_bare(error), has_begun=False)
    lanes = environments[: min(len(playing.seeds), playing.envs)]
    try:
        played.episodes.extend(play(lanes, playing.policy, playing.seeds, say=played.said.append, **playing.options))
    except BadInput as error:
        return played._replace(failure=_bare(error))
    return played


def _bare(error: TrajnoteError) -> TrajnoteError:
    """The error with its cause as a note, since causes do not travel."""
    if error.__cause__ is not None:
        error.add_note("".join(traceback.format_exception(error.__cause__)))
    return error


def _require_home(task: _Task) -> None:
    env_id, env_kwargs = task.playing.env_id, task.playing.env_kwargs
    if task.home is not None and look_up_fingerprint(env_id, env_kwargs).sha256 != task.home:
        raise BadInput(
            f"Other processes find another {env_id}: its code has changed, or was changed in this process only."
        )


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
    own = _seeds_of_each(seeds, len(policies))
    episodes = [(policy, seed) for policy, each in zip(policies, own, strict=True) for seed in each]
    shares = list(_share_out([policy for policy, _ in episodes], workers or core_count()))
    tasks = [
        Playing(env_id, dict(env_kwargs or {}), policy, tuple(episodes[place][1] for place in places), mode, max_steps)
        for policy, places in shares
    ]
    alone = workers == 1 or len(tasks) <= 1
    shared = _sum_here(tasks) if alone else parallel_map(_sum_there, tasks, workers, threadsafe=True)
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
        while end < min(begin + workers * _MOST_ABREAST, len(policies)) and _kind(policies[end]) == first:
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


def _sum_here(tasks: Sequence[Playing[Actor | Crowd]]) -> Generator[list[_Summary]]:
    """Episode by episode, so that those before an interruption are known."""
    environments: list[Environment] = []
    try:
        for task in tasks:
            environments = environments or _make(task)
            yield from ([summary] for summary in _sum(task, environments))
    finally:
        for environment in environments:
            environment.close()


def _sum_there(task: Playing[Actor | Crowd]) -> list[_Summary]:
    return list(_sum(task, _keep_environments(task)))


def _sum(task: Playing[Actor | Crowd], environments: Sequence[Environment]) -> Iterator[_Summary]:
    lanes = environments[: len(task.seeds)]
    episodes = play(lanes, task.policy, task.seeds, say=None, **task.options)
    return ((episode.return_, len(episode)) for episode in episodes)


class _Kept(threading.local):
    """Environments of a worker, made once and reused for its tasks; each thread has its own."""

    key: tuple[str, str] | None = None
    environments: Sequence[Environment] = ()


_kept = _Kept()


def _keep_environments(task: Playing[Actor | Crowd]) -> Sequence[Environment]:
    """Up to 32 environments, made by the first task that needs them."""
    key = task.env_id, json.dumps(dict(task.env_kwargs), sort_keys=True)
    if _kept.key != key:
        for environment in _kept.environments:
            environment.close()
        _kept.key, _kept.environments = None, ()
        _kept.environments = _make(task)
        _kept.key = key
    return _kept.environments


def _make(task: Playing[Actor | Crowd]) -> list[Environment]:
    return make_some(EnvironmentMaker(task.env_id, task.env_kwargs), _MOST_ABREAST, _MAKING_S)
