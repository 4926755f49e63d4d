from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import ask
from toy_datasets import make_draft, make_episode, write

from storage.catalog import insert_rows
from storage.catalog.views import component_columns
from storage.schema import Space
from storage.store import Store

BOX2 = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))
FREE = Space(kind="box", dtype="float64", size=1)
CELL = Space(kind="discrete", dtype="int64", size=1, n=9, start=1)
RAM = Space(kind="box", dtype="uint8", size=2)


def note(dataset_id: str, step: int, suggestion: list[float] | None = None, **changes: Any) -> dict[str, object]:
    name = f"{dataset_id}-{step}-{suggestion}"
    return {
        "annotation_id": name,
        "run_id": "run",
        "dataset_id": dataset_id,
        "episode_id": 0,
        "step": step,
        "critical": True,
        "suggested_action": suggestion,
        "model": "m",
        **changes,
    }


def annotate(store: Store, *notes: dict[str, object]) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "run", "dataset_id": "push", "provider": "file"}])
        insert_rows(con, "annotations", notes)


def write_zoo(store: Store) -> None:
    """Datasets that differ in everything: kinds of spaces, number types, sizes, names, outputs."""
    write(store, make_draft("push", policy_output="logits"), [_pushing()], shard_bytes=1)
    glide = make_draft("glide", action_space=BOX2, action_names=("fx", "fy"), observation_space=RAM)
    glide = glide.model_copy(update={"component_names": ("x", "step")})
    write(store, glide, [_gliding()])
    walk = make_draft("walk", observation_space=CELL, component_names=("cell",), action_space=FREE, action_names=("f",))
    write(store, walk, [_walking()])


def _pushing() -> Any:
    return make_episode(0, 2, actions=np.array([0, 1]), policy_outputs=np.array([[1, 2], [3, 4]], np.float32))


def _gliding() -> Any:
    actions = np.array([[0.5, -0.5], [0.0, 0.25]], np.float32)
    return make_episode(0, 2, actions=actions, observations=np.array([[1, 2], [3, 4], [5, 255]], np.uint8))


def _walking() -> Any:
    return make_episode(0, 2, actions=np.array([[10.0], [-0.01]]), observations=np.array([1, 5, 9]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "view", ["steps", "annotated_steps", "spending", "label_quality", "annotator_scores", "leaderboard"]
)
def test_the_views_of_an_empty_store_exist_and_have_no_rows(store: Store, view: str) -> None:
    assert ask(store, f"SELECT * FROM {view}") == []


@pytest.mark.slow
def test_steps_of_every_kind_of_dataset_have_the_same_columns(store: Store) -> None:
    write_zoo(store)
    query = "SELECT dataset_id, step, observation, action, action_vector, action_name, policy_output FROM steps"
    found = ask(store, f"{query} WHERE dataset_id IN ('glide', 'walk') ORDER BY ALL")
    assert found == [
        ("glide", 0, [1.0, 2.0], None, [0.5, -0.5], None, None),
        ("glide", 1, [3.0, 4.0], None, [0.0, 0.25], None, None),
        ("glide", 2, [5.0, 255.0], None, None, None, None),
        ("walk", 0, [1.0], None, [10.0], None, None),
        ("walk", 1, [5.0], None, [-0.01], None, None),
        ("walk", 2, [9.0], None, None, None, None),
    ]
    pushed = ask(store, f"{query} WHERE dataset_id = 'push' ORDER BY step")
    assert [row[3:] for row in pushed] == [
        (0, [0.0], "left", [1.0, 2.0]),
        (1, [1.0], "right", [3.0, 4.0]),
        (None, None, None, None),
    ]


@pytest.mark.slow
def test_rewards_in_the_view_are_those_of_the_file(store: Store) -> None:
    write_zoo(store)
    assert ask(store, "SELECT reward FROM steps WHERE dataset_id = 'push' AND step < 2 ORDER BY step") == [
        (value,) for value in _pushing().rewards.tolist()
    ]


def test_discrete_actions_that_do_not_start_at_zero_have_their_names(store: Store) -> None:
    shifted = Space(kind="discrete", dtype="int64", size=1, n=2, start=-1)
    write(store, make_draft(action_space=shifted), [make_episode(0, 2, actions=np.array([-1, 0]))])
    assert ask(store, "SELECT action, action_name FROM steps ORDER BY step") == [
        (-1, "left"),
        (0, "right"),
        (None, None),
    ]


@pytest.mark.slow
def test_annotations_are_joined_to_steps_of_different_environments(store: Store) -> None:
    write_zoo(store)
    annotate(store, note("push", 1, [1.0]), note("glide", 1, [0.0, 0.3]), note("walk", 0))
    found = ask(
        store,
        "SELECT dataset_id, step, action_name, action_vector, x, obs_step, cell FROM annotated_steps ORDER BY 1",
    )
    assert found == [
        ("glide", 1, None, [0.0, 0.25], 3.0, 4.0, None),
        ("push", 1, "right", [1.0], float(_pushing().observations[1, 0]), None, None),
        ("walk", 0, None, [10.0], None, None, 1.0),
    ]


@pytest.mark.slow
def test_a_suggestion_agrees_when_it_confirms_the_logged_action(store: Store) -> None:
    write_zoo(store)
    cases: list[tuple[str, list[float] | None, bool | None]] = [
        ("push", [1.0], True),
        ("push", [0.0], False),
        ("push", None, None),
        ("glide", [0.09, 0.16], True),  # within 5 % of a range of 2 of (0, 0.25)
        ("glide", [0.09, 0.14], False),
        ("walk", [0.03], True),  # unbounded: within 0.05 of -0.01
        ("walk", [0.05], False),
    ]
    annotate(store, *(note(dataset_id, 1, suggestion) for dataset_id, suggestion, _ in cases))
    found = dict(ask(store, "SELECT annotation_id, agrees FROM annotated_steps"))
    assert found == {f"{dataset_id}-1-{suggestion}": agrees for dataset_id, suggestion, agrees in cases}


@pytest.mark.slow
def test_two_annotators_of_one_state_are_two_rows(store: Store) -> None:
    write_zoo(store)
    annotate(store, note("push", 1, [1.0]), note("push", 1, [0.0], run_id="other"))
    assert ask(store, "SELECT run_id, suggested_action FROM annotated_steps ORDER BY 1") == [
        ("other", [0.0]),
        ("run", [1.0]),
    ]


@pytest.mark.slow
def test_the_views_follow_a_store_that_has_moved(store: Store) -> None:
    write_zoo(store)
    moved = store.root.rename(store.root.with_name('it\'s [a] "place" *'))
    again = Store.open(moved)
    assert ask(again, "SELECT count(*) FROM steps") == [(9,)]


@pytest.mark.slow
def test_a_store_may_lie_in_a_folder_with_quotes_and_spaces(tmp_path: Path) -> None:
    store = Store.create(tmp_path / 'o\'brien said "$x; -- {y}"')
    write_zoo(store)
    assert ask(store, "SELECT dataset_id, count(*) FROM steps GROUP BY 1 ORDER BY 1") == [
        ("glide", 3),
        ("push", 3),
        ("walk", 3),
    ]


def test_component_names_become_columns_that_clash_with_nothing() -> None:
    assert component_columns(["x", "Step", "left leg", "left_leg", "2nd", "obs_step", "select"]) == [
        "x",
        "obs_Step",
        "left_leg",
        "obs_left_leg",
        "obs_2nd",
        "obs_obs_step",
        "select",
    ]


def test_strange_names_work_in_the_views(store: Store) -> None:
    draft = make_draft(component_names=("select", 'quo"te', "it's"), action_names=("o'clock", 'say "hi"'))
    write(store, draft, [make_episode(0, 1, actions=np.array([1]))])
    annotate(store, note("d1", 0))
    assert ask(store, 'SELECT action_name, "select" IS NULL, quo_te IS NULL, it_s IS NULL FROM annotated_steps') == [
        ('say "hi"', False, False, False)
    ]


def test_very_wide_observations_have_no_named_columns(store: Store) -> None:
    assert component_columns([f"c{i}" for i in range(513)]) == []
    assert len(component_columns([f"c{i}" for i in range(512)])) == 512


def reply(name: str, run_id: str, cost: float) -> dict[str, object]:
    return {
        "response_id": name,
        "request_id": f"r_{name}",
        "file": f"responses/{run_id}/0.jsonl.zst",
        "line": 1,
        "input_tokens": 100,
        "output_tokens": 10,
        "cost_usd": cost,
    }


@pytest.mark.slow
def test_spending_counts_each_reply_once_in_the_run_that_paid_for_it(store: Store) -> None:
    write_zoo(store)
    annotate(store, note("push", 0, [1.0]), note("push", 1, [1.0]), note("push", 0, [0.0], run_id="second"))
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "second", "dataset_id": "push", "provider": "file"}])
        insert_rows(con, "responses", [reply("a", "run", 0.5), reply("b", "run", 0.25)])
        asked = [("run", "r_a"), ("run", "r_b"), ("second", "r_a")]
        insert_rows(
            con, "run_requests", [{"run_id": run, "request_id": name, "dataset_id": "push"} for run, name in asked]
        )
        lost = {"rejection_id": "x", "run_id": "second", "dataset_id": "push", "reason": "unknown_step"}
        insert_rows(con, "rejections", [lost])
    columns = "run_id, requests, responses, input_tokens, cost_usd, annotations, rejections, cost_per_label"
    assert ask(store, f"SELECT {columns} FROM spending ORDER BY run_id") == [
        ("run", 2, 2, 200, 0.75, 2, 0, 0.375),
        ("second", 1, 0, 0, 0.0, 1, 1, None),
    ]


@pytest.mark.slow
def test_label_quality_is_one_row_per_run(store: Store) -> None:
    write_zoo(store)
    annotate(store, note("push", 0, [1.0], confidence=0.5), note("push", 1, [1.0], confidence=1.0, critical=False))
    with store.catalog.write() as con:
        lost = [("a", "bad_action"), ("b", "unknown_step"), ("c", "unknown_step")]
        insert_rows(
            con,
            "rejections",
            [{"rejection_id": name, "run_id": "run", "dataset_id": "push", "reason": why} for name, why in lost],
        )
    query = """SELECT annotations, critical_share, confirmation_share, confidence, episodes, relative_position,
               rejections, rejection_reasons FROM label_quality"""
    assert ask(store, query) == [(2, 0.5, 0.5, 0.75, 1, 0.5, 3, {"bad_action": 1, "unknown_step": 2})]


def test_the_leaderboard_is_one_row_per_arm_and_mode_with_both_verdicts_in_that_of_the_labels(store: Store) -> None:
    judged = {"dataset_id": "push", "env_id": "Toy-v0", "baseline_id": "b", "policy_id": "p", "recipe": "A"}
    verdicts = {"accepted": True, "reason": "r", "better": True, "better_reason": "r"}
    arm = {"comparison_id": "c", "mode": "greedy", "labels": 8, "draws": 1, "accepted": 1, "episodes": 9}
    with store.catalog.write() as con:
        claim = {"comparison_id": "c", "credit": False, "credit_answer": "no", "credit_reason": "r"}
        insert_rows(con, "comparisons", [judged | verdicts | claim])
        returns = [("random", 1.5), ("labels", 2.0)]
        insert_rows(con, "arms", [arm | {"arm": a, "return_": r, "low": r - 1, "high": r + 1} for a, r in returns])
    query = "SELECT arm, env_id, recipe, mode, labels, return_, low, high, better, credit FROM leaderboard"
    assert ask(store, query) == [
        ("labels", "Toy-v0", "A", "greedy", 8, 2.0, 1.0, 3.0, True, "no"),
        ("random", "Toy-v0", "A", "greedy", 8, 1.5, 0.5, 2.5, None, None),
    ]


def test_a_view_stands_while_its_text_does_and_is_made_again_when_other_code_made_it(store: Store) -> None:
    with store.catalog.write() as con:
        con.execute("CREATE OR REPLACE VIEW spending AS SELECT 1 AS older")
    write(store, make_draft("d1"), [make_episode(0)])
    with store.catalog.read() as con:
        assert con.execute("FROM spending").fetchall() == [(1,)]
    with store.catalog.write() as con:
        con.execute("UPDATE view_marks SET made_from = 'other code' WHERE subject = 'spending'")
    write(store, make_draft("d2", seed=9), [make_episode(0)])
    with store.catalog.read() as con:
        assert con.execute("FROM spending").fetchall() == []


def test_a_store_whose_views_other_code_made_is_mended_once_when_it_is_opened(store: Store) -> None:
    write(store, make_draft("d1"), [make_episode(0)])
    explained = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    whole = ask(store, explained)
    with store.catalog.write() as con:
        con.execute("DELETE FROM view_marks; INSERT INTO view_marks VALUES ('steps', 'older'), ('summaries', 'older')")
        con.execute("CREATE OR REPLACE VIEW spending AS SELECT 1 AS older; CREATE OR REPLACE VIEW steps AS SELECT 2")
        con.execute("COMMENT ON COLUMN datasets.steps IS 'older'")
    assert ask(Store.open(store.root), explained) == whole
    assert len(ask(store, "FROM steps")) == 5
    mended = store.catalog.path.stat().st_mtime_ns
    Store.open(store.root)
    assert store.catalog.path.stat().st_mtime_ns == mended


def test_a_third_dataset_of_a_kind_changes_what_is_read_and_no_view(store: Store) -> None:
    marks: list[dict[str, str]] = []
    for number in range(3):
        write(store, make_draft(f"push-{number}"), [make_episode(0)])
        marks.append(dict(ask(store, "FROM view_marks")))
    (macro,) = (name for name in marks[1] if name.startswith("logged_"))
    assert {name for name, mark in marks[2].items() if marks[1][name] != mark} == {macro, "all"}
    assert ask(store, "SELECT count(DISTINCT dataset_id) FROM steps") == [(3,)]


def test_every_column_has_its_comment_after_datasets_of_several_kinds(store: Store) -> None:
    write_zoo(store)
    bare = "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL"
    assert ask(store, bare) == []


_SPOKEN_OF = ("steps", "annotated_steps", "opinion_pairs", "tallies", "majority_votes", "label_agreement")


def write_twins(store: Store, numbers: tuple[int, ...]) -> None:
    """Small datasets of two kinds, with labels of two runs; which ones are there changes nothing in any of them."""
    for number in numbers:
        write(store, make_draft(f"push-{number}"), [make_episode(0, 3 + number), make_episode(1, 2)])
        glide = make_draft(f"glide-{number}", action_space=BOX2, action_names=("fx", "fy"))
        actions = np.full((2, 2), number / 4, np.float32)
        write(store, glide, [make_episode(0, 2, actions=actions)])
        for run in ("run", "other"):
            vote = float(run == "run" or number == 1)
            annotate(store, note(f"push-{number}", 1, [vote], run_id=run, annotation_id=f"{run}-p{number}"))
            glided = [number / 4, vote / 9]
            annotate(store, note(f"glide-{number}", 1, glided, run_id=run, annotation_id=f"{run}-g{number}"))


@pytest.mark.slow
def test_datasets_that_are_read_together_say_what_each_says_alone(tmp_path: Path) -> None:
    stores = [Store.create(tmp_path / name) for name in ("one", "two", "both")]
    for store, numbers in zip(stores, ((1,), (2,), (1, 2)), strict=True):
        write_twins(store, numbers)
    for view in _SPOKEN_OF:
        one, two, both = (
            ask(store, f"SELECT * {_WITHOUT_TIME.get(view, '')} FROM {view} ORDER BY ALL") for store in stores
        )
        assert both == sorted([*one, *two], key=both.index)
        assert len(both) == len(one) + len(two) > 0


@pytest.mark.slow
def test_many_small_datasets_of_a_kind_are_one_scan_and_a_question_about_one_opens_its_file_alone(store: Store) -> None:
    for number in range(5):
        write(store, make_draft(f"push-{number}"), [make_episode(0, 3 + number)])
    with store.catalog.read() as con:
        question = "SELECT count(*), sum(reward) FROM steps WHERE dataset_id = 'push-3'"
        ((_, plan),) = con.execute(f"EXPLAIN ANALYZE {question}").fetchall()
    assert plan.count("READ_PARQUET") == 1
    assert "Scanning Files: 1/5" in plan
    assert ask(store, "SELECT dataset_id, count(*) FROM steps GROUP BY 1 ORDER BY 1") == [
        (f"push-{number}", 4 + number) for number in range(5)
    ]


_WITHOUT_TIME = {"annotated_steps": "EXCLUDE (created_at)"}
