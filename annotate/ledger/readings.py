"""What replies say becomes labels, rules and rejections of the runs that asked; nobody is asked again for that.

What a reply may speak about was kept when it was asked: the card with the run, the steps shown with the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from storage.annotations import (
    Rule,
    RuleList,
    count_decisions,
    insert_annotations,
    insert_rejections,
    insert_rule_lists,
    varies,
)
from storage.catalog import Connection
from storage.datasets import read_manifest
from storage.errors import DamagedStore
from storage.ledger import (
    OpenRun,
    UnreadRequest,
    close_run,
    is_waiting,
    mark_read,
    mark_read_in_vain,
    open_runs,
    unread_requests,
)
from storage.schema import Annotation, Rejection, Space, content_id
from storage.store import Store

from ..cards import Card
from ..parsing import ParsedReply, Refused, ReplyProblem, refuse_entry, refuse_reply
from ..prompting import Question, Request
from .ledger import Run, find_replies

_CHUNK = 50
_NO_VALUE = ReplyProblem("no_value", "its formula has no value in any step where it decides")


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
    replies = find_replies(store, [row.request_id for row in rows]) if rows else {}
    for start in range(0, len(rows), _CHUNK):
        with store.catalog.write() as con:
            questions = [_read_question(row) for row in rows[start : start + _CHUNK]]
            read = [(question, replies[question.request.request_id].read(question, card)) for question in questions]
            record_readings(con, store, run, read)


def _read_run(row: OpenRun) -> Run:
    first_action = Space.model_validate_json(row.action_space).start
    named = (row.run_id, row.dataset_id, row.model, row.prompt_version, row.card_sha256)
    return Run(*named, json.loads(row.config), first_action)


def _read_question(row: UnreadRequest) -> Question:
    request = Request(row.request_id, row.kind, json.loads(row.body))
    return Question(request, row.episode_id, row.sample, frozenset(json.loads(row.steps)))


def record_readings(con: Connection, store: Store, run: Run, read: Sequence[tuple[Question, ParsedReply]]) -> None:
    """Enter what the counting replies of some requests say; entering it again changes nothing.

    Labels and rules of an earlier answer give way to those of the one that counts; rejections stay beside them. Rules
    and a potential that say nothing of the dataset's steps are rejected. The ids come from content, and from the reply
    where it corrects another one.
    """
    answered = [question.request.request_id for question, reading in read if reading.is_answer]
    vain = [question.request.request_id for question, reading in read if not reading.is_answer]
    corrections = mark_read(con, run.run_id, answered)
    mark_read_in_vain(con, run.run_id, vain)
    sources = [_Source(run, asked, reading, corrections.get(asked.request.request_id)) for asked, reading in read]
    insert_annotations(con, [label for source in sources for label in source.list_labels()])
    settled = [_settle(con, store, source.list_rules()) for source in sources]
    lists = [
        found.listed
        for source, found in zip(sources, settled, strict=True)
        if found.listed.rules or found.listed.terms or source.is_study
    ]
    if lists:
        insert_rule_lists(con, store, lists)
    refused: dict[str, list[Rejection]] = {}
    for source, found in zip(sources, settled, strict=True):
        refused.setdefault(source.model, []).extend(source.list_rejections(found.refused))
    for model, rejections in refused.items():
        if rejections:
            insert_rejections(con, rejections, model=model, prompt_version=run.prompt_version)


class _Source(NamedTuple):
    """What a reply says, and where rows that are made of it come from."""

    run: Run
    question: Question
    reading: ParsedReply
    corrects: str | None  # its id, where it corrects an earlier reply, so that its rows have other ids

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.reading.message.model or self.run.model

    @property
    def is_study(self) -> bool:
        """Whether it answers a study, which is kept even if it names no term."""
        return self.question.request.kind == "study" and self.reading.is_answer

    @property
    def _place(self) -> dict[str, str]:
        request_id = self.question.request.request_id
        return {"run_id": self.run.run_id, "request_id": request_id, "dataset_id": self.run.dataset_id}

    @property
    def _author(self) -> dict[str, str]:
        return {"model": self.model, "prompt_version": self.run.prompt_version}

    def _name(self, prefix: str, *parts: object) -> str:
        salt = () if self.corrects is None else (self.corrects,)
        return content_id(prefix, [self.run.run_id, self.question.request.request_id, *parts, *salt])

    def list_labels(self) -> list[Annotation]:
        """Its labels, as rows; steps that it only marks for a second stage are none."""
        episode_id, first = self.question.episode_id, self.run.first_action
        if episode_id is None or self.question.request.kind == "identify":
            return []
        return [
            Annotation(
                **self._place,
                **self._author,
                annotation_id=self._name("n_", episode_id, label.step),
                episode_id=episode_id,
                step=label.step,
                critical=label.critical,
                suggested_action=None if label.action is None else tuple(x + first for x in label.action),
                suggested_label=label.action_label,
                implicit_reward=label.implicit_reward,
                confidence=label.confidence,
                rationale=label.rationale,
            )
            for label in self.reading.labels
        ]

    def list_rules(self) -> RuleList:
        """Its list of rules, as rows; an empty one where none were asked for."""
        rules = [
            Rule(
                **self._place,
                **self._author,
                rule_id=self._name("u_", rule.predicate),
                position=rule.position,
                predicate=rule.predicate,
                suggested_action=tuple(None if x is None else x + self.run.first_action for x in rule.action),
                suggested_label=rule.action_label,
                confidence=rule.confidence,
                rationale=rule.rationale,
                formulas=rule.formulas,
                critical=rule.critical,
            )
            for rule in self.reading.rules
        ]
        return RuleList(
            **self._place,
            **self._author,
            list_id=self.question.request.request_id,
            rules=tuple(rules),
            terms=self.reading.terms,
            assessment=self.reading.assessment,
            potential=self.reading.potential,
            parent_id=self.run.config.get("parent"),
        )

    def list_rejections(self, more: Sequence[Refused]) -> list[Rejection]:
        """What was refused of it when it was read, and what is refused beside that, as rows."""
        return [
            Rejection(
                **self._place,
                rejection_id=self._name("x_", refused.position, refused.reason),
                episode_id=self.question.episode_id,
                step=refused.step,
                reason=refused.reason,
                detail=refused.detail,
                raw=refused.raw,
            )
            for refused in (*self.reading.refused, *more)
        ]


class _Settled(NamedTuple):
    """A list of rules as its dataset allows it, and what was left out of it."""

    listed: RuleList
    refused: tuple[Refused, ...] = ()


def _settle(con: Connection, store: Store, listed: RuleList) -> _Settled:
    """Leave out rules that have no value where they decide, a list that decides nowhere, and a constant potential.

    Where a rule is left out, later ones decide in its states, so those that remain are looked at again.
    """
    if not listed.rules:
        return _Settled(listed)
    manifest, refused = read_manifest(store, listed.dataset_id), list[Refused]()
    decided = count_decisions(con, listed, manifest)
    while idle := [rule for rule, found in zip(listed.rules, decided, strict=True) if found.steps and not found.valued]:
        refused += [
            refuse_entry(rule.position, {"predicate": rule.predicate, "formulas": list(rule.formulas or ())}, _NO_VALUE)
            for rule in idle
        ]
        listed = replace(listed, rules=tuple(rule for rule in listed.rules if rule not in idle))
        decided = count_decisions(con, listed, manifest)
    if not any(found.steps for found in decided):
        if listed.rules:
            texts = "; ".join(rule.predicate for rule in listed.rules)
            nowhere = ReplyProblem("decides_nowhere", "the rules decide in none of the dataset's steps")
            refused.append(refuse_reply(nowhere, texts))
        return _Settled(replace(listed, rules=(), terms=(), potential=None), tuple(refused))
    if listed.potential is not None and not varies(con, listed, manifest):
        constant = "the potential is the same in all of the dataset's steps"
        refused.append(refuse_reply(ReplyProblem("illegal_potential", constant), listed.potential))
        listed = replace(listed, potential=None)
    return _Settled(listed, tuple(refused))
