"""Message Batches through the ledger: whatever the server does, each request is paid for once and none is lost."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from anthropic_server import KEY, AnthropicServer, answer_text
from scripted import ScriptedProvider
from soak import every, in_soak
from toy_cards import CARD

from annotate.ledger import budget
from annotate.ledger.ledger import BatchConfig, StoredReply, owned_run
from annotate.ledger.recovery import recover
from annotate.prompting.requests import AnnotateConfig
from annotate.providers.anthropic import AnthropicProvider
from annotate.providers.batch import BatchServer
from annotate.runs.batch_runs import Submission, run_batches, submit
from annotate.runs.ingestion import Ingested, ingest, poll
from annotate.runs.plan import RunPlan, estimate_run, plan_run
from annotate.runs.run import annotate_run
from storage.catalog.connection import Catalog, Connection
from storage.errors import BadInput, CatalogLocked, DamagedStore, DiskFailed, ProviderFailed, TrajnoteError
from storage.ledger import add_batch
from storage.store import Store

MODEL = "claude-haiku-4-5"
SMALL = BatchConfig(size=2, in_flight=9, grace_s=0.0)


class Bench:
    """A store with six episodes, a server, and the verbs between them."""

    def __init__(self, store: Store, server: AnthropicServer) -> None:
        self.store = store
        self.server = server
        self.client = BatchServer(server.url, sleep=lambda _: None)
        self.config = SMALL

    def plan(self, limit: int | None = None, **changes: Any) -> RunPlan:
        asked = {"model": MODEL, "windows": 1, "rows": 4, "median_rows": 4, **changes}
        return plan_run(self.store, "d1", CARD, AnnotateConfig(**asked), limit=limit)

    def submit(self, limit: int | None = None, budget_usd: float | None = None, **changes: Any) -> Submission:
        return submit(self.store, self.plan(limit, **changes), self.client, self.config, budget_usd=budget_usd)

    def ingest(self) -> Ingested:
        return ingest(self.store, self.client, self.config)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.store.catalog.read() as con:
            return con.execute(sql).fetchall()

    def states(self, table: str = "requests") -> dict[str, int]:
        return dict(self.rows(f"SELECT state, count(*) FROM {table} GROUP BY state"))

    def outcomes(self) -> Counter[str]:
        return Counter(outcome for (outcome,) in self.rows("SELECT outcome FROM batch_items"))


@pytest.fixture
def bench(toy_store: Callable[[Sequence[int]], Store], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    server = AnthropicServer(skew_s=7200.0).start()
    yield Bench(toy_store([4] * 6), server)
    server.stop()


@pytest.mark.slow
def test_requests_go_out_in_batches_and_come_back_as_labels(bench: Bench) -> None:
    sent = bench.submit()
    assert (len(sent.batch_ids), sent.requests, sent.under_way, sent.open) == (3, 6, 6, 0)
    assert (bench.states(), bench.states("batches")) == ({"in_batch": 6}, {"submitted": 3})
    params = bench.server.bodies[0]["requests"][0]["params"]
    assert params["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    done = bench.ingest()
    assert (done.batches, done.answered, done.returned, done.read, done.under_way) == (3, 6, 0, 6, 0)
    assert bench.rows("SELECT count(*) FROM annotations") == [(6,)]
    assert bench.rows("SELECT state FROM annotation_runs") == [("done",)]
    assert bench.ingest() == Ingested()


@pytest.mark.slow
def test_the_bill_has_the_discount_of_batches_and_stands_beside_the_estimate(bench: Bench) -> None:
    bench.submit()
    bench.ingest()
    row = bench.rows("SELECT cost_usd, input_tokens, output_tokens, estimated_usd, under_way_usd FROM spending")[0]
    assert row[0] == pytest.approx((row[1] * 1 + row[2] * 5) / 1e6 / 2)
    assert row[3] == pytest.approx(row[0], rel=1.0)
    assert row[4] == 0
    assert bench.rows("SELECT round(cost_per_label - cost_usd / 6, 9) FROM spending") == [(0.0,)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", every(["lost_reply", "error_500_after"], 2))
def test_a_batch_whose_creation_was_not_confirmed_is_found_and_adopted(bench: Bench, fault: str) -> None:
    bench.config = SMALL.model_copy(update={"size": 9, "grace_s": 60.0})
    bench.server.plan_fault("create", fault)
    assert (bench.submit().unknown, bench.states()) == (1, {"in_batch": 6})
    assert bench.ingest().answered == 6
    assert (len(bench.server.batches), set(bench.server.billed.values())) == (1, {1})


@pytest.mark.slow
@pytest.mark.parametrize("fault", every(["reset_before", "error_500_before", "error_529_before"], 3))
def test_a_batch_that_never_came_to_be_is_given_up_after_the_grace_period_only(bench: Bench, fault: str) -> None:
    bench.config = SMALL.model_copy(update={"size": 9, "grace_s": 3600.0})
    bench.server.plan_fault("create", fault)
    assert bench.submit().unknown == 1
    _, unknown = poll(bench.store, bench.client, bench.config)
    assert "is given up after 3600 s" in unknown[0]
    bench.server.skew_s += 3601
    poll(bench.store, bench.client, bench.config)
    assert (bench.states(), bench.states("batches")) == ({"pending": 6}, {"abandoned": 1})
    bench.submit()
    assert bench.ingest().answered == 6
    assert set(bench.server.billed.values()) == {1}


@pytest.mark.slow
def test_a_batch_that_may_be_ours_is_waited_for_until_it_has_ended(bench: Bench) -> None:
    bench.config = SMALL.model_copy(update={"size": 9})
    bench.server.work_s = (30.0, 30.0)
    bench.server.plan_fault("create", "lost_reply")
    bench.submit()
    _, unknown = poll(bench.store, bench.client, bench.config)
    assert "has not finished" in unknown[0]
    bench.server.skew_s += 31
    assert bench.ingest().answered == 6
    assert len(bench.server.batches) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", every(["error_404", "cut", "cut_clean"], 3))
def test_a_batch_is_not_given_up_because_its_results_cannot_be_read_in_full(bench: Bench, fault: str) -> None:
    bench.config = SMALL.model_copy(update={"size": 9, "grace_s": 0.0})
    bench.server.plan_fault("create", "lost_reply")
    bench.submit()
    bench.server.plan_fault("results", fault, fault)
    for _ in range(2):
        _, unknown = poll(bench.store, bench.client, bench.config)
        assert len(unknown) == 1
    assert bench.ingest().answered == 6
    assert (len(bench.server.batches), set(bench.server.billed.values())) == (1, {1})


@pytest.mark.slow
def test_a_batch_of_somebody_else_is_not_adopted(bench: Bench) -> None:
    bench.config = SMALL.model_copy(update={"size": 9})
    bench.server.create([{"custom_id": f"other-{n}", "params": {"model": MODEL, "messages": []}} for n in range(6)])
    bench.server.plan_fault("create", "error_500_before")
    bench.submit()
    poll(bench.store, bench.client, bench.config)
    assert (bench.states(), bench.states("batches")) == ({"pending": 6}, {"abandoned": 1})


@pytest.mark.slow
def test_a_busy_server_has_created_nothing_and_is_asked_again(bench: Bench) -> None:
    bench.server.plan_fault("create", "error_429", "error_429")
    assert bench.submit().requests == 6
    assert bench.states("batches") == {"abandoned": 2, "submitted": 3}
    assert len(bench.server.batches) == 3


@pytest.mark.slow
def test_a_refused_batch_gives_its_requests_free(bench: Bench) -> None:
    bench.server.plan_fault("create", "error_400")
    with pytest.raises(ProviderFailed, match="refused a batch") as caught:
        bench.submit()
    assert KEY not in str(caught.value)
    assert (bench.states(), bench.states("batches")) == ({"pending": 6}, {"abandoned": 1})


def when_results_are_read(bench: Bench, happen: Callable[[], object]) -> None:
    """Something happens when the results of a batch have come, before they are on the disk; once."""
    results = bench.client.results

    def read(batch: Any) -> Iterator[str]:
        yield from results(batch)
        bench.client.results = results
        happen()

    bench.client.results = read


def die_at_transaction(bench: Bench, *, is_done: bool) -> None:
    """The next transaction is the end of the command: nothing of it is done, or all."""
    catalog = bench.store.catalog
    write = catalog.write

    @contextmanager
    def die() -> Generator[Connection]:
        catalog.write = write
        if is_done:
            with write() as con:
                yield con
        raise KeyboardInterrupt

    catalog.write = die


@pytest.mark.slow
def test_an_ingest_killed_half_way_and_read_again_does_not_reset_an_item(bench: Bench) -> None:
    bench.config = SMALL.model_copy(update={"size": 9})
    bench.server.item_plan = ["expired"] * 6
    bench.submit()
    when_results_are_read(bench, lambda: die_at_transaction(bench, is_done=True))
    with pytest.raises(KeyboardInterrupt):
        ingest(bench.store, bench.client, bench.config, chunk=3)
    assert bench.states() == {"pending": 3, "in_batch": 3}
    assert bench.submit().requests == 3  # those that came back are sent again
    done = bench.ingest()  # reads the first batch again, from its beginning
    assert (done.answered, done.returned) == (3, 3)
    assert bench.states() == {"done": 3, "pending": 3}
    bench.submit()
    bench.ingest()
    assert bench.states() == {"done": 6}
    assert (set(bench.server.billed.values()), bench.outcomes()) == ({1}, {"succeeded": 6, "expired": 6})


@pytest.mark.slow
@pytest.mark.parametrize("entered", every([False, True], 2))
def test_replies_that_landed_before_a_kill_are_entered_by_the_next_command(bench: Bench, entered: bool) -> None:
    bench.submit()
    when_results_are_read(bench, lambda: die_at_transaction(bench, is_done=entered))
    with pytest.raises(KeyboardInterrupt):
        bench.ingest()
    assert recover(bench.store) == (0 if entered else 2)
    bench.ingest()
    assert bench.rows("SELECT count(*), count(DISTINCT request_id) FROM responses") == [(6, 6)]
    assert bench.rows("SELECT count(*) FROM annotations") == [(6,)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", every(["cut", "error_404", "error_500", "cut_clean"], 4))
def test_results_that_are_hidden_or_break_off_are_read_later(bench: Bench, fault: str) -> None:
    bench.config = SMALL.model_copy(update={"size": 9})
    bench.submit()
    bench.server.plan_fault("results", fault)
    first = bench.ingest()
    assert (first.batches, first.under_way, len(first.warnings)) == (0, 1, 1)
    second = bench.ingest()
    assert (first.answered + second.answered, second.batches) == (6, 1)
    assert bench.rows("SELECT count(*) FROM responses") == [(6,)]


@pytest.mark.slow
def test_a_batch_that_the_server_does_not_show_for_a_while_is_kept(bench: Bench) -> None:
    bench.submit()
    bench.server.plan_fault("retrieve", "error_404", "error_404", "error_404")
    assert (bench.ingest().under_way, bench.states()) == (3, {"in_batch": 6})
    assert bench.ingest().answered == 6


@pytest.mark.slow
def test_requests_that_come_back_too_often_have_failed_and_may_be_asked_again(bench: Bench) -> None:
    bench.config = SMALL.model_copy(update={"attempts": 2})
    bench.server.item_plan = ["errored"] * 12
    for _ in range(2):
        bench.submit(limit=1)
        bench.ingest()
    assert bench.states() == {"failed": 1}
    assert bench.submit(limit=1).requests == 0
    bench.server.item_plan = []
    bench.config = bench.config.model_copy(update={"retry_failed": True})
    assert bench.submit(limit=1).requests == 1
    assert bench.ingest().answered == 1


@pytest.mark.slow
def test_a_request_that_the_server_calls_invalid_is_not_sent_again(bench: Bench) -> None:
    bench.server.item_plan = ["invalid"]
    bench.submit(limit=1)
    bench.ingest()
    assert bench.states() == {"failed": 1}


@pytest.mark.slow
def test_a_list_that_ignores_its_cursor_ends(bench: Bench) -> None:
    bench.server.ignores_after_id, bench.server.page = True, 2
    bench.submit()
    found = bench.client.newer_than(datetime.fromtimestamp(0, UTC))
    assert (len(found), bench.server.calls["list"] < 10) == (2, True)


@pytest.mark.slow
def test_a_list_of_many_pages_is_read_to_the_marker(bench: Bench) -> None:
    bench.server.page = 2
    bench.submit()
    assert len(bench.client.newer_than(datetime.fromtimestamp(0, UTC))) == 3


@pytest.mark.slow
def test_results_are_never_fetched_from_another_host(bench: Bench) -> None:
    other = AnthropicServer().start()
    bench.server.results_host = other.url
    bench.submit()
    assert bench.ingest().answered == 6
    assert other.calls == {}
    other.stop()


@pytest.mark.slow
def test_results_about_to_vanish_are_warned_of_and_gone_ones_have_failed(bench: Bench) -> None:
    bench.submit(limit=1)
    bench.server.skew_s += 23 * 86400
    found, _ = poll(bench.store, bench.client, bench.config)
    assert "its results are deleted on" in (found[0].warning or "")
    for made in bench.server.batches.values():
        made.archived = True
    assert "deleted its results" in bench.ingest().warnings[0]
    assert (bench.states(), bench.outcomes()) == ({"failed": 1}, {"lost": 1})
    lost, spent = bench.rows("SELECT lost_usd, cost_usd FROM spending")[0]
    assert lost > 0 == spent


@pytest.mark.slow
def test_no_more_batches_are_under_way_than_allowed(bench: Bench) -> None:
    bench.config = SMALL.model_copy(update={"in_flight": 2})
    assert (bench.submit().requests, bench.submit().requests) == (4, 0)
    bench.ingest()
    assert bench.submit().requests == 2


@pytest.mark.slow
def test_a_run_is_carried_to_its_end_through_everything_that_goes_wrong(bench: Bench) -> None:
    bench.server.chances = {"create": 0.4, "list": 0.1, "retrieve": 0.2, "results": 0.3}
    bench.server.item_chances = {"errored": 0.1, "expired": 0.1, "canceled": 0.1}
    config = SMALL.model_copy(update={"attempts": 50})
    summary = run_batches(bench.store, bench.plan(), bench.client, config, poll_s=0.0)
    assert (summary.done, summary.answered, summary.totals.labels) == (True, 6, 6)
    assert set(bench.server.billed.values()) == {1}
    assert run_batches(bench.store, bench.plan(), bench.client, config, poll_s=0.0).was_done


@pytest.mark.slow
def test_in_two_stages_the_second_follows_from_the_first(bench: Bench) -> None:
    def text(params: dict[str, Any]) -> str:
        if "steps" in params["output_config"]["format"]["schema"]["properties"]:
            return '{"assessment": "", "steps": [{"step": 1, "rationale": "here"}]}'
        return answer_text()

    bench.server.text = text
    summary = run_batches(bench.store, bench.plan(two_stage=True), bench.client, SMALL, poll_s=0.0)
    assert (summary.done, summary.answered) == (True, 12)
    assert bench.rows("SELECT kind, count(*) FROM requests GROUP BY kind ORDER BY kind") == [
        ("identify", 6),
        ("suggest", 6),
    ]


@pytest.mark.slow
def test_requests_under_way_in_one_run_are_not_sent_by_another_and_their_answers_serve_both(bench: Bench) -> None:
    bench.submit()
    other = bench.submit(samples=2)
    assert (other.requests, other.under_way) == (6, 12)
    assert bench.ingest().read == 18
    assert set(bench.server.billed.values()) == {1}
    assert bench.rows("SELECT state, count(*) FROM annotation_runs GROUP BY state") == [("done", 2)]


@pytest.mark.slow
def test_a_run_that_another_process_works_on_is_left_alone(bench: Bench) -> None:
    run_id = bench.submit().run_id
    with owned_run(bench.store, run_id):
        assert "is left to the process" in bench.ingest().warnings[0]
    assert bench.ingest().answered == 6


def worst_of(bench: Bench) -> float:
    return sum(budget.price_request(r, 1, batch=True).worst_usd or 0.0 for r in bench.plan().requests[:1])


@pytest.mark.slow
def test_a_budget_cuts_a_batch_and_holds_with_what_is_under_way(bench: Bench) -> None:
    budget = 3.2 * worst_of(bench)
    first = bench.submit(budget_usd=budget)
    assert (first.requests, first.open) == (3, 3)
    assert first.stopped is not None
    assert bench.submit(budget_usd=budget).requests == 0
    bench.ingest()  # the real bill is smaller, so that there is room again
    assert bench.submit(budget_usd=budget).requests >= 1
    bench.ingest()
    assert bench.rows("SELECT cost_usd <= ? FROM spending".replace("?", str(budget))) == [(True,)]


@pytest.mark.slow
def test_a_run_over_budget_ends_with_what_it_could_pay(bench: Bench) -> None:
    budget = 1.5 * worst_of(bench)
    bench.server.output_tokens = 11_000
    summary = run_batches(bench.store, bench.plan(), bench.client, SMALL, budget_usd=budget, poll_s=0.0)
    assert (summary.answered, summary.pending, summary.done) == (1, 5, False)
    assert "the budget of" in (summary.stopped or "")
    assert summary.totals.cost_usd <= budget


def test_a_budget_needs_a_price(bench: Bench) -> None:
    with pytest.raises(BadInput, match="no known list price"):
        bench.submit(budget_usd=1.0, model="my-own-model")
    assert bench.server.batches == {}


def ask_singly(bench: Bench, budget_usd: float | None = None, concurrency: int = 4, **changes: Any) -> Any:
    provider = AnthropicProvider(bench.server.url, concurrency=concurrency, sleep=lambda _: None)
    return annotate_run(bench.store, bench.plan(**changes), provider, budget_usd=budget_usd)


@pytest.mark.slow
def test_single_calls_stop_before_the_budget_is_broken(bench: Bench) -> None:
    worst = budget.price_request(bench.plan().requests[0], 1, batch=False).worst_usd or 0.0
    bench.server.output_tokens = 11_000
    summary = ask_singly(bench, budget_usd=2.5 * worst)
    assert summary.stopped is not None
    assert 2 <= summary.answered < 6
    assert summary.totals.cost_usd <= 2.5 * worst
    assert bench.states() == {"done": summary.answered, "pending": 6 - summary.answered}
    assert ask_singly(bench).done


@pytest.mark.slow
def test_single_calls_are_entered_before_they_are_sent_and_leave_nothing_under_way(bench: Bench) -> None:
    summary = ask_singly(bench)
    assert (summary.done, summary.answered, bench.states("batches")) == (True, 6, {"ingested": 1})
    assert bench.outcomes() == {"succeeded": 6}
    assert summary.estimated_usd is not None


@pytest.mark.slow
def test_a_call_that_another_run_has_under_way_is_not_made(bench: Bench) -> None:
    bench.submit()
    assert ask_singly(bench, samples=2).asked == 6  # the second sample; the first is under way
    bench.ingest()
    assert ask_singly(bench, samples=2).asked == 0
    assert (sum(bench.server.billed.values()), bench.states()) == (12, {"done": 12})


@pytest.mark.slow
def test_a_lost_reply_to_a_single_call_counts_with_the_most_it_may_have_cost(bench: Bench) -> None:
    bench.server.plan_fault("message", "lost_reply")
    summary = ask_singly(bench)
    assert (summary.answered, summary.pending, bench.outcomes()) == (5, 1, {"succeeded": 5, "unknown": 1})
    lost, cost = bench.rows("SELECT lost_usd, cost_usd FROM spending")[0]
    assert 0 < cost < lost


@pytest.mark.slow
def test_calls_of_a_command_that_was_killed_are_freed_and_counted(bench: Bench) -> None:
    plan = bench.plan(limit=2)
    priced = [budget.price_request(r, 1, batch=False) for r in plan.requests]
    annotate_run(bench.store, plan, ScriptedProvider(lambda _: None))
    with bench.store.catalog.write() as con:
        batch_id = add_batch(con, plan.run.run_id, "anthropic", "")
        assert len(budget.claim(con, batch_id, priced, ["pending"])) == 2
    recover(bench.store)
    assert (bench.states(), bench.outcomes()) == ({"pending": 2}, {"lost": 2})


READING = """
import sys
from pathlib import Path
from storage.catalog.connection import Catalog
with Catalog(Path(sys.argv[1]), wait_s=60).read():
    print(flush=True)
    sys.stdin.read()
"""


class Reader:
    """Another process that reads the catalog for as long as it likes."""

    def __init__(self, store: Store) -> None:
        self.path = str(store.catalog.path)
        self.process: subprocess.Popen[str] | None = None

    def come(self) -> None:
        command = [sys.executable, "-c", READING, self.path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.process.stdout.readline()

    def go(self) -> None:
        if self.process:
            self.process.communicate("")
            self.process = None


@pytest.fixture
def reader(bench: Bench) -> Iterator[Reader]:
    bench.store.catalog.wait_s = 0.2
    made = Reader(bench.store)
    yield made
    made.go()


def on_reply(bench: Bench, number: int, happen: Callable[[], object]) -> None:
    """Something happens while the server answers for the n-th time, once."""
    count, once = itertools.count(1), threading.Lock()

    def text(_: Any) -> str:
        with once:
            if next(count) == number:
                happen()
        return answer_text()

    bench.server.text = text


def check_that_all_billed_is_entered(bench: Bench) -> None:
    """The same command again asks only what was never asked, and every reply that was billed is in the ledger."""
    bench.server.text = lambda _: answer_text()
    assert ask_singly(bench).done
    assert set(bench.server.billed.values()) == {1}
    assert (bench.states(), bench.outcomes()["succeeded"]) == ({"done": 6}, 6)
    assert bench.rows("SELECT lost_usd, under_way_usd FROM spending") == [(0.0, 0.0)]
    assert bench.rows("SELECT count(*) FROM annotations") == [(6,)]


@pytest.mark.slow
def test_replies_that_come_while_a_reader_holds_the_catalog_are_on_the_disk(bench: Bench, reader: Reader) -> None:
    on_reply(bench, 3, reader.come)
    with pytest.raises(CatalogLocked, match=r"in use by process \d+.* [2-4] replies are on the disk") as caught:
        ask_singly(bench, concurrency=2)
    assert caught.value.exit_code == 5
    billed = sum(bench.server.billed.values())
    assert 3 <= billed <= 4  # nothing new is asked while it is locked
    reader.go()
    recover(bench.store)
    assert bench.states() == {"done": billed, "pending": 6 - billed}
    check_that_all_billed_is_entered(bench)


@pytest.mark.slow
@in_soak  # the other ways of such a reader are tried always
def test_a_run_goes_on_when_a_reader_leaves_in_time(bench: Bench, reader: Reader) -> None:
    bench.store.catalog.wait_s = 30.0

    def read_a_while() -> None:
        reader.come()
        threading.Timer(1.5, reader.go).start()

    on_reply(bench, 3, read_a_while)
    assert ask_singly(bench).done
    check_that_all_billed_is_entered(bench)


@pytest.mark.slow
@pytest.mark.parametrize("error", every([DamagedStore, DiskFailed], 2))
def test_replies_that_come_when_the_catalog_cannot_be_opened_are_on_the_disk(
    bench: Bench, error: type[TrajnoteError], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    connect = Catalog.connect

    def fail_when_broken(catalog: Catalog, read_only: bool) -> Connection:
        if broken.is_set():
            raise error("The catalog is broken.", "Mend it.")
        return connect(catalog, read_only)

    monkeypatch.setattr(Catalog, "connect", fail_when_broken)
    on_reply(bench, 3, broken.set)
    with pytest.raises(error, match=r"The catalog is broken; [1-6] replies are on the disk"):
        ask_singly(bench)
    broken.clear()
    recover(bench.store)
    assert bench.states()["done"] == sum(bench.server.billed.values())
    check_that_all_billed_is_entered(bench)


@pytest.mark.slow
@pytest.mark.parametrize("error", every([KeyboardInterrupt, ValueError, BrokenPipeError], 2))
def test_no_reply_under_way_is_lost_when_the_progress_bar_fails_or_somebody_interrupts(
    bench: Bench, error: type[BaseException]
) -> None:
    def report(what: str, done: int, total: int | None) -> None:
        if done == 2:
            raise error

    provider = AnthropicProvider(bench.server.url, sleep=lambda _: None)
    with pytest.raises(error):
        annotate_run(bench.store, bench.plan(), provider, report)
    assert bench.states()["done"] == sum(bench.server.billed.values()) < 6
    check_that_all_billed_is_entered(bench)


@pytest.mark.slow
def test_a_reply_that_cannot_be_read_keeps_no_other_one_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    readings, genuine = itertools.count(1), StoredReply.read

    def read(*given: Any) -> Any:
        if next(readings) == 2:
            raise ValueError("never seen before")
        return genuine(*given)

    monkeypatch.setattr(StoredReply, "read", read)
    with pytest.raises(ValueError, match="never seen before"):
        ask_singly(bench)
    billed = sum(bench.server.billed.values())
    assert bench.states().get("done") == billed
    assert bench.rows("SELECT count(*) FROM annotations") == [(billed - 1,)]
    check_that_all_billed_is_entered(bench)


@pytest.mark.slow
def test_refusals_that_could_not_be_entered_are_entered_by_the_next_command(bench: Bench, reader: Reader) -> None:
    bench.server.plan_fault("message", "", "error_400")
    on_reply(bench, 2, reader.come)
    with pytest.raises(CatalogLocked):
        ask_singly(bench)
    reader.go()
    recover(bench.store)
    assert bench.outcomes()["errored"] == 1
    assert bench.rows("SELECT lost_usd, under_way_usd FROM spending") == [(0.0, 0.0)]
    assert list(bench.store.root.rglob("*.note.json")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "states"), every([("", {"submitted": 1}), ("error_400", {"abandoned": 1})], 2))
def test_what_a_server_said_about_a_batch_is_known_though_the_catalog_was_locked(
    bench: Bench, reader: Reader, fault: str, states: dict[str, int]
) -> None:
    bench.config = SMALL.model_copy(update={"size": 9})
    bench.server.plan_fault("create", fault)
    create = bench.client.create

    def create_then_read(requests: Any) -> Any:
        try:
            return create(requests)
        finally:
            reader.come()

    bench.client.create = create_then_read
    with pytest.raises(CatalogLocked):
        bench.submit()
    reader.go()
    recover(bench.store)
    assert bench.states("batches") == states
    assert bench.rows("SELECT lost_usd FROM spending") == [(0.0,)]


@pytest.mark.slow
def test_an_estimate_learns_from_the_bills_of_earlier_replies(bench: Bench) -> None:
    bench.server.output_tokens = 500
    before = estimate_run(bench.store, bench.plan(), batch=True)
    bench.submit(limit=4)
    bench.ingest()
    after = estimate_run(bench.store, bench.plan(), batch=True)
    assert (before.requests, after.requests) == (6, 2)
    assert after.tokens.output == 2 * 500
    assert "4 earlier replies" in after.basis
    assert after.worst_usd is not None
    assert after.cost_usd is not None
    assert after.cost_usd < after.worst_usd


def test_an_estimate_can_have_the_server_count(bench: Bench) -> None:
    count: Callable[..., list[int]] = AnthropicProvider(bench.server.url).count_tokens
    estimate = estimate_run(bench.store, bench.plan(), count=count)
    assert "counted by the server in 5 of 6" in estimate.basis
    assert bench.server.billed == {}


def test_a_server_without_batches_is_named(bench: Bench) -> None:
    bench.server.plan_fault("list", "error_404")
    with pytest.raises(ProviderFailed, match="has no Message Batches"):
        bench.submit()
    assert bench.states("batches") == {}
