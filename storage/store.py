"""Where everything is: the one place that knows the paths of a store. It does not know what is in the files."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .catalog import (
    Catalog,
    Connection,
    Values,
    create_file,
    create_tables,
    is_newest,
    look_at_views,
    migrate,
    refresh_views,
    suspect_shards,
    temporary_views,
)
from .disk import TEMPORARY, exclusive_lock, sync_to_disk, writing
from .errors import BadInput, DamagedStore, DiskFailed, LeftOutWarning, Prerequisite

CATALOG = "catalog.duckdb"
MANIFEST = "manifest.json"
DRAFT = "draft.json"
CARD = "card.toml"
ROLLOUTS = "rollouts"
_FOLDERS = (ROLLOUTS, "policies", "responses", "reports", "trainings")
_LASTING = (ROLLOUTS, "policies", "responses", "reports")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Store:
    """One folder with a catalog and the files it speaks of; make one with `Store.create` or `Store.open`.

    Args:
        root: the store's folder, absolute and without links, so that it is spelled in one way only.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = Catalog(root / CATALOG)
        self.rollouts_dir = root / ROLLOUTS
        """One folder per dataset."""
        self.policies_dir = root / "policies"
        """One folder per policy."""
        self.reports_dir = root / "reports"
        """The HTML reports."""
        self.trainings_dir = root / "trainings"
        """What was trained before; it may be thrown away."""
        self.columns_root = root / "columns"
        """The mapped columns of large datasets; they may be thrown away."""
        self.pools_dir = self.columns_root / ".pools"
        """Those of several datasets as one; no dataset has its name."""
        self.labels_dir = self.columns_root / ".labels"
        """The labels of a large refinement, for its workers; no dataset has its name."""
        self.tables_dir = root / "tables"
        """Tables that were written as Parquet, for readers without the catalog."""
        self.remotes_path = root / "remotes.json"
        """What was pushed where, and pulled from where."""

    @classmethod
    def create(cls, root: Path | str) -> Store:
        """The store in a folder, which is made if it does not exist; an existing store is opened unchanged.

        Raises:
            BadInput: if the path is a file, a folder with something else in it, or has a question mark.
            Prerequisite: if its catalog was written by a newer trajnote.
            DiskFailed: if the disk does not take a new store.
        """
        store = cls.prepare(root)
        with writing(store.root):
            is_new = not (store.root / CATALOG).exists() and _create_catalog(store.root / CATALOG)
        return store if is_new else cls.open(store.root)

    @classmethod
    def open(cls, root: Path | str) -> Store:
        """The store in a folder; its catalog is brought up to date, and its views if the folder has moved.

        A `LeftOutWarning` names each dataset of which a file is damaged. A store that cannot be written can be read:
        its views are made for each connection, and a catalog of an older trajnote is read in a copy.

        Raises:
            Prerequisite: if there is no store, or its catalog was written by a newer trajnote.
            CatalogLocked: if another process keeps the catalog for too long.
            DamagedStore: if the catalog cannot be read.
        """
        path = _folder(root)
        if not (path / CATALOG).is_file():
            raise _no_store(path)
        store = cls(path)
        _warn_of_damage(store._bring_up_to_date())
        return store

    @classmethod
    def locate(cls, root: Path | str) -> Store:
        """The store in a folder, however damaged; nothing in it is read or changed.

        Raises:
            Prerequisite: if nothing there looks like a store.
        """
        path = _folder(root)
        if not (path / CATALOG).exists() and not (path / ROLLOUTS).is_dir():
            raise _no_store(path)
        return cls(path)

    @classmethod
    def prepare(cls, root: Path | str) -> Store:
        """The folders of a store whose catalog comes from elsewhere, or the store that is there, unchanged.

        Raises:
            BadInput, DiskFailed: as `create`.
        """
        path = _folder(root)
        _refuse_foreign(path)
        with writing(path):
            for name in _FOLDERS:
                (path / name).mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    @contextmanager
    def create_for(cls, root: Path | str) -> Generator[Store]:
        """As `create`, for a command that may be refused: a new store in which nothing was put is taken away again.

        Raises:
            BadInput, Prerequisite: as `create`, and as the block does.
        """
        path = _folder(root)
        existed, was_store = path.exists(), (path / CATALOG).exists()
        store = cls.create(path)
        try:
            yield store
        except (BadInput, Prerequisite):
            if not was_store and store.is_empty():
                store._take_away(with_root=not existed)
            raise

    def select(self, question: str, values: Values = ()) -> list[Any]:
        """The rows of an answer of the catalog."""
        with self.catalog.read() as con:
            return con.execute(question, values).fetchall()

    def is_empty(self) -> bool:
        """Whether nothing was put in: no file, and no row that lives in the catalog alone."""
        ((rows,),) = self.select("SELECT (SELECT count(*) FROM datasets) + (SELECT count(*) FROM evaluations)")
        return rows == 0 and not any(any((self.root / name).iterdir()) for name in _FOLDERS)

    def _take_away(self, *, with_root: bool) -> None:
        for name in _FOLDERS:
            (self.root / name).rmdir()  # fails rather than delete what somebody has just put there
        for leftover in self.root.glob(f"{CATALOG}*"):
            leftover.unlink()
        if with_root:
            self.root.rmdir()

    def leave_out_damaged(self) -> bool:
        """Compare every shard with what was written, and leave damaged datasets out of the views, with a warning.

        Returns:
            Whether there is damage.

        Raises:
            CatalogLocked, DiskFailed: if the catalog cannot be written.
        """
        with self.catalog.write() as con:
            if not suspect_shards(con, self.rollouts_dir):
                return False
            left_out = refresh_views(con, self.rollouts_dir)
        _warn_of_damage(left_out)
        return True

    def training_path(self, training_id: str) -> Path:
        """The file of one training."""
        return self.trainings_dir / f"{_checked(training_id, 'training')}.zip"

    def columns_dir(self, dataset_id: str) -> Path:
        """The folder of the mapped columns of a large dataset."""
        return self.columns_root / _checked(dataset_id, "dataset")

    def dataset_dir(self, dataset_id: str) -> Path:
        """The folder of a dataset's manifest and Parquet shards."""
        return self.rollouts_dir / _checked(dataset_id, "dataset")

    def partial_dir(self, dataset_id: str) -> Path:
        """The folder where a dataset is written until it is finished."""
        return self.rollouts_dir / f".partial-{_checked(dataset_id, 'dataset')}"

    def manifest_path(self, dataset_id: str) -> Path:
        """The file that says what a dataset is."""
        return self.dataset_dir(dataset_id) / MANIFEST

    def card_path(self, dataset_id: str) -> Path:
        """The file of the card that a dataset keeps, if it keeps one."""
        return self.dataset_dir(dataset_id) / CARD

    def policy_dir(self, policy_id: str) -> Path:
        """The folder of a policy's files."""
        return self.policies_dir / _checked(policy_id, "policy")

    def deployment_dir(self, deployment: str) -> Path:
        """The folder of a deployment: its lock, its link to the policy in force, and the requests that it writes."""
        return self.root / "deployments" / _checked(deployment, "deployment")

    def responses_dir(self, run_id: str) -> Path:
        """The folder of the raw replies that an annotation run received."""
        return self.root / "responses" / _checked(run_id, "run")

    def replaced_dir(self, name: str) -> Path:
        """A folder for what a pull puts aside."""
        return self.root / "replaced" / _checked(name, "folder")

    def lasting_path(self, name: str) -> Path:
        """The file of a name from `lasting_files`, which cannot lead elsewhere.

        Raises:
            BadInput: if no file of a store has such a name.
        """
        first, *rest = name.split("/")
        if first not in _LASTING or not rest or not all(map(_NAME.fullmatch, rest)):
            raise BadInput(f"{name!r} is not the name of a file of a store.")
        return self.root.joinpath(first, *rest)

    def lasting_files(self) -> Iterator[tuple[str, Path]]:
        """Name and path of every finished file that another machine needs beside the catalog, in order."""
        for folder in _LASTING:
            for path in sorted((self.root / folder).rglob("*")):
                parts = path.relative_to(self.root).parts
                if path.is_file() and path.suffix != TEMPORARY and all(map(_NAME.fullmatch, parts)):
                    yield "/".join(parts), path

    def _bring_up_to_date(self) -> Mapping[str, str]:
        """Migrate the catalog, and make the views again if the store has moved or they are made otherwise now.

        Returns:
            The datasets that cannot be asked, and what is wrong with each.
        """
        with self.catalog.read() as con:
            state = look_at_views(con, self.rollouts_dir) if is_newest(con) else None
        if state is not None and state.is_current:
            return state.found.damaged
        try:
            if state is None:
                migrate(self.catalog)
            with self.catalog.write() as con:
                return refresh_views(con, self.rollouts_dir)
        except DiskFailed as error:
            if state is None:
                return self._work_on_a_copy(error)
            with self.catalog.read() as con:
                self.catalog.session = temporary_views(con, self.rollouts_dir, state.found)
            return state.found.damaged

    def _work_on_a_copy(self, refusal: DiskFailed) -> Mapping[str, str]:
        """Read a copy of a catalog of an older trajnote that cannot be written; returns what `refresh_views` does."""
        folder = tempfile.mkdtemp(prefix="trajnote-catalog-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for path in self.root.glob(f"{CATALOG}*"):  # what a killed command left unmerged lies beside it
            shutil.copyfile(path, Path(folder) / path.name)
        self.catalog = Catalog(Path(folder) / CATALOG)
        migrate(self.catalog)
        with self.catalog.write() as con:
            left_out = refresh_views(con, self.rollouts_dir)
        self.catalog.refusal = refusal
        return left_out


def _warn_of_damage(found: Mapping[str, str]) -> None:
    """Name the datasets that cannot be asked; everything else goes on."""
    for dataset_id, wrong in found.items():
        warnings.warn(
            f"The dataset {dataset_id} is left out of the views `steps` and `annotated_steps`: {wrong}. "
            "`trajnote store verify` says what to do.",
            LeftOutWarning,
            stacklevel=3,
        )


def _no_store(path: Path) -> DamagedStore | Prerequisite:
    if (path / ROLLOUTS).is_dir() and any((path / ROLLOUTS).iterdir()):
        return DamagedStore(f"The catalog {path / CATALOG} is missing.", "Restore it from a backup of the store.")
    return Prerequisite(
        f"There is no store in {path}.", "Make one with `trajnote collect`, or name another one with --store."
    )


def _folder(root: Path | str) -> Path:
    if re.match(r"[a-z][a-z0-9]+:/", str(root)):
        raise BadInput(
            f"{root} is a URL, but a store has to be a local folder.",
            "`trajnote store pull URL --store FOLDER` brings it here, `trajnote store push URL` takes it back.",
        )
    return Path(root).expanduser().resolve()


def _checked(name: str, kind: str) -> str:
    """A name that cannot lead out of its folder."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be the name of a {kind}.",
            "A name has up to 128 letters, digits, dots, dashes and underscores, and starts with a letter or a digit.",
        )
    return name


def _refuse_foreign(path: Path) -> None:
    if "?" in str(path):
        raise BadInput(
            f"{path} has a question mark, which DuckDB takes for the start of options.", "Name another folder."
        )
    if path.is_file():
        raise BadInput(f"{path} is a file, not a folder.", "Name a new or empty folder with --store.")
    if path.is_dir() and not (path / CATALOG).exists():
        own = (*_FOLDERS, "columns", "remotes.json", "replaced")
        names = sorted(item.name for item in path.iterdir())
        if strangers := [name for name in names if name not in own and not name.startswith(CATALOG)]:
            raise BadInput(
                f"{path} is not a store: it holds {', '.join(strangers[:3])}.",
                "Name a new or empty folder with --store.",
            )


def _create_catalog(path: Path) -> bool:
    """Make the catalog under another name and rename it, so that a second process waits and finds a whole one.

    Returns:
        False if another process has made it meanwhile.
    """
    new = path.with_name(f"{CATALOG}.new")
    with exclusive_lock(path.parent, "the store", wait=True):
        if path.exists():
            return False
        new.write_bytes(_new_catalog())
        sync_to_disk(new)
        new.rename(path)
        sync_to_disk(path.parent)
        return True


@cache
def _new_catalog() -> bytes:
    """The file of a catalog without datasets, which is the same for every store; made once per process."""
    with tempfile.TemporaryDirectory(prefix="trajnote-") as folder:
        path = Path(folder) / CATALOG
        create_file(path, _fill_catalog)
        return path.read_bytes()


def _fill_catalog(con: Connection) -> None:
    create_tables(con)
    refresh_views(con, Path())
