"""Several opinions: samples and models side by side stay rows of their own; agreement and majority are questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from scripted import ScriptedProvider
from store_state import ask
from toy_cards import CARD

from annotate.prompting.requests import AnnotateConfig, Request
from annotate.providers.answers import text_message
from annotate.runs.plan import RunSummary, plan_run
from annotate.runs.run import annotate_run
from flows.labelling.quality import check_labels
from storage.store import Store

EPISODES = 3


def reply(*said: tuple[int, str, float]) -> str:
    """Labels of (step, action, confidence)."""
    fields = {"rationale": "r", "implicit_reward": 0.0, "critical": True}
    labels = [fields | {"step": s, "suggested_action": a, "confidence": c} for s, a, c in said]
    return json.dumps({"assessment": "", "labels": labels})


class Chorus(ScriptedProvider):
    """Answers the n-th sample of each episode with the n-th of its texts."""

    def __init__(self, *texts: str, model: str = "one") -> None:
        super().__init__(self._next)
        self._texts, self._model = texts, model
        self._asked: dict[str, int] = {}

    def _next(self, request: Request) -> str:
        episode = str(request.params["messages"])
        count = self._asked[episode] = self._asked.get(episode, -1) + 1
        return text_message(self._texts[count], self._model)


@pytest.fixture
def toys(toy_store: Callable[[Sequence[int]], Store]) -> Store:
    return toy_store([8] * EPISODES)


def annotate(store: Store, provider: ScriptedProvider, **changes: Any) -> RunSummary:
    asked = {"model": "one", "windows": 2, "rows": 12} | changes
    return annotate_run(store, plan_run(store, "d1", CARD, AnnotateConfig.model_validate(asked)), provider)


@pytest.mark.slow
def test_three_samples_are_three_rows_with_a_majority(toys: Store) -> None:
    said = (reply((1, "left", 0.9), (5, "left", 0.5)), reply((1, "right", 0.6)), reply((1, "right", 0.7)))
    summary = annotate(toys, Chorus(*said), samples=3)
    assert (summary.asked, summary.totals.labels) == (3 * EPISODES, 4 * EPISODES)
    found = ask(
        toys,
        "SELECT step, opinions, agreement, majority_label, majority_share FROM label_agreement WHERE episode_id = 0",
    )
    assert sorted(found) == [
        (1, 3, pytest.approx(1 / 3), "right", pytest.approx(2 / 3)),
        (5, 1, None, "left", 1.0),
    ]
    columns = "annotations, shared_steps, sample_agreement, model_agreement, majority_share"
    assert ask(toys, f"SELECT {columns} FROM label_quality") == [
        (12, 9, pytest.approx(1 / 3), None, pytest.approx(2 / 3))
    ]


@pytest.mark.slow
def test_two_models_stand_side_by_side_and_neither_is_overwritten(toys: Store) -> None:
    annotate(toys, Chorus(reply((1, "left", 0.9), (6, "right", 0.8))))
    before = ask(toys, "SELECT annotation_id, suggested_label FROM annotations ORDER BY 1")
    second = annotate(toys, Chorus(reply((1, "right", 0.4), (6, "right", 0.9)), model="two"), model="two")
    after = ask(toys, "SELECT annotation_id, suggested_label FROM annotations ORDER BY 1")
    assert set(before) < set(after)
    assert len(after) == 4 * EPISODES
    assert ask(toys, "SELECT model, sample_agreement, model_agreement FROM label_quality ORDER BY model") == [
        ("one", None, 0.5),
        ("two", None, 0.5),
    ]
    # a tie is broken by the summed confidence: left 0.9 against right 0.4
    assert ask(toys, "SELECT step, models, majority_label FROM label_agreement WHERE episode_id = 2 ORDER BY step") == [
        (1, 2, "left"),
        (6, 2, "right"),
    ]
    (checkup,) = check_labels(toys, "d1", [second.run_id])
    assert (checkup.quality.agreement.models.pairs, checkup.quality.agreement.models.agreement) == (6, 0.5)


@pytest.mark.slow
def test_more_samples_later_keep_the_first_ones_without_asking_again(toys: Store) -> None:
    annotate(toys, Chorus(reply((1, "left", 0.9))))
    more = Chorus(reply((1, "right", 0.6)))
    summary = annotate(toys, more, samples=2)
    assert (len(more.asked), summary.reused) == (EPISODES, EPISODES)
    per_run = ask(toys, "SELECT run_id, count(*) FROM annotations GROUP BY 1 ORDER BY 2")
    assert [count for _, count in per_run] == [EPISODES, 2 * EPISODES]
    # the reply that both runs share is one opinion of two, not two of three
    assert (
        ask(toys, "SELECT opinions, runs, agreement, majority_label, majority_share FROM label_agreement")
        == [(2, 2, 0.0, "left", 0.5)] * EPISODES
    )
    assert ask(toys, "SELECT sample_agreement FROM label_quality ORDER BY annotations") == [(None,), (0.0,)]
    (checkup,) = check_labels(toys, "d1", [summary.run_id])
    assert checkup.quality.agreement.samples.pairs == EPISODES


@pytest.mark.slow
def test_samples_that_agree_are_found_to(toys: Store) -> None:
    annotate(toys, Chorus(*[reply((1, "left", 0.9), (4, "right", 0.9))] * 4), samples=4)
    (checkup,) = check_labels(toys, "d1")
    samples = checkup.quality.agreement.samples
    assert (samples.pairs, samples.steps, samples.agreement) == (6 * 2 * EPISODES, 2 * EPISODES, 1.0)
    assert samples.by_chance is not None
    assert samples.by_chance < 0.8
