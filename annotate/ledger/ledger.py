"""The ledger: which requests were asked, what came back, and what follows from it; each verb is all or nothing.

Money is spent once because of the order: a raw reply is on the disk before anything reads it, then one small
transaction writes the response, its labels and the state of its request. Killed between the two, `recovery.py` finds
the reply in its file. No verb asks a model; requests under way are in `batches.py`, validation in `parsing/labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime

from storage.annotations import Rule, insert_annotations, insert_rejections, insert_rules
from storage.catalog import Connection, insert_rows
from storage.content_hash import content_id
from storage.errors import DamagedStore
from storage.ledger import (
    Place,
    add_responses,
    append_response,
    counting_replies,
    enter_run,
    iterate_responses,
    mark_answered,
    mark_read,
    mark_read_in_vain,
    mark_unanswered,
    newest_replies,
    request_models,
    request_states,
    total_run,
    withdraw_suggestions,
)
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
    enter_run(con, row)


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
    answered = [question.request.request_id for question in first if question.request.request_id not in is_open]
    withdraw_suggestions(con, run_id, answered, [question.request.request_id for question in second])


def unanswered(con: Connection, questions: Sequence[Question]) -> dict[str, RequestStatus]:
    """Those of some requests that have no reply in the store, whichever run it was for."""
    ids = [question.request.request_id for question in questions]
    known = {request_id: RequestStatus(*row) for request_id, row in request_states(con, ids).items()}
    standings = {request_id: known.get(request_id, RequestStatus("pending", None)) for request_id in ids}
    return {request_id: standing for request_id, standing in standings.items() if standing.state != "done"}


def sum_run(con: Connection, run_id: str) -> Totals:
    """The sums of a run, as the view `spending` has them."""
    row = total_run(con, run_id)
    if row is None:
        return Totals(0, 0, Tokens(), 0.0)
    tokens = Tokens(row.input_tokens, row.cache_write_tokens, row.cache_read_tokens, row.output_tokens)
    return Totals(row.labels, row.rejections, tokens, row.cost_usd, row.rules, row.estimated_usd)


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
    known = request_models(con, ids)
    rows = [_response(reply, *known.get(reply.record.request_id, ("mark", None))) for reply in landed]
    fresh = add_responses(con, rows)
    mark_answered(con, [str(row["request_id"]) for row in fresh if row["problem"] is None])
    for row in fresh:
        if row["problem"] is not None:
            mark_unanswered(con, str(row["request_id"]), str(row["problem"]), most_attempts)


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


def record_readings(con: Connection, store: Store, run: Run, read: Sequence[tuple[Question, ParsedReply]]) -> None:
    """Enter what the counting replies of some requests say; entering it again changes nothing.

    Labels and rules of an earlier answer give way to those of the one that counts; rejections stay beside them. The ids
    come from content, and from the reply where it corrects another one.
    """
    answered = [question.request.request_id for question, reading in read if reading.is_answer]
    vain = [question.request.request_id for question, reading in read if not reading.is_answer]
    salts = {request_id: (response_id,) for request_id, response_id in mark_read(con, run.run_id, answered).items()}
    mark_read_in_vain(con, run.run_id, vain)
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
    """The raw replies that count for some answered requests, whichever run they were for.

    Raises:
        DamagedStore: if a reply that the catalog knows is not in its file.
    """
    with store.catalog.read() as con:
        places = counting_replies(con, request_ids)
    replies = _read_places(store, places)
    if missing := [request_id for request_id in request_ids if request_id not in replies]:
        raise DamagedStore(
            f"The raw replies to {len(missing)} requests are missing, the first to {missing[0]}.",
            "`trajnote store verify` names the damaged file; restore it from a backup.",
        )
    return replies


def read_newest_replies(store: Store, provider: str, request_ids: Sequence[str]) -> dict[str, str]:
    """The raw replies to some requests that came last from a provider, whether or not they hold an answer."""
    with store.catalog.read() as con:
        places = newest_replies(con, provider, request_ids)
    return _read_places(store, places)


def _read_places(store: Store, places: Set[Place]) -> dict[str, str]:
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
