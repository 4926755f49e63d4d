"""One annotation run from plan to finish: what is still open is asked, what was answered before is used again.

It is the way from a dataset to a model's labels. What is kept of it is in `ledger/`, the words in
`prompting/rendering.py`; who answers is behind `providers/protocol.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace

from storage.catalog import Catalog, Connection
from storage.errors import ProviderFailed, TrajnoteError
from storage.ledger import Place, answered_for, close_run, fail_run, is_done, live_runs, newest_replies, read_requests
from storage.store import Store

from ..costs import find_excess
from ..ledger import (
    BudgetedCalls,
    Note,
    StoredReply,
    add_questions,
    add_what_is_kept,
    as_text,
    digest,
    enter_failure,
    enter_landed,
    land_reply,
    leave_note,
    open_run,
    owned_run,
    read_places,
    record_readings,
    recover,
    short_wait_catalog,
    sum_run,
    unanswered,
    withdraw_second,
)
from ..parsing import ParsedReply
from ..prompting import Question, Request
from ..providers import Late, Limited, Provider, Reply, Threaded, Written
from .plan import (
    RunPlan,
    RunSummary,
    all_questions,
    earlier_readings,
    second_questions,
)

Report = Callable[[str, int, int | None], None]
_CHUNK = 50
"""Replies entered in one transaction at most."""
MOST_IN_A_ROW = 10
"""Requests in a row that bring no answer, after which a command asks no further."""
_LASTING = ("max_tokens", "context_window", "refusal")
"""Reasons that the same request brings again, so that it is left to another command, with other options."""
FLUSH_S = 10.0
"""Seconds for which landed replies may wait for others, to be entered together; a killed command loses none of them."""


def annotate_run(
    store: Store,
    plan: RunPlan,
    provider: Provider,
    report: Report | None = None,
    *,
    budget_usd: float | None = None,
    max_tokens: int | None = None,
) -> RunSummary:
    """Ask what is open of a plan, and enter labels and rejections; the same call again goes on where this one stopped.

    Args:
        store: holds the plan's dataset.
        plan: from `plan_run`.
        provider: who answers.
        report: called with what is counted, how many are done and how many there are.
        budget_usd: dollars that the run may cost over all its commands, where the provider is paid.
        max_tokens: cap on a reply; what the server allows the model when None, see `AnnotateConfig.cap`.

    Raises:
        BadInput: if the provider cannot answer, or there is a budget and no list price to hold against it.
        ProviderFailed: if the server refuses everything; what was answered before is kept.
        CatalogLocked: if another process works on this run, or holds the catalog for long; what came back is on the
            disk, and the next command enters it.
    """
    worker = _Worker(store, plan, provider, report or (lambda *_: None), budget_usd, max_tokens)
    with store.catalog.read() as con:
        may_recover = bool(live_runs(con))
        was_done, pending = _stand(con, plan)
    if may_recover:
        recover(store)
        with store.catalog.read() as con:
            was_done, pending = _stand(con, plan)
    if was_done and not pending and not worker.find_corrections():
        return worker.summarise(was_done=True)
    try:
        return worker.work(pending)
    except ProviderFailed as error:
        with store.catalog.write() as con:
            fail_run(con, plan.run.run_id, error.problem)
        raise


def _stand(con: Connection, plan: RunPlan) -> tuple[bool, Collection[str]]:
    """Whether a run is closed as done, and the requests of its first round that have no answer yet."""
    return is_done(con, plan.run.run_id), unanswered(con, plan.questions)


@dataclass
class _Worker:
    """Carries one command through its rounds: one for a plain run, two for a run in two stages."""

    store: Store
    plan: RunPlan
    provider: Provider
    report: Report
    budget_usd: float | None
    max_tokens: int | None
    is_correcting: bool = False
    book: BudgetedCalls | None = None
    questions: list[Question] = field(default_factory=list[Question])
    asked: int = 0
    answered: int = 0
    kept: dict[str, StoredReply] = field(default_factory=dict[str, StoredReply])
    """Landed by the threads that received them, and not yet taken."""
    landed: list[tuple[Question, StoredReply]] = field(default_factory=list[tuple[Question, StoredReply]])
    """On the disk, and not yet in the catalog."""
    failures: list[Reply] = field(default_factory=list[Reply])  # came back without a message; not yet in the catalog
    vain: dict[str, Question] = field(default_factory=dict[str, Question])  # whose reply in this command has no answer
    in_a_row: int = 0  # requests, up to now, that brought none
    problem: Exception | None = None  # the first thing that went wrong with a single reply
    entered_at: float = field(default_factory=time.monotonic)

    def work(self, pending: Collection[str]) -> RunSummary:
        """Both rounds, then the run is closed if nothing is open; its state after that.

        Args:
            pending: requests of the first round that have no answer yet.
        """
        self._round(self.plan.questions, pending, complete=not self.plan.config.two_stage)
        if self.plan.config.two_stage:
            questions = second_questions(self.store, self.plan)
            with self.store.catalog.read() as con:
                pending = unanswered(con, questions)
                asked_before = answered_for(con, self.plan.run.run_id)
            self._round(questions, pending, asked_before, complete=True)
        if self.is_correcting:
            digest(self.store)  # other runs that ask the same
        with self.store.catalog.write() as con:
            summary = self.summarise(was_done=False)
            if not unanswered(con, self.questions):
                close_run(con, self.plan.run.run_id)
            elif summary.failure is not None:
                fail_run(con, self.plan.run.run_id, summary.failure.problem)
            return self.summarise(was_done=False)

    def summarise(self, *, was_done: bool) -> RunSummary:
        """The state of the run, read from the catalog."""
        with self.store.catalog.read() as con:
            questions = self.questions or self.plan.questions
            is_open = unanswered(con, questions)
            totals = sum_run(con, self.plan.run.run_id)
            done = is_done(con, self.plan.run.run_id)
        return RunSummary(
            run_id=self.plan.run.run_id,
            dataset_id=self.plan.run.dataset_id,
            model=self.plan.run.model,
            episodes=len(self.plan.episodes),
            was_done=was_done,
            done=done,
            reused=len(questions) - len(is_open) - self.answered,
            asked=self.asked,
            answered=self.answered,
            pending=len(is_open),
            failed=sum(standing.state == "failed" for standing in is_open.values()),
            under_way=sum(standing.state == "in_batch" for standing in is_open.values()),
            errors=Counter(one.error for one in is_open.values() if one.error and one.state != "in_batch"),
            stopped=(self.book.ended or self.book.stopped) if self.book else None,
            is_halted=bool(self.book and self.book.ended),
            estimated_usd=totals.estimated_usd,
            totals=totals,
        )

    def _round(
        self, questions: Sequence[Question], pending: Collection[str], known: Sequence[str] = (), *, complete: bool
    ) -> None:
        self.questions += questions
        is_second = complete and self.plan.config.two_stage
        own = [question.request.request_id for question in self.questions]
        self.provider.prepare([*own, *known], list(pending), complete=complete)
        with owned_run(self.store, self.plan.run.run_id):
            with self.store.catalog.write() as con:
                open_run(con, self.plan.run, self.plan.card, self.provider.name, recorded=self.provider.recorded)
                add_questions(con, self.plan.run, questions)
                if is_second:
                    withdraw_second(con, self.plan.run.run_id, self.plan.questions, questions)
                standings = unanswered(con, questions)
                before = self._find_earlier(con, questions)
            self._use_again([q for q in questions if q.request.request_id not in standings])
            same, corrected = self._compare(before)
            is_open = {key for key, standing in standings.items() if standing.is_open}
            self.is_correcting = self.is_correcting or bool(corrected - standings.keys())
            self._ask([q for q in questions if q.request.request_id in (is_open - same) | corrected])

    def find_corrections(self) -> set[str]:
        """Requests of either stage that the provider answers otherwise than it did before."""
        if not isinstance(self.provider, Written):
            return set()
        questions = all_questions(self.store, self.plan)
        with self.store.catalog.read() as con:
            before = self._find_earlier(con, questions)
        return self._compare(before)[1]

    def _find_earlier(self, con: Connection, questions: Sequence[Question]) -> set[Place]:
        """Where the newest replies of a provider lie whose answers are written down, whether or not they hold one."""
        if not isinstance(self.provider, Written):
            return set()
        return newest_replies(con, self.provider.name, [question.request.request_id for question in questions])

    def _compare(self, places: Set[Place]) -> tuple[set[str], set[str]]:
        """Requests that the provider has answered before: in the same words, and in others."""
        if not isinstance(self.provider, Written):
            return set(), set()
        before = read_places(self.store, places)
        now = {key: self.provider.says(key) for key in before}
        same = {key for key, reply in before.items() if reply.message == as_text(now[key] or "")}
        return same, {key for key, raw in now.items() if raw is not None} - same

    def _use_again(self, questions: Sequence[Question]) -> None:
        """Enter what earlier replies say, where this run has not done so yet."""
        if not questions:
            return
        with self.store.catalog.read() as con:
            digested = read_requests(con, self.plan.run.run_id)
        fresh = [question for question in questions if question.request.request_id not in digested]
        readings = earlier_readings(self.store, self.plan, fresh)
        for start in range(0, len(readings), _CHUNK):
            with self.store.catalog.write() as con:
                record_readings(con, self.store, self.plan.run, readings[start : start + _CHUNK])

    def _ask(self, questions: Sequence[Question]) -> None:
        """Ask; a reply that is under way when this is interrupted is waited for and kept."""
        waiting = {question.request.request_id: question for question in questions}
        self.report("asking", 0, len(questions))
        if not self.provider.paid:
            self.asked += len(waiting)
            self._exchange([question.request for question in questions], waiting)
            return
        if isinstance(self.provider, Threaded):
            self.provider.keep = self._keep
        if questions and isinstance(self.provider, Limited):  # it says within seconds whether there is a server at all
            limit = self.provider.output_limit(self.plan.run.model)
            self.max_tokens = self.plan.config.cap(self.max_tokens, limit, streamed=False)
        self._ask_all(waiting)
        if self.vain and self.book and not self.book.ended:
            self._ask_all(self._open_again())

    def _open_again(self) -> dict[str, Question]:
        """Those whose reply held no answer, and that may be asked again: once in each command."""
        vain, self.vain = self.vain, {}
        with self.store.catalog.read() as con:
            standings = unanswered(con, list(vain.values()))
        return {key: vain[key] for key, standing in standings.items() if standing.is_open}

    def _ask_all(self, waiting: dict[str, Question]) -> None:
        run_id, entries = self.plan.run.run_id, self.plan.config.entries
        self.book = BudgetedCalls(self.store, run_id, self.provider.name, entries, self.budget_usd)
        try:
            while self._ask_paid(self.book, waiting):
                pass
        finally:
            self.asked += self.book.handed_out
            self._close_book(self.book)

    def _ask_paid(self, book: BudgetedCalls, waiting: dict[str, Question]) -> bool:
        """Ask what may be asked now; true if there may be more.

        That is so where calls came out cheaper than they might have, and where the catalog was locked for a while.
        """
        before = book.handed_out
        requests = [replace(question.request, max_tokens=self.max_tokens) for question in waiting.values()]
        self._exchange(book.hand_out(requests), waiting)
        return not book.ended and (book.is_halted or (book.stopped is not None and book.handed_out > before))

    def _exchange(self, requests: Iterable[Request], waiting: dict[str, Question]) -> None:
        """Ask, and take what comes back; whatever goes wrong, what is under way is waited for, landed and entered."""
        total = len(waiting)
        try:
            with closing(self.provider.answer(requests)) as replies:
                for reply in replies:
                    self._take(reply, waiting)
                    self.report("asking", total - len(waiting), total)
        finally:
            self._take_late(waiting)
            self._enter_rest()
        if self.problem is not None:
            raise self.problem

    def _close_book(self, book: BudgetedCalls) -> None:
        """End the book in the catalog; where that cannot be written, a note says how each call ended."""
        book.release_room()
        if self.landed or self.failures:
            self._leave_note(book)
            return
        try:
            book.close()
        except BaseException:
            self._leave_note(book)
            raise

    def _leave_note(self, book: BudgetedCalls) -> None:
        if book.batch_id is not None:
            note = Note(batch_id=book.batch_id, sent=tuple(book.sent), failures=tuple(self.failures))
            leave_note(self.store, self.plan.run.run_id, note)

    def _keep(self, reply: Reply) -> None:
        """Land a reply in the thread that received it."""
        if reply.raw is not None:
            self.kept[reply.request_id] = self._land(reply)

    def _land(self, reply: Reply) -> StoredReply:
        batch_id = self.book.batch_id if self.book else None
        return land_reply(self.store, self.plan.run.run_id, self.provider, reply, batch_id=batch_id)

    def _take(self, reply: Reply, waiting: dict[str, Question]) -> None:
        """Land one reply at once; what follows from it is entered soon, with that of its neighbours."""
        question = waiting.get(reply.request_id)
        if question is None:
            return
        stored = None
        if reply.raw is None:
            self.failures.append(reply)
        else:
            stored = self.kept.pop(reply.request_id, None) or self._land(reply)
            self.landed.append((question, stored))
        del waiting[reply.request_id]
        self._watch(question, stored)
        if len(self.landed) + len(self.failures) >= _CHUNK or time.monotonic() - self.entered_at >= FLUSH_S:
            self._enter_soon()

    def _watch(self, question: Question, reply: StoredReply | None) -> None:
        """End the command where asking on would cost more than it may, or brings nothing."""
        request = replace(question.request, max_tokens=self.max_tokens)
        found = reply.find(request.kind) if reply is not None else None
        is_vain = found is None or found.problem is not None
        self.in_a_row = self.in_a_row + 1 if is_vain else 0
        if found is not None and found.problem is not None and found.problem.reason not in _LASTING:
            self.vain[request.request_id] = question
        if self.book is None or self.book.ended:
            return
        excess = find_excess(request, found.message.model, found.message.usage) if found else None
        if excess:
            self.book.ended = f"no further request is sent: {excess}"
        elif self.in_a_row >= MOST_IN_A_ROW:
            self.book.ended = f"no further request is sent: {self.in_a_row} requests in a row brought no answer"

    def _take_late(self, waiting: dict[str, Question]) -> None:
        """Take what came in after the provider was left, each on its own."""
        for reply in self.provider.late() if isinstance(self.provider, Late) else ():
            try:
                self._take(reply, waiting)
            except Exception as error:
                self.problem = self.problem or error
        for request_id in [key for key in self.kept if key in waiting]:  # the provider was left before it was asked
            self.landed.append((waiting.pop(request_id), self.kept.pop(request_id)))

    def _enter_soon(self) -> None:
        """Enter what has landed, if the catalog is free; else it stays noted, and no new call is made before it is."""
        if self.book is None:
            self._enter(self.store.catalog)
            return
        try:
            self._enter(short_wait_catalog(self.store))
        except Exception:
            self.book.is_halted = True

    def _enter_rest(self) -> None:
        """Enter all that has landed; nothing is under way, so that there is time to wait for the catalog."""
        try:
            if self.landed or self.failures or (self.book and self.book.is_halted):
                self._enter(self.store.catalog)
        except TrajnoteError as error:
            raise add_what_is_kept(error, len(self.landed)) from error

    def _enter(self, catalog: Catalog) -> None:
        """One transaction: replies, labels, rejections and the state of the requests."""
        self.entered_at = time.monotonic()
        readings = [*self._read(self.landed)]
        with catalog.write() as con:
            enter_landed(con, [reply for _, reply in self.landed])
            for reply in self.failures:
                enter_failure(con, self.book.batch_id if self.book else None, reply)
            record_readings(con, self.store, self.plan.run, readings)
        self.answered += sum(reading.is_answer for _, reading in readings)
        self.landed, self.failures = [], []
        if self.book and self.problem:
            self.book.is_halted = True

    def _read(self, landed: Sequence[tuple[Question, StoredReply]]) -> Iterable[tuple[Question, ParsedReply]]:
        """What replies say; one that cannot be read stops no other one."""
        for question, reply in landed:
            try:
                yield question, reply.read(question, self.plan.card)
            except Exception as error:
                self.problem = self.problem or error
