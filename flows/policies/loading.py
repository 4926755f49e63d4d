"""Policies by name: `policy:ID`, `sb3:PPO:model.zip`, `d3rlpy:model.d3`, `onnx:PATH`, `py:module:name`, `random`.

How the files of other libraries are read is `external.py`; what acts is in `simulation/actors.py`. A stored
policy leaves as an ONNX file, whose graph is written in `refine/policies/onnx_export.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refine.policies import Agreement, MlpPolicy, export_onnx
from storage.datasets import read_steps
from storage.disk import write_whole
from storage.errors import BadInput
from storage.policies import policy_files, policy_record, resolve_policy
from storage.schema import Array
from storage.store import Store

from ..simulation import Named, NetworkActor, Policy, RandomActor, Spaces
from .external import check_spaces, hash_policy_file, open_d3rlpy, open_onnx, open_py, open_sb3

FORMS = "random, policy:PATH_OR_ID, d3rlpy:PATH, sb3:ALGO:PATH, onnx:PATH, py:MODULE:CALLABLE"

_OPENERS: Mapping[str, Callable[[Named, Spaces], Policy]] = {
    "d3rlpy": open_d3rlpy,
    "sb3": open_sb3,
    "onnx": open_onnx,
    "py": open_py,
}


def load_policy(spec: Named, spaces: Spaces, store: Store | None = None, *, file_sha256: str | None = None) -> Policy:
    """Load a policy for an environment.

    - `random`: uniformly random actions.
    - `policy:PATH_OR_ID`: a folder with `policy.json` and `weights.npz`, or a policy of the store.
    - `d3rlpy:PATH`: a `.d3` file, or a folder of d3rlpy's logger, whose newest model acts. A pickle: trust it first.
    - `sb3:ALGO:PATH`: a zip of Stable-Baselines3; ALGO is PPO, A2C, DQN, SAC, TD3 or DDPG. Holds pickles too.
    - `onnx:PATH`: see `external.open_onnx` for its inputs and outputs.
    - `py:MODULE:CALLABLE`: a function from observations to actions; see `external.open_py`.

    Args:
        spec: one of these forms. A plain text was not named by the user: only the first two forms are loaded.
        spaces: of the environment.
        store: where `policy:ID` is looked up.
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
    if kind in _OPENERS and rest:
        _refuse_unnamed(spec)
        _refuse_changed(spec, file_sha256)
        return _OPENERS[kind](spec, spaces)
    hint = f"Did you mean policy:{spec}?" if Path(spec).is_dir() else ""
    raise BadInput(f"Unknown policy {spec!r}; allowed: {FORMS}.", hint)


def _refuse_unnamed(spec: str) -> None:
    """The last check, at run time too: names given by the user have their own type."""
    if not isinstance(spec, Named):
        raise BadInput(
            f"The policy {spec!r} was not named by the user; it is not loaded.",
            "If you trust it, name it with an option.",
        )


def _refuse_changed(spec: Named, file_sha256: str | None) -> None:
    if file_sha256 is not None and hash_policy_file(spec) != file_sha256:
        raise BadInput(
            f"The file of {spec} is not the one that played the dataset: its bytes have changed, so it is not opened.",
            "Restore it, or name another policy under another path.",
        )


def _open_portable(spec: str, name: str, spaces: Spaces, store: Store | None) -> Policy:
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
    elif store is not None and "/" not in name:
        with store.catalog.read():
            files = policy_files(store, resolve_policy(store, name))
    else:
        hint = "Name one that holds policy.json and weights.npz."
        raise BadInput(f"There is no folder {name!r}, which {spec!r} names.", hint)
    network = MlpPolicy.from_files(files)
    check_spaces(spec, Spaces(network.observation_space, network.action_space), spaces)
    return NetworkActor(spec, network)


@dataclass(frozen=True)
class ExportedPolicy:
    """A written policy."""

    policy_id: str
    path: Path
    agreement: Agreement


def export_policy(store: Store, policy: str | None, out: Path | None) -> ExportedPolicy:
    """Write a stored policy as ONNX.

    Args:
        store: the store.
        policy: id or unique beginning; the newest when None.
        out: the file; `<id>.onnx` in the current folder when None.

    Raises:
        BadInput: if there is no such policy, or the graph differs from it.
        Prerequisite: without the packages onnx and onnxruntime.
    """
    policy_id = resolve_policy(store, policy)
    network = MlpPolicy.from_files(policy_files(store, policy_id))
    content, agreement = export_onnx(network, _seen(store, policy_id))
    path = out or Path(f"{policy_id}.onnx")
    write_whole(path, content)
    return ExportedPolicy(policy_id, path, agreement)


def _seen(store: Store, policy_id: str) -> Array | None:
    """Observations of the policy's dataset, if it is still in the store."""
    dataset_id = policy_record(store, policy_id)["dataset_id"]
    if not dataset_id or not store.dataset_dir(str(dataset_id)).is_dir():
        return None
    return read_steps(store, str(dataset_id)).observation
