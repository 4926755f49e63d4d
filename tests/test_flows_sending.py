"""`annotate plan | submit | poll | ingest | run` from the command line, each a process's work of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import KEY, AnthropicServer
from typer.testing import CliRunner

from flows.cli import make_app
from storage.catalog.connection import Catalog, create_file
from storage.catalog.tables import MIGRATIONS, migrate
from storage.errors import BadInput
from storage.store import Store

CARD = """
env_id = "Toy-v0"
title = "Toy"
goal = "go right"
termination = "after a while"
reward = "pays at random"
components = [
    {name = "x", meaning = "place"}, {name = "y", meaning = "place"}, {name = "z", meaning = "place"},
]
actions = [{name = "left", meaning = "go left"}, {name = "right", meaning = "go right"}]
"""


class Desk:
    """A store with four episodes, a card, a server, and the command line."""

    def __init__(self, root: Path, server: AnthropicServer) -> None:
        self.root = root
        self.server = server
        self.card = root.parent / "card.toml"
        self.card.write_text(CARD)

    def run(self, *words: str) -> dict[str, Any]:
        done = CliRunner().invoke(
            make_app(), [*words, "--store", str(self.root), "--base-url", self.server.url, "--json"]
        )
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads(done.stdout.splitlines()[-1])

    def ask(self, *words: str) -> dict[str, Any]:
        asked = ["--card", str(self.card), "--model", "claude-haiku-4-5", "--labels", "1", "--rows", "4"]
        return self.run("annotate", *words, *asked)


@pytest.fixture
def desk(toy_store: Callable[[Sequence[int]], Store], monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    server = AnthropicServer().start()
    yield Desk(toy_store([4] * 4).root, server)
    server.stop()


@pytest.mark.slow
def test_tonight_is_submitted_and_tomorrow_collected(desk: Desk) -> None:
    sent = desk.ask("submit", "--batch-size", "3")
    assert (sent["requests"], len(sent["batch_ids"]), sent["open"]) == (4, 2, 0)
    polled = desk.run("annotate", "poll")
    assert [batch["ended"] for batch in polled["batches"]] == [True, True]
    done = desk.run("annotate", "ingest")
    assert (done["batches"], done["answered"], done["read"], done["under_way"]) == (2, 4, 4, 0)
    assert desk.ask("--provider", "batch")["was_done"] is True


@pytest.mark.slow
def test_a_whole_run_goes_by_batches(desk: Desk) -> None:
    told = desk.ask("run", "--provider", "batch")
    assert (told["done"], told["answered"], told["labels"]) == (True, 4, 4)
    assert 0 < told["cost_usd"] < 2 * told["estimated_usd"]


@pytest.mark.slow
def test_a_plan_prices_batches_at_half_and_names_the_most_it_can_cost(desk: Desk) -> None:
    single, batched = desk.ask("plan"), desk.ask("plan", "--provider", "batch")
    assert batched["cost_usd"] == pytest.approx(single["cost_usd"] / 2)
    assert batched["worst_usd"] > batched["cost_usd"]
    assert "guessed" in batched["basis"]
    assert "counted by the server" in desk.ask("plan", "--count")["basis"]
    assert desk.server.batches == {}


@pytest.mark.slow
def test_a_budget_of_nothing_sends_nothing(desk: Desk) -> None:
    sent = desk.ask("submit", "--budget", "0")
    assert (sent["requests"], sent["open"]) == (0, 4)
    assert "the budget of $0.00 ends here" in sent["stopped"]
    assert desk.ask("run", "--budget", "0")["answered"] == 0
    assert desk.server.billed == {}


def test_options_before_a_command_are_refused(desk: Desk) -> None:
    with pytest.raises(BadInput, match="Before the command plan: --limit"):
        CliRunner().invoke(make_app(), ["annotate", "--limit", "3", "plan"], catch_exceptions=False)


@pytest.mark.slow
def test_a_store_from_before_batches_gets_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    create_file(path, lambda con: None)
    catalog = Catalog(path)
    migrate(catalog, MIGRATIONS[:2])
    with catalog.write() as con:
        con.execute("INSERT INTO batches (batch_id, provider, requests) VALUES ('b_1', 'batch', 3)")
    assert next(step.version for step in migrate(catalog, MIGRATIONS)) == 3
    with catalog.read() as con:
        assert con.execute("SELECT batch_id, requests, marker FROM batches").fetchall() == [("b_1", 3, None)]
