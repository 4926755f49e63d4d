"""Policies by name, such as `policy:ID`, `rules:ID`, `sb3:PPO:model.zip`, `onnx:PATH`, `py:module:name`, `random`.

The baseline that a refinement starts from is found through a dataset's manifest, or distilled. How the files of other
libraries are read is `external.py`; what acts is in `simulation/actors.py`. A stored policy leaves as an ONNX file,
whose graph is written in `refine/policies/onnx_export.py`.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from refine.policies import (
    RULES_FORMAT,
    SPEC_FILE,
    WEIGHTS_FILE,
    Agreement,
    CompiledRules,
    MlpPolicy,
    RulePolicy,
    export_onnx,
)
from storage.annotations import find_rule_list, trusted_rules
from storage.datasets import StepArrays, read_manifest, read_steps
from storage.disk import UnreadableError, decode_json, read_file, write_whole
from storage.errors import BadInput, Prerequisite, TrajnoteError
from storage.policies import find_policy, policy_files, policy_record, resolve_policy, save_policy
from storage.schema import Array, Manifest, sha256_file
from storage.store import Store

from ..simulation import (
    Named,
    NetworkActor,
    Policy,
    RandomActor,
    Spaces,
    check_spaces,
    find_module,
    not_loaded,
    own_policy,
    spelled,
)
from .external import RAW, TRUST, find_file, find_zip, open_d3rlpy, open_onnx, path_of
from .python_policies import open_py
from .torch_policies import export_sb3, open_sb3, open_torch

FORMS = (
    "random, policy:PATH_OR_ID, rules:LIST_ID, d3rlpy:PATH, sb3:ALGO:PATH, torch:PATH, onnx:PATH, py:MODULE:CALLABLE"
)

_OPENERS: Mapping[str, Callable[[Named, Spaces], Policy]] = {
    "d3rlpy": open_d3rlpy,
    "sb3": open_sb3,
    "torch": open_torch,
    "onnx": open_onnx,
    "py": open_py,
}


def with_options(spec: str, *, trust: bool, raw: bool) -> str:
    """A name with the options that a command was given beside it.

    Raises:
        BadInput: for another kind of policy.
    """
    options = "".join(f"+{option}" for option, is_given in ((TRUST, trust), (RAW, raw)) if is_given)
    kind, _, rest = spec.partition(":")
    if options and kind != "sb3":
        raise BadInput(f"--{TRUST} and --{RAW} are for policies named sb3:ALGO:PATH; this is {spec!r}.")
    algorithm, _, path = rest.partition(":")
    return f"{kind}:{algorithm}{options}:{path}" if options else spec


def hash_policy_file(spec: Named) -> str | None:
    """The sha256 of the file that a specification would open or import; the file is only read. None without a file.

    Raises:
        BadInput: if the file does not exist.
    """
    file = _find_file(spec)
    return None if file is None else sha256_file(file)


def _find_file(spec: Named) -> Path | None:
    kind, _, rest = spec.partition(":")
    if kind == "sb3":
        return find_zip(spec)
    if kind == "onnx" or kind.partition("+")[0] == "torch":
        return find_file(rest, spec)
    if kind == "d3rlpy":
        from refine.policies import find_learnable  # d3rlpy takes seconds to load

        return find_learnable(path_of(spec))
    found = find_module(rest.partition(":")[0]) if kind == "py" else None
    return None if found is None else Path(found)


def load_policy(spec: Named, spaces: Spaces, store: Store | None = None, *, file_sha256: str | None = None) -> Policy:
    """Load a policy for an environment.

    - `random`: uniformly random actions.
    - `policy:PATH_OR_ID`: a folder with `policy.json` and `weights.npz`, an exported JSON, or a policy of the store.
    - `rules:LIST_ID`: what a list of rules says, without those that reviewers refuse, and elsewhere what the baseline
      of the list's dataset does.
    - `d3rlpy:PATH`: a `.d3` file, or a folder of d3rlpy's logger, whose newest model acts. A pickle: trust it first.
    - `sb3:ALGO:PATH`: a zip of Stable-Baselines3 or its contrib package, read, not run; see `torch_policies.py`.
    - `torch:PATH`: a state_dict of torch or a file of safetensors; see `torch_policies.open_torch`.
    - `onnx:PATH`: see `external.open_onnx` for its inputs and outputs.
    - `py:MODULE:CALLABLE`: a function from observations to actions; see `python_policies.open_py`.

    Args:
        spec: one of these forms. A plain text was not named by the user: only the first three forms are loaded.
        spaces: of the environment.
        store: where `policy:ID` and `rules:ID` are looked up.
        file_sha256: of the file that it was; another one is not opened. None: any.

    Raises:
        BadInput: for another form, a file or module that cannot be loaded or has changed, or a policy for other spaces.
        Prerequisite: when an extra has to be installed.
        DamagedStore: when the files of a `policy:` are not what was written.
    """
    kind, _, rest = spec.partition(":")
    if spec == "random":
        return RandomActor(spaces.action)
    if kind == "policy" and rest:
        return _open_portable(spec, rest, spaces, store)
    if kind == "rules" and rest:
        return _open_rules(spec, rest, spaces, store)
    opener = _OPENERS.get(kind.partition("+")[0] if kind.startswith("torch+") else kind)
    if opener is not None and rest:
        _refuse_unnamed(spec)
        _refuse_changed(spec, file_sha256)
        return opener(spec, spaces)
    hint = f"Did you mean policy:{spec}?" if is_portable(spec) else ""
    raise BadInput(f"Unknown policy {spec!r}; allowed: {FORMS}.", hint)


def _refuse_unnamed(spec: str) -> None:
    """The last check, at run time too: names given by the user have their own type."""
    if not isinstance(spec, Named):
        raise BadInput(
            f"The policy {spec!r} was not named by the user; it is not loaded.",
            "If you trust it, name it with an option, such as --policy or --baseline.",
        )


def _refuse_changed(spec: Named, file_sha256: str | None) -> None:
    if file_sha256 is not None and hash_policy_file(spec) != file_sha256:
        raise BadInput(
            f"The file of {spec} is not the one that played the dataset: its bytes have changed, so it is not opened.",
            "Restore it, or name another policy under another path.",
        )


def read_policy(files: Mapping[str, bytes], spec: str) -> MlpPolicy | RulePolicy:
    """A policy from the files that it was kept in: a network, or rules.

    Raises:
        DamagedStore: when a file is missing, cannot be read, or is no policy.
    """
    try:
        described = decode_json(files.get(SPEC_FILE, b"null"))
    except UnreadableError:
        described = None  # the network says what is wrong
    is_rules = isinstance(described, dict) and described.get("format") == RULES_FORMAT
    return RulePolicy.from_files(files, spec) if is_rules else MlpPolicy.from_files(files)


def is_portable(name: str) -> bool:
    """Whether a name is the path of a policy: a folder, or an exported JSON."""
    path = Path(name).expanduser()
    return path.is_dir() or (path.suffix == _SUFFIXES["json"] and path.is_file())


def _open_portable(spec: str, name: str, spaces: Spaces, store: Store | None) -> Policy:
    folder = Path(name).expanduser()
    if is_portable(name):
        files = (
            _unpack(folder)
            if folder.is_file()
            else {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        )
    elif store is not None and "/" not in name:
        with store.catalog.read():
            files = policy_files(store, resolve_policy(store, name))
    else:
        hint = "Name one that holds policy.json and weights.npz, or a file that `policy export --format json` wrote."
        raise BadInput(f"There is no folder {name!r}, which {spec!r} names.", hint)
    kept = read_policy(files, spec)
    network = kept.baseline if isinstance(kept, RulePolicy) else kept
    check_spaces(spec, Spaces(network.observation_space, network.action_space), spaces)
    return kept if isinstance(kept, RulePolicy) else NetworkActor(spec, kept)


def _open_rules(spec: str, name: str, spaces: Spaces, store: Store | None) -> Policy:
    if store is None:
        raise BadInput(f"{spec} is a list of rules in a store, but no store was given.", "Name the store with --store.")
    trusted = trusted_rules(store, [find_rule_list(store, name)])
    if not trusted:
        raise BadInput(f"Reviewers have refused all rules of {spec}.", "Their answers are in the view current_reviews.")
    listed = trusted[0]
    manifest = read_manifest(store, listed.dataset_id)
    check_spaces(spec, Spaces(manifest.observation_space, manifest.action_space), spaces)
    baseline = find_baseline(store, manifest, read_steps(store, listed.dataset_id))
    return RulePolicy((CompiledRules.of(listed, manifest),), baseline.policy, spec)


Format = Literal["onnx", "sb3", "torch", "json"]
_SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "sb3": ".zip", "torch": ".pt", "json": ".json"}
_WEIGHTS = "weights"  # key of an exported JSON


def _pack(files: Mapping[str, bytes]) -> bytes:
    """The files of a policy as one JSON."""
    content = decode_json(files[SPEC_FILE]) | {_WEIGHTS: b64encode(files[WEIGHTS_FILE]).decode()}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _unpack(path: Path) -> dict[str, bytes]:
    """The files of a policy from one JSON."""
    try:
        content = decode_json(read_file(path))
        weights = b64decode(content.pop(_WEIGHTS), validate=True)
    except (UnreadableError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path} is not a policy.", "Name a file that `trajnote policy export --format json` wrote."
        ) from error
    return {SPEC_FILE: json.dumps(content).encode(), WEIGHTS_FILE: weights}


@dataclass(frozen=True)
class ExportedPolicy:
    """A written policy."""

    policy_id: str
    path: Path
    agreement: Agreement | None  # None: its numbers are written as they are
    beside: Path | None = None  # the statistics or the JSON that belong to it


def export_policy(
    store: Store, policy: str | None, out: Path | None, *, format: Format | None = None, like: Path | None = None
) -> ExportedPolicy:
    """Write a stored policy for other programs.

    Args:
        store: the store.
        policy: id or unique beginning; the newest when None.
        out: the file; `<id>` with the format's suffix in the current folder when None.
        format: a graph of ONNX, a zip of Stable-Baselines3, a state_dict of torch with a JSON beside it, or one JSON
            that `policy:PATH` plays; when None, ONNX, and JSON for rules.
        like: sb3: the zip whose copy it is written into.

    Raises:
        BadInput: if there is no such policy, it does not fit the zip, or what was written differs from it.
        Prerequisite: without the packages onnx and onnxruntime, for that format.
    """
    if (format == "sb3") != (like is not None):
        raise BadInput("--like names the zip that --format sb3 writes into; the two go together.")
    policy_id = resolve_policy(store, policy)
    files = policy_files(store, policy_id)
    network = read_policy(files, policy_id)
    format = format or ("json" if isinstance(network, RulePolicy) else "onnx")
    path = out or Path(f"{policy_id}{_SUFFIXES[format]}")
    if format == "json":
        write_whole(path, _pack(files))
        return ExportedPolicy(policy_id, path, None)
    if isinstance(network, RulePolicy):
        raise BadInput(
            f"{policy_id} is a list of rules, which has no {format.upper()} form.", "--format json writes all of it."
        )
    if like is not None:
        agreement, beside = export_sb3(network, like, path, _seen(store, policy_id))
        return ExportedPolicy(policy_id, path, agreement, beside)
    if format == "torch":
        from refine.policies import write_torch

        content, described = write_torch(network)
        write_whole(path.with_suffix(".json"), described)
        write_whole(path, content)
        return ExportedPolicy(policy_id, path, None, path.with_suffix(".json"))
    content, agreement = export_onnx(network, _seen(store, policy_id))
    write_whole(path, content)
    return ExportedPolicy(policy_id, path, agreement)


def _seen(store: Store, policy_id: str) -> Array | None:
    """Observations of the policy's dataset, if it is still in the store."""
    dataset_id = policy_record(store, policy_id)["dataset_id"]
    if not dataset_id or not store.dataset_dir(str(dataset_id)).is_dir():
        return None
    return read_steps(store, str(dataset_id)).observation


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
        if (found := find_collecting_weights(store, manifest)) is not None:
            return found
        kept = find_recorded_baseline(store, manifest.policy_sha256) if manifest.policy_sha256 else None
    if isinstance(kept, RulePolicy):
        return _distilled_if_needed(kept, manifest, steps)
    own, warning = _find_own(store, manifest)
    found = _distilled_if_needed(load_own(own, store, manifest, spaces), manifest, steps)
    return replace(found, warning=warning)


def find_collecting_weights(store: Store, manifest: Manifest) -> Baseline | None:
    """The network that made a dataset, if the store has it."""
    with store.catalog.read():
        known = find_policy(store, manifest.policy_sha256) if manifest.policy_sha256 else None
        kept = read_policy(policy_files(store, known), known) if known else None
    if not isinstance(kept, MlpPolicy):
        return None
    return Baseline(kept, "the weights that the dataset was collected with", known)


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
            f"{spec} has no weights that can be read exactly, and {manifest.dataset_id} was not collected with it.",
            "Collect a dataset with it: refining that dataset distils it.",
        )
    return policy


def load_own(spec: Named | None, store: Store, manifest: Manifest, spaces: Spaces) -> Policy | None:
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
    with store.catalog.write():
        known = find_policy(store, policy.sha256)
        if known is not None:
            return known
        policy_id = f"baseline-{policy.sha256[:12]}"
        config = {"origin": origin, "policy_sha256": policy.sha256}
        record = {"kind": "baseline", "env_id": env_id, "dataset_id": dataset_id, "config": config}
        save_policy(store, policy_id, policy.to_files(), record)
    return policy_id


def record_actor(store: Store, policy: Policy, manifest: Manifest) -> None:
    """Keep the policy that made a dataset for refinements to start from, if it is a network."""
    if isinstance(policy, NetworkActor):
        env_id, dataset_id, origin = manifest.env_id, manifest.dataset_id, f"{policy.spec}, its own weights"
        record_baseline(store, policy.network, env_id=env_id, dataset_id=dataset_id, origin=origin)


def find_recorded_baseline(store: Store, sha256: str) -> MlpPolicy | RulePolicy | None:
    """The policy that a manifest names by hash, if the store has it."""
    known = find_policy(store, sha256)
    return read_policy(policy_files(store, known), known) if known else None
