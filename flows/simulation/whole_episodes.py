"""Plays whole episodes: in this process first, and in others if that takes long, or on the chosen runner.

Episodes are bit for bit the same wherever they are played. Returns alone are in `workers.py`.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from refine.policies import Mode
from storage.errors import BadInput, TrajnoteError
from storage.schema import Episode

from ..runtime import are_waiting, chosen_runner, core_count, working
from .actors import Actor, ForeignActor
from .environments import EnvironmentMaker
from .fingerprint import Fingerprint, look_up_fingerprint
from .rollouts import ENVIRONMENTS, Enough, Progress, Say, play, rollout, warn_of
from .trust import Named
from .workers import kept_environments

_CHUNK, _MOST = 8, 512  # episodes of a task: of unknown size, and at most
_TRAVEL_BYTES, _TRAVEL_S = 16_000_000, 2.0  # about what the steps of a task may weigh, and take
_TRIAL_S = 0.5  # seconds of playing after which it shows how long the rest would take
_WORTH_S = 4.0  # seconds of playing from which on other processes are worth their start


class _Task(NamedTuple):
    """Some episodes, and how they are played."""

    env_id: Named
    env_kwargs: Mapping[str, Any]
    policy: Actor
    seeds: Sequence[int]
    mode: Mode
    max_steps: int | None
    first_id: int = 0
    envs: int = ENVIRONMENTS  # side by side at most
    home: str | None = None  # hash of the environment's fingerprint, which is another one where it was changed

    @property
    def options(self) -> dict[str, Any]:
        """What `rollout` and `play` are given alike."""
        return {"mode": self.mode, "max_steps": self.max_steps, "first_id": self.first_id}

    def after(self, done: int) -> _Task:
        """The episodes after the first ones."""
        return self._replace(seeds=self.seeds[done:], first_id=self.first_id + done)

    def pieces(self, size: int) -> list[_Task]:
        """All episodes in tasks of some."""
        return [
            self._replace(seeds=self.seeds[start : start + size], first_id=self.first_id + start)
            for start in range(0, len(self.seeds), size)
        ]


class _Played(NamedTuple):
    """The result of a task."""

    episodes: list[Episode]  # before the one that failed, if any
    said: list[str]  # for the user
    failure: TrajnoteError | None
    has_begun: bool = True  # False: there is no such environment where it was played


def play_episodes(
    env_id: Named,
    env_kwargs: Mapping[str, Any],
    policy: Actor,
    seeds: Sequence[int],
    *,
    mode: Mode = "greedy",
    max_steps: int | None = None,
    first_id: int = 0,
    envs: int = ENVIRONMENTS,
    workers: int | None = None,
    home: Fingerprint | None = None,
) -> Generator[Episode]:
    """Play a policy on every seed as `rollout` does: on the workers of the chosen runner, or as is fastest here.

    Without a chosen runner this process plays the first episodes, and shares the others out to processes if they would
    take long, or if the processes are there already. With one environment or worker it plays them all, and so it does
    with external code, which may remember what it was asked.

    Args:
        env_id: as for `make_environment`.
        env_kwargs: as for `make_environment`.
        policy: what acts.
        seeds: one per episode.
        mode: as for `rollout`.
        max_steps: as for `rollout`.
        first_id: as for `rollout`.
        envs: environments side by side in each process.
        workers: processes at most; one per core when None.
        home: what the environment has to be in other processes, too.

    Yields:
        Episodes in the order of the seeds, the same bits as from `rollout`.

    Raises:
        BadInput: as `play` does, after all episodes before the one that failed.
    """
    task = _Task(env_id, env_kwargs, policy, seeds, mode, max_steps, first_id, envs, home.sha256 if home else None)
    if chosen_runner() is not None:
        try:
            with working(_play_there, task.pieces(_CHUNK), threadsafe=True) as played:
                yield from _unpacked(played, warn_of)
        except _LonelyError as error:
            raise error.__cause__ or error from None
        return
    workers = 1 if envs == 1 or isinstance(policy, ForeignActor) else workers or core_count()
    if workers == 1:
        yield from _play_here(task, None)
        return
    with ExitStack() as stack:
        episodes = stack.enter_context(closing(_Trial(task, workers, stack).episodes()))
        done = 0
        try:
            for episode in episodes:
                yield episode
                done += 1
        except _LonelyError as error:
            warn_of(f"{error} The other episodes are played in this process.")
            yield from _play_here(task.after(done), None)


class _LonelyError(TrajnoteError):
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
        self._patience = (0.0, _TRIAL_S) if are_waiting(workers) else (_TRIAL_S, _WORTH_S)
        self._start = time.monotonic()
        self._played: Iterator[_Played] = iter(())

    def is_over(self, so_far: Progress) -> bool:
        """As `Enough`; if it is, the waiting episodes begin in other processes."""
        spent, (least, worth) = time.monotonic() - self._start, self._patience
        waiting, each_s = len(self._task.seeds) - so_far.ended - so_far.running, spent / so_far.episodes
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
        yield from _play_here(self._task, self.is_over)
        yield from _unpacked(self._played, None)


def _play_here(task: _Task, enough: Enough | None) -> Generator[Episode]:
    make = EnvironmentMaker(task.env_id, task.env_kwargs)
    return rollout(make, task.policy, task.seeds, envs=task.envs, enough=enough, **task.options)


def _unpacked(played: Iterator[_Played], say: Say | None) -> Generator[Episode]:
    """The episodes of tasks that were played elsewhere; what is said there is said once.

    Raises:
        BadInput: as `play_episodes` does.
        _LonelyError: when there is no such environment there, or a process died.
    """
    heard: set[str] = set()
    with _among_processes():
        for episodes, said, failure, has_begun in played:
            yield from episodes
            for sentence in said:
                if say is not None and sentence not in heard:
                    say(sentence)
            heard.update(said)
            if failure is not None:
                raise failure if has_begun else _LonelyError(f"{failure}") from failure


@contextmanager
def _among_processes() -> Generator[None]:
    """Processes that die are no reason to end."""
    try:
        yield
    except TrajnoteError as error:
        if isinstance(error.__cause__, BrokenProcessPool):
            raise _LonelyError(error.problem) from error
        raise


def _play_there(task: _Task) -> _Played:
    played = _Played([], [], None)
    try:
        playing = kept_environments(task.env_id, json.dumps(dict(task.env_kwargs), sort_keys=True))
        _require_home(task)
    except TrajnoteError as error:
        return played._replace(failure=_bare(error), has_begun=False)
    lanes = min(len(task.seeds), task.envs)
    try:
        played.episodes.extend(play(playing[:lanes], task.policy, task.seeds, say=played.said.append, **task.options))
    except BadInput as error:
        return played._replace(failure=_bare(error))
    return played


def _bare(error: TrajnoteError) -> TrajnoteError:
    """The error with its cause as a note, since causes do not travel."""
    if error.__cause__ is not None:
        error.add_note("".join(traceback.format_exception(error.__cause__)))
    return error


def _require_home(task: _Task) -> None:
    if task.home is not None and look_up_fingerprint(task.env_id, task.env_kwargs).sha256 != task.home:
        raise BadInput(f"Other processes find another {task.env_id}: its code has changed, or was changed here alone.")
