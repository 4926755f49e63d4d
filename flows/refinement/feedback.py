"""Rounds of feedback: an annotator betters its own list of rules, shown what came of it; the best version counts.

Each version is a row of `rule_lists` with its parent. It is played as it stands on seeds of its own, refined with all
controls, and shown to the annotator again, as long as that gains something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotate.prompting import Measured, PlayedList, describe_feedback, with_action_indices
from refine.evaluation import interval
from refine.policies import CompiledRules, States
from storage.annotations import load_rule_lists
from storage.datasets import read_manifest
from storage.errors import Prerequisite
from storage.schema import Episode, Manifest
from storage.store import Store

from ..labelling import card_of
from ..policies import load_policy
from ..runtime import Report, silent
from ..simulation import Actor, Home, Named, find_home, look_up_spaces, play_episodes
from .refinement import Outcome

EPISODES = 20
"""Episodes that each policy plays for the feedback."""
FIRST_SEED = 7_000_000
"""First of their seeds, far from those of datasets and gates; all versions have the same, to be compared."""


@dataclass(frozen=True)
class Version:
    """One version of a list, and what came of it on the seeds of the feedback."""

    list_id: str
    parent_id: str | None
    played: Measured  # as it stands
    refined: Measured  # what was trained to imitate it
    baseline: Measured
    environment_steps: int  # of these episodes
    text: str  # what the annotator is shown

    @property
    def worth(self) -> float:
        """Mean return of the better of the two; what versions are compared by."""
        return max(self.played.mean, self.refined.mean)


def measure_version(
    store: Store, dataset_id: str, run_id: str, outcome: Outcome, *, card: str | None = None, report: Report = silent
) -> Version:
    """Play a list, the policy that imitates it, and the baseline, and write down what the annotator is shown.

    Args:
        store: the store.
        dataset_id: that the list is about.
        run_id: the annotation run that gave it.
        outcome: of the refinement with it.
        card: path of the card, where it is not the dataset's own.
        report: shown the progress.

    Raises:
        Prerequisite: if the run gave no rule.
    """
    manifest = read_manifest(store, dataset_id)
    lists = load_rule_lists(store, dataset_id, [run_id])
    if not lists:
        raise Prerequisite(f"The run {run_id} gave no rule that is allowed.", "The table `rejections` says why.")
    listed = lists[0]
    home = find_home(store, manifest)
    own = load_policy(Named(f"rules:{listed.list_id}"), look_up_spaces(*home), store)
    trial = outcome.comparison.trials[0]
    actors: dict[str, Actor] = {
        "baseline": outcome.baseline.policy,
        "the list": own,
        "refined": trial.candidates[trial.winner].actor,
    }
    episodes = {name: _play(manifest, home, actor, report, name) for name, actor in actors.items()}
    returns = {name: _measure(played) for name, played in episodes.items()}
    compiled = CompiledRules.of(listed, manifest)
    shown = PlayedList(
        listed,
        [with_action_indices(episode, manifest.action_space.start) for episode in episodes["the list"]],
        [_deciding(compiled, episode) for episode in episodes["the list"]],
        returns["the list"],
        returns["baseline"],
        returns["refined"],
    )
    return Version(
        list_id=listed.list_id,
        parent_id=listed.parent_id,
        played=shown.played,
        refined=shown.refined,
        baseline=shown.baseline,
        environment_steps=sum(len(episode) for played in episodes.values() for episode in played),
        text=describe_feedback(card_of(store, dataset_id, card), shown),
    )


def best_of(versions: Sequence[Version]) -> Version:
    """The version that is worth most; of equal ones the first."""
    return max(versions, key=lambda version: version.worth)


def _play(manifest: Manifest, home: Home, actor: Actor, report: Report, name: str) -> list[Episode]:
    seeds = range(FIRST_SEED, FIRST_SEED + EPISODES)
    episodes: list[Episode] = []
    played = play_episodes(
        home.env_id, home.env_kwargs, actor, seeds, mode="greedy", max_steps=manifest.max_steps, first_id=0
    )
    for episode in played:
        episodes.append(episode)
        report(f"feedback: {name}", len(episodes), EPISODES)
    return episodes


def _measure(episodes: Sequence[Episode]) -> Measured:
    estimate = interval(np.array([episode.return_ for episode in episodes]))
    return Measured(estimate.mean, estimate.low, estimate.high)


def _deciding(compiled: CompiledRules, episode: Episode) -> NDArray[np.int64]:
    """Which rule decided in each step, (T,)."""
    seen = episode.observations[:-1]
    before = np.concatenate([seen[:1], seen[:-1]])
    return compiled.decide(compiled.values(States(seen, before, np.arange(len(episode)))))
