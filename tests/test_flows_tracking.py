"""A comparison in a tracker: its numbers as the outcome has them, once, with its policy, and nothing secret."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_environment import gather_toys, small_config, write_labels

from annotate.importing.labels import import_annotations
from flows.refinement.present import show_comparison
from flows.refinement.refinement import improve
from flows.reporting.tracking import enter_run, metrics_of
from storage.errors import BadInput
from storage.store import Store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs the extra tracking")
SECRET = "sk-ant-very-secret"
SMALL: dict[str, Any] = {"snapshots": (5, 10), "gate": {"select": 4, "accept": 10, "report": 10, "placebo_draws": 2}}


def read_back(folder: Path, run: str) -> dict[str, Any]:
    """What another process finds there."""
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage; from trackio import Api;"
        "logs = SQLiteStorage.get_logs('trajnote', sys.argv[1]);"
        "runs = [(r.name, r.config) for r in Api().runs('trajnote')];"
        "print(json.dumps({'logs': logs, 'runs': runs}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run],
        env={**os.environ, "TRACKIO_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_comparison_is_one_run_with_its_returns_intervals_verdicts_labels_and_policy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    manifest = gather_toys(store, tmp_path)
    import_annotations(store, write_labels(store, manifest.dataset_id, tmp_path / "labels.jsonl"))
    config, folder = small_config(**SMALL), tmp_path / "tracked"
    outcome = improve(store, manifest.dataset_id, config)
    (store.reports_dir / f"{outcome.comparison_id}.html").write_text("<p>report</p>")
    assert enter_run(store, outcome, config, folder)
    assert not enter_run(store, outcome, config, folder)  # the same comparison is the same run
    assert capsys.readouterr().out == ""
    with pytest.raises(BadInput, match="already"):
        enter_run(store, outcome, config, tmp_path / "elsewhere")
    found = read_back(folder, outcome.comparison_id)
    (logged,), ((name, parameters),) = found["logs"], found["runs"]
    said = show_comparison(outcome).values
    expected = metrics_of(store, outcome)
    assert {key: logged[key] for key in expected} == pytest.approx(expected)
    assert (expected["greedy/refined"], expected["greedy/refined/low"]) == (
        said["refined"]["return"],
        said["refined"]["low"],
    )
    assert (expected["labels"], expected["accepted"]) == (96.0, float(said["accepted"]))
    assert name == said["comparison_id"]
    assert (parameters["refine"]["snapshots"], parameters["gate"]["accept"]) == ([5, 10], 10)
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert b"<p>report</p>" in kept
    if said["accepted"]:
        assert (store.policy_dir(said["policy_id"]) / "policy.json").read_bytes() in kept
    assert not [content for content in kept if SECRET.encode() in content]
