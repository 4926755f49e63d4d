"""Everything that only reads works on a store that its user may not write, also on one of an older trajnote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.labelling import LabelConfig, label
from storage.datasets import adopt_dataset
from storage.store import Store

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
READERS = (
    ["sql", "SELECT count(*) AS labels FROM annotated_steps"],
    ["store", "list"],
    ["store", "runs"],
    ["store", "verify"],
    ["store", "gc"],
    ["policy", "list"],
    ["policy", "current"],
    ["watch"],
    ["annotate", "quality"],
    ["annotate", "plan", "--model", "claude"],
    ["annotate", "why", "--miss", "--model", "m"],
    ["export", "labelled.parquet", "--with-labels"],
    ["replay", "--episode", "0"],
    ["report", "--output", "report.html", "--pictures", "0"],
)
_RUN = """
import ctypes, json, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: without them root, too, may write only where it may
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
if os.environ.pop("AGAIN", None):
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
from flows import cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["trajnote", *words]
    try:
        cli.main()
    except SystemExit as leaving:
        print("CODE", leaving.code or 0, flush=True)
"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.create(tmp_path_factory.mktemp("labelled") / "store")
    manifest = adopt_dataset(store, EXAMPLES / "cartpole" / "rollouts")
    answers = LabelConfig.model_validate({"provider": "recorded", "answers": EXAMPLES / "cartpole" / "answers.jsonl"})
    asked = answers.model_copy(update={"annotate": answers.annotate.model_copy(update={"model": "claude"})})
    label(store, manifest.dataset_id, asked)
    return store


@pytest.fixture
def closed(labelled: Store) -> Iterator[Path]:
    """The store without the right to write anything in it."""
    paths = [labelled.root, *labelled.root.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    yield labelled.root
    for path, mode in modes.items():
        path.chmod(mode)


def read(store: Path, commands: list[list[str]], folder: Path) -> tuple[list[int], str, str]:
    """The exit codes of commands in one process that may not write the store, and what they said."""
    lines = [[*words, "--store", str(store), "--json"] for words in commands]
    environment = {**os.environ, "AGAIN": "1", "PYTHONPATH": str(EXAMPLES.parent), "TRAJNOTE_STATE": str(folder)}
    said = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(lines)], cwd=folder, env=environment, capture_output=True, text=True
    )
    codes = [int(line.split()[1]) for line in said.stdout.splitlines() if line.startswith("CODE")]
    return codes, said.stdout, said.stderr


@pytest.mark.slow
def test_readers_work_on_a_store_that_cannot_be_written(closed: Path, tmp_path: Path) -> None:
    codes, said, errors = read(closed, [*READERS, ["collect", "--env", "CartPole-v1", "--policy", "random"]], tmp_path)
    assert codes == [0] * len(READERS) + [8], errors
    assert '"rows": [{"labels": 159}]' in said
    assert "The replay is not recorded" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_store_of_an_older_trajnote_that_cannot_be_written_is_read_in_a_copy(
    labelled: Store, closed: Path, tmp_path: Path
) -> None:
    catalog = closed / "catalog.duckdb"
    catalog.chmod(0o644)
    closed.chmod(0o755)
    with labelled.catalog.write() as con:
        con.execute("DROP TABLE view_marks; DELETE FROM schema_migrations WHERE version = 21")
    catalog.chmod(0o444)
    closed.chmod(0o555)
    before = catalog.read_bytes()
    codes, said, errors = read(
        closed, [READERS[0], READERS[2], ["evaluate", "random", "--env", "CartPole-v1"]], tmp_path
    )
    assert codes == [0, 0, 8], errors
    assert '"rows": [{"labels": 159}]' in said
    assert catalog.read_bytes() == before
