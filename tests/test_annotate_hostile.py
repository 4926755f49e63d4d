"""Hostile replies: none crashes, none lands as an annotation that breaks a rule, every refusal keeps its reason."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hostile_replies import BIDI, HONEST, STEPS, Hostile, body, corpus, label, message
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedProvider, read_reply
from soak import full_or
from store_state import append_response, ask, raw_reply
from toy_cards import CARD
from toy_datasets import make_draft, make_episode, write

from annotate.cards.cards import Action
from annotate.parsing.replies import MAX_RATIONALE, MAX_RAW, ParsedReply, find_in_reply
from annotate.prompting.requests import AnnotateConfig
from annotate.runs.plan import plan_run
from annotate.runs.run import annotate_run
from storage.ledger.runs import iterate_responses
from storage.store import Store
from storage.upkeep.verify import verify_store

FREE = CARD.model_copy(
    update={
        "actions": (
            Action(name="push", meaning="push", low=-float("inf"), high=float("inf")),
            Action(name="turn", meaning="turn", low=-1.0, high=1.0),
        )
    }
)
CORPUS = corpus()
ENTERED = [hostile for place, hostile in enumerate(CORPUS) if place % 2 == 0 or "refusal" in hostile.name]
"""Those that go the whole way into a catalog, which takes its time."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def check_lawful(reading: ParsedReply) -> None:
    """Every rule of a label, and of what is kept of the rest."""
    steps = [found.step for found in reading.labels]
    assert len(steps) == len(set(steps))
    for found in reading.labels:
        assert found.step in STEPS
        assert found.action in ((0.0,), (1.0,))
        assert found.action_label in ("left", "right")
        assert found.implicit_reward is not None
        assert -1 <= found.implicit_reward <= 1
        assert found.confidence is not None
        assert 0 <= found.confidence <= 1
        assert isinstance(found.critical, bool)
        assert len(found.rationale) <= MAX_RATIONALE
        assert not UNPRINTABLE.search(found.rationale)
    for refused in reading.refused:
        assert re.fullmatch(r"[a-z_]+", refused.reason)
        assert refused.detail
        assert len(refused.raw) <= MAX_RAW
        assert not UNPRINTABLE.search(refused.detail + refused.raw)
    assert reading.labels or reading.refused


def test_the_corpus_is_large_and_has_a_name_for_everything() -> None:
    assert len(CORPUS) >= 300
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS)


@pytest.mark.slow
def test_a_hostile_reply_gives_lawful_labels_and_reasons_or_only_reasons() -> None:
    for hostile in CORPUS:
        reading = read_reply(hostile.raw, "mark", CARD, STEPS)
        check_lawful(reading)
        if hostile.labels is not None:
            assert len(reading.labels) == hostile.labels, hostile.name
        if hostile.reason is not None:
            assert reading.refused[0].reason == hostile.reason, hostile.name
        if hostile.labels == 0:
            assert reading.refused, hostile.name


@pytest.mark.slow
def test_the_first_stage_meets_the_same_corpus() -> None:
    for hostile in CORPUS:
        reading = read_reply(hostile.raw.replace("labels", "steps"), "identify", CARD, STEPS)
        assert reading.labels or reading.refused
        assert all(found.step in STEPS and not UNPRINTABLE.search(found.rationale) for found in reading.labels)


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Hostile]]:
    """Half of the corpus, each reply to the question about an episode of its own, through the ledger into a catalog."""
    store = Store.create(tmp_path_factory.mktemp("hostile") / "store")
    write(store, make_draft("d1"), [make_episode(i, 12) for i in range(len(ENTERED))])
    plan = plan_run(store, "d1", CARD, AnnotateConfig(model="m", windows=2, rows=12))
    assert all(question.steps == STEPS for question in plan.questions)
    of_request = {q.request.request_id: h for q, h in zip(plan.questions, ENTERED, strict=True)}
    summary = annotate_run(store, plan, ScriptedProvider(lambda request: of_request[request.request_id].raw))
    assert summary.answered + summary.pending == len(ENTERED)
    assert summary.pending == sum(find_in_reply(hostile.raw, "mark").problem is not None for hostile in ENTERED) > 20
    return store, of_request


@pytest.mark.slow
def test_what_lands_in_the_catalog_keeps_every_rule(entered: tuple[Store, dict[str, Hostile]]) -> None:
    store, _ = entered
    labels = ask(
        store,
        """SELECT request_id, step, suggested_action, suggested_label, implicit_reward, confidence, critical, rationale,
                  model FROM annotations""",
    )
    assert len(labels) > 100
    assert len({(request_id, step) for request_id, step, *_ in labels}) == len(labels)
    for _, step, action, name, reward, confidence, critical, rationale, model in labels:
        assert step in STEPS
        assert action in ([0.0], [1.0])
        assert name == ("left", "right")[int(action[0])]
        assert -1 <= reward <= 1
        assert 0 <= confidence <= 1
        assert critical in (True, False)
        assert len(rationale) <= MAX_RATIONALE
        assert not UNPRINTABLE.search(rationale + model)


@pytest.mark.slow
def test_every_reply_left_labels_or_a_reason(entered: tuple[Store, dict[str, Hostile]]) -> None:
    store, of_request = entered
    labels = dict(ask(store, "SELECT request_id, count(*) FROM annotations GROUP BY 1"))
    reasons: dict[str, list[str]] = {}
    for request_id, reason, detail, raw in ask(store, "SELECT request_id, reason, detail, raw FROM rejections"):
        reasons.setdefault(request_id, []).append(reason)
        assert detail
        assert raw is not None
        assert not UNPRINTABLE.search(detail + raw)
    for request_id, hostile in of_request.items():
        assert labels.get(request_id, 0) + len(reasons.get(request_id, [])) > 0, hostile.name
        if hostile.labels is not None:
            assert labels.get(request_id, 0) == hostile.labels, hostile.name
        if hostile.reason is not None:
            assert hostile.reason in reasons[request_id], hostile.name


@pytest.mark.slow
def test_raw_replies_are_kept_whole_and_the_store_is_sound(entered: tuple[Store, dict[str, Hostile]]) -> None:
    store, of_request = entered
    run_id = ask(store, "SELECT run_id FROM annotation_runs")[0][0]
    kept = {found.record["request_id"]: found.record["raw"] for found in iterate_responses(store, run_id)}
    for request_id, hostile in of_request.items():
        expected = hostile.raw.encode("utf-8", "replace").decode()
        assert kept[request_id] == expected, hostile.name
    assert verify_store(store) == []


@pytest.mark.slow
def test_the_views_and_the_summary_of_a_hostile_run_can_be_read(entered: tuple[Store, dict[str, Hostile]]) -> None:
    store, _ = entered
    (quality,) = ask(store, "SELECT annotations, rejections, illegal, rejection_reasons FROM label_quality")
    assert quality[1] == sum(quality[3].values())
    assert quality[2] == quality[3]["illegal_action"] >= 10
    assert ask(store, "SELECT count(*) FROM annotated_steps") == [(quality[0],)]


def test_a_continuous_action_is_not_broken_by_numbers_without_bounds() -> None:
    cases: list[tuple[Any, str]] = [
        ({"push": 10**400, "turn": 0}, "not_finite"),
        ({"push": -(10**400), "turn": 0}, "not_finite"),
        ({"push": 1e400, "turn": 0}, "not_finite"),
        ({"push": 0, "turn": 1.5}, "illegal_action"),
        ({"push": 0}, "illegal_action"),
        ({"push": 0, "turn": 0, "more": 1}, "illegal_action"),
        ([0, 0], "illegal_action"),
        ({"push": "0", "turn": 0}, "wrong_type"),
    ]
    for action, reason in cases:
        reading = read_reply(message(body([label(0, suggested_action=action)])), "mark", FREE, STEPS)
        assert ([r.reason for r in reading.refused], reading.labels) == ([reason], ())


def test_texts_that_turn_around_or_hide_are_made_plain() -> None:
    reading = read_reply(message(body([label(0, rationale=f"safe{BIDI}txt\u200b.exe")])), "mark", CARD, STEPS)
    assert reading.labels[0].rationale == "safe txt .exe"


def test_a_lone_surrogate_in_a_raw_record_is_kept_and_comes_back(store: Store) -> None:
    record = {"request_id": "r_1", "raw": "half \ud83d of a pair, ü, \u202e"}
    append_response(store, "a_1", record)
    append_response(store, "a_1", {"request_id": "r_2", "raw": "fine"})
    assert [found.record for found in iterate_responses(store, "a_1")] == [record, {"request_id": "r_2", "raw": "fine"}]


edits = st.lists(
    st.tuples(st.integers(0, len(HONEST)), st.integers(0, 12), st.text(max_size=6)), min_size=1, max_size=8
)


@pytest.mark.slow
@settings(max_examples=full_or(300, 75), deadline=None)
@given(edits)
def test_whatever_is_done_to_an_honest_reply_only_lawful_labels_come_through(
    changes: list[tuple[int, int, str]],
) -> None:
    text = HONEST
    for place, length, new in changes:
        text = text[:place] + new + text[place + length :]
    check_lawful(read_reply(message(text), "mark", CARD, STEPS))


@pytest.mark.slow
@settings(max_examples=full_or(200, 50), deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 400))
def test_bytes_that_were_flipped_on_the_way_do_no_harm(seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(message(HONEST).encode())
    for place in rng.integers(0, len(raw), flips):
        raw[place] ^= 1 << int(rng.integers(8))
    check_lawful(read_reply(raw.decode("utf-8", "surrogateescape"), "mark", CARD, STEPS))


@pytest.mark.slow
def test_a_hostile_reply_leads_back_from_its_rejection(entered: tuple[Store, dict[str, Hostile]]) -> None:
    store, of_request = entered
    request_id = next(key for key, hostile in of_request.items() if hostile.name == "refusal with labels")
    assert json.loads(raw_reply(store, request_id)["raw"])["stop_reason"] == "refusal"
