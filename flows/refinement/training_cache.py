"""Equal trainings are made once: the candidates of a draw, kept in the store under all that decides them.

That is the material, the draw, the code of the room `refine` and the versions of its libraries, so that a change of any
of them trains again.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import refine
from refine.config import Snapshot
from refine.policies import MlpPolicy
from storage.content_hash import content_id, sha256_bytes
from storage.disk import decode_json
from storage.errors import DamagedStore
from storage.policies import load_training, save_training
from storage.store import Store

from .arms import ArmDraw, Material

_BOOK = "snapshots.json"
_LIBRARIES = ("numpy", "torch", "d3rlpy")


def find_candidates(store: Store, material: Material, draw: ArmDraw) -> list[Snapshot] | None:
    """The candidates of a draw, if it was trained before and is not to be watched now."""
    files = None if material.is_logged(draw) else load_training(store, _training_id(material, draw))
    if files is None:
        return None
    try:
        return [
            Snapshot(MlpPolicy.from_files(_files_of(files, number)), step, beta, reading)
            for number, (step, beta, reading) in enumerate(decode_json(files[_BOOK]))
        ]
    except (DamagedStore, KeyError, TypeError, ValueError):
        return None


def keep_candidates(store: Store, material: Material, draw: ArmDraw, snapshots: Sequence[Snapshot]) -> None:
    """Keep the candidates of a draw, in the order of training."""
    book = [[snapshot.step, snapshot.beta, snapshot.reading] for snapshot in snapshots]
    files = {_BOOK: json.dumps(book).encode()}
    for number, snapshot in enumerate(snapshots):
        files |= {f"{number}/{name}": content for name, content in snapshot.policy.to_files().items()}
    save_training(store, _training_id(material, draw), files)


def _files_of(files: Mapping[str, bytes], number: int) -> dict[str, bytes]:
    start = f"{number}/"
    return {name.removeprefix(start): content for name, content in files.items() if name.startswith(start)}


def _training_id(material: Material, draw: ArmDraw) -> str:
    return content_id("t_", [material.content_id, draw.arm, draw.number, _reference_of(material, draw), _learner()])


def _reference_of(material: Material, draw: ArmDraw) -> str | None:
    """What an arm depends on beside what all arms share."""
    return material.oracle.sha256 if draw.arm == "oracle" and material.oracle else None


@lru_cache
def _learner() -> dict[str, str]:
    """The code and the libraries that decide what comes of a training."""
    folder = Path(refine.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return {"code": sha256_bytes(code), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}
