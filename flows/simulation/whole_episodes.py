"""Plays whole episodes: in this process first, and in others if that takes long, or on the chosen runner.

Episodes are bit for bit the same wherever they are played. Returns alone are in `workers.py`.
"""

from __future__ import annotations

import json
import time
import traceback
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any, NamedTuple

from refine.policies import Mode
from storage.errors import BadInput, TrajnoteError
from storage.schema import Episode

from ..runtime import are_waiting, chosen_runner, core_count, parallel_map
from .actors import Actor, ForeignActor
from .environments import EnvironmentMaker
from .fingerprint import Fingerprint, look_up_fingerprint
from .rollouts import ENVIRONMENTS, Say, play, rollout, warn_of
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
            yield from _play_elsewhere(task.pieces(_CHUNK), None, warn_of)
        except _LonelyError as error:
            raise error.__cause__ or error from None
        return
    workers = 1 if envs == 1 or isinstance(policy, ForeignActor) else workers or core_count()
    trial = None if workers == 1 else _Trial(len(seeds), workers)
    done = 0
    for episode in _play_here(task, trial):
        yield episode
        done += 1
    if trial is None or not (task := task.after(done)).seeds:
        return
    done = 0
    try:
        for episode in _play_elsewhere(task.pieces(trial.chunk()), workers, None):
            yield episode
            done += 1
    except _LonelyError as error:
        warn_of(f"{error} The other episodes are played in this process.")
        yield from _play_here(task.after(done), None)


class _LonelyError(TrajnoteError):
    """Why other processes cannot play these episodes."""


class _Trial:
    """The first episodes, played here, which show whether the others are worth the start of other processes."""

    def __init__(self, episodes: int, workers: int) -> None:
        self._episodes = self._waiting = episodes
        self._workers = workers
        self._patience = (0.0, _TRIAL_S) if are_waiting(workers) else (_TRIAL_S, _WORTH_S)
        self._start, self._each_s = time.monotonic(), 0.0
        self._bytes: deque[int] = deque(maxlen=ENVIRONMENTS)

    def is_over(self, ended: int, running: int) -> bool:
        """As `Enough`."""
        spent, self._waiting = time.monotonic() - self._start, self._episodes - ended - running
        self._each_s = spent / (ended + running / 2)
        least, worth = self._patience
        return spent > least and self._waiting * self._each_s > worth

    def weigh(self, episode: Episode) -> None:
        """Take note of the size of an episode."""
        arrays = (episode.observations, episode.actions, episode.rewards, episode.policy_outputs)
        self._bytes.append(sum(array.nbytes for array in arrays if array is not None))

    def chunk(self) -> int:
        """How many of the waiting episodes a task has: some for every worker, no more than travels well."""
        by_time, by_size = _TRAVEL_S / self._each_s, _TRAVEL_BYTES / max(self._bytes)
        return max(1, int(min(by_time, by_size, _MOST, self._waiting / (3 * self._workers))))


def _play_here(task: _Task, trial: _Trial | None) -> Generator[Episode]:
    make, enough = EnvironmentMaker(task.env_id, task.env_kwargs), trial.is_over if trial else None
    options: dict[str, Any] = {"mode": task.mode, "max_steps": task.max_steps, "first_id": task.first_id}
    for episode in rollout(make, task.policy, task.seeds, envs=task.envs, enough=enough, **options):
        if trial is not None:
            trial.weigh(episode)
        yield episode


def _play_elsewhere(tasks: Sequence[_Task], workers: int | None, say: Say | None) -> Generator[Episode]:
    """Play in workers; say what each of them says once.

    Raises:
        BadInput: as `play_episodes` does.
        _LonelyError: when they have no such environment, or one of them died.
    """
    heard: set[str] = set()
    try:
        with closing(parallel_map(_play_there, tasks, workers, threadsafe=True)) as played:
            for episodes, said, failure, has_begun in played:
                yield from episodes
                for sentence in said:
                    if say is not None and sentence not in heard:
                        say(sentence)
                heard.update(said)
                if failure is not None:
                    raise failure if has_begun else _LonelyError(f"{failure}") from failure
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
    options: dict[str, Any] = {"mode": task.mode, "max_steps": task.max_steps, "first_id": task.first_id}
    lanes = min(len(task.seeds), task.envs)
    try:
        played.episodes.extend(play(playing[:lanes], task.policy, task.seeds, say=played.said.append, **options))
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
