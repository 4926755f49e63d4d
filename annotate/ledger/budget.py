"""Single calls under way: each is entered, and held against the budget, before it is sent; it asks nobody itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from storage.catalog import Catalog
from storage.disk import hold_room, release_room
from storage.errors import BadInput, CatalogLocked
from storage.ledger import add_batch, committed_usd, end_calls
from storage.store import Store

from ..prompting import Request
from . import batches

STATES = ("pending", "failed")
"""States from which a single call may be made."""
SHORT_WAIT_S = 1.0
"""Seconds to wait for the catalog while replies are under way; the full wait is for when none is."""


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
        self._catalog = hasty(store)
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
            if self.ended is not None:
                return
            claimed = not self.is_halted and self._claim(request)
            if self.stopped is not None or self.is_halted:
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

    def _claim(self, request: Request) -> bool:
        try:
            return self._enter_call(request)
        except CatalogLocked:
            self.is_halted = True
            return False

    def _enter_call(self, request: Request) -> bool:
        hold_room(self._folder)
        priced = batches.price_request(request, self._labels, batch=False)
        with self._catalog.write() as con:
            spent = committed_usd(con, self._run_id) if self._budget_usd is not None else 0.0
            self.stopped = refuse_over_budget(spent, [priced], self._budget_usd)
            if self.stopped is not None:
                return False
            batch_id = self.batch_id or add_batch(con, self._run_id, self._provider, "")
            claimed = batches.claim(con, batch_id, [priced], STATES)
        self.batch_id = batch_id
        return bool(claimed)


def hasty(store: Store) -> Catalog:
    """The catalog, with a short wait for its lock."""
    return Catalog(store.catalog.path, min(store.catalog.wait_s, SHORT_WAIT_S))


def refuse_over_budget(spent: float, asked: Sequence[batches.Priced], budget_usd: float | None) -> str | None:
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
                "Leave --budget away for a model of your own, or name a model with a price.",
            )
        dollars += priced.worst_usd
    if spent + dollars <= budget_usd:
        return None
    return (
        f"the budget of ${budget_usd:.2f} ends here: ${spent:.4f} are spent or under way, "
        f"the next {len(asked)} cost ${dollars:.4f} at most"
    )
