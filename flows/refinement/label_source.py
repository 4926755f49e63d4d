"""What a refinement imitates: labels of single steps, corrective rules at the steps they match, or an expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine.config import TrainingMode
from refine.labels import Labels, label_like_expert, labels_from_annotations, labels_from_rules
from refine.policies import CompiledRules
from storage.annotations import RuleList, load_rule_lists, pool_annotations
from storage.datasets import StepArrays
from storage.errors import BadInput, Prerequisite
from storage.schema import Annotation, Manifest
from storage.store import Store

from ..policies import load_policy
from ..simulation import Named, Spaces
from .arms import Oracle


@dataclass(frozen=True)
class LabelSource:
    """Annotations or rules of a dataset, never both."""

    notes: Sequence[Annotation]
    lists: Sequence[RuleList]

    @property
    def run_ids(self) -> list[str]:
        """The annotation runs they come from."""
        return sorted({opinion.run_id for opinion in (*self.notes, *self.lists)})

    def labels(self, manifest: Manifest, steps: StepArrays) -> Labels:
        """One label per annotation, or per step where a list of rules decides.

        Raises:
            BadInput: if an annotation or rule does not fit the dataset.
        """
        if not self.lists:
            return labels_from_annotations(self.notes, steps, manifest.action_space)
        return labels_from_rules(
            [compile_rules(listed, manifest) for listed in self.lists], steps, manifest.action_space
        )


def compile_rules(listed: RuleList, manifest: Manifest) -> CompiledRules:
    """A list of rules, ready to be asked about a dataset's environment.

    Raises:
        BadInput: if an expression or an action does not fit it.
    """
    return CompiledRules(listed, tuple(manifest.component_names), manifest.action_space)


def find_opinions(
    store: Store, datasets: Sequence[str], run_ids: Sequence[str] | None, mode: TrainingMode, *, rules: bool
) -> LabelSource:
    """The annotations of some runs, or their rules, if asked for or if the named runs have nothing else.

    Args:
        store: the store.
        datasets: of the store; several are pooled, which is not possible for rules.
        run_ids: annotation runs; all when None.
        mode: of the refinement.
        rules: use rules and ignore labels of single steps.

    Raises:
        Prerequisite: if the datasets have neither.
        BadInput: for an unknown run, for runs of both kinds, for rules of several datasets, or for rules as rewards.
    """
    dataset_id = datasets[0]
    notes = [] if rules else pool_annotations(store, datasets, run_ids)
    there = [listed for name in datasets for listed in load_rule_lists(store, name, run_ids)]
    found = LabelSource(notes, there if rules or run_ids else [])
    if found.notes and found.lists:
        raise BadInput(
            f"The runs {', '.join(found.run_ids)} have labels of single steps and rules.",
            "Name runs of one kind, or use only the rules with --rules.",
        )
    if not found.notes and not found.lists:
        raise _nothing(dataset_id, run_ids, rules=rules, has_rules=bool(there))
    if found.lists and len(datasets) > 1:
        raise BadInput(
            "Rules belong to one dataset; several were given.", "Refine with each dataset alone, or with labels."
        )
    if found.lists and mode == "R":
        raise BadInput("Rules suggest actions and have no implicit rewards, which this mode needs.", "Use --mode A.")
    return found


def _nothing(dataset_id: str, run_ids: Sequence[str] | None, *, rules: bool, has_rules: bool) -> Prerequisite:
    asked = f" of {', '.join(run_ids)}" if run_ids else ""
    if rules:
        return Prerequisite(
            f"The dataset {dataset_id} has no rules{asked}.",
            "Run `trajnote annotate run --kind rules` or `trajnote rules import` first.",
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
    actions = expert.act(steps.observation[labels.rows], mode="greedy").actions
    return Oracle(label_like_expert(labels, actions, steps, manifest.action_space), spec, expert.sha256)
