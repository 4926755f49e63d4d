"""Labels from replies that are in the store, for runs whose command is long gone; nobody is asked.

What a reply may speak about was kept when it was asked: the card with the run, the steps shown with the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from storage.schema import Space
from storage.store import Store

from . import ledger
from .cards import Card
from .records import Run
from .replies import read_reply
from .requests import Question, Request

_CHUNK = 50


def digest(store: Store) -> int:
    """Enter what the replies to open runs say, and close the runs that are answered; once entered, twice is once.

    A run in two stages is closed by the command that asks its second stage, never here.

    Returns:
        How many replies were read.
    """
    with store.catalog.read() as con:
        runs = con.execute(
            """SELECT run_id, dataset_id, model, prompt_version, card_sha256, config, card, action_space
               FROM annotation_runs JOIN datasets USING (dataset_id)
               WHERE state = 'open' AND card IS NOT NULL ORDER BY run_id"""
        ).fetchall()
    return sum(_digest_run(store, row) for row in runs)


def _digest_run(store: Store, row: Sequence[Any]) -> int:
    run, card = _read_run(row), Card.model_validate_json(row[6])
    questions = _answered_questions(store, run.run_id)
    raw = ledger.find_replies(store, [question.request.request_id for question in questions])
    for start in range(0, len(questions), _CHUNK):
        with store.catalog.write() as con:
            for question in questions[start : start + _CHUNK]:
                reading = read_reply(raw[question.request.request_id], question.request.kind, card, question.steps)
                ledger.record_reading(con, run, question, reading)
    with store.catalog.write() as con:
        if not run.config.get("two_stage") and not ledger.is_waiting(con, run.run_id):
            ledger.close_run(con, run.run_id)
    return len(questions)


def _read_run(row: Sequence[Any]) -> Run:
    run_id, dataset_id, model, prompt_version, card_sha256, config, _, action_space = row
    first_action = Space.model_validate_json(action_space).start
    return Run(run_id, dataset_id, model, prompt_version, card_sha256, json.loads(config), first_action)


def _answered_questions(store: Store, run_id: str) -> list[Question]:
    """Questions of a run whose replies have not left anything in it yet."""
    with store.catalog.read() as con:
        digested = ledger.digested(con, run_id)
        rows = con.execute(
            """SELECT request_id, kind, body, episode_id, sample, steps
               FROM run_requests JOIN requests USING (request_id)
               WHERE run_id = ? AND requests.state = 'done' AND steps IS NOT NULL ORDER BY episode_id, request_id""",
            [run_id],
        ).fetchall()
    return [
        Question(Request(request_id, kind, json.loads(body)), episode_id, sample, frozenset(json.loads(steps)))
        for request_id, kind, body, episode_id, sample, steps in rows
        if request_id not in digested
    ]
