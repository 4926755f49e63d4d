"""Handing a stored policy to those who run it elsewhere: as an ONNX file, checked on what the agent has seen.

The graph is written in `refine/policies/onnx_export.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refine.policies import Agreement, MlpPolicy, export_onnx
from storage.datasets import read_steps
from storage.disk import write_whole
from storage.policies import policy_files, policy_record, resolve_policy
from storage.schema import Array
from storage.store import Store


@dataclass(frozen=True)
class HandedOver:
    """A written policy."""

    policy_id: str
    path: Path
    agreement: Agreement


def hand_over(store: Store, policy: str | None, out: Path | None) -> HandedOver:
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
    return HandedOver(policy_id, path, agreement)


def _seen(store: Store, policy_id: str) -> Array | None:
    """Observations of the dataset that the policy came from, if it is still there."""
    dataset_id = policy_record(store, policy_id)["dataset_id"]
    if not dataset_id or not store.dataset_dir(str(dataset_id)).is_dir():
        return None
    return read_steps(store, str(dataset_id)).observation
