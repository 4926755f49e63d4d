"""The ledger: which requests were asked, what came back, and what follows from it; each verb is all or nothing.

Money is spent once because of the order: a raw reply is on the disk before anything reads it, then one small
transaction writes the response, its labels and the state of its request. Killed between the two, `recovery.py` finds
the reply in its file. No verb asks a model; requests under way are in `batches.py`, validation in `parsing/labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from storage.annotations import (
    Rule,
    append_response,
    insert_annotations,
    insert_rejections,
    insert_rules,
    iterate_responses,
)
from storage.catalog import Connection, insert_rows
from storage.content_hash import content_id
from storage.errors import DamagedStore
from storage.schema import Annotation, Rejection
from storage.store import Store

from ..cards import Card
from ..costs import Tokens, estimate_input, price, tokens_of
from ..parsing import ParsedReply, find_in_reply
from ..prompting import Kind, Question
from ..providers import Provider, Reply
from .batch_config import MOST_ATTEMPTS
from .records import RawReply, RequestStatus, Run, StoredReply, Totals


def open_run(con: Connection, run: Run, card: Card, provider: str, *, recorded: bool) -> None:
    """Enter a run and what its replies are read with; entering it again opens it again."""
    row = {
        "run_id": run.run_id,
        "dataset_id": run.dataset_id,
        "provider": provider,
        "model": run.model,
        "prompt_version": run.prompt_version,
        "card_sha256": run.card_sha256,
        "card": card.model_dump(mode="json"),
        "config": run.config,
        "recorded": recorded,
    }
    insert_rows(con, "annotation_runs", [row])
    con.execute(
        "UPDATE annotation_runs SET state = 'open', finished_at = NULL, error = NULL WHERE run_id = ?", [run.run_id]
    )


def close_run(con: Connection, run_id: str) -> None:
    """Note that everything a run asked is answered."""
    con.execute("UPDATE annotation_runs SET state = 'done', finished_at = now() WHERE run_id = ?", [run_id])


def fail_run(con: Connection, run_id: str, error: str) -> None:
    """Note why a command ended without all answers; the next command opens the run again."""
    con.execute(
        "UPDATE annotation_runs SET state = 'failed', finished_at = now(), error = ? WHERE run_id = ?", [error, run_id]
    )


def is_waiting(con: Connection, run_id: str) -> bool:
    """Whether a run has asked something that has no reply."""
    found = con.execute(
        """SELECT 1 FROM run_requests JOIN requests USING (request_id)
           WHERE run_id = ? AND requests.state <> 'done' LIMIT 1""",
        [run_id],
    ).fetchone()
    return found is not None


def is_done(con: Connection, run_id: str) -> bool:
    """Whether a run was finished earlier."""
    return (
        con.execute("SELECT 1 FROM annotation_runs WHERE run_id = ? AND state = 'done'", [run_id]).fetchone()
        is not None
    )


_AT_ONCE = 500
"""Questions entered by one statement: each has kilobytes of text, which is copied on its way."""


def add_questions(con: Connection, run: Run, questions: Sequence[Question]) -> None:
    """Enter what a run asks; requests that the store knows already keep their state."""
    for start in range(0, len(questions), _AT_ONCE):
        _add_questions(con, run, questions[start : start + _AT_ONCE])


def _add_questions(con: Connection, run: Run, questions: Sequence[Question]) -> None:
    requests = [
        {
            "request_id": question.request.request_id,
            "kind": question.request.kind,
            "model": question.request.model,
            "prompt_version": run.prompt_version,
            "body": question.request.body,
            "input_tokens_estimate": estimate_input(question.request),
        }
        for question in questions
    ]
    asked = [
        {
            "run_id": run.run_id,
            "request_id": question.request.request_id,
            "dataset_id": run.dataset_id,
            "episode_id": question.episode_id,
            "sample": question.sample,
            "steps": sorted(question.steps),
        }
        for question in questions
    ]
    insert_rows(con, "requests", requests)
    insert_rows(con, "run_requests", asked)


def withdraw_second(con: Connection, run_id: str, first: Sequence[Question], second: Sequence[Question]) -> None:
    """Forget a second stage's questions, and what came of them, that the first stage's answers do not lead to now."""
    is_open = unanswered(con, first)
    told = {
        "run": run_id,
        "now": [question.request.request_id for question in second],
        "first": [question.request.request_id for question in first if question.request.request_id not in is_open],
    }
    stale = con.execute(
        """SELECT request_id FROM run_requests JOIN requests USING (request_id)
           WHERE run_id = $run AND kind = 'suggest' AND request_id NOT IN (SELECT unnest($now::VARCHAR[]))
               AND (episode_id, sample) IN (SELECT (episode_id, sample) FROM run_requests
                   WHERE run_id = $run AND request_id IN (SELECT unnest($first::VARCHAR[])))""",
        told,
    ).fetchall()
    for table in ("annotations", "rejections", "run_requests"):
        con.execute(
            f"DELETE FROM {table} WHERE run_id = ? AND request_id IN (SELECT unnest(?::VARCHAR[]))",
            [run_id, [request_id for (request_id,) in stale]],
        )


def answered_in(con: Connection, run_id: str) -> list[str]:
    """Requests that got a reply for a run, among them some that it does not ask any more."""
    rows = con.execute("SELECT DISTINCT request_id FROM responses WHERE split_part(file, '/', 2) = ?", [run_id])
    return [request_id for (request_id,) in rows.fetchall()]


def unanswered(con: Connection, questions: Sequence[Question]) -> dict[str, RequestStatus]:
    """Those of some requests that have no reply in the store, whichever run it was for."""
    ids = [question.request.request_id for question in questions]
    rows = con.execute(
        """SELECT request_id, state, error, attempts FROM requests
           WHERE request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [ids],
    ).fetchall()
    known = {request_id: RequestStatus(*rest) for request_id, *rest in rows}
    standings = {request_id: known.get(request_id, RequestStatus("pending", None)) for request_id in ids}
    return {request_id: standing for request_id, standing in standings.items() if standing.state != "done"}


def reopen_failed(con: Connection, questions: Sequence[Question]) -> None:
    """Let requests that have failed be asked again, as if for the first time."""
    ids = [question.request.request_id for question in questions]
    con.execute(
        """UPDATE requests SET state = 'pending', attempts = 0, updated_at = now()
           WHERE state = 'failed' AND request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [ids],
    )


_EMPTY = """
SELECT request_id FROM run_requests JOIN requests USING (request_id)
WHERE run_id = $run AND (requests.state = 'failed' OR (requests.state = 'done'
    AND (run_id, request_id) NOT IN (SELECT (run_id, request_id) FROM annotations WHERE request_id IS NOT NULL)
    AND (run_id, request_id) NOT IN (SELECT (run_id, request_id) FROM rules WHERE request_id IS NOT NULL)
    AND NOT (kind = 'identify' AND (episode_id, sample) IN (
        SELECT (episode_id, sample) FROM run_requests JOIN requests USING (request_id)
        WHERE run_id = $run AND kind = 'suggest'))))
"""


def reopen_empty(con: Connection, run_id: str) -> int:
    """Let a run's requests be asked anew that have failed, or whose reply left no label and no rule; how many."""
    ids = [request_id for (request_id,) in con.execute(_EMPTY, {"run": run_id}).fetchall()]
    con.execute(
        f"""UPDATE run_requests SET response_id = counting.response_id FROM ({COUNTING}) AS counting
            WHERE run_requests.request_id = counting.request_id AND run_requests.response_id IS NULL
                AND run_requests.request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [ids],
    )
    con.execute(
        """UPDATE requests SET state = 'pending', attempts = 0, error = NULL, updated_at = now()
           WHERE request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [ids],
    )
    con.execute("UPDATE annotation_runs SET state = 'open' WHERE run_id = ?", [run_id])
    return len(ids)


def total_run(con: Connection, run_id: str) -> Totals:
    """The sums of a run, as the view `spending` has them."""
    row = con.execute(
        """SELECT annotations, rejections, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, cost_usd,
               (SELECT count(*) FROM rules WHERE run_id = $run)
           FROM spending WHERE run_id = $run""",
        {"run": run_id},
    ).fetchone()
    return Totals(row[0], row[1], Tokens(*row[2:6]), *row[6:]) if row else Totals(0, 0, Tokens(), 0.0)


def estimated_usd(con: Connection, run_id: str) -> float | None:
    """What the answered requests of a run were expected to cost when they were sent."""
    row = con.execute("SELECT estimated_usd FROM spending WHERE run_id = ?", [run_id]).fetchone()
    return row[0] if row else None


COUNTING = """
SELECT request_id, response_id, file, line, count(*) OVER earlier - 1 AS corrections
FROM responses WHERE problem IS NULL
WINDOW earlier AS (PARTITION BY request_id ORDER BY received_at, response_id)
QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY received_at DESC, response_id DESC) = 1
"""
"""The reply that counts for each request: the newest that holds an answer, and how many answers it corrects."""

READ = f"""
SELECT run_id, request_id FROM run_requests LEFT JOIN ({COUNTING}) AS counting USING (request_id)
WHERE run_requests.response_id = counting.response_id OR (run_requests.response_id IS NULL AND (
    (run_id, request_id) IN (SELECT (run_id, request_id) FROM annotations WHERE request_id IS NOT NULL)
    OR (run_id, request_id) IN (SELECT (run_id, request_id) FROM rejections WHERE request_id IS NOT NULL)
    OR (run_id, request_id) IN (SELECT (run_id, request_id) FROM rules WHERE request_id IS NOT NULL)))
"""
"""Requests whose counting reply a run has read; before `response_id` was kept, what it left shows that."""


def digested(con: Connection, run_id: str) -> set[str]:
    """Requests whose counting reply a run has read."""
    rows = con.execute(f"SELECT request_id FROM ({READ}) WHERE run_id = ?", [run_id]).fetchall()
    return {request_id for (request_id,) in rows}


def as_text(raw: str) -> str:
    """A reply as it is kept; a lone surrogate is no text."""
    return raw.encode("utf-8", "replace").decode()


def land_reply(
    store: Store, run_id: str, provider: Provider, reply: Reply, *, batch_id: str | None = None
) -> StoredReply:
    """Put a raw reply on the disk, before anything reads it."""
    record = RawReply(
        request_id=reply.request_id,
        provider=provider.name,
        recorded=provider.recorded or bool(reply.provenance.get("recorded")),
        received_at=datetime.now(UTC).isoformat(),
        provenance=reply.provenance,
        raw=as_text(reply.raw or ""),
        batch_id=batch_id,
    )
    file, line = append_response(store, run_id, record.model_dump(mode="json"))
    return StoredReply(file, line, record)


def record_replies(con: Connection, landed: Sequence[StoredReply], most_attempts: int = MOST_ATTEMPTS) -> None:
    """Enter landed replies; entering them again changes nothing.

    A request whose reply holds an answer is done, and every run that has read an earlier answer is opened again. One
    whose reply holds none stays open with the reason, until it was asked too often.
    """
    ids = [reply.record.request_id for reply in landed]
    asked = con.execute(
        "SELECT request_id, kind, model FROM requests WHERE request_id IN (SELECT unnest(?::VARCHAR[]))", [ids]
    ).fetchall()
    known = {request_id: (kind, model) for request_id, kind, model in asked}
    rows = [_response(reply, *known.get(reply.record.request_id, ("mark", None))) for reply in landed]
    entered = con.execute(
        "SELECT response_id FROM responses WHERE response_id IN (SELECT unnest(?::VARCHAR[]))",
        [[row["response_id"] for row in rows]],
    ).fetchall()
    fresh = [row for row in rows if (row["response_id"],) not in set(entered)]
    insert_rows(con, "responses", fresh)
    answered = [row["request_id"] for row in fresh if row["problem"] is None]
    con.execute(
        """UPDATE requests SET state = 'done', error = NULL, attempts = attempts + 1, updated_at = now()
           WHERE request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [answered],
    )
    con.execute(
        """UPDATE annotation_runs SET state = 'open' WHERE state = 'done' AND run_id IN (
               SELECT run_id FROM run_requests
               WHERE response_id IS NOT NULL AND request_id IN (SELECT unnest(?::VARCHAR[])))""",
        [answered],
    )
    for row in fresh:
        if row["problem"] is not None:
            _give_back(con, row, most_attempts)


def _give_back(con: Connection, row: Mapping[str, object], most_attempts: int) -> None:
    """A request whose reply holds no answer is asked again, a bounded number of times; an earlier answer counts on."""
    con.execute(
        """UPDATE requests SET error = $error, attempts = attempts + 1, updated_at = now(),
               state = CASE WHEN attempts + 1 >= $most THEN 'failed' ELSE 'pending' END
           WHERE request_id = $request AND state <> 'done'
               AND request_id NOT IN (SELECT request_id FROM batch_items WHERE outcome IS NULL)""",
        {"error": row["problem"], "most": most_attempts, "request": row["request_id"]},
    )


def _response(landed: StoredReply, kind: Kind, model_asked: str | None) -> dict[str, object]:
    """A landed reply as a row of `responses`."""
    record = landed.record
    message, _, problem = find_in_reply(record.message, kind)
    tokens = tokens_of(message.usage)
    model = message.model or model_asked
    cost = price(model, tokens, batch=record.is_result_line) if model and tokens and not record.recorded else None
    return {
        "response_id": content_id("s_", [record.request_id, landed.file, landed.line]),
        "request_id": record.request_id,
        "batch_id": record.batch_id,
        "provider": record.provider,
        "model": model,
        "file": landed.file,
        "line": landed.line,
        "stop_reason": message.stop_reason,
        "problem": f"{problem.reason}: {problem.detail}" if problem else None,
        "input_tokens": tokens.input if tokens else None,
        "cache_write_tokens": tokens.cache_write if tokens else None,
        "cache_read_tokens": tokens.cache_read if tokens else None,
        "output_tokens": tokens.output if tokens else None,
        "cost_usd": cost,
        "recorded": record.recorded,
        "provenance": record.provenance,
        "received_at": record.received_at,
    }


def record_error(con: Connection, reply: Reply) -> None:
    """Note why a request has no reply; it fails if asking the same again cannot help, and stays pending otherwise."""
    con.execute(
        """UPDATE requests SET state = ?, error = ?, attempts = attempts + 1, updated_at = now()
           WHERE request_id = ? AND state <> 'done'""",
        ["failed" if reply.final else "pending", reply.error, reply.request_id],
    )


def record_readings(con: Connection, store: Store, run: Run, read: Sequence[tuple[Question, ParsedReply]]) -> None:
    """Enter what the counting replies of some requests say; entering it again changes nothing.

    Labels and rules of an earlier answer give way to those of the one that counts; rejections stay beside them. The ids
    come from content, and from the reply where it corrects another one.
    """
    salts = _mark_read(con, run, [question.request.request_id for question, reading in read if reading.is_answer])
    _mark_vain(con, run, [question.request.request_id for question, reading in read if not reading.is_answer])
    notes = [
        note
        for question, reading in read
        if question.request.kind != "identify"
        for note in _annotations(run, question, reading, salts.get(question.request.request_id, ()))
    ]
    insert_annotations(con, notes)
    rules = [
        rule
        for question, reading in read
        for rule in _rules(run, question, reading, salts.get(question.request.request_id, ()))
    ]
    insert_rules(con, store, rules)
    refused: dict[str, list[Rejection]] = {}
    for question, reading in read:
        model = reading.message.model or run.model
        salt = salts.get(question.request.request_id, ())
        refused.setdefault(model, []).extend(_rejections(run, question, reading, salt))
    for model, rejections in refused.items():
        if rejections:
            insert_rejections(con, rejections, model=model, prompt_version=run.prompt_version)


def _mark_read(con: Connection, run: Run, request_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Note which replies a run reads, and forget what it read in others; what goes into ids because of corrections."""
    wanted = {"run": run.run_id, "ids": list(request_ids)}
    counting = con.execute(
        f"""SELECT request_id, counting.response_id, corrections, run_requests.response_id
            FROM ({COUNTING}) AS counting JOIN run_requests USING (request_id)
            WHERE run_id = $run AND request_id IN (SELECT unnest($ids::VARCHAR[]))""",
        wanted,
    ).fetchall()
    changed = [(request_id, new) for request_id, new, _, old in counting if new != old]
    told = wanted | {"ids": [request_id for request_id, _ in changed]}
    for table in ("annotations", "rules"):
        con.execute(f"DELETE FROM {table} WHERE run_id = $run AND request_id IN (SELECT unnest($ids::VARCHAR[]))", told)
    con.execute(
        """UPDATE run_requests SET response_id = told.response_id
           FROM (SELECT unnest($ids::VARCHAR[]) AS request_id, unnest($responses::VARCHAR[]) AS response_id) AS told
           WHERE run_requests.run_id = $run AND run_requests.request_id = told.request_id""",
        told | {"responses": [response_id for _, response_id in changed]},
    )
    return {request_id: [new] for request_id, new, corrections, _ in counting if corrections}


def _mark_vain(con: Connection, run: Run, request_ids: Sequence[str]) -> None:
    """Note that a run has read replies that hold no answer, so that the first answer is new to it."""
    con.execute(
        """UPDATE run_requests SET response_id = '' WHERE run_id = ? AND response_id IS NULL
           AND request_id IN (SELECT unnest(?::VARCHAR[]))
           AND request_id NOT IN (SELECT request_id FROM responses WHERE problem IS NULL)""",
        [run.run_id, list(request_ids)],
    )


def read_landed(store: Store, run_id: str) -> Iterable[StoredReply]:
    """All raw replies of a run's files, in the order in which they landed."""
    for stored in iterate_responses(store, run_id):
        yield StoredReply(stored.file, stored.line, RawReply.model_validate(stored.record))


def read_whole(store: Store, run_id: str) -> list[StoredReply]:
    """The raw replies of a run up to the first damage, of which `store verify` tells."""
    landed: list[StoredReply] = []
    with suppress(DamagedStore, ValueError):
        landed.extend(read_landed(store, run_id))
    return landed


def find_replies(store: Store, request_ids: Sequence[str]) -> dict[str, str]:
    """The raw replies that count for some answered requests, see `COUNTING`, whichever run they were for.

    Raises:
        DamagedStore: if a reply that the catalog knows is not in its file.
    """
    with store.catalog.read() as con:
        rows = con.execute(
            f"SELECT file, line FROM ({COUNTING}) WHERE request_id IN (SELECT unnest(?::VARCHAR[]))",
            [list(request_ids)],
        ).fetchall()
    replies = _read_places(store, set(rows))
    if missing := [request_id for request_id in request_ids if request_id not in replies]:
        raise DamagedStore(
            f"The raw replies to {len(missing)} requests are missing, the first to {missing[0]}.",
            "`trajnote store verify` names the damaged file; restore it from a backup.",
        )
    return replies


def newest_replies(store: Store, provider: str, request_ids: Sequence[str]) -> dict[str, str]:
    """The raw replies to some requests that came last from a provider, whether or not they hold an answer."""
    with store.catalog.read() as con:
        rows = con.execute(
            """SELECT file, line FROM responses
               WHERE provider = ? AND request_id IN (SELECT unnest(?::VARCHAR[]))
               QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY received_at DESC, response_id DESC) = 1""",
            [provider, list(request_ids)],
        ).fetchall()
    return _read_places(store, set(rows))


def _read_places(store: Store, places: set[tuple[str, int]]) -> dict[str, str]:
    return {
        landed.record.request_id: landed.record.message
        for run_id in sorted({file.split("/")[1] for file, _ in places})
        for landed in read_landed(store, run_id)
        if (landed.file, landed.line) in places
    }


def _annotations(run: Run, question: Question, reading: ParsedReply, salt: Sequence[str]) -> list[Annotation]:
    request_id, episode_id = question.request.request_id, question.episode_id
    if episode_id is None:
        return []
    return [
        Annotation(
            annotation_id=content_id("n_", [run.run_id, request_id, episode_id, label.step, *salt]),
            run_id=run.run_id,
            request_id=request_id,
            dataset_id=run.dataset_id,
            episode_id=episode_id,
            step=label.step,
            critical=label.critical,
            suggested_action=None if label.action is None else tuple(x + run.first_action for x in label.action),
            suggested_label=label.action_label,
            implicit_reward=label.implicit_reward,
            confidence=label.confidence,
            rationale=label.rationale,
            model=reading.message.model or run.model,
            prompt_version=run.prompt_version,
        )
        for label in reading.labels
    ]


def _rules(run: Run, question: Question, reading: ParsedReply, salt: Sequence[str]) -> list[Rule]:
    request_id = question.request.request_id
    return [
        Rule(
            rule_id=content_id("u_", [run.run_id, request_id, rule.predicate, *salt]),
            run_id=run.run_id,
            request_id=request_id,
            dataset_id=run.dataset_id,
            position=rule.position,
            predicate=rule.predicate,
            suggested_action=tuple(None if x is None else x + run.first_action for x in rule.action),
            suggested_label=rule.action_label,
            confidence=rule.confidence,
            rationale=rule.rationale,
            model=reading.message.model or run.model,
            prompt_version=run.prompt_version,
        )
        for rule in reading.rules
    ]


def _rejections(run: Run, question: Question, reading: ParsedReply, salt: Sequence[str]) -> list[Rejection]:
    request_id = question.request.request_id
    return [
        Rejection(
            rejection_id=content_id("x_", [run.run_id, request_id, refused.position, refused.reason, *salt]),
            run_id=run.run_id,
            request_id=request_id,
            dataset_id=run.dataset_id,
            episode_id=question.episode_id,
            step=refused.step,
            reason=refused.reason,
            detail=refused.detail,
            raw=refused.raw,
        )
        for refused in reading.refused
    ]
