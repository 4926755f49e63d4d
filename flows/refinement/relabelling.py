"""Relabelling: the learner plays, its lists of rules label what it played, and it learns from all of that again.

This is dataset aggregation (DAgger; Ross, Gordon and Bagnell, AISTATS 2011): a law says what to do in every state, so
states that the learner reaches by its own mistakes have labels without any request. Each round is a refinement of the
same baseline with its gate and its placebos, on all datasets so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from annotate.cards import own_card
from storage.catalog import Connection
from storage.datasets import read_manifest
from storage.errors import BadInput
from storage.policies import count_played_steps, end_of_used_seeds
from storage.schema import Manifest
from storage.store import Store

from ..datasets import CollectConfig, collect
from ..runtime import Report, silent
from ..simulation import Named, find_home
from .comparison import GateConfig, Trial
from .evaluator import Candidate
from .lineage import save_refined, training_of
from .refinement import ImproveConfig, Origins, Outcome, find_labels, improve, starting_at

_FIRST_SEED, _SEEDS = 1 << 24, 1 << 30
"""Rounds draw their seeds from a range of this size, far beyond those that datasets and gates begin with."""


@dataclass(frozen=True)
class RelabelRound:
    """One refinement, on the dataset and what was played in earlier rounds."""

    number: int  # 0: on the dataset alone
    dataset_ids: tuple[str, ...]
    outcome: Outcome
    environment_steps: int | None
    """So far: of the datasets, and of the gate of this arm; None without rounds, or where not all were counted."""

    @property
    def trial(self) -> Trial:
        """The gate's finding about the candidates that learned from the rules."""
        return self.outcome.comparison.trials[0]

    @property
    def tested(self) -> Candidate:
        """What plays in the next round: the policy that was accepted, or else the one that was tested.

        Also a rejected learner's states are those that its next training needs.
        """
        return self.trial.candidates[self.trial.winner]

    @property
    def accepted(self) -> bool:
        """Whether the gate accepted what was learned."""
        return self.trial.decision.accepted

    @property
    def selection(self) -> float:
        """Mean return of the tested candidate on the selection seeds, which all rounds share."""
        return self.trial.selection[self.trial.winner]


@dataclass(frozen=True)
class Relabelled:
    """All rounds of a refinement; without relabelling there is only the first."""

    rounds: Sequence[RelabelRound]

    @property
    def best(self) -> RelabelRound:
        """The round that counts: the accepted one with the highest return on the selection seeds; else the first."""
        accepted = [made for made in self.rounds if made.accepted]
        return max(accepted, key=lambda made: made.selection, default=self.rounds[0])


def improve_and_relabel(
    store: Store,
    dataset_id: str,
    config: ImproveConfig,
    *,
    report: Report = silent,
    **origins: Unpack[Origins],
) -> Relabelled:
    """Refine as `improve` does, then `config.relabel` times more, each time also on what the learner has played.

    Running it again plays and trains nothing twice.

    Args:
        store: the store.
        dataset_id: a dataset that was collected in a Gymnasium environment, with rules.
        config: each refinement, and how many rounds follow the first.
        report: shown the progress.
        origins: as for `improve`; every round starts from the same baseline.

    Raises:
        Prerequisite, BadInput: as `improve` does.
        BadInput: if relabelling is asked for with labels of single steps.
    """
    datasets: tuple[str, ...] = (dataset_id,)
    if config.relabel:
        _check(store, datasets, config, origins)
    done: list[RelabelRound] = []
    gate, reserved = config.gate, None  # all rounds choose on the seeds of the first, to be compared
    for number in range(config.relabel + 1):
        if done:
            datasets = (*datasets, _play_learner(store, done[-1], gate, origins.get("env_id"), report))
        asked = _for_round(config, number)
        outcome = improve(store, dataset_id, asked, also=datasets[1:], reserved=reserved, report=report, **origins)
        reserved = outcome.first_seed
        gate = starting_at(config.gate, reserved)
        made = RelabelRound(number, datasets, outcome, None)
        steps = _count_steps(store, [*done, made], gate) if config.relabel else None
        done.append(replace(made, environment_steps=steps))
    return Relabelled(done)


def _check(store: Store, datasets: Sequence[str], config: ImproveConfig, origins: Origins) -> None:
    if read_manifest(store, datasets[0]).env_id is None:
        raise BadInput(f"The dataset {datasets[0]} has no environment, so no learner can play.", "Leave --relabel out.")
    run_ids, rules = origins.get("run_ids"), origins.get("rules", False)
    if not find_labels(store, datasets, run_ids, config.refine.mode, rules=rules).lists:
        raise BadInput("Labels of single steps say nothing about new steps, so nothing is relabelled.", "Add --rules.")


def _for_round(config: ImproveConfig, number: int) -> ImproveConfig:
    log_dir = config.log_dir / f"round-{number}" if config.log_dir and config.relabel else config.log_dir
    return config.model_copy(update={"relabel": 0, "log_dir": log_dir})


def _play_learner(store: Store, made: RelabelRound, gate: GateConfig, env_id: Named | None, report: Report) -> str:
    """Collect as many episodes of the last round's policy as its dataset has; returns the new dataset's id."""
    manifest = read_manifest(store, made.dataset_ids[0])
    home, is_stochastic = find_home(store, manifest, env_id), made.outcome.baseline.policy.is_stochastic
    config = CollectConfig(
        env_id=home.env_id,
        env_kwargs=home.env_kwargs,
        engine=manifest.engine,
        policy=_keep(store, made, manifest),
        mode=manifest.policy_mode or ("sampled" if is_stochastic else "greedy"),
        episodes=manifest.episodes,
        seed=_free_seed(store, made, gate, manifest.episodes),
        max_steps=manifest.max_steps,
        workers=None,
        rename=True,
    )
    card = own_card(store, manifest)
    played = collect(
        store,
        config,
        report,
        component_names=manifest.component_names,
        action_names=manifest.action_names,
        card=card.content if card else None,
    )
    return played.dataset_id


def _keep(store: Store, made: RelabelRound, manifest: Manifest) -> Named:
    """Keep the tested policy in the store, where an accepted one is already, and name it."""
    if not made.accepted:
        about = {
            "env_id": manifest.env_id,
            "dataset_id": manifest.dataset_id,
            "baseline_id": made.outcome.baseline_id,
        }
        config = {"arm": "labels", "tried": made.outcome.comparison_id, **training_of(made.trial)}
        also = {"also": list(made.dataset_ids[1:])} if made.number else {}
        save_refined(store, made.tested, about, config | also)
    return Named(f"policy:{made.tested.policy_id}")


def _free_seed(store: Store, made: RelabelRound, gate: GateConfig, episodes: int) -> int:
    """The first seed of a round, made from its policy: the same every time, and nobody else's in this store."""
    first = _FIRST_SEED + (int(made.tested.sha256[:12], 16) + made.number) % _SEEDS
    judged = gate.seeds.whole
    with store.catalog.read() as con:
        while (stop := _end_of_use(con, made.tested.sha256, range(first, first + episodes), judged)) is not None:
            first = stop
    return first


def _end_of_use(con: Connection, policy_sha256: str, seeds: range, judged: range) -> int | None:
    """A seed after those that anything but this round's own dataset has used; None if all are free."""
    overlaps = judged.start < seeds.stop and seeds.start < judged.stop
    ends = (end_of_used_seeds(con, seeds, except_by=policy_sha256), judged.stop if overlaps else None)
    return max((end for end in ends if end is not None), default=None)


def _count_steps(store: Store, rounds: Sequence[RelabelRound], gate: GateConfig) -> int | None:
    """Steps of the datasets, and of the candidates and the baseline before their report.

    Placebos and reports, which only measure, are left out.
    """
    candidates = {candidate.sha256[:12] for made in rounds for candidate in made.trial.candidates}
    last, seeds = rounds[-1], gate.seeds
    policies = sorted(candidates | {last.outcome.baseline.policy.sha256[:12]})
    gated_seeds = range(seeds.select.start, seeds.report.start)
    with store.catalog.read() as con:
        gated = count_played_steps(con, gate.mode, gated_seeds, last.outcome.baseline_id, policies)
    collected = sum(read_manifest(store, dataset_id).steps for dataset_id in last.dataset_ids)
    return None if gated is None else collected + gated
