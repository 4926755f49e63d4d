"""Nights with Message Batches: what is sent tonight is taken in tomorrow, and paid once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic_server import KEY, AnthropicServer
from test_flows_sending import CARD
from toy_datasets import make_draft, make_episode, write

from flows.deployment.night import Night, run_night
from flows.deployment.settings import DeploymentConfig
from storage.policies.deployments import count_labels
from storage.store import Store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnthropicServer]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    started = AnthropicServer().start()
    yield started
    started.stop()


def run(store: Store, server: AnthropicServer) -> Night:
    (store.root.parent / "card.toml").write_text(CARD)
    fields: dict[str, Any] = {
        "store": store.root,
        "datasets": ("d",),
        "refine_after": 1000,
        "label": {
            "provider": "batch",
            "base_url": server.url,
            "card": str(store.root.parent / "card.toml"),
            "annotate": {"model": "claude-haiku-4-5", "windows": 1, "rows": 4},
        },
    }
    return run_night(store, "toy", DeploymentConfig.model_validate(fields))


@pytest.mark.slow
def test_tonight_is_sent_tomorrow_is_taken_in_and_nothing_is_paid_twice(store: Store, server: AnthropicServer) -> None:
    write(store, make_draft("d1"), [make_episode(number, 4) for number in range(4)])
    first = run(store, server)
    assert (first.asked, first.answered, first.waiting, first.labels, first.dollars) == (4, 0, 4, 0, 0.0)

    write(store, make_draft("d2", seed=90), [make_episode(number, 4) for number in range(50, 53)])
    second = run(store, server)
    assert (second.took_in, second.asked, second.answered, second.waiting) == (["d2"], 3, 4, 3)
    assert (second.new_labels, second.labels) == (4, 4)
    assert second.dollars > 0

    third = run(store, server)
    assert (third.asked, third.answered, third.waiting, third.labels) == (0, 3, 0, 7)
    fourth = run(store, server)
    assert (fourth.asked, fourth.answered, fourth.new_labels, fourth.dollars) == (0, 0, 0, 0.0)
    assert fourth.total_dollars == pytest.approx(second.dollars + third.dollars)
    assert list(server.billed.values()) == [1] * 7
    assert count_labels(store, ["d1", "d2"]) == 7
