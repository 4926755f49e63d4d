"""An expert policy as the annotator of the arm `oracle`: what it would do in the labelled states."""

from __future__ import annotations

from refine.labels import Labels, label_like_expert
from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Manifest
from storage.store import Store

from ..policies import load_policy
from ..simulation import Named, Spaces
from .arms import Oracle


def ask_expert(spec: Named, labels: Labels, steps: StepArrays, manifest: Manifest, store: Store) -> Oracle:
    """An expert's greedy actions in the labelled states.

    Args:
        spec: of the policy, see `policies.load_policy`.
        labels: the annotator's.
        steps: their dataset.
        manifest: of that dataset.
        store: where policies are looked up.

    Raises:
        BadInput: if there is no such policy, it is for other spaces, or it has no greedy action.
    """
    expert = load_policy(spec, Spaces(manifest.observation_space, manifest.action_space), store)
    if "greedy" not in expert.modes:
        raise BadInput(f"{spec} acts by chance only, so it is no expert.", "Name a policy that has a likeliest action.")
    actions = expert.act(steps.observation[labels.rows], mode="greedy").actions
    return Oracle(label_like_expert(labels, actions, steps, manifest.action_space), spec, expert.sha256)
