"""The policy that a refinement starts from: found through a dataset's manifest, or distilled.

Files are read in `policies/loading.py`; distilling is in `refine/training/distillation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from refine.policies import MlpPolicy
from storage.datasets import StepArrays
from storage.errors import BadInput, Prerequisite, TrajnoteError
from storage.policies import find_policy, policy_files, save_policy
from storage.schema import Manifest
from storage.store import Store

from ..simulation import Named, NetworkActor, Policy, Spaces, not_loaded, own_policy, spelled
from .loading import load_policy


@dataclass(frozen=True)
class Baseline:
    """A portable baseline and its origin."""

    policy: MlpPolicy
    origin: str
    policy_id: str | None = None  # its id, if the store has it already
    warning: str | None = None  # about a policy that the dataset names and that was not loaded


def find_baseline(store: Store, manifest: Manifest, steps: StepArrays, spec: Named | None = None) -> Baseline:
    """The policy that made a dataset, as a portable network.

    Its own weights are used if they can be read exactly; otherwise a network is distilled from the dataset's
    `policy_output`, or from the logged actions if it has none. A policy that the manifest names and the user did not is
    not loaded, with a warning, and is distilled too.

    Args:
        store: where policies are looked up.
        manifest: of the dataset.
        steps: of the dataset, for distillation.
        spec: another baseline than the one that the manifest names; see `policies.load_policy`.

    Raises:
        BadInput: if the policy named cannot be loaded, is for other spaces, or has neither weights that can be read
            exactly nor steps in this dataset that it could be distilled from.
    """
    found = _find(store, manifest, steps, spec)
    if found.policy_id is not None:
        return found
    return replace(found, policy_id=find_policy(store, found.policy.sha256))


def _find(store: Store, manifest: Manifest, steps: StepArrays, spec: Named | None) -> Baseline:
    spaces = Spaces(manifest.observation_space, manifest.action_space)
    if spec is not None:
        return _distilled_if_needed(_load_other(spec, spaces, store, manifest), manifest, steps)
    with store.catalog.read():
        known = find_policy(store, manifest.policy_sha256) if manifest.policy_sha256 else None
        if known is not None:
            kept = MlpPolicy.from_files(policy_files(store, known))
            return Baseline(kept, "the weights that the dataset was collected with", known)
    own, warning = _find_own(store, manifest)
    found = _distilled_if_needed(_load_own(own, store, manifest, spaces), manifest, steps)
    return replace(found, warning=warning)


def _find_own(store: Store, manifest: Manifest) -> tuple[Named | None, str | None]:
    """The policy that the user collected with, or why the manifest's policy is not loaded."""
    start = f"--baseline {spelled(str(manifest.policy))} starts from it."
    try:
        own = own_policy(store, manifest)
    except Prerequisite as error:
        return None, f"{error.problem} {start}"
    if own is not None or manifest.policy in (None, "random"):
        return own, None
    return None, f"{not_loaded(manifest)} {start}"


def _load_other(spec: Named, spaces: Spaces, store: Store, manifest: Manifest) -> Policy:
    """The policy that the user names; without readable weights it must be the one that made the dataset."""
    known = manifest.policy_file_sha256 if spec == manifest.policy else None
    policy = load_policy(spec, spaces, store, file_sha256=known)
    if not isinstance(policy, NetworkActor) and policy.sha256 != manifest.policy_sha256:
        raise BadInput(
            f"{spec} has no weights that can be read exactly, and the steps of {manifest.dataset_id} are not its own.",
            "Collect a dataset with it; refining that one distils it.",
        )
    return policy


def _load_own(spec: Named | None, store: Store, manifest: Manifest, spaces: Spaces) -> Policy | None:
    """The policy that the user collected with, if it is still there and still the same."""
    if spec is None:
        return None
    try:
        policy = load_policy(spec, spaces, store, file_sha256=manifest.policy_file_sha256)
    except TrajnoteError:
        return None
    return policy if policy.sha256 == manifest.policy_sha256 else None


def _distilled_if_needed(policy: Policy | None, manifest: Manifest, steps: StepArrays) -> Baseline:
    if isinstance(policy, NetworkActor):
        return Baseline(policy.network, f"{policy.spec}, its own weights")
    from refine.training import distil  # takes seconds: torch, which a baseline with weights does not need

    made = distil(steps, manifest.observation_space, manifest.action_space, output_kind=manifest.policy_output)
    return Baseline(made.policy, f"distilled from {made.source}, {made.agreement:.1%} agreement on held-out steps")


def record_baseline(store: Store, policy: MlpPolicy, *, env_id: str | None, dataset_id: str, origin: str) -> str:
    """Keep a policy that others start from, named by its content; returns its id in the store.

    A refined policy that another refinement starts from keeps its id, so that lineage is one chain.

    Args:
        store: where it is kept.
        policy: the network.
        env_id: of its dataset; None when that came without one.
        dataset_id: the first dataset that it acted in, or that it was distilled from.
        origin: where the weights came from, as text.
    """
    known = find_policy(store, policy.sha256)
    if known is not None:
        return known
    policy_id = f"baseline-{policy.sha256[:12]}"
    config = {"origin": origin, "policy_sha256": policy.sha256}
    record = {"kind": "baseline", "env_id": env_id, "dataset_id": dataset_id, "config": config}
    save_policy(store, policy_id, policy.to_files(), record)
    return policy_id


def find_recorded_baseline(store: Store, sha256: str) -> MlpPolicy | None:
    """The policy that a manifest names by hash, if the store has it."""
    known = find_policy(store, sha256)
    return MlpPolicy.from_files(policy_files(store, known)) if known else None
