"""Batches that another account sent, that show up late or twice, and results that contradict themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from anthropic_server import KEY, MadeBatch
from soak import every
from test_annotate_batches import MODEL, SMALL, Bench, Reader, bench, reader, when_results_are_read, worst_of  # noqa: F401

from annotate.ledger import ledger
from annotate.ledger.recovery import recover
from annotate.providers.answers import text_message
from annotate.providers.batch import BatchServer, BrokenOffError
from annotate.runs.batch_runs import run_batches
from annotate.runs.ingestion import ingest, poll
from annotate.runs.reconcile import give_up
from flows import cli
from storage.errors import BadInput, CatalogLocked, Prerequisite, TrajnoteWarning

OTHER_KEY = "sk-test-another-account"
WHOLE = SMALL.model_copy(update={"size": 9})


def with_key(bench: Bench, key: str, monkeypatch: pytest.MonkeyPatch) -> BatchServer:  # noqa: F811
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    return BatchServer(bench.server.url, sleep=lambda _: None)


def dollars(bench: Bench) -> tuple[float, float, float]:  # noqa: F811
    return bench.rows("SELECT cost_usd, under_way_usd, lost_usd FROM spending")[0]


def lose_a_batch(bench: Bench, fault: str = "lost_reply") -> str:  # noqa: F811
    bench.config = WHOLE
    bench.server.plan_fault("create", fault)
    bench.submit()
    return bench.rows("SELECT batch_id FROM batches")[0][0]


@pytest.mark.slow
def test_another_account_neither_gives_up_nor_buys_again_what_it_cannot_see(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch_id = lose_a_batch(bench)
    own, bench.client = bench.client, with_key(bench, OTHER_KEY, monkeypatch)
    for _ in range(2):
        sent = bench.submit()
        assert (sent.requests, bench.states(), bench.states("batches")) == (0, {"in_batch": 6}, {"intent": 1})
        assert f"{batch_id} was sent with another key" in sent.warnings[0]
        assert f"poll --give-up {batch_id}" in sent.warnings[0]
    with pytest.raises(Prerequisite, match=f"{batch_id} was sent with another key"):
        run_batches(bench.store, bench.plan(), bench.client, WHOLE, poll_s=0.0)
    bench.client = own
    assert bench.ingest().answered == 6
    assert (len(bench.server.batches), set(bench.server.billed.values())) == (1, {1})
    kept = bench.rows("SELECT account, organisation FROM batches")[0]
    assert kept == (own.account, None)
    assert KEY not in str(kept)


@pytest.mark.slow
def test_a_key_that_was_renewed_goes_on_where_the_old_one_stopped(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench.server.workspaces = dict.fromkeys((KEY, OTHER_KEY), "ours")
    bench.server.organisations = dict.fromkeys((KEY, OTHER_KEY), "one organisation")
    bench.server.work_s = (30.0, 30.0)
    bench.server.plan_fault("create", "", "lost_reply", "error_500_before")
    for _ in range(3):
        bench.submit()
    assert bench.states("batches") == {"submitted": 1, "intent": 2}
    bench.client = with_key(bench, OTHER_KEY, monkeypatch)
    bench.server.skew_s += 31
    bench.server.work_s = (0.0, 0.0)
    bench.ingest()
    assert bench.states("batches") == {"ingested": 2, "abandoned": 1}
    bench.submit()
    bench.ingest()
    assert (bench.states(), set(bench.server.billed.values())) == ({"done": 6}, {1})
    assert "one organisation" not in str(bench.rows("SELECT * FROM batches"))


@pytest.mark.slow
def test_what_is_given_up_counts_at_its_worst_price_until_it_is_found(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch_id = lose_a_batch(bench)
    worst = dollars(bench)[1]
    own, bench.client = bench.client, with_key(bench, OTHER_KEY, monkeypatch)
    assert give_up(bench.store, batch_id) == 6
    with pytest.raises(BadInput, match="Batches under way: none"):
        give_up(bench.store, batch_id)
    assert (bench.states(), dollars(bench)) == ({"pending": 6}, (0.0, 0.0, worst))
    assert bench.submit(budget_usd=worst + 0.5 * worst_of(bench)).requests == 0
    bench.client = own
    done = bench.ingest()
    assert f"{batch_id} was given up, but exists after all" in done.warnings
    cost, under_way, lost = dollars(bench)
    assert (done.answered, bench.states(), under_way, lost) == (6, {"done": 6}, 0.0, 0.0)
    assert 0 < cost < worst


@pytest.mark.slow
def test_a_batch_that_the_list_shows_too_late_is_adopted_and_both_purchases_count(bench: Bench) -> None:  # noqa: F811
    lose_a_batch(bench)
    bench.server.list_lag_s = 3600.0
    assert any("is given up" in said for said in poll(bench.store, bench.client, WHOLE)[1])
    assert bench.states() == {"pending": 6}
    worst = dollars(bench)[2]
    assert worst > 0
    bench.submit()
    assert bench.ingest().answered == 6
    assert dollars(bench)[2] == worst
    single = dollars(bench)[0]
    bench.server.skew_s += 3601
    done = bench.ingest()
    assert any("exists after all" in said for said in done.warnings)
    assert dollars(bench) == (pytest.approx(2 * single), 0.0, 0.0)
    assert bench.rows("SELECT count(*) FROM responses") == [(12,)]
    assert bench.rows("SELECT count(*), count(DISTINCT (episode_id, step)) FROM annotations") == [(6, 6)]
    assert bench.rows("SELECT state, count(*) FROM annotation_runs GROUP BY state") == [("done", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", every([3600.0, -3600.0], 2))
def test_a_clock_that_is_an_hour_off_loses_no_batch(bench: Bench, ahead_s: float) -> None:  # noqa: F811
    bench.server.date_ahead_s = ahead_s
    lose_a_batch(bench)
    assert bench.ingest().answered == 6
    assert (len(bench.server.batches), bench.states("batches")) == (1, {"ingested": 1})


@pytest.mark.slow
def test_results_that_name_what_nobody_asked_are_taken_without_it(bench: Bench) -> None:  # noqa: F811
    lose_a_batch(bench)
    bench.server.plan_fault("results", "foreign", "foreign")
    done = bench.ingest()
    assert (done.answered, done.batches, bench.states("batches")) == (6, 1, {"ingested": 1})
    assert any("1 requests that are not in the batch, such as nobody-asked" in said for said in done.warnings)


@pytest.mark.slow
def test_a_batch_that_was_made_twice_is_adopted_once_and_counted_twice(bench: Bench) -> None:  # noqa: F811
    lose_a_batch(bench, "twice")
    done = bench.ingest()
    assert any("is at the server twice: both were billed" in said for said in done.warnings)
    assert (bench.states(), bench.states("batches")) == ({"done": 6}, {"ingested": 2})
    assert set(bench.server.billed.values()) == {2}
    tokens = bench.rows("SELECT sum(input_tokens + output_tokens)::BIGINT FROM responses")[0][0]
    assert tokens == sum(bench.server.billed_tokens.values())
    assert bench.rows("SELECT count(*) FROM annotations") == [(6,)]


@pytest.mark.slow
def test_a_second_batch_that_shows_up_after_the_first_was_found_counts_too(bench: Bench) -> None:  # noqa: F811
    lose_a_batch(bench, "twice")
    second = list(bench.server.batches.values())[1]
    second.lag_s = 60.0
    bench.ingest()
    assert bench.states("batches") == {"ingested": 1}
    bench.server.skew_s += 61
    done = bench.ingest()
    assert any(second.remote_id in said for said in done.warnings)
    tokens = bench.rows("SELECT sum(input_tokens + output_tokens)::BIGINT FROM responses")[0][0]
    assert tokens == sum(bench.server.billed_tokens.values())


@pytest.mark.slow
def test_the_command_line_names_what_is_broken_and_gives_up_what_cannot_be_settled(
    bench: Bench,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def call(*words: str) -> tuple[int, str]:
        address = ["--store", str(bench.store.root), "--base-url", bench.server.url]
        monkeypatch.setattr("sys.argv", ["trajnote", "annotate", *words, *address])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        return int(leaving.value.code or 0), " ".join((said.out + said.err).split())

    monkeypatch.setattr("time.sleep", lambda _: None)
    batch_id = lose_a_batch(bench, "error_500_before")
    with_key(bench, OTHER_KEY, monkeypatch)
    code, said = call("poll")
    assert (code, "was sent with another key" in said) == (0, True)
    code, said = call("poll", "--give-up", batch_id)
    assert (code, bench.states(), bench.states("batches")) == (0, {"pending": 6}, {"abandoned": 1})
    bench.client = with_key(bench, KEY, monkeypatch)
    bench.config = SMALL
    bench.submit()
    bench.server.broken = {next(iter(bench.server.batches))}
    code, said = call("ingest")
    assert (code, "2 batches finished: 4 answers" in said, "could not be handled (1)" in said) == (6, True, True)
    assert KEY not in said


@pytest.mark.slow
@pytest.mark.parametrize("fault", every(["no_id", "null_id", "html"], 3))
def test_a_creation_without_a_name_is_unknown_and_stops_nothing(bench: Bench, fault: str) -> None:  # noqa: F811
    bench.server.plan_fault("create", "", fault)
    assert [bench.submit().unknown, bench.submit().unknown] == [1, 0]
    assert bench.ingest().answered == 6
    assert set(bench.server.billed.values()) == {1}


@pytest.mark.slow
def test_a_broken_batch_stops_no_other_one(bench: Bench) -> None:  # noqa: F811
    bench.submit()
    broken = next(iter(bench.server.batches))
    bench.server.broken = {broken}
    done = bench.ingest()
    assert (done.answered, done.under_way, len(done.failed)) == (4, 1, 1)
    assert bench.rows(f"SELECT batch_id FROM batches WHERE remote_id = '{broken}'")[0][0] in done.failed[0]
    found, _ = poll(bench.store, bench.client, bench.config)
    assert [bool(batch.failure) for batch in found] == [True]
    bench.server.broken = set()
    assert bench.ingest().answered == 2


def expired(request_id: str) -> str:
    return json.dumps({"custom_id": request_id, "result": {"type": "expired"}})


def succeeded(request_id: str, text: str) -> str:
    message = json.loads(text_message(text, MODEL))
    return json.dumps({"custom_id": request_id, "result": {"type": "succeeded", "message": message}})


ANSWERS = [json.dumps({"assessment": words, "labels": []}) for words in ("the first answer", "the second answer")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("passes", "kept"),
    every(
        [
            (["E1"], 2),
            (["1E"], 2),
            (["E12"], 3),
            (["12"], 2),
            (["E!", "1"], 1),
            (["1!", "1E"], 2),
            (["1!", "21"], 2),
        ],
        2,
    ),
)
def test_of_contradictory_results_the_message_counts_and_the_first_that_landed(
    bench: Bench,  # noqa: F811
    passes: list[str],
    kept: int,
) -> None:
    """E is a line that says expired, 1 and 2 are two messages, ! is a connection that breaks off."""
    bench.submit(limit=1)
    request_id = bench.rows("SELECT request_id FROM requests")[0][0]
    forms = {"E": expired(request_id), "1": succeeded(request_id, ANSWERS[0]), "2": succeeded(request_id, ANSWERS[1])}

    def results(_: object) -> Iterator[str]:
        for form in unread.pop(0):
            if form == "!":
                raise BrokenOffError("broken off")
            yield forms[form]

    unread = list(passes)
    bench.client.results = results
    while unread:
        bench.ingest()
    assert (bench.states(), bench.states("batches")) == ({"done": 1}, {"ingested": 1})
    landed = bench.rows("SELECT file, line FROM responses")
    assert len(landed) == 1
    lines = [reply.raw for reply in ledger.read_landed(bench.store, landed[0][0].split("/")[1])]
    assert (len(lines), len(set(lines))) == (kept, kept)
    assert "the first answer" in lines[landed[0][1] - 1]
    recover(bench.store)
    assert bench.rows("SELECT count(*) FROM responses") == [(1,)]


@pytest.mark.slow
def test_a_message_that_comes_after_its_request_was_given_back_counts(bench: Bench) -> None:  # noqa: F811
    bench.config = WHOLE
    bench.submit(limit=2)
    made: MadeBatch = next(iter(bench.server.batches.values()))
    bench.server.settle(made)
    first, second = made.custom_ids
    made.outcomes[first] = "expired"
    bench.server.plan_fault("results", "cut_clean")
    with bench.store.catalog.write() as con:
        con.execute("UPDATE batch_items SET outcome = 'expired' WHERE request_id = ?", [first])
        con.execute("UPDATE requests SET state = 'pending' WHERE request_id = ?", [first])
    made.outcomes[first] = "succeeded"
    while bench.states("batches") != {"ingested": 1}:
        bench.ingest()
    assert bench.states() == {"done": 2}
    assert second in made.outcomes


@pytest.mark.slow
def test_a_run_says_why_it_waits_and_each_reason_once(bench: Bench) -> None:  # noqa: F811
    bench.config = WHOLE
    bench.server.plan_fault("retrieve", *["error_404"] * 4)
    bench.server.plan_fault("results", "error_404")
    with pytest.warns(TrajnoteWarning) as said:
        assert run_batches(bench.store, bench.plan(), bench.client, WHOLE, poll_s=0.0).done
    words = [
        str(warning.message) for warning in said if warning.category is TrajnoteWarning
    ]  # other tests' sockets warn too
    assert any("is not listed by the server now" in word for word in words)
    assert any("status 404" in word for word in words)
    assert len(words) <= 5


@pytest.mark.slow
def test_results_that_come_while_a_reader_holds_the_catalog_are_on_the_disk(
    bench: Bench,  # noqa: F811
    reader: Reader,  # noqa: F811
) -> None:
    bench.submit()
    when_results_are_read(bench, reader.come)
    with pytest.raises(CatalogLocked, match=r"2 replies are on the disk|in use by"):
        ingest(bench.store, bench.client, bench.config)
    reader.go()
    assert recover(bench.store) >= 2
    bench.ingest()
    assert bench.rows("SELECT count(*), count(DISTINCT request_id) FROM responses") == [(6, 6)]
