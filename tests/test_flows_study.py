"""A study of a dataset before labels of single steps: asked first, shown with every episode, paid for once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from annotate.prompting.requests import AnnotateConfig
from flows.labelling.annotation import LabelConfig, export, label
from storage.errors import BadInput
from storage.queries.query import run_query
from storage.store import Store

CARD = """
env_id = "Toy-v0"
title = "A toy"
goal = "go right"
termination = "after a while"
reward = "pays at random"
components = [{name = "x", meaning = "m"}, {name = "y", meaning = "m"}, {name = "z", meaning = "m"}]
actions = [{name = "left", meaning = "go left"}, {name = "right", meaning = "go right"}]
"""
STUDY = {
    "assessment": "Push right while x is small.",
    "terms": [{"name": "lead", "expression": "x + 0.5 * y", "meaning": "where it will be"}],
}


def write_answer(path: Path, requests: Path, replies: Mapping[str, object]) -> None:
    """Answer every exported request with the reply of its kind."""
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    lines = [
        {
            "request_id": each["custom_id"],
            "reply": replies["study" if "playbook:" in each["params"]["system"] else "labels"],
        }
        for each in asked
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.slow
def test_a_study_is_asked_first_and_stands_in_the_shared_prefix_of_all_episodes(
    toy_store: Callable[[Sequence[int]], Store], tmp_path: Path
) -> None:
    card = tmp_path / "card.toml"
    card.write_text(CARD)
    toys = toy_store((4, 5, 6, 7, 8))
    asked = AnnotateConfig(model="toy-model", windows=2, rows=6)
    config = LabelConfig(provider="file", annotate=asked, card=str(card), study=True)
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    assert export(toys, "d1", config, requests) == 1
    labels = {"assessment": "", "labels": []}
    write_answer(answers, requests, {"study": STUDY})
    answered = config.model_copy(update={"answers": answers})
    studied = label(toys, "d1", answered)
    assert (studied.done, studied.answered, studied.is_study) == (True, 1, True)
    assert export(toys, "d1", config, requests) == 5
    systems = {json.loads(line)["params"]["system"] for line in requests.read_text().splitlines()}
    assert len(systems) == 1
    assert (
        "Push right while x is small.\nQuantities to work out:\n- lead = x + 0.5 * y: where it will be" in systems.pop()
    )
    write_answer(answers, requests, {"labels": labels})
    answered_labels = label(toys, "d1", answered)
    assert (answered_labels.done, answered_labels.is_study) == (True, False)
    kinds = run_query(toys, "SELECT kind, count(*) AS n FROM requests GROUP BY ALL ORDER BY ALL").to_pylist()
    assert kinds == [{"kind": "mark", "n": 5}, {"kind": "study", "n": 1}]
    with pytest.raises(BadInput, match="A study comes before labels of single steps; rules are asked for"):
        export(toys, "d1", config.model_copy(update={"annotate": AnnotateConfig(kind="rules")}), requests)
