"""`annotations replay`: what a suggestion is worth, measured from its exact state. Evidence, never a filter.

advantage = return(suggested action once, then the policy) - return(logged action once, then the policy), undiscounted
from the labelled step on. Both sides of a pair draw the same chance. The continuation with the logged action is played
too instead of being read from the log, so that both sides are followed by the same policy in the same mode.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from annotate.quality import same_actions
from refine.policies import Mode, RulePolicy
from storage.annotations import LabelReplay, insert_label_replays, list_runs, load_annotations, load_label_replays
from storage.datasets import iterate_episodes, pick, read_manifest
from storage.errors import BadInput, Prerequisite
from storage.policies import insert_environment
from storage.schema import Annotation, Episode, Frozen, Manifest, content_id
from storage.store import Store

from ..policies import find_recorded_baseline, load_own, load_policy
from ..runtime import Report, parallel_map, silent, workers_if_chosen
from ..simulation import (
    Branch,
    Ending,
    Home,
    Named,
    NetworkActor,
    Policy,
    Spaces,
    check_mode,
    find_home,
    look_up_fingerprint,
    not_loaded,
    own_policy,
    play_branches,
)

BATCH = 16  # labels that are entered together, so that an interruption costs little


class ReplayConfig(Frozen):
    """Which labels are replayed, and how the policy goes on."""

    limit: int | None = Field(
        default=None, ge=1, description="replay at most so many labels, drawn with a fixed seed; null: all"
    )
    policy: Named | None = Field(default=None, description="policy that continues; null: the one that made the dataset")
    env_id: Named | None = Field(default=None, description="the dataset's environment, if the user has to name it")
    mode: Mode | None = Field(default=None, description="how that policy acts; null: as in the dataset")
    continuations: int = Field(
        default=4, ge=1, le=1000, description="pairs of continuations for each label, if the policy samples its actions"
    )
    horizon: int | None = Field(default=None, ge=1, description="steps of a continuation at most; null: to its end")


@dataclass(frozen=True)
class ReplaySummary:
    """What came of replaying labels."""

    dataset_id: str
    labels: int  # with a suggestion, of the runs asked for
    confirmations: int  # suggest what was done: advantage 0, nothing to play
    replayed: int  # by now, exactly
    inexact: int
    fresh: int  # of those, replayed by this command
    advantage: float | None  # mean
    better: float | None  # share with a positive advantage
    worse: float | None
    environment_steps: int  # of this command


def replay_labels(
    store: Store,
    dataset_id: str,
    config: ReplayConfig,
    *,
    run_ids: Sequence[str] | None = None,
    report: Report = silent,
) -> ReplaySummary:
    """Measure suggestions; those measured in the same way before are not played again.

    Raises:
        BadInput: for an unknown dataset or run, or one without environment or seeds.
        Prerequisite: when the policy that made the dataset is not at hand, or it or the environment has to be named.
    """
    manifest = read_manifest(store, dataset_id)
    if manifest.env_id is None:
        raise BadInput(f"The labels of {dataset_id} cannot be replayed: it was recorded without an environment.")
    home = find_home(store, manifest, config.env_id)
    policy = _continuing_policy(store, manifest, config)
    mode = check_mode(policy, config.mode or manifest.policy_mode or "greedy")
    here = look_up_fingerprint(*home)
    pairs = config.continuations if mode == "sampled" else 1
    way = _Way(policy.sha256, mode, pairs, config.horizon, here.sha256)
    labels = [note for note in _labels(store, dataset_id, run_ids) if note.suggested_action is not None]
    episodes = {e.episode_id: e for e in iterate_episodes(store, dataset_id, sorted({n.episode_id for n in labels}))}
    differing = [note for note in labels if not _confirms(note, episodes[note.episode_id], manifest)]
    wanted = sorted(differing, key=lambda note: hashlib.sha256(note.annotation_id.encode()).digest())[: config.limit]
    known = {replay.label_replay_id for replay in load_label_replays(store, dataset_id)}
    missing = [note for note in wanted if way.name(note) not in known]
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    tasks = [(notes, {note.episode_id: episodes[note.episode_id] for note in notes}) for notes in batches]
    work = partial(measure, manifest, home, policy, way)
    with closing(parallel_map(work, tasks, workers_if_chosen(), threadsafe=True)) as measured:
        report("replay labels", 0, len(missing))
        for number, rows in enumerate(measured, start=1):
            with store.catalog.write() as con:
                insert_label_replays(con, rows)
                insert_environment(con, here.known, *home)
            report("replay labels", min(number * BATCH, len(missing)), len(missing))
    names, fresh = {way.name(note) for note in wanted}, {way.name(note) for note in missing}
    found = [replay for replay in load_label_replays(store, dataset_id) if replay.label_replay_id in names]
    return _sum_up(dataset_id, found, fresh, labels=len(labels), confirmations=len(labels) - len(differing))


@dataclass(frozen=True)
class _Way:
    """How labels are replayed; another way is another row."""

    policy_sha256: str
    mode: Mode
    continuations: int
    horizon: int | None
    environment_sha256: str | None

    def name(self, note: Annotation) -> str:
        played = [note.annotation_id, note.suggested_action, *vars(self).values()]
        return content_id("v_", played)


def _labels(store: Store, dataset_id: str, run_ids: Sequence[str] | None) -> list[Annotation]:
    known = list_runs(store, dataset_id)
    wanted = None if run_ids is None else [pick(name, known, "annotation run") for name in run_ids]
    labels = load_annotations(store, dataset_id, wanted)
    if not labels:
        raise Prerequisite(f"The dataset {dataset_id} has no labels.", "Make some with `trajnote annotate`.")
    return labels


def _continuing_policy(store: Store, manifest: Manifest, config: ReplayConfig) -> Policy:
    spaces = Spaces(manifest.observation_space, manifest.action_space)
    if config.policy is not None:
        known = manifest.policy_file_sha256 if config.policy == manifest.policy else None
        return load_policy(config.policy, spaces, store, file_sha256=known)
    kept = find_recorded_baseline(store, manifest.policy_sha256) if manifest.policy_sha256 else None
    if kept is not None:
        return kept if isinstance(kept, RulePolicy) else NetworkActor(manifest.policy or "baseline", kept)
    own = own_policy(store, manifest)
    if own is None and manifest.policy is not None:
        raise Prerequisite(not_loaded(manifest), "If you trust it, name it with --policy.")
    policy = load_own(own, store, manifest, spaces)
    if policy is None:
        raise Prerequisite(
            f"The policy that made {manifest.dataset_id} ({manifest.policy}) was not found.", "Name it with --policy."
        )
    return policy


def _confirms(note: Annotation, episode: Episode, manifest: Manifest) -> bool:
    logged = np.atleast_2d(np.asarray(episode.actions[note.step], np.float64))
    return bool(same_actions(np.array([note.suggested_action]), logged, manifest.action_space)[0])


def measure(
    manifest: Manifest, home: Home, policy: Policy, way: _Way, task: tuple[Sequence[Annotation], dict[int, Episode]]
) -> list[LabelReplay]:
    """Play both sides of every pair of some labels, beside the episodes that these are in; in any process."""
    notes, episodes = task
    branches = [
        Branch(place, episode, note.step, action, pair)
        for place, note in enumerate(notes)
        for episode in [episodes[note.episode_id]]
        for action in (_as_taken(note.suggested_action, manifest), _as_taken(episode.actions[note.step], manifest))
        for pair in range(way.continuations)
    ]
    endings: dict[int, list[Ending]] = defaultdict(list)
    for ending in play_branches(branches, manifest, home, policy, mode=way.mode, horizon=way.horizon):
        endings[ending.branch.number].append(ending)
    order = {id(branch): place for place, branch in enumerate(branches)}
    return [
        _row(note, sorted(endings[place], key=lambda ending: order[id(ending.branch)]), manifest, way)
        for place, note in enumerate(notes)
    ]


def _as_taken(action: Any, manifest: Manifest) -> Any:
    """An action as a rollout gives it to the environment: NumPy's integer, or a vector."""
    space = manifest.action_space
    numbers = np.asarray(action, np.float64).reshape(space.size).astype(space.dtype)
    return numbers[0] if space.is_discrete else numbers


def _row(note: Annotation, endings: Sequence[Ending], manifest: Manifest, way: _Way) -> LabelReplay:
    """Endings in the order of the branches: all with the suggested action, then all with the logged one."""
    difference = next((ending.difference for ending in endings if ending.difference is not None), None)
    returns = np.array([ending.return_ for ending in endings]).reshape(2, way.continuations)
    gains = returns[0] - returns[1]
    exact = difference is None
    several = exact and way.continuations > 1
    reach = "to the end" if way.horizon is None else f"over {way.horizon} steps"
    return LabelReplay(
        label_replay_id=way.name(note),
        annotation_id=note.annotation_id,
        dataset_id=manifest.dataset_id,
        episode_id=note.episode_id,
        step=note.step,
        policy_sha256=way.policy_sha256,
        mode=way.mode,
        continuations=way.continuations,
        exact=exact,
        suggested_return=float(returns[0].mean()) if exact else None,
        logged_return=float(returns[1].mean()) if exact else None,
        advantage=float(gains.mean()) if exact else None,
        advantages=tuple(gains.tolist()) if exact else (),
        standard_error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if several else None,
        environment_steps=sum(ending.steps for ending in endings),
        environment_sha256=way.environment_sha256,
        detail=f"{way.continuations} pairs {reach}" if difference is None else _describe(difference),
    )


def _describe(difference: Any) -> str:
    return (
        f"not reached: step {difference.step}, {difference.what}: logged {difference.logged!s}, "
        f"replayed {difference.replayed!s}"
    )


def _sum_up(
    dataset_id: str, found: Sequence[LabelReplay], fresh: set[str], *, labels: int, confirmations: int
) -> ReplaySummary:
    gains = np.array([replay.advantage for replay in found if replay.advantage is not None], np.float64)
    measured = len(gains) > 0
    return ReplaySummary(
        dataset_id=dataset_id,
        labels=labels,
        confirmations=confirmations,
        replayed=len(gains),
        inexact=sum(not replay.exact for replay in found),
        fresh=sum(replay.label_replay_id in fresh for replay in found),
        advantage=float(gains.mean()) if measured else None,
        better=float((gains > 0).mean()) if measured else None,
        worse=float((gains < 0).mean()) if measured else None,
        environment_steps=sum(r.environment_steps for r in found if r.label_replay_id in fresh),
    )
