"""Checks that a store is what was written: hashes, row counts, raw replies. It repairs nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..annotations import check_rule_list, formula_reader, load_rule_lists
from ..catalog import inspect_shards
from ..datasets import check_shard, damaged_columns, list_pools, read_manifest
from ..disk import is_sealed
from ..errors import BadInput, DamagedStore, LeftOutWarning, Prerequisite, TrajnoteError
from ..ledger import read_frames
from ..policies import RECORD, files_sha256, is_record, read_folder
from ..schema import Manifest, Shard, sha256_file
from ..store import CATALOG, Store

_RESTORE = "Restore it from a backup."
_DELETE = "Delete its folder: it is made again when needed."
_RECOLLECT = "Restore it from a backup, or remove the dataset's folder and make it again."


@dataclass(frozen=True)
class Damage:
    """One difference from what was written."""

    file: str  # relative to the store
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}. {self.remedy}"


def verify_store(store: Store, progress: Callable[[str], None] | None = None) -> list[Damage]:
    """Read the whole store and compare it with the manifests and the catalog.

    Args:
        store: the store.
        progress: called with the name of each file before it is read.

    Returns:
        What is damaged; empty when nothing is. Unfinished datasets and replies of killed runs are not damage: the
        next run goes on from them.
    """
    tell = progress or (lambda _: None)
    catalog = [*_check_catalog(store)]
    if catalog:
        return [*catalog, *_check_files(store, _Registered.from_folders(store), tell)]
    return [
        *_check_files(store, _Registered.from_catalog(store), tell),
        *_check_annotations(store),
        *_check_rules(store),
    ]


@dataclass(frozen=True)
class _Registered:
    """What the catalog knows of the files; without a catalog, only which exist."""

    datasets: Mapping[str, str]  # id -> sha256 of the manifest
    policies: Mapping[str, str]  # id -> sha256 of the files
    replies: Mapping[str, int]  # file -> number of its last line
    is_complete: bool

    @classmethod
    def from_catalog(cls, store: Store) -> _Registered:
        return cls(
            dict(store.select("SELECT dataset_id, manifest_sha256 FROM datasets ORDER BY dataset_id")),
            dict(store.select("SELECT policy_id, sha256 FROM policies ORDER BY policy_id")),
            dict(store.select("SELECT file, max(line) FROM responses GROUP BY file ORDER BY file")),
            is_complete=True,
        )

    @classmethod
    def from_folders(cls, store: Store) -> _Registered:
        datasets, policies = (
            {path.name: "" for path in _strangers(folder, {})} for folder in (store.rollouts_dir, store.policies_dir)
        )
        return cls(datasets, policies, {}, is_complete=False)


def _check_catalog(store: Store) -> Iterator[Damage]:
    """Migrate the catalog, and let DuckDB check the checksum of every block that holds rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOutWarning)  # the files are checked one by one
            Store.open(store.root)
        with store.catalog.read() as con:
            for (table,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall():
                con.execute(f'SELECT bit_xor(hash(rows)) FROM "{table}" AS rows').fetchall()
    except DamagedStore as error:
        problem = error.problem.replace(f"{store.root}/", "").rstrip(".")
        yield Damage(CATALOG, problem, _RESTORE)
    except Prerequisite as error:
        is_there = store.catalog.path.is_file()
        yield Damage(
            CATALOG,
            error.problem.rstrip(".") if is_there else "the catalog is missing",
            error.hint if is_there else _RESTORE,
        )


def _check_files(store: Store, registered: _Registered, tell: Callable[[str], None]) -> Iterator[Damage]:
    yield from _check_datasets(store, registered, tell)
    yield from _check_policies(store, registered, tell)
    yield from _check_responses(store, registered, tell)
    for path in sorted(store.reports_dir.glob("*.html")):
        tell(_name(store, path))
        if not is_sealed(path):
            yield Damage(_name(store, path), "the report differs from what was written", "Write it again.")


def _check_datasets(store: Store, registered: _Registered, tell: Callable[[str], None]) -> Iterator[Damage]:
    for dataset_id, sha256 in registered.datasets.items():
        yield from _check_dataset(store, dataset_id, sha256, tell)
    for names in list_pools(store):
        with suppress(TrajnoteError):  # what is wrong with its datasets is said above
            yield from _check_columns(store, [read_manifest(store, name) for name in names])
    for folder in _strangers(store.rollouts_dir, registered.datasets):
        yield Damage(
            _name(store, folder),
            "the catalog does not know this dataset",
            "Run the command that made it again, which registers it.",
        )


def _check_dataset(store: Store, dataset_id: str, sha256: str, tell: Callable[[str], None]) -> Iterator[Damage]:
    path = store.manifest_path(dataset_id)
    tell(_name(store, path))
    if not path.is_file():
        yield Damage(_name(store, path), "the manifest is missing", _RECOLLECT)
        if sha256:
            yield from _check_views(store, dataset_id)
        return
    if sha256 and sha256_file(path) != sha256:
        yield Damage(_name(store, path), "the manifest differs from the one that was registered", _RESTORE)
    try:
        manifest = read_manifest(store, dataset_id)
    except TrajnoteError as error:
        yield Damage(_name(store, path), error.problem, _RECOLLECT)
        return
    is_whole = True
    for shard in manifest.shards:
        tell(_name(store, path.parent / shard.name))
        damages = [*_check_shard(store, manifest, shard)]
        yield from damages
        is_whole = is_whole and not damages
    yield from _check_card(store, manifest, tell)
    if is_whole:
        yield from _check_columns(store, [manifest])
    if sha256:
        yield from _check_views(store, dataset_id)
        yield from _check_counts(store, manifest)


def _check_columns(store: Store, manifests: Sequence[Manifest]) -> Iterator[Damage]:
    for column in damaged_columns(store, manifests):
        yield Damage(_name(store, column), "the copy of a column differs from the shards", _DELETE)


def _check_shard(store: Store, manifest: Manifest, shard: Shard) -> Iterator[Damage]:
    path = store.dataset_dir(manifest.dataset_id) / shard.name
    try:
        check_shard(store, manifest, shard)
    except TrajnoteError as error:
        yield Damage(_name(store, path), error.problem.replace(f"{path} ", "the file "), _RECOLLECT)
        return
    if (found := sha256_file(path)) != shard.sha256:
        problem = f"the content has sha256 {found[:12]}..., {shard.sha256[:12]}... was written"
        yield Damage(_name(store, path), problem, _RECOLLECT)


def _check_card(store: Store, manifest: Manifest, tell: Callable[[str], None]) -> Iterator[Damage]:
    if manifest.card_file_sha256 is None:
        return
    path = store.card_path(manifest.dataset_id)
    tell(_name(store, path))
    if not path.is_file():
        yield Damage(_name(store, path), "the card is missing", _RESTORE)
    elif sha256_file(path) != manifest.card_file_sha256:
        yield Damage(_name(store, path), "the card differs from the one that was written", _RESTORE)


def _check_views(store: Store, dataset_id: str) -> Iterator[Damage]:
    with store.catalog.read() as con:
        wrong = inspect_shards(con, store.rollouts_dir).damaged.get(dataset_id)
    if wrong:
        problem = f"the dataset is left out of the views `steps` and `annotated_steps`: {wrong}"
        yield Damage(_name(store, store.dataset_dir(dataset_id)), problem, "It is back once its files are.")


def _check_counts(store: Store, manifest: Manifest) -> Iterator[Damage]:
    found = store.select(
        """SELECT datasets.episodes, datasets.steps, count(length), coalesce(sum(length), 0)::BIGINT
           FROM datasets LEFT JOIN episodes USING (dataset_id) WHERE dataset_id = ? GROUP BY ALL""",
        [manifest.dataset_id],
    )
    expected = (manifest.episodes, manifest.steps) * 2
    if found and found[0] != expected:
        yield Damage(
            CATALOG,
            f"dataset {manifest.dataset_id} has episodes and steps {found[0]} in the tables datasets and episodes, "
            f"{expected} in its manifest",
            _RESTORE,
        )


def _check_policies(store: Store, registered: _Registered, tell: Callable[[str], None]) -> Iterator[Damage]:
    for policy_id, sha256 in registered.policies.items():
        folder = store.policy_dir(policy_id)
        tell(_name(store, folder))
        if not folder.is_dir():
            yield Damage(_name(store, folder), "the policy's folder is missing", _RESTORE)
        elif sha256 and files_sha256(read_folder(folder)) != sha256:
            yield Damage(_name(store, folder), "the policy's files differ from those that were saved", _RESTORE)
        elif not is_record(store, policy_id, is_registered=bool(sha256)):
            yield Damage(_name(store, folder / RECORD), "the record differs from what was saved", _RESTORE)
    for folder in _strangers(store.policies_dir, registered.policies):
        yield Damage(
            _name(store, folder),
            "the catalog does not know this policy",
            "Run the command that made it again, which registers it.",
        )


def _check_responses(store: Store, registered: _Registered, tell: Callable[[str], None]) -> Iterator[Damage]:
    whole: dict[str, int] = {}
    for path in sorted((store.root / "responses").glob("*/*.jsonl.zst")):
        name = _name(store, path)
        tell(name)
        try:
            frames = read_frames(path)
        except OSError as error:
            yield Damage(name, f"the file cannot be read: {error.strerror}", _RESTORE)
            continue
        whole[name] = len(frames.lines)
        for line in frames.damaged:
            yield Damage(name, f"line {line} is damaged", _RESTORE)
        if not registered.is_complete and frames.end < frames.size:
            yield Damage(name, f"the file is damaged after line {len(frames.lines)}", _RESTORE)
    for file, last in registered.replies.items():
        if file not in whole:
            yield Damage(file, "the file of raw replies is missing", _RESTORE)
        elif last > whole[file]:
            yield Damage(file, f"the file ends after line {whole[file]}; line {last} was written", _RESTORE)


def _check_origin(store: Store, table: str) -> Iterator[Damage]:
    lost = store.select(
        f"""SELECT run_id, count(*) FROM {table} ANTI JOIN responses USING (request_id)
            WHERE request_id IS NOT NULL GROUP BY run_id ORDER BY run_id"""
    )
    for run_id, count in lost:
        yield Damage(CATALOG, f"{count} {table} of run {run_id} have no raw reply", _RESTORE)


def _check_annotations(store: Store) -> Iterator[Damage]:
    yield from _check_origin(store, "annotations")
    stray = store.select(
        """SELECT dataset_id, count(*) FROM annotations LEFT JOIN episodes USING (dataset_id, episode_id)
           WHERE length IS NULL OR step >= length GROUP BY dataset_id ORDER BY dataset_id""",
    )
    for dataset_id, count in stray:
        problem = f"{count} annotations of dataset {dataset_id} are of steps that do not exist"
        yield Damage(CATALOG, problem, _RESTORE)


def _check_rules(store: Store) -> Iterator[Damage]:
    yield from _check_origin(store, "rules")
    for (dataset_id,) in store.select("SELECT DISTINCT dataset_id FROM rules SEMI JOIN datasets USING (dataset_id)"):
        manifest = read_manifest(store, dataset_id)
        for listed in load_rule_lists(store, dataset_id):
            try:
                check_rule_list(listed, formula_reader(manifest, listed.terms, is_canonical=True))
            except BadInput as refused:
                yield Damage(CATALOG, f"the list of rules {listed.list_id}: {refused.problem.rstrip('.')}", _RESTORE)


def _strangers(folder: Path, known: Container[str]) -> list[Path]:
    """Finished folders that the catalog does not know."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in known)


def _name(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()
