"""The datasets of a store: registers folders, adopts those of other stores, lists datasets, finds one by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from ..catalog import Connection, insert_rows, refresh_views
from ..content_hash import canonical_json, sha256_file
from ..disk import copy_file, exclusive_lock, parse_json, publish_folder, read_file, require_inside, writing
from ..errors import BadInput, DamagedStore, Prerequisite, did_you_mean
from ..schema import Manifest, ManifestDraft, Shard
from ..store import CARD, DRAFT, MANIFEST, Store
from .checks import check_draft
from .shards import read_manifest, read_shard, require_readable

_SUMMED = ("episode_id", "reward", "terminated", "truncated", "seed")


@dataclass(frozen=True)
class DatasetSummary:
    """One row of the list of datasets."""

    dataset_id: str
    source: str
    env_id: str | None
    policy: str | None
    policy_mode: str | None
    episodes: int
    steps: int
    return_: float  # mean over the episodes
    created_at: str  # ISO 8601, UTC


def register_dataset(store: Store, manifest: Manifest) -> None:
    """Put a published dataset and its episodes into the catalog and refresh the views; a second call changes nothing.

    Raises:
        DamagedStore: if a shard is damaged, or the catalog knows another manifest under this name.
    """
    with store.catalog.read() as con:
        is_registered = _is_registered(con, store, manifest.dataset_id)
    if is_registered:
        _remove_draft(store, manifest)
    else:
        register_new(store, manifest)


def register_new(store: Store, manifest: Manifest) -> None:
    """As `register_dataset`, in one transaction for a dataset that was published just now."""
    episodes = list(_episode_rows(store, manifest))
    row = _dataset_row(manifest, sha256_file(store.manifest_path(manifest.dataset_id)))
    with store.catalog.write() as con:
        if not _is_registered(con, store, manifest.dataset_id):
            insert_rows(con, "datasets", [row])
            insert_rows(con, "episodes", episodes)
            refresh_views(con, store.rollouts_dir)
    _remove_draft(store, manifest)


def _remove_draft(store: Store, manifest: Manifest) -> None:
    (store.dataset_dir(manifest.dataset_id) / DRAFT).unlink(missing_ok=True)


def find_finished(store: Store, draft: ManifestDraft) -> Manifest | None:
    """The dataset that an earlier run of the same command finished, registered if that run was killed before it could.

    Package versions, the environment's code and the bytes of a file with the same policy may differ, which only
    callers that play can judge; everything else of the draft has to be equal.

    Raises:
        BadInput: if a dataset of that name was made from something else.
    """
    if not store.dataset_dir(draft.dataset_id).exists():
        return None
    manifest = read_manifest(store, draft.dataset_id)
    ours, theirs = (_essence(item) for item in (draft, manifest))
    if differing := sorted(name for name in ours if ours[name] != theirs[name]):
        raise BadInput(
            f"The dataset {draft.dataset_id} exists and was made differently ({', '.join(differing)} differ).",
            "Give the new one another name.",
        )
    register_dataset(store, manifest)
    return manifest


def list_datasets(store: Store) -> list[DatasetSummary]:
    """All datasets of the catalog, oldest first."""
    with store.catalog.read() as con:
        rows = con.execute(
            """SELECT dataset_id, source, env_id, policy, policy_mode, episodes, steps,
                      (SELECT avg(return_) FROM episodes WHERE episodes.dataset_id = datasets.dataset_id),
                      strftime(created_at, '%Y-%m-%dT%H:%M:%SZ')
               FROM datasets ORDER BY created_at, dataset_id"""
        ).fetchall()
    return [DatasetSummary(*row) for row in rows]


class CataloguedEpisode(NamedTuple):
    """What the catalog says about an episode."""

    episode_id: int
    seed: int | None
    length: int
    return_: float


def catalogued_episodes(store: Store, dataset_id: str) -> list[CataloguedEpisode]:
    """What the catalog says about the episodes of a dataset, ascending."""
    with store.catalog.read() as con:
        rows = con.execute(
            "SELECT episode_id, seed, length, return_ FROM episodes WHERE dataset_id = ? ORDER BY episode_id",
            [dataset_id],
        ).fetchall()
    return [CataloguedEpisode(*row) for row in rows]


def resolve_dataset(store: Store, name: str | None = None) -> str:
    """The id of the dataset that a user means: its id or the unique beginning of it; the latest one when None.

    Raises:
        Prerequisite: if the store has no dataset.
        BadInput: if the name fits no dataset, or several.
    """
    known = [dataset.dataset_id for dataset in list_datasets(store)]
    if not known:
        raise Prerequisite(f"There is no dataset in {store.root}.", "Make one with `trajnote collect`.")
    return known[-1] if name is None else pick(name, known, "dataset")


def pick(name: str, known: list[str], kind: str) -> str:
    """The known name that is `name` or, alone, begins with it.

    Raises:
        BadInput: if no name fits, or several do.
    """
    if name in known:
        return name
    fitting = [item for item in known if item.startswith(name)] if name else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadInput(f"{name!r} is the beginning of {len(fitting)} {kind} names: {', '.join(fitting[:5])}.")
    near = did_you_mean(name, known)
    raise BadInput(f"There is no {kind} {name!r}.{near}", f"Known: {', '.join(known[-5:])}." if known else "")


def _is_registered(con: Connection, store: Store, dataset_id: str) -> bool:
    """Whether the catalog knows a dataset, which must be as it was registered."""
    found = con.execute("SELECT manifest_sha256 FROM datasets WHERE dataset_id = ?", [dataset_id]).fetchone()
    if found is not None and found[0] != sha256_file(store.manifest_path(dataset_id)):
        raise DamagedStore(
            f"{store.manifest_path(dataset_id)} differs from the manifest that was registered.",
            "Restore the file; a dataset is never changed once it is written.",
        )
    return found is not None


def _essence(draft: ManifestDraft) -> dict[str, str]:
    fields = set(ManifestDraft.model_fields) - {"versions", "environment_code", "policy_file_sha256"}
    return {name: canonical_json(getattr(draft, name)) for name in fields}


def _dataset_row(manifest: Manifest, manifest_sha256: str) -> dict[str, object]:
    copied = (
        "dataset_id source env_id policy policy_sha256 policy_mode policy_output "
        "component_names action_names episodes steps created_at"
    )
    row: dict[str, object] = {name: getattr(manifest, name) for name in copied.split()}
    spaces = {name: canonical_json(getattr(manifest, name)) for name in ("observation_space", "action_space")}
    return row | spaces | {"env_kwargs": canonical_json(manifest.env_kwargs), "manifest_sha256": manifest_sha256}


def _episode_rows(store: Store, manifest: Manifest) -> Iterator[dict[str, object]]:
    for shard in manifest.shards:
        yield from _summarise(store, manifest, shard)


def _summarise(store: Store, manifest: Manifest, shard: Shard) -> Iterator[dict[str, object]]:
    table = read_shard(store, manifest, shard, columns=_SUMMED)
    ids, ended, cut = (np.asarray(table[name]) for name in ("episode_id", "terminated", "truncated"))
    rewards = table["reward"].to_numpy()
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    seeds = table["seed"].take(starts).to_pylist()
    for start, stop, seed in zip(starts, [*starts[1:], len(ids)], seeds, strict=True):
        yield {
            "dataset_id": manifest.dataset_id,
            "episode_id": int(ids[start]),
            "seed": seed,
            "length": int(stop - start - 1),
            "return_": float(np.sum(rewards[start : stop - 1])),
            "terminated": bool(ended[stop - 2]),
            "truncated": bool(cut[stop - 2]),
            "shard": shard.name,
        }


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
        raise BadInput(f"The store has another dataset {manifest.dataset_id}.", "Use another store.")
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
            raise DamagedStore(f"{path} differs from its manifest: its hash is another.", "Copy the folder again.")
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
