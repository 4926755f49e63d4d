from __future__ import annotations

from dataclasses import replace

import pytest
from toy_datasets import make_draft, make_episode, write

from storage.annotations.annotations import insert_annotations, insert_rejections, load_annotations
from storage.catalog import insert_rows
from storage.errors import BadInput
from storage.schema import Annotation, Rejection
from storage.store import Store

NOTE = Annotation(
    annotation_id="a1",
    run_id="run",
    request_id="r_1",
    dataset_id="d1",
    episode_id=0,
    step=2,
    critical=True,
    suggested_action=(1.0,),
    suggested_label="push right",
    implicit_reward=-0.25,
    confidence=0.1 + 0.2,
    rationale="it's “falling”\nto the left",
    model="m",
    prompt_version="p",
)
BARE = replace(
    NOTE, annotation_id="a2", step=0, suggested_action=None, suggested_label=None, implicit_reward=None, rationale=None
)


@pytest.fixture
def annotated(store: Store) -> Store:
    write(store, make_draft(), [make_episode(0, 4)])
    with store.catalog.write() as con:
        runs = [{"run_id": run, "dataset_id": "d1", "provider": "file"} for run in ("run", "other", "empty")]
        insert_rows(con, "annotation_runs", runs)
        insert_annotations(con, [NOTE, BARE, replace(NOTE, annotation_id="a3", run_id="other")])
    return store


@pytest.mark.slow
def test_annotations_come_back_as_they_were(annotated: Store) -> None:
    assert load_annotations(annotated, "d1", ["run"]) == [BARE, NOTE]
    assert [note.annotation_id for note in load_annotations(annotated, "d1")] == ["a2", "a3", "a1"]
    assert load_annotations(annotated, "d1", ["empty"]) == []
    assert load_annotations(annotated, "other") == []


@pytest.mark.slow
def test_inserting_again_duplicates_nothing(annotated: Store) -> None:
    with annotated.catalog.write() as con:
        assert insert_annotations(con, [replace(NOTE, rationale="changed"), replace(NOTE, annotation_id="a4")]) == 1
        assert insert_annotations(con, []) == 0
    assert load_annotations(annotated, "d1", ["run"])[1] == NOTE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 4}, "dataset 'd1', episode 0, step 4"),  # the final row has no action
        ({"step": -1}, "step -1"),
        ({"episode_id": 1}, "episode 1"),
        ({"dataset_id": "d2"}, "dataset 'd2'"),
        ({"confidence": 1.1}, "does not fit"),
        ({"implicit_reward": float("nan")}, "does not fit"),
    ],
)
def test_an_annotation_that_leads_nowhere_is_refused(annotated: Store, changes: dict[str, float], message: str) -> None:
    wrong = replace(NOTE, annotation_id="a5", **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match=message), annotated.catalog.write() as con:
        insert_annotations(con, [replace(NOTE, annotation_id="a4"), wrong])
    assert len(load_annotations(annotated, "d1")) == 3


@pytest.mark.slow
def test_an_unknown_run_is_named(annotated: Store) -> None:
    with pytest.raises(BadInput, match=r"no annotation run 'gone'. Known: .*empty"):
        load_annotations(annotated, "d1", ["run", "gone"])


def test_a_run_is_named_by_the_beginning_of_its_id_where_that_is_enough(annotated: Store) -> None:
    assert load_annotations(annotated, "d1", ["ru"]) == load_annotations(annotated, "d1", ["run"])
    with annotated.catalog.write() as con:
        con.execute(
            "INSERT INTO annotation_runs BY NAME SELECT * REPLACE ('rust' AS run_id) FROM annotation_runs LIMIT 1"
        )
    with pytest.raises(BadInput, match="'ru' is a prefix of 2 annotation run names: "):
        load_annotations(annotated, "d1", ["ru"])


@pytest.mark.slow
def test_rejections_keep_reason_and_raw_text(annotated: Store) -> None:
    lost = Rejection("x", "run", "r_1", "d1", None, None, "bad_json", "no brace", "{oh")
    with annotated.catalog.write() as con:
        assert insert_rejections(con, [lost], model="m", prompt_version="p") == 1
        assert insert_rejections(con, [lost], model="m") == 0
    with annotated.catalog.read() as con:
        found = con.execute("SELECT rejection_id, episode_id, reason, raw, model, prompt_version FROM rejections")
        assert found.fetchall() == [("x", None, "bad_json", "{oh", "m", "p")]
