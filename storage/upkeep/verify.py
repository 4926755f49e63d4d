"""Checks that a store is what was written: hashes, row counts, raw replies. It repairs nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..annotations import check_rule_list, load_rule_lists
from ..catalog import inspect_shards, select_column
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
    damage = [*_check_catalog(store)]
    is_readable = not damage
    check = _FileCheck(store, progress or (lambda _: None), is_readable)
    damage += [*check.datasets(), *check.policies(), *check.responses(), *check.reports()]
    return [*damage, *_check_annotations(store), *_check_rules(store)] if is_readable else damage


def _check_catalog(store: Store) -> Iterator[Damage]:
    """Migrate the catalog, and let DuckDB check the checksum of every block that holds rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOutWarning)  # the files are checked one by one
            Store.open(store.root)
        with store.catalog.read() as con:
            for table in select_column(con, "SELECT table_name FROM duckdb_tables() WHERE NOT internal"):
                con.execute(f'SELECT bit_xor(hash(rows)) FROM "{table}" AS rows').fetchall()
    except DamagedStore as error:
        yield Damage(CATALOG, error.problem.replace(f"{store.root}/", "").rstrip("."), _RESTORE)
    except Prerequisite as error:
        if store.catalog.path.is_file():
            yield Damage(CATALOG, error.problem.rstrip("."), error.hint)
        else:
            yield Damage(CATALOG, "the catalog is missing", _RESTORE)


class _FileCheck:
    """Compares files with what the catalog knows of them or, if it cannot be read, with what lies beside them."""

    def __init__(self, store: Store, tell: Callable[[str], None], is_readable: bool) -> None:
        self._store, self._tell, self._is_readable = store, tell, is_readable

    def datasets(self) -> Iterator[Damage]:
        """Of datasets, and of the mapped columns of pools."""
        known = self._known(
            "SELECT dataset_id, manifest_sha256 FROM datasets ORDER BY dataset_id", self._store.rollouts_dir
        )
        for dataset_id, sha256 in known.items():
            yield from self._dataset(dataset_id, sha256)
        for names in list_pools(self._store):
            with suppress(TrajnoteError):  # what is wrong with its datasets is said above
                yield from self._columns([read_manifest(self._store, name) for name in names])
        yield from self._strangers(self._store.rollouts_dir, known, "dataset")

    def policies(self) -> Iterator[Damage]:
        """Of policies and the records beside them."""
        known = self._known("SELECT policy_id, sha256 FROM policies ORDER BY policy_id", self._store.policies_dir)
        for policy_id, sha256 in known.items():
            folder = self._store.policy_dir(policy_id)
            self._tell(self._name(folder))
            if not folder.is_dir():
                yield self._damage(folder, "the policy's folder is missing")
            elif sha256 and files_sha256(read_folder(folder)) != sha256:
                yield self._damage(folder, "the policy's files differ from those that were saved")
            elif not is_record(self._store, policy_id, is_registered=bool(sha256)):
                yield self._damage(folder / RECORD, "the record differs from what was saved")
        yield from self._strangers(self._store.policies_dir, known, "policy")

    def responses(self) -> Iterator[Damage]:
        """Of raw replies."""
        whole: dict[str, int] = {}
        for path in sorted((self._store.root / "responses").glob("*/*.jsonl.zst")):
            self._tell(self._name(path))
            try:
                frames = read_frames(path)
            except OSError as error:
                yield self._damage(path, f"the file cannot be read: {error.strerror}")
                continue
            whole[self._name(path)] = len(frames.lines)
            for line in frames.damaged:
                yield self._damage(path, f"line {line} is damaged")
            if not self._is_readable and frames.end < frames.size:
                yield self._damage(path, f"the file is damaged after line {len(frames.lines)}")
        question = "SELECT file, max(line) FROM responses GROUP BY file ORDER BY file"
        for file, last in self._store.select(question) if self._is_readable else ():
            if file not in whole:
                yield Damage(file, "the file of raw replies is missing", _RESTORE)
            elif last > whole[file]:
                yield Damage(file, f"the file ends after line {whole[file]}; line {last} was written", _RESTORE)

    def reports(self) -> Iterator[Damage]:
        """Of reports, which carry their own hash."""
        for path in sorted(self._store.reports_dir.glob("*.html")):
            self._tell(self._name(path))
            if not is_sealed(path):
                yield self._damage(path, "the report differs from what was written", "Write it again.")

    def _known(self, question: str, folder: Path) -> dict[str, str]:
        """Id -> hash of all that is registered; without a catalog, of all that is there, with no hash."""
        if self._is_readable:
            return dict(self._store.select(question))
        return {path.name: "" for path in _finished(folder)}

    def _strangers(self, folder: Path, known: Container[str], kind: str) -> Iterator[Damage]:
        for path in _finished(folder):
            if path.name not in known:
                remedy = "Run the command that made it again, which registers it."
                yield self._damage(path, f"the catalog does not know this {kind}", remedy)

    def _dataset(self, dataset_id: str, sha256: str) -> Iterator[Damage]:
        path = self._store.manifest_path(dataset_id)
        self._tell(self._name(path))
        if not path.is_file():
            yield self._damage(path, "the manifest is missing", _RECOLLECT)
            if sha256:
                yield from self._views(dataset_id)
            return
        if sha256 and sha256_file(path) != sha256:
            yield self._damage(path, "the manifest differs from the one that was registered")
        try:
            manifest = read_manifest(self._store, dataset_id)
        except TrajnoteError as error:
            yield self._damage(path, error.problem, _RECOLLECT)
            return
        damages = [damage for shard in manifest.shards for damage in self._shard(manifest, shard)]
        yield from damages
        yield from self._card(manifest)
        if not damages:
            yield from self._columns([manifest])
        if sha256:
            yield from self._views(dataset_id)
            yield from self._counts(manifest)

    def _shard(self, manifest: Manifest, shard: Shard) -> Iterator[Damage]:
        path = self._store.dataset_dir(manifest.dataset_id) / shard.name
        self._tell(self._name(path))
        try:
            check_shard(self._store, manifest, shard)
        except TrajnoteError as error:
            yield self._damage(path, error.problem.replace(f"{path} ", "the file "), _RECOLLECT)
            return
        if (found := sha256_file(path)) != shard.sha256:
            problem = f"the content has sha256 {found[:12]}..., {shard.sha256[:12]}... was written"
            yield self._damage(path, problem, _RECOLLECT)

    def _columns(self, manifests: Sequence[Manifest]) -> Iterator[Damage]:
        for column in damaged_columns(self._store, manifests):
            yield self._damage(column, "the copy of a column differs from the shards", _DELETE)

    def _card(self, manifest: Manifest) -> Iterator[Damage]:
        if manifest.card_file_sha256 is None:
            return
        path = self._store.card_path(manifest.dataset_id)
        self._tell(self._name(path))
        if not path.is_file():
            yield self._damage(path, "the card is missing")
        elif sha256_file(path) != manifest.card_file_sha256:
            yield self._damage(path, "the card differs from the one that was written")

    def _views(self, dataset_id: str) -> Iterator[Damage]:
        with self._store.catalog.read() as con:
            wrong = inspect_shards(con, self._store.rollouts_dir).damaged.get(dataset_id)
        if wrong:
            problem = f"the dataset is left out of the views `steps` and `annotated_steps`: {wrong}"
            yield self._damage(self._store.dataset_dir(dataset_id), problem, "It returns once its files are restored.")

    def _counts(self, manifest: Manifest) -> Iterator[Damage]:
        found = self._store.select(
            """SELECT datasets.episodes, datasets.steps, count(length), coalesce(sum(length), 0)::BIGINT
               FROM datasets LEFT JOIN episodes USING (dataset_id) WHERE dataset_id = ? GROUP BY ALL""",
            [manifest.dataset_id],
        )
        expected = (manifest.episodes, manifest.steps) * 2
        if found and found[0] != expected:
            problem = (
                f"has episodes and steps {found[0]} in the tables datasets and episodes, {expected} in its manifest"
            )
            yield Damage(CATALOG, f"dataset {manifest.dataset_id} {problem}", _RESTORE)

    def _damage(self, path: Path, problem: str, remedy: str = _RESTORE) -> Damage:
        return Damage(self._name(path), problem, remedy)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._store.root).as_posix()


def _finished(folder: Path) -> list[Path]:
    """The folders in a folder that have their final names."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


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
                check_rule_list(listed, manifest)
            except BadInput as refused:
                yield Damage(CATALOG, f"the list of rules {listed.list_id}: {refused.problem.rstrip('.')}", _RESTORE)
