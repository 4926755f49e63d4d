"""Requests under way: each is priced, held against the budget and entered before it is sent; nobody is asked here.

A batch is what one command sends: one POST of Message Batches, or the single calls of a synchronous run. Its life is
intent -> submitted -> ingested | abandoned; a request that is in one is asked by nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from storage.catalog import Catalog, Connection
from storage.disk import hold_room, release_room
from storage.errors import BadInput, CatalogLocked
from storage.ledger import BatchItem, add_batch, claim_items, committed_usd, dear_replies, end_calls
from storage.store import Store

from ..costs import Tokens, estimate_calls, most_tokens, price
from ..prompting import Request

STATES = ("pending", "failed")
"""States from which a single call may be made."""
SHORT_WAIT_S = 1.0
"""Seconds to wait for the catalog while replies are under way; the full wait is for when none is."""
NO_BATCH = "no further batch is sent"
GO_ON = (
    "Name the model that answers with --model; or check the server, and ask the others with --provider anthropic, one "
    "by one, which stops at the first that costs too much."
)
"""What to do when a batch has cost more than it can, which ends all batches of its run."""


@dataclass(frozen=True)
class Priced:
    """A request with what it will cost, as far as its model has a list price."""

    request: Request
    estimated_usd: float | None
    worst_usd: float | None


def price_request(request: Request, labels: int, *, batch: bool) -> Priced:
    """What a request is expected to cost, without a cache, and what it costs at most."""
    estimate, most = estimate_calls([request], labels), most_tokens(request)
    return Priced(request, price(request.model, estimate, batch=batch), price(request.model, most, batch=batch))


def claim(con: Connection, batch_id: str, asked: Sequence[Priced], states: Collection[str]) -> list[Request]:
    """Put requests into a batch, if they are still in one of some states; nobody else can ask them then.

    Returns:
        Those that could be had, in order.
    """
    items = [BatchItem(priced.request.request_id, priced.estimated_usd, priced.worst_usd) for priced in asked]
    had = claim_items(con, batch_id, items, states)
    return [priced.request for priced in asked if priced.request.request_id in had]


def explain_dear_reply(con: Connection, run_id: str) -> str | None:
    """How the newest replies that a run got out of a batch cost more than they may; None if they do not."""
    for asked, model, tokens, cost, worst in dear_replies(con, run_id):
        expected = None if None in tokens else price(asked, Tokens(*(count or 0 for count in tokens)), batch=True)
        if cost is not None and expected is not None and cost > expected * 1.000001:
            return f"{model} answered instead of {asked}, for ${cost:.4f} instead of ${expected:.4f}"
        if cost is not None and worst is not None and cost > worst:
            return f"a reply was billed at ${cost:.4f}, but its request can cost ${worst:.4f} at most"
    return None


class BudgetedCalls:
    """The calls of one command.

    Args:
        store: holds the ledger.
        run_id: the run; its folder of responses is owned by this process.
        provider: who is asked, for the ledger.
        labels: labels that a request asks for.
        budget_usd: dollars that the run may cost over all its commands; no limit when None.
    """

    def __init__(self, store: Store, run_id: str, provider: str, labels: int, budget_usd: float | None) -> None:
        self._store = store
        self._catalog = short_wait_catalog(store)
        self._run_id = run_id
        self._folder = store.responses_dir(run_id)
        self._provider = provider
        self._labels = labels
        self._budget_usd = budget_usd
        self.batch_id: str | None = None
        self.sent: set[str] = set()
        self.stopped: str | None = None  # why no further call was allowed
        self.is_halted = False  # no call is handed out until the catalog can be written again
        self.ended: str | None = None  # why no further call makes sense, whatever the budget allows

    def hand_out(self, requests: Sequence[Request]) -> Iterator[Request]:
        """Give requests away one by one, each entered before; stop where the budget ends, or the catalog is locked.

        Requests that another command has under way are passed over.

        Raises:
            BadInput: if there is a budget, and the model has no list price to hold against it.
            DiskFailed: if there is no room left for the replies; nothing is sent then.
        """
        self.stopped, self.is_halted = None, False
        for request in requests:
            if self.ended is not None or self.is_halted:
                return
            try:
                claimed = self._enter_call(request)
            except CatalogLocked:
                self.is_halted = True
                return
            if self.stopped is not None:
                return
            if claimed:
                self.sent.add(request.request_id)
                yield request

    def close(self) -> None:
        """End the book; a call without an outcome may have been billed, unless it was never handed out."""
        if self.batch_id is None:
            return
        with self._store.catalog.write() as con:
            end_calls(con, self.batch_id, self.sent)

    @property
    def handed_out(self) -> int:
        """How many requests went to the provider."""
        return len(self.sent)

    def release_room(self) -> None:
        """Give up the room that was held for replies; none is under way any more."""
        release_room(self._folder)

    def _enter_call(self, request: Request) -> bool:
        hold_room(self._folder)
        priced = price_request(request, self._labels, batch=False)
        with self._catalog.write() as con:
            spent = committed_usd(con, self._run_id) if self._budget_usd is not None else 0.0
            self.stopped = refuse_over_budget(spent, [priced], self._budget_usd)
            if self.stopped is not None:
                return False
            batch_id = self.batch_id or add_batch(con, self._run_id, self._provider, "")
            claimed = claim(con, batch_id, [priced], STATES)
        self.batch_id = batch_id
        return bool(claimed)


def short_wait_catalog(store: Store) -> Catalog:
    """The catalog, with a short wait for its lock."""
    return Catalog(store.catalog.path, min(store.catalog.wait_s, SHORT_WAIT_S))


def refuse_over_budget(spent: float, asked: Sequence[Priced], budget_usd: float | None) -> str | None:
    """Why some requests may not be sent, or None if they may.

    Args:
        spent: dollars spent, and under way at most.
        asked: what would be sent.
        budget_usd: the cap.

    Raises:
        BadInput: if there is a cap and a request has no price.
    """
    if budget_usd is None:
        return None
    dollars = 0.0
    for priced in asked:
        if priced.worst_usd is None:
            raise BadInput(
                f"The model {priced.request.model} has no known list price, so a budget cannot be kept.",
                "Leave --budget out for a model of your own, or name a model with a price.",
            )
        dollars += priced.worst_usd
    if spent + dollars <= budget_usd:
        return None
    return (
        f"the budget of ${budget_usd:.2f} ends here: ${spent:.4f} are spent or in flight, "
        f"the next {len(asked)} cost ${dollars:.4f} at most"
    )
