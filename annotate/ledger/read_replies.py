"""Labels from replies that are in the store, for runs whose command is long gone; nobody is asked.

What a reply may speak about was kept when it was asked: the card with the run, the steps shown with the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from storage.errors import DamagedStore
from storage.ledger import OpenRun, UnreadRequest, close_run, is_waiting, open_runs, unread_requests
from storage.schema import Space
from storage.store import Store

from ..cards import Card
from ..parsing import read_answer
from ..prompting import Question, Request
from . import ledger
from .records import Run

_CHUNK = 50


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
        runs = [(_read_run(row), Card.model_validate_json(row.card)) for row in open_runs(con)]
        unread = unread_requests(con)
        waiting = {run.run_id for run, _ in runs if is_waiting(con, run.run_id)}
    for run, card in runs:
        try:
            _digest_run(store, run, card, [row for row in unread if row.run_id == run.run_id])
        except DamagedStore as error:
            if failed is None:
                raise
            failed.append(f"{run.run_id}: {error}")
            continue
        if run.run_id not in waiting and not run.config.get("two_stage"):
            with store.catalog.write() as con:
                if not is_waiting(con, run.run_id):
                    close_run(con, run.run_id)
    return len(unread)


def _digest_run(store: Store, run: Run, card: Card, rows: Sequence[UnreadRequest]) -> None:
    raw = ledger.find_replies(store, [row.request_id for row in rows]) if rows else {}
    for start in range(0, len(rows), _CHUNK):
        with store.catalog.write() as con:
            questions = [_read_question(row) for row in rows[start : start + _CHUNK]]
            readings = [
                (question, read_answer(raw[question.request.request_id], question.request.kind, card, question.steps))
                for question in questions
            ]
            ledger.record_readings(con, store, run, readings)


def _read_run(row: OpenRun) -> Run:
    first_action = Space.model_validate_json(row.action_space).start
    named = (row.run_id, row.dataset_id, row.model, row.prompt_version, row.card_sha256)
    return Run(*named, json.loads(row.config), first_action)


def _read_question(row: UnreadRequest) -> Question:
    request = Request(row.request_id, row.kind, json.loads(row.body))
    return Question(request, row.episode_id, row.sample, frozenset(json.loads(row.steps)))
