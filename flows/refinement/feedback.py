"""Rounds of feedback: an annotator improves its own list of rules, shown how it did; the best version counts.

Each version is a row of `rule_lists` with its parent. It is played as it stands on seeds of its own, refined with all
controls, and shown to the annotator again, as long as that gains something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from annotate.prompting import Copied, Measured, PlayedList, describe_feedback, with_action_indices
from annotate.quality import same_actions
from refine.evaluation import interval
from refine.policies import CompiledRules, Past, RuleDecisions, States
from storage.annotations import load_rule_lists
from storage.datasets import iterate_episodes, read_manifest
from storage.errors import Prerequisite
from storage.schema import Episode, Manifest
from storage.store import Store

from ..labelling import card_of
from ..policies import load_policy
from ..runtime import Report, silent
from ..simulation import Actor, Home, Named, Playing, choose, find_home, look_up_spaces, play_episodes
from .comparison import Trial
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
    is_promoted: bool = False  # whether the gate tested the list itself, in place of its imitation

    @property
    def tested(self) -> float:
        """The mean return of what may be put in force."""
        return self.played.mean if self.is_promoted else self.refined.mean

    def gains(self, before: Sequence[Version]) -> bool:
        """Whether it, or its imitation, returns more than that of every earlier version."""
        return all(self.played.mean > each.played.mean for each in before) or all(
            self.refined.mean > each.refined.mean for each in before
        )


def measure_version(
    store: Store,
    dataset_id: str,
    run_id: str,
    outcome: Outcome,
    *,
    card: str | None = None,
    env_id: Named | None = None,
    report: Report = silent,
) -> Version:
    """Play a list, the policy that imitates it, and the baseline, and write down what the annotator is shown.

    Args:
        store: the store.
        dataset_id: that the list is about.
        run_id: the annotation run that gave it.
        outcome: of the refinement with it.
        card: path of the card, where it is not the dataset's own.
        env_id: the dataset's environment, if the user has named it; see `trust.find_home`.
        report: shown the progress.

    Raises:
        Prerequisite: if the run gave no rule.
    """
    manifest = read_manifest(store, dataset_id)
    lists = load_rule_lists(store, dataset_id, [run_id])
    if not lists:
        raise Prerequisite(f"The run {run_id} gave no valid rule.", "The table `rejections` says why.")
    listed = lists[0]
    home = find_home(store, manifest, env_id)
    own = load_policy(Named(f"rules:{listed.list_id}"), look_up_spaces(*home), store)
    trial = outcome.comparison.trials[0]
    actors: dict[str, Actor] = {
        "baseline": outcome.baseline.policy,
        "the list": own,
        "refined": _imitation(trial),
    }
    episodes = {name: _play(manifest, home, actor, report, name) for name, actor in actors.items()}
    returns = {name: _measure(played) for name, played in episodes.items()}
    compiled = CompiledRules.of(listed, manifest)
    decided = [(episode, compiled.say(_states(episode))) for episode in episodes["the list"]]
    logged = ((episode, compiled.say(_states(episode))) for episode in iterate_episodes(store, dataset_id))
    shares = (_alike(compiled, actors["refined"], each) for each in (logged, decided))
    shown = PlayedList(
        listed,
        [with_action_indices(episode, manifest.action_space.start) for episode in episodes["the list"]],
        [decisions.rules for _, decisions in decided],
        [Copied(*pair) for pair in zip(*shares, strict=True)],
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
        is_promoted=trial.winner >= len(trial.snapshots),
        environment_steps=sum(len(episode) for played in episodes.values() for episode in played),
        text=describe_feedback(card_of(store, dataset_id, card), shown),
    )


def best_of(versions: Sequence[Version]) -> Version:
    """The version of which what may be put in force returns most; of equal ones the first."""
    return max(versions, key=lambda version: version.tested)


def _imitation(trial: Trial) -> Actor:
    """The tested policy, or the best trained one where the list itself was tested."""
    trained = range(len(trial.snapshots))
    place = trial.winner if trial.winner in trained else max(trained, key=lambda place: trial.selection[place])
    return trial.candidates[place].actor


def _play(manifest: Manifest, home: Home, actor: Actor, report: Report, name: str) -> list[Episode]:
    seeds = range(FIRST_SEED, FIRST_SEED + EPISODES)
    episodes: list[Episode] = []
    played = play_episodes(Playing(*home, actor, seeds, max_steps=manifest.max_steps))
    for episode in played:
        episodes.append(episode)
        report(f"feedback: {name}", len(episodes), EPISODES)
    return episodes


def _measure(episodes: Sequence[Episode]) -> Measured:
    estimate = interval(np.array([episode.return_ for episode in episodes]))
    return Measured(estimate.mean, estimate.low, estimate.high)


def _alike(
    compiled: CompiledRules, actor: Actor, decided: Iterable[tuple[Episode, RuleDecisions]]
) -> list[float | None]:
    """For each rule the share of steps in which an actor does as it says, of those where it says something.

    Args:
        compiled: the rules.
        actor: compared with them.
        decided: episodes, and what the rules say in their steps.
    """
    counts = np.zeros((len(compiled.listed.rules), 2), np.int64)
    for episode, decisions in decided:
        states = _states(episode)
        acts = choose(actor, states.observations, lambda states=states: Past(states.previous, states.steps))
        acted = np.asarray(acts.actions, np.float64).reshape(decisions.actions.shape)
        wanted = np.where(np.isnan(decisions.actions), acted, decisions.actions)  # a dimension left open agrees
        same = same_actions(acted, wanted, compiled.action_space)
        np.add.at(counts, (decisions.rules[decisions.has_value], same[decisions.has_value].astype(np.int64)), 1)
    return [float(count[1] / count.sum()) if count.any() else None for count in counts]


def _states(episode: Episode) -> States:
    """The T states in which it acted."""
    seen = episode.observations[:-1]
    return States(seen, np.concatenate([seen[:1], seen[:-1]]), np.arange(len(episode)))
