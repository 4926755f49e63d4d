"""`refine`: from a dataset and its labels, rules or an expert's actions to a judged policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
from pydantic import Field

from annotate.cards import card_at_hand
from refine.config import RefineConfig, TrainingMode
from refine.labels import (
    Labels,
    ReferenceArm,
    RuleLabels,
    covers_most_steps,
    label_like_expert,
    labels_from_annotations,
    labels_from_rules,
    relabel,
)
from refine.policies import CompiledRules, Past
from storage.annotations import RuleList, load_rule_lists, pool_annotations, trusted_annotations, trusted_rules
from storage.catalog import component_columns
from storage.datasets import StepArrays, catalogued_episodes, read_manifest, read_steps
from storage.errors import BadInput, Prerequisite
from storage.policies import FIRST_SEED, Plan, reserve_seeds
from storage.schema import Annotation, Frozen, Manifest, canonical_json
from storage.store import Store

from ..policies import Baseline, find_baseline, find_collecting_weights, load_policy
from ..runtime import Report, silent
from ..simulation import Home, Named, Spaces, check_spaces, choose, find_home, look_up_spaces
from .arms import Material, Oracle, read_once
from .comparison import Comparison, ComparisonPlan, GateConfig, Promote
from .evaluator import Evaluator
from .lineage import name_comparison, name_plan, record_comparison


class ImproveConfig(Frozen):
    """One refinement with its controls."""

    refine: RefineConfig = Field(default_factory=RefineConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    random_states: bool = Field(
        default=False, description="add the arm random_states: random states, each with the nearest label"
    )
    expert: Named | None = Field(default=None, description="policy whose actions are the arm oracle; null: no such arm")
    promote_rules: bool = Field(default=False, description="rules, played, are one more candidate of their arm")
    promote: Promote = Field(
        default="labels",
        description="labels: only their policy may be put in force; best: the best accepted one of labels, no_labels"
        " and rules_played, each tested with an equal part of the error rate",
    )
    relabel: int = Field(
        default=0, ge=0, description="rounds in which the learner plays and its rules label what it plays"
    )
    log_dir: Path | None = Field(default=None, description="folder for d3rlpy's logs of the labels' training")
    workers: int | None = Field(
        default=None, ge=1, description="processes; null: one per core; does not change the result"
    )

    @property
    def references(self) -> list[ReferenceArm]:
        """The reference arms, which only inform."""
        also: list[ReferenceArm] = ["random_states"] if self.random_states else []
        return [*also, "oracle"] if self.expert else also


@dataclass(frozen=True)
class Outcome:
    """A judged refinement and its id in the catalog."""

    comparison_id: str
    dataset_id: str
    baseline: Baseline
    comparison: Comparison
    n_labels: int
    warnings: tuple[str, ...] = ()  # what a user should know before believing the result
    baseline_id: str = ""  # the baseline's id in the catalog
    first_seed: int = FIRST_SEED  # of the gate


class Origins(TypedDict, total=False):
    """What a refinement starts from, where it is not what the dataset says."""

    run_ids: Sequence[str] | None  # annotation runs whose labels count; all when None
    rules: bool  # imitate their corrective rules instead, at all steps that they match
    baseline: Named | None  # another one than the dataset's policy, see `policies.load_policy`
    env_id: Named | None  # the dataset's environment, if the user has to name it; see `trust.find_home`


def improve(
    store: Store,
    dataset_id: str,
    config: ImproveConfig,
    *,
    also: Sequence[str] = (),
    reserved: int | None = None,
    search_from: int = FIRST_SEED,
    report: Report = silent,
    **origins: Unpack[Origins],
) -> Outcome:
    """Refine a dataset's policy with the dataset's annotations, beside the controls, and judge it.

    Its gate has seeds that nothing in the catalog has used. Running it again gives the same result, with the same
    seeds, and plays no episode twice.

    Args:
        store: the store.
        dataset_id: a dataset that was collected in a Gymnasium environment.
        config: refinement, gate and processes.
        also: further datasets whose steps and labels count, of the same environment.
        reserved: first seed of the gate of an earlier refinement, where both are to be compared on the same seeds.
        search_from: where the search for free seeds begins.
        report: shown the progress.
        origins: see `Origins`.

    Raises:
        Prerequisite: if the dataset has no annotations, or no rules, or its environment has to be named.
        BadInput: if it has no environment, or its seeds are among the gate's.
    """
    manifest = read_manifest(store, dataset_id)
    home, baseline = _home_of(store, manifest, origins.get("env_id")), origins.get("baseline")
    run_ids, rules = origins.get("run_ids"), origins.get("rules", False)
    named = config.gate.first_seed if reserved is None else reserved
    if named is not None:
        _refuse_shared_seeds(store, (dataset_id, *also), starting_at(config.gate, named))
    material, start, source, warnings = gather_material(
        store, manifest, config.refine, run_ids, rules=rules, also=also, baseline=baseline, expert=config.expert
    )
    _check_use_of_rules(config, source)
    evaluator = Evaluator(store, *home, config.workers, manifest.max_steps)
    changes = (_warn_of_changes(evaluator, read_manifest(store, each)) for each in (dataset_id, *also))
    warnings += tuple(filter(None, changes))
    plan = _plan(replace(material, log_dir=config.log_dir), evaluator, config, report)
    if reserved is None:
        reserved, reused = _reserve(plan, config.gate.first_seed, search_from)
        warnings += reused
    plan = replace(plan, gate=starting_at(plan.gate, reserved))
    with evaluator.session(plan.gate.seeds.whole):
        comparison = plan.run()
        comparison_id = record_comparison(plan, comparison, source.run_ids, start.origin, warnings=warnings)
    return Outcome(
        comparison_id,
        dataset_id,
        start,
        comparison,
        len(material.labels),
        warnings,
        plan.baseline.policy_id,
        reserved,
    )


def _check_use_of_rules(config: ImproveConfig, source: LabelSource) -> None:
    if source.lists and config.random_states:
        raise BadInput("Rules cover all states that they match, so --random-states has no others to compare with.")
    if config.promote_rules and len(source.lists) != 1:
        raise BadInput(
            f"Only one list of rules can be put in force; this refinement uses {len(source.lists)}.",
            "Name the run of one list with --run." if source.lists else "Refine with --rules.",
        )


def _plan(material: Material, evaluator: Evaluator, config: ImproveConfig, report: Report) -> ComparisonPlan:
    """The comparison; its seeds are not chosen yet.

    Of several arms that compete each has a part of the error, so that all of them together err no more often than one.
    """
    plan = ComparisonPlan(
        material, evaluator, config.gate, report, config.references, config.promote_rules, config.promote
    )
    if (arms := len(plan.competing)) > 1:
        gate = config.gate.model_copy(update={"error_rate": config.gate.error_rate / arms})
        plan = replace(plan, gate=gate)
    plan.check()
    return plan


def starting_at(gate: GateConfig, first_seed: int) -> GateConfig:
    """The gate with its seeds."""
    return gate.model_copy(update={"first_seed": first_seed})


def _reserve(plan: ComparisonPlan, named: int | None, start: int) -> tuple[int, tuple[str, ...]]:
    """The first seed of a comparison, and a warning if its seeds were named and had been used before."""
    evaluator, material = plan.evaluator, plan.material
    seeds = plan.gate.seeds.whole
    size = len(seeds)
    first = starting_at(plan.gate, seeds.start)
    wanted = Plan(
        name_plan(plan), evaluator.env_id, size, material.dataset_ids, name_comparison(replace(plan, gate=first))
    )
    found = reserve_seeds(evaluator.store, wanted, named=named, start=start)
    if found.used_before is None:
        return found.first_seed, ()
    last = found.first_seed + size - 1
    return found.first_seed, (
        f"{found.used_before} has already used some of the seeds {found.first_seed} to {last}, so these verdicts may"
        " be too good; without --first-seed the gate takes unused seeds",
    )


class Gathered(NamedTuple):
    """What a refinement of a dataset starts from, played or estimated."""

    material: Material
    baseline: Baseline
    source: LabelSource
    warnings: tuple[str, ...]


def gather_material(
    store: Store,
    manifest: Manifest,
    config: RefineConfig,
    run_ids: Sequence[str] | None,
    *,
    rules: bool = False,
    also: Sequence[str] = (),
    baseline: Named | None = None,
    expert: Named | None = None,
) -> Gathered:
    """Find a dataset's labels and baseline; arguments as for `improve`.

    Raises:
        Prerequisite: if the dataset has no annotations.
        BadInput: for labels that do not fit, or a baseline that cannot be loaded.
    """
    dataset_id = manifest.dataset_id
    datasets = (dataset_id, *also)
    with store.catalog.read():
        source = find_labels(store, datasets, run_ids, config.mode, rules=rules)
        start = find_collecting_weights(store, manifest) if baseline is None else None
    steps = read_once(store, datasets)
    start = start or find_baseline(store, manifest, read_steps(store, dataset_id) if also else steps, baseline)
    labels = source.labels(manifest, steps, config.mode)
    recipe = config.completed(manifest.action_space, dense=covers_most_steps(labels, steps))
    oracle = ask_expert(expert, labels, steps, manifest, store) if expert else None
    units = find_units(store, manifest) if isinstance(labels, RuleLabels) and labels.has_formulas else {}
    material = Material(
        store.root, dataset_id, labels, start.policy, recipe, oracle, tuple(also), start.policy_id, units
    )
    drowned = () if recipe.mode == "A" else relabel(steps, labels, recipe).warnings
    warnings = (*drowned, *((start.warning,) if start.warning else ()))
    return Gathered(material, start, source, warnings)


def find_units(store: Store, manifest: Manifest) -> dict[str, str]:
    """The units of the components, by column, as the dataset's card has them; empty without a card."""
    card = card_at_hand(store, manifest)
    known = {component.name: component.unit for component in card.components} if card else {}
    columns = component_columns(manifest.component_names)
    named = zip(columns, manifest.component_names, strict=False)  # where there are very many, none has a column
    return {column: known[name] for column, name in named if name in known}


def _home_of(store: Store, manifest: Manifest, named: Named | None) -> Home:
    """The environment of a dataset, if its spaces are still those that were logged."""
    if manifest.env_id is None:
        raise BadInput(
            f"The dataset {manifest.dataset_id} has no environment, so nothing can judge a refinement.",
            "Import it with --env ENV_ID if there is a simulator of it.",
        )
    home = find_home(store, manifest, named)
    logged = Spaces(manifest.observation_space, manifest.action_space)
    check_spaces(f"The dataset {manifest.dataset_id}", logged, look_up_spaces(*home))
    return home


def _warn_of_changes(evaluator: Evaluator, manifest: Manifest) -> str:
    """A warning for a dataset whose environment has other code by now; empty if it is the same."""
    if manifest.source == "import":
        return ""
    changes = "; ".join(evaluator.fingerprint.changes_since({}, manifest.environment_code))
    return (
        f"{manifest.dataset_id} was collected in another {evaluator.env_id} than the one that judges now ({changes})"
        if changes
        else ""
    )


def _refuse_shared_seeds(store: Store, dataset_ids: Sequence[str], gate: GateConfig) -> None:
    with store.catalog.read():
        seeds = [episode.seed for name in dataset_ids for episode in catalogued_episodes(store, name)]
    gate.seeds.check_unused(seed for seed in seeds if seed is not None)


@dataclass(frozen=True)
class LabelSource:
    """Annotations or rules of a dataset, never both."""

    notes: Sequence[Annotation]
    lists: Sequence[RuleList]

    @property
    def run_ids(self) -> list[str]:
        """The annotation runs they come from."""
        return sorted({opinion.run_id for opinion in (*self.notes, *self.lists)})

    def labels(self, manifest: Manifest, steps: StepArrays, mode: TrainingMode) -> Labels:
        """One label per annotation, or per step where a list of rules decides; potentials where rewards are learnt.

        Raises:
            BadInput: if an annotation or rule does not fit the dataset.
        """
        if not self.lists:
            return labels_from_annotations(self.notes, steps, manifest.action_space)
        lists = [CompiledRules.of(listed, manifest) for listed in self.lists]
        return labels_from_rules(lists, steps, manifest.action_space, shaped=mode != "A")


def find_labels(
    store: Store, datasets: Sequence[str], run_ids: Sequence[str] | None, mode: TrainingMode, *, rules: bool
) -> LabelSource:
    """The annotations of some runs, or their rules, if asked for or if the named runs have nothing else.

    Args:
        store: the store.
        datasets: of the store; several are pooled, and a list of rules of one speaks of the steps of all.
        run_ids: annotation runs; all when None.
        mode: of the refinement.
        rules: use rules and ignore labels of single steps.

    Raises:
        Prerequisite: if the datasets have neither.
        BadInput: for an unknown run, for runs of both kinds, or for rules without a potential in mode R.
    """
    dataset_id = datasets[0]
    notes = [] if rules else trusted_annotations(store, pool_annotations(store, datasets, run_ids))
    counted = datasets if run_ids or not notes else ()
    lists = [listed for name in counted for listed in trusted_rules(store, load_rule_lists(store, name, run_ids))]
    there = _different(lists)
    found = LabelSource(notes, there if rules or run_ids else [])
    if found.notes and found.lists:
        raise BadInput(
            f"The runs {', '.join(found.run_ids)} have both labels of single steps and rules.",
            "Name runs of one kind, or use only the rules with --rules.",
        )
    if not found.notes and not found.lists:
        raise _nothing(dataset_id, run_ids, rules=rules, has_rules=bool(there))
    bare = [listed.list_id for listed in found.lists if listed.potential is None]
    if bare and mode == "R":
        raise BadInput(
            f"The rules {', '.join(bare)} have no potential, which is what mode R learns from.",
            "Name a run whose rules have one with --run, import rules with a potential, or use --use A.",
        )
    return found


def _different(lists: Iterable[RuleList]) -> list[RuleList]:
    """The lists without those that say the same as an earlier one: they would only count twice."""
    different: dict[str, RuleList] = {}
    for listed in lists:
        confidences = [rule.confidence for rule in listed.rules]
        different.setdefault(canonical_json([listed.content, confidences, listed.potential]), listed)
    return list(different.values())


def _nothing(dataset_id: str, run_ids: Sequence[str] | None, *, rules: bool, has_rules: bool) -> Prerequisite:
    asked = f" of {', '.join(run_ids)}" if run_ids else ""
    if rules:
        return Prerequisite(
            f"The dataset {dataset_id} has no rules{asked}.",
            "Run `trajnote annotate run --kind rules` or `trajnote rules import` first; rules that reviewers refuse do "
            "not count.",
        )
    hint = "It has rules: refine with --rules, or run `trajnote annotate` for labels." if has_rules else ""
    return Prerequisite(
        f"The dataset {dataset_id} has no annotations{asked}.", hint or "Run `trajnote annotate` first."
    )


def ask_expert(spec: Named, labels: Labels, steps: StepArrays, manifest: Manifest, store: Store) -> Oracle:
    """An expert's greedy actions at the labelled states.

    Args:
        spec: of the expert, see `policies.load_policy`.
        labels: the annotator's.
        steps: their dataset.
        manifest: of that dataset.
        store: where policies are looked up.

    Raises:
        BadInput: if there is no such policy, it is for other spaces, or it has no greedy action.
    """
    expert = load_policy(spec, Spaces(manifest.observation_space, manifest.action_space), store)
    if "greedy" not in expert.modes:
        raise BadInput(f"{spec} acts at random, so it cannot be an expert.", "Name a policy with a greedy action.")
    before = Past(steps.observation[np.maximum(labels.rows - 1, 0)], steps.step[labels.rows])
    actions = choose(expert, steps.observation[labels.rows], lambda: before).actions
    return Oracle(label_like_expert(labels, actions, steps, manifest.action_space), spec, expert.sha256)
