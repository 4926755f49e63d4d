from __future__ import annotations

import io
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from report_world import make_judged_store
from rich.console import Console

from flows.refinement.refinement import Outcome
from flows.reporting.status import draw, look
from storage.catalog import insert_rows
from storage.errors import CatalogLocked
from storage.policies import note_training
from storage.store import Store


def printed(store: Store, **options: Any) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(draw(look(store), **options))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Outcome]:
    return make_judged_store(tmp_path_factory)


def put(store: Store, table: str, **values: object) -> None:
    with store.catalog.write() as con:
        insert_rows(con, table, [values])


def test_an_empty_store_has_nothing_under_way(store: Store) -> None:
    assert "Nothing has been annotated or refined here yet." in printed(store)


@pytest.mark.slow
def test_a_finished_refinement_shows_its_labels_snapshots_and_gate(judged: tuple[Store, Outcome]) -> None:
    store, outcome = judged
    text = printed(store)
    standing = look(store)
    assert (standing.runs[0]["labels"], standing.runs[0]["rejections"], standing.runs[0]["done"]) == (84, 12, 12)
    assert {row["step"] for row in standing.snapshots} == {40, 120}
    assert outcome.comparison.decision.reason in text
    assert "better than the baseline: yes; the labels did it: not shown" in text
    assert "<b>toy</b>" in text


def test_the_candidates_of_an_estimate_are_shown_by_their_steps_for_nothing_was_played(store: Store) -> None:
    home: dict[str, object] = {"comparison_id": "c_1", "dataset_id": "d", "env_id": "e", "baseline_id": "b"}
    reasons = {"reason": "nothing was played", "better_reason": "", "credit_reason": ""}
    verdicts = {"accepted": False, "better": False, "credit": False, **reasons}
    put(store, "comparisons", **home, **verdicts, policy_id="b", recipe="A", basis="estimated")
    counts = {"labels": 3, "draws": 1, "accepted": 0, "episodes": 2}
    put(store, "arms", comparison_id="c_1", arm="labels", mode="greedy", **counts, return_=1.0, low=0.0, high=2.0)
    put(store, "refinements", refinement_id="f_1", comparison_id="c_1", dataset_id="d", arm="labels", draw=0)
    for number, step in enumerate((30, 60)):
        candidate = {"refinement_id": "f_1", "number": number, "policy_id": "p", "step": step, "beta": 0.1}
        put(store, "candidates", **candidate, return_=None, chosen=step == 60)
    assert "30  [60]" in printed(store)


@pytest.mark.slow
def test_labels_per_minute_are_those_of_the_last_five_minutes(store: Store) -> None:
    put(store, "annotation_runs", run_id="a_1", dataset_id="d", provider="batch", model="m")
    label: dict[str, object] = {"run_id": "a_1", "dataset_id": "d", "episode_id": 0, "critical": True, "model": "m"}
    now = datetime.now(UTC)
    for step in range(15):
        age = timedelta(minutes=1 if step < 10 else 10)
        put(store, "annotations", annotation_id=f"n_{step}", step=step, created_at=now - age, **label)
    assert (look(store).runs[0]["labels"], look(store).runs[0]["labels_per_minute"]) == (15, 2.0)
    assert "2.0 labels/min (last 5 min)" in printed(store)


@pytest.mark.slow
def test_batches_in_flight_count_against_the_cap_with_the_most_they_can_cost(store: Store) -> None:
    put(store, "annotation_runs", run_id="a_1", dataset_id="d", provider="batch", model="m")
    put(store, "batches", batch_id="b_1", provider="batch", state="submitted", requests=2, run_id="a_1")
    put(store, "batches", batch_id="b_2", provider="batch", state="ingested", requests=2, run_id="a_1")
    for request_id in ("r_1", "r_2"):
        put(store, "batch_items", batch_id="b_1", request_id=request_id, estimated_usd=0.5, worst_usd=1.25)
        put(store, "requests", request_id=request_id, kind="mark", state="in_batch")
        put(store, "run_requests", run_id="a_1", request_id=request_id, dataset_id="d")
    put(store, "responses", response_id="x", request_id="r_0", file="responses/a_1/0", line=1, cost_usd=2.0)
    standing = look(store)
    assert [(row["batch_id"], row["worst_usd"]) for row in standing.batches] == [("b_1", 2.5)]
    assert (standing.spent_usd, standing.in_flight_usd, standing.runs[0]["in_batch"]) == (2.0, 2.5, 2)
    assert "spent $2.00, at most $2.50 in flight, cap $9.00 (50%)" in printed(store, budget_usd=9.0)


@pytest.mark.slow
def test_a_look_keeps_nobody_waiting_and_gives_up_while_somebody_writes(store: Store) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with store.catalog.write():
            entered.set()
            leave.wait(30)

    writer = threading.Thread(target=work)
    writer.start()
    entered.wait(10)
    try:
        with pytest.raises(CatalogLocked):
            look(store)
    finally:
        leave.set()
        writer.join()
    look(store)
    with store.catalog.write() as con:  # nothing holds the file
        con.execute("SELECT 1")


@pytest.mark.slow
def test_watch_prints_once_and_answers_in_json(
    judged: tuple[Store, Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from flows import cli

    monkeypatch.setenv("COLUMNS", "160")
    for words in (["watch", "--once"], ["watch", "--json"], ["report", "--json", "--pictures", "0"]):
        monkeypatch.setattr("sys.argv", ["trajnote", *words, "--store", str(judged[0].root)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert not leaving.value.code
    lines = capsys.readouterr().out.splitlines()
    report, standing = json.loads(lines[-1]), json.loads(lines[-2])
    assert standing["comparison"]["comparison_id"] == judged[1].comparison_id
    assert Path(report["path"]).stat().st_size == report["bytes"]
    assert any(line.startswith("gate: accepted") for line in lines)


def test_a_run_that_failed_is_shown_as_failed_with_its_reason_or_without(store: Store) -> None:
    put(store, "annotation_runs", run_id="a_1", dataset_id="d", provider="anthropic", state="failed", error="no money")
    put(store, "annotation_runs", run_id="a_2", dataset_id="d", provider="anthropic", state="failed")
    put(store, "annotation_runs", run_id="a_3", dataset_id="d", provider="anthropic")
    text = printed(store)
    assert "a_1 failed: no money" in text
    assert "a_2 failed: " in text
    assert sorted(row["state"] for row in look(store).runs) == ["failed", "failed", "open"]


def test_arms_that_are_being_trained_are_counted_until_all_are_or_the_process_is_gone(store: Store) -> None:
    assert look(store).training is None
    note_training(store, 3, 40)
    assert "refinement in progress: 3 of 40 arms trained, the last 0 s ago" in printed(store)
    note = store.trainings_dir / "under-way.json"
    note.write_text(note.read_text().replace(str(os.getpid()), "999999999"))
    assert look(store).training is None
    note_training(store, 40, 40)
    assert look(store).training is None
    note.write_text("half a n")
    assert look(store).training is None
