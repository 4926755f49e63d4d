"""Takes the folder of a dataset, of any store, into a store."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ..disk import copy_file, exclusive_lock, parse_json, publish_folder, read_file, require_inside, writing
from ..errors import BadInput, DamagedStore
from ..schema import Manifest, sha256_file
from ..store import CARD, MANIFEST, Store
from .columns import check_draft
from .files import register_dataset, require_readable


def adopt_dataset(store: Store, folder: Path) -> Manifest:
    """Copy the folder of a dataset (`rollouts/<dataset_id>/` of any store) into a store.

    A second call returns the same and copies nothing.

    Args:
        store: where it goes.
        folder: holds `manifest.json`, the shards that it lists and the card that it names, if any.

    Raises:
        BadInput: if the folder holds no dataset, or the store has another dataset of that name.
        DamagedStore: if a file is missing or differs from the manifest; nothing is kept then.
    """
    manifest = _read_manifest(folder)
    final = store.dataset_dir(manifest.dataset_id)
    if not final.exists():
        _check_hashes(folder, manifest)
        _copy(store, folder, manifest)
    elif sha256_file(final / MANIFEST) != sha256_file(folder / MANIFEST):
        raise BadInput(f"The store already has a different dataset {manifest.dataset_id}.", "Use another store.")
    register_dataset(store, manifest)
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(parse_json(read_file(folder / MANIFEST), str(folder / MANIFEST)))
    except ValidationError as error:
        raise BadInput(f"{folder} holds no dataset: {MANIFEST} is not a manifest.") from error
    check_draft(manifest)
    require_inside(folder)
    strange = [shard.name for shard in manifest.shards if Path(shard.name).name != shard.name]
    if strange:
        raise BadInput(f"{folder / MANIFEST} lists the shard {strange[0]!r}, which is not a plain file name.")
    return manifest


def _check_hashes(folder: Path, manifest: Manifest) -> None:
    for name, sha256 in _files(manifest).items():
        path = folder / name
        if not path.is_file():
            raise DamagedStore(f"{path} is missing.", "Copy the whole folder.")
        if sha256_file(path) != sha256:
            raise DamagedStore(f"{path} differs from its manifest: the hashes are not equal.", "Copy the folder again.")
        if path.suffix == ".parquet":
            require_readable(path)


def _files(manifest: Manifest) -> dict[str, str]:
    """Name and hash of every file of a dataset beside its manifest."""
    card = {} if manifest.card_file_sha256 is None else {CARD: manifest.card_file_sha256}
    return {shard.name: shard.sha256 for shard in manifest.shards} | card


def _copy(store: Store, folder: Path, manifest: Manifest) -> None:
    partial = store.partial_dir(manifest.dataset_id)
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(partial, f"the dataset {manifest.dataset_id}"):
        for name in (*_files(manifest), MANIFEST):
            copy_file(folder / name, partial / name)
        publish_folder(partial, store.dataset_dir(manifest.dataset_id))
