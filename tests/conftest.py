"""Fixtures that every test may use; all data is real, tiny, and made here."""

from __future__ import annotations

import gc
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from store_state import lend

from storage.store import Store

if TYPE_CHECKING:
    from flows.runtime.prefect_server import Server

ROOT = Path(__file__).parent.parent
ROOMS = ("storage", "annotate", "refine", "flows")
DOORS = [
    ".".join(door.parent.relative_to(ROOT).parts)
    for room in ROOMS
    for door in sorted((ROOT / room).rglob("__init__.pyi"))
]
LONGEST = (
    "annotate_batches",
    "flows_pipeline",
    "flows_schedule",
    "flows_secrets",
    "flows_interrupt",
    "storage_sharing",
    "annotate_failures",
    "flows_report_browser",
    "flows_review_browser",
    "docs",
    "annotate_settling",
    "storage_queries",
    "flows_exchange",
    "refine_fast_cloning",
    "storage_damage",
    "flows_night",
    "storage_disk",
    "flows_hostile",
    "annotate_chaos",
    "flows_twins",
)
"""Files whose tests take long, the longest first; begun last, one of them would run while the other processes idle."""
TOGETHER = {
    **dict.fromkeys(("flows_pipeline", "flows_schedule", "flows_secrets"), "one server of Prefect's"),
    **dict.fromkeys(("flows_report", "flows_report_browser", "flows_watch"), "one judged store"),
}
"""Files whose tests run in one process, and what they share there."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


gc.disable()  # until all tests are collected: a fifth of that time would go into looking for garbage


def pytest_collection_finish() -> None:
    """What was collected stays to the end, so that it need not be looked through."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes, the tests of a file run in one, so that what they share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
            return TOGETHER.get(file, file)

    config.option.loadscopereorder = False  # else the files with the most tests would come first
    return Files(config, log)


@pytest.fixture(autouse=True)
def fresh_doors() -> Iterator[None]:
    """A folder's door keeps what it has handed out once; what a test has replaced must not stay there."""
    yield
    for module in filter(None, map(sys.modules.get, DOORS)):
        for each in module.__all__:
            vars(module).pop(each, None)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where trajnote notes what this user has named; not the developer's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("TRAJNOTE_STATE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def set_up_once() -> Iterator[None]:
    """A command's words are declared once in a process; DuckDB has one thread, for tables that are tiny."""
    import typer

    from flows import cli
    from storage.catalog import connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "make_app", cache(cli.make_app))
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        patch.setattr(connection, "SETTINGS", {**connection.SETTINGS, "threads": "1"})
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an empty store, made once; it stays empty."""
    return Store.create(tmp_path_factory.mktemp("template") / "store").root


@pytest.fixture
def store(empty_store: Path) -> Store:
    """A fresh, empty store; all tests of a process have it at the same place, one after the other."""
    return Store.open(lend(empty_store))


@pytest.fixture(scope="session")
def toy_template(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[int]], Path]:
    """Makes the folder of a store with a dataset `d1` whose episodes have some lengths, each only once."""
    from toy_datasets import make_draft, make_episode, write  # what it imports is not what every test needs

    made: dict[tuple[int, ...], Path] = {}

    def make(lengths: Sequence[int]) -> Path:
        key = tuple(lengths)
        if key not in made:
            made[key] = shutil.copytree(empty_store, tmp_path_factory.mktemp("toys") / "store")
            write(Store.open(made[key]), make_draft("d1"), [make_episode(*numbered) for numbered in enumerate(key)])
        return made[key]

    return make


@pytest.fixture
def toy_store(toy_template: Callable[[Sequence[int]], Path]) -> Callable[[Sequence[int]], Store]:
    """Lends this test a store with a dataset `d1` whose episodes have some lengths; one of each at a time."""
    return lambda lengths: Store.open(lend(toy_template(lengths)))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Path]:
    """A server of Prefect's with a database of its own, whose making takes long, and the folder of that database."""
    from flows.runtime.prefect_server import Server

    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        return Server(), home


@pytest.fixture(scope="module")
def api(prefect_server: tuple[Server, Path]) -> Iterator[str]:
    """The address of that server, to which the flows of this process report."""
    from flows.runtime.prefect_server import served

    server, _ = prefect_server
    with served(server):
        yield server.wait()


@pytest.fixture(scope="module")
def brief_distillation() -> Iterator[None]:
    """Policies are distilled in 400 steps of training in place of 4,000, which take seconds."""
    from refine.training.distillation import distil

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distil.__kwdefaults__, "training_steps", 400)
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """The command line in this process: what it printed, or a failure with what it said."""
    from flows import cli

    monkeypatch.setenv("COLUMNS", "100")

    def call(words: list[str]) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["trajnote", *words])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        assert not leaving.value.code, f"trajnote {shlex.join(words)} ended with {leaving.value.code}: {said.err}"
        return said.out

    return call
