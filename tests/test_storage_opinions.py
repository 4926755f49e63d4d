"""Several opinions on one step: pairs, majorities, and what `label_quality` says of runs and of replays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from store_state import ask
from toy_datasets import make_draft, make_episode, write

from storage.annotations.annotations import LabelReplay, insert_label_replays, load_label_replays
from storage.catalog import insert_rows
from storage.schema import Space
from storage.store import Store

BOX2 = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))


def enter(store: Store, *notes: tuple[str, str, int, list[float] | None, float | None], dataset: str = "d1") -> None:
    """Notes of (run, model, step, suggestion, confidence) about episode 0."""
    with store.catalog.write() as con:
        runs = {run: model for run, model, *_ in notes}
        insert_rows(
            con,
            "annotation_runs",
            [{"run_id": r, "dataset_id": dataset, "provider": "file", "model": m} for r, m in runs.items()],
        )
        insert_rows(
            con,
            "annotations",
            [
                {
                    "annotation_id": f"n{place}",
                    "run_id": run,
                    "dataset_id": dataset,
                    "episode_id": 0,
                    "step": step,
                    "critical": True,
                    "suggested_action": suggestion,
                    "suggested_label": None if suggestion is None else ("left", "right")[int(suggestion[0] > 0)],
                    "confidence": confidence,
                    "model": model,
                }
                for place, (run, model, step, suggestion, confidence) in enumerate(notes)
            ],
        )


@pytest.fixture
def pushed(store: Store) -> Store:
    """A dataset of nine steps in which the agent always goes left."""
    write(store, make_draft("d1"), [make_episode(0, 9, actions=np.zeros(9, np.int64))])
    return store


@pytest.mark.slow
def test_samples_and_models_are_compared_on_equal_steps_and_stay_rows(pushed: Store) -> None:
    enter(
        pushed,
        ("a", "one", 1, [1.0], 0.9),
        ("a", "one", 1, [1.0], 0.5),
        ("a", "one", 1, [0.0], 0.4),
        ("a", "one", 4, [1.0], 0.7),
        ("b", "two", 1, [0.0], 0.8),
        ("b", "two", 5, None, None),
    )
    found = ask(
        pushed,
        """SELECT step, opinions, runs, models, agreement, majority_label, majority_share
           FROM label_agreement ORDER BY step""",
    )
    # step 1: right 0.9 + 0.5 against left 0.4 + 0.8: two votes each, right has more confidence
    assert found == [(1, 4, 2, 2, pytest.approx(1 / 3), "right", 0.5), (4, 1, 1, 1, None, "right", 1.0)]
    columns = "run_id, annotations, shared_steps, sample_agreement, model_agreement, majority_share, commonest_share"
    quality = ask(pushed, f"SELECT {columns} FROM label_quality ORDER BY run_id")
    assert quality == [
        ("a", 4, 3, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(2 / 3), 0.75),
        ("b", 2, 1, None, pytest.approx(1 / 3), 0.0, 1.0),
    ]
    assert ask(pushed, "SELECT count(*) FROM annotations") == [(6,)]


def test_continuous_opinions_have_the_median_as_their_majority(store: Store) -> None:
    actions = np.zeros((3, 2), np.float32)
    write(store, make_draft("d1", action_space=BOX2, action_names=("fx", "fy")), [make_episode(0, 3, actions=actions)])
    enter(
        store,
        ("a", "m", 1, [0.5, -0.5], 0.5),
        ("a", "m", 1, [0.55, -0.45], 0.5),
        ("a", "m", 1, [-1.0, -0.4], 0.5),
    )
    columns = "opinions, agreement, majority_label, majority_action, majority_share"
    assert ask(store, f"SELECT {columns} FROM label_agreement") == [
        (3, pytest.approx(1 / 3), None, [0.5, pytest.approx(-0.45)], pytest.approx(2 / 3))
    ]


@pytest.mark.slow
def test_labels_are_counted_by_the_thirds_of_their_episodes(pushed: Store) -> None:
    enter(pushed, *(("a", "m", step, [1.0], 1.0) for step in (0, 2, 3, 8)))
    assert ask(pushed, "SELECT early_share, middle_share, late_share, episode_share FROM label_quality") == [
        (0.5, 0.25, 0.25, 1.0)
    ]


def replay(name: str, annotation_id: str, advantage: float | None) -> LabelReplay:
    return LabelReplay(
        label_replay_id=name,
        annotation_id=annotation_id,
        dataset_id="d1",
        episode_id=0,
        step=1,
        policy_sha256="p",
        mode="greedy",
        continuations=1,
        exact=advantage is not None,
        suggested_return=advantage,
        logged_return=None if advantage is None else 0.0,
        advantage=advantage,
        advantages=() if advantage is None else (advantage,),
        standard_error=None,
        environment_steps=10,
        detail="",
    )


@pytest.mark.slow
def test_replays_are_kept_once_and_summed_up_beside_the_labels(pushed: Store) -> None:
    enter(pushed, *(("a", "m", step, [1.0], 1.0) for step in (1, 2, 3)))
    kept = [replay("l1", "n0", 2.0), replay("l2", "n1", -1.0), replay("l3", "n2", None)]
    for _ in range(2):
        with pushed.catalog.write() as con:
            insert_label_replays(con, kept)
    assert load_label_replays(pushed, "d1") == kept
    columns = "annotations, replayed, inexact_replays, replay_advantage, replay_better_share, replay_steps"
    assert ask(pushed, f"SELECT {columns} FROM label_quality") == [(3, 2, 1, 0.5, 0.5, 30)]


@pytest.mark.slow
def test_what_two_environments_paid_is_never_one_mean(pushed: Store) -> None:
    enter(pushed, *(("a", "m", step, [1.0], 1.0) for step in (1, 2)))
    older, newer = replay("l1", "n0", 2.0), replace(replay("l2", "n0", 200.0), environment_sha256="edited")
    for kept in (older, newer):
        with pushed.catalog.write() as con:
            insert_label_replays(con, [kept])
    assert ask(pushed, "SELECT replayed, replay_advantage FROM label_quality") == [(1, 200.0)]
    assert load_label_replays(pushed, "d1", current=True) == [newer]
    assert load_label_replays(pushed, "d1") == [older, newer]
