"""Labels from replies that are in the store, for runs whose command is long gone; nobody is asked.

What a reply may speak about was kept when it was asked: the card with the run, the steps shown with the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from storage.errors import DamagedStore
from storage.schema import Space
from storage.store import Store

from ..cards import Card
from ..parsing import read_answer
from ..prompting import Question, Request
from . import ledger
from .records import Run

_CHUNK = 50
_OPEN_RUNS = """
SELECT run_id, dataset_id, model, prompt_version, card_sha256, config, card, action_space
FROM annotation_runs JOIN datasets USING (dataset_id)
WHERE state <> 'done' AND card IS NOT NULL ORDER BY run_id
"""
_UNREAD = f"""
SELECT run_id, request_id, requests.kind, requests.body, episode_id, sample, steps
FROM run_requests JOIN requests USING (request_id) JOIN annotation_runs USING (run_id)
WHERE annotation_runs.state <> 'done' AND requests.state = 'done' AND steps IS NOT NULL
    AND (run_id, request_id) NOT IN (SELECT (run_id, request_id) FROM ({ledger.READ}))
ORDER BY run_id, episode_id, request_id
"""


def digest(store: Store, failed: list[str] | None = None) -> int:
    """Enter what the replies to open runs say, and close the runs that are answered; once entered, twice is once.

    A run in two stages is closed by the command that asks its second stage, never here.

    Args:
        store: holds the replies.
        failed: gets a line for each run whose replies cannot be read, and the others go on; without it, that is raised.

    Returns:
        How many replies were read.

    Raises:
        DamagedStore: if a raw reply is missing, and there is no list for that.
    """
    with store.catalog.read() as con:
        runs = [(_read_run(row), Card.model_validate_json(row[6])) for row in con.execute(_OPEN_RUNS).fetchall()]
        unread = con.execute(_UNREAD).fetchall()
        waiting = {run.run_id for run, _ in runs if ledger.is_waiting(con, run.run_id)}
    for run, card in runs:
        try:
            _digest_run(store, run, card, [row[1:] for row in unread if row[0] == run.run_id])
        except DamagedStore as error:
            if failed is None:
                raise
            failed.append(f"{run.run_id}: {error}")
            continue
        if run.run_id not in waiting and not run.config.get("two_stage"):
            with store.catalog.write() as con:
                if not ledger.is_waiting(con, run.run_id):
                    ledger.close_run(con, run.run_id)
    return len(unread)


def _digest_run(store: Store, run: Run, card: Card, rows: Sequence[Sequence[Any]]) -> None:
    raw = ledger.find_replies(store, [row[0] for row in rows]) if rows else {}
    for start in range(0, len(rows), _CHUNK):
        with store.catalog.write() as con:
            questions = [_read_question(row) for row in rows[start : start + _CHUNK]]
            readings = [
                (question, read_answer(raw[question.request.request_id], question.request.kind, card, question.steps))
                for question in questions
            ]
            ledger.record_readings(con, store, run, readings)


def _read_run(row: Sequence[Any]) -> Run:
    run_id, dataset_id, model, prompt_version, card_sha256, config, _, action_space = row
    first_action = Space.model_validate_json(action_space).start
    return Run(run_id, dataset_id, model, prompt_version, card_sha256, json.loads(config), first_action)


def _read_question(row: Sequence[Any]) -> Question:
    request_id, kind, body, episode_id, sample, steps = row
    return Question(Request(request_id, kind, json.loads(body)), episode_id, sample, frozenset(json.loads(steps)))
