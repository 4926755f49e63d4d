"""A network as two files, `policy.json` and `weights.npz`, with one hash over everything that decides an action.

It knows a description and named arrays, not what they mean; no disk is touched and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from storage.disk import UnreadableError, decode_json, read_arrays
from storage.errors import DamagedStore
from storage.schema import Array

SPEC_FILE = "policy.json"
WEIGHTS_FILE = "weights.npz"
FORMAT = "trajnote-mlp"
FORMAT_VERSION = 1
RESTORE = "Restore the policy's folder from a copy, or make the policy again."


def hash_network(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """Hash a description and its arrays with sha256; library versions and file formats do not enter."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def encode_network(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """Encode a description and its arrays; equal networks give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **cast("dict[str, Any]", arrays))
    spec = {
        "description": description,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sha256": hash_network(description, arrays),
        "weights_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "versions": {"numpy": np.__version__},
    }
    text = json.dumps(spec, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return {SPEC_FILE: text.encode(), WEIGHTS_FILE: buffer.getvalue()}


def decode_network(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Decode what `encode_network` wrote: the description and its arrays.

    Raises:
        DamagedStore: when a file is missing, cannot be read, or is not what its hash names.
    """
    for name in (SPEC_FILE, WEIGHTS_FILE):
        if name not in files:
            raise DamagedStore(f"The policy has no {name}; its files are {sorted(files)}.", RESTORE)
    spec = _read_spec(files[SPEC_FILE])
    _check_hash(WEIGHTS_FILE, hashlib.sha256(files[WEIGHTS_FILE]).hexdigest(), spec.get("weights_sha256"))
    arrays = _read_arrays(files[WEIGHTS_FILE])
    try:
        found = hash_network(spec["description"], arrays)
    except ValueError as error:  # NaN, which no description has
        raise DamagedStore(f"{SPEC_FILE} does not describe a policy: {error}.", RESTORE) from error
    _check_hash("The policy", found, spec.get("sha256"))
    return spec["description"], arrays


def _check_hash(what: str, found: str, named: object) -> None:
    if found != named:
        raise DamagedStore(f"{what} hashes to {found[:16]}; {SPEC_FILE} says {str(named)[:16]}.", RESTORE)


def _read_spec(text: bytes) -> dict[str, Any]:
    try:
        spec = decode_json(text)
    except UnreadableError as error:
        raise DamagedStore(f"{SPEC_FILE} is not JSON: {error}.", RESTORE) from error
    if not isinstance(spec, dict) or not isinstance(spec.get("description"), dict):
        raise DamagedStore(f"{SPEC_FILE} does not describe a policy.", RESTORE)
    found = (spec.get("format"), spec.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise DamagedStore(f"{SPEC_FILE} has format {found}; this version reads {(FORMAT, FORMAT_VERSION)}.", RESTORE)
    return cast("dict[str, Any]", spec)


def _read_arrays(content: bytes) -> dict[str, Array]:
    try:
        return read_arrays(content)
    except UnreadableError as error:
        raise DamagedStore(f"{WEIGHTS_FILE} cannot be read: {error}.", RESTORE) from error
