"""Selection: reproducible, nested, spread as promised, and without any effect on what is asked."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedProvider
from toy_datasets import make_draft, make_episode, write

from annotate.cards.cards import Action, Card, Component
from annotate.prompting.requests import AnnotateConfig
from annotate.prompting.selection import METHODS, Method, select_episodes
from annotate.providers.answers import text_message
from annotate.runs.plan import plan_run
from annotate.runs.run import annotate_run
from flows.labelling.annotation import LabelConfig, plan
from storage.datasets import adopt_dataset
from storage.errors import BadInput
from storage.schema import Episode
from storage.store import Store

CARTPOLE = Path(__file__).parents[1] / "examples" / "cartpole" / "rollouts"
CARD = Card(
    env_id="Toy-v0",
    title="Toy",
    goal="go right",
    termination="after a while",
    reward="pays at random",
    components=tuple(Component(name=name, meaning=f"place along {name}") for name in "xyz"),
    actions=(Action(name="left", meaning="go left"), Action(name="right", meaning="go right")),
)


def toy_episodes(count: int = 27) -> list[Episode]:
    """Return of episode i is i; lengths cycle through 4, 5 and 6."""
    made = [make_episode(i, 4 + i % 3) for i in range(count)]
    return [make_episode(i, len(e), rewards=np.eye(len(e))[0] * i) for i, e in enumerate(made)]


def ids(episodes: list[Episode]) -> list[int]:
    return [episode.episode_id for episode in episodes]


@pytest.mark.parametrize("method", METHODS)
def test_a_selection_is_reproducible_and_a_larger_one_contains_it(method: Method) -> None:
    episodes = toy_episodes()
    chosen = [ids(select_episodes(episodes, n, method=method, seed=5)) for n in (3, 9, 20, None)]
    assert chosen == [ids(select_episodes(episodes, n, method=method, seed=5)) for n in (3, 9, 20, None)]
    assert [len(found) for found in chosen] == [3, 9, 20, 27]
    assert all(set(few) <= set(more) for few, more in pairwise(chosen))
    assert all(found == sorted(found) for found in chosen)


def test_the_first_ones_are_the_default() -> None:
    assert ids(select_episodes(toy_episodes(), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_stratified_episodes_cover_thirds_of_returns_and_of_lengths(seed: int) -> None:
    episodes = toy_episodes()
    three = select_episodes(episodes, 3, method="stratified", seed=seed)
    assert sorted(int(e.return_) // 9 for e in three) == [0, 1, 2]
    assert sorted(len(e) for e in three) == [4, 5, 6]
    nine = select_episodes(episodes, 9, method="stratified", seed=seed)
    assert len({(int(e.return_) // 9, len(e)) for e in nine}) == 9
    eighteen = Counter(
        (int(e.return_) // 9, len(e)) for e in select_episodes(episodes, 18, method="stratified", seed=seed)
    )
    assert set(eighteen.values()) == {2}


def test_seeds_give_different_strata_draws() -> None:
    episodes = toy_episodes()
    assert len({tuple(ids(select_episodes(episodes, 9, method="stratified", seed=s))) for s in range(6)}) > 3


def test_novel_episodes_are_those_whose_states_differ() -> None:
    plain = [make_episode(i, 5) for i in range(12)]
    strange = {3: 40.0, 8: -40.0}
    episodes = [
        make_episode(i, 5, observations=e.observations + np.float32(strange.get(i, 0.0))) for i, e in enumerate(plain)
    ]
    for seed in range(6):
        assert {3, 8} <= set(ids(select_episodes(episodes, 3, method="novel", seed=seed)))


def test_fewer_episodes_than_strata_are_no_trouble() -> None:
    for count in (1, 2, 4):
        for method in METHODS:
            assert ids(select_episodes(toy_episodes(count), 9, method=method)) == list(range(count))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(BadInput, match=r"'best' is no way to select episodes. Known: first, stratified, novel"):
        select_episodes(toy_episodes(3), 1, method="best")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_selecting_changes_neither_the_run_nor_a_prompt(store: Store) -> None:
    manifest = adopt_dataset(store, CARTPOLE)
    asked = AnnotateConfig(model="claude")
    everything = plan(store, manifest.dataset_id, LabelConfig(annotate=asked)).plan
    known = {question.episode_id: question.request.request_id for question in everything.questions}
    for method in METHODS:
        config = LabelConfig(annotate=asked, limit=5, select=method, select_seed=3)
        some = plan(store, manifest.dataset_id, config).plan
        assert some.run == everything.run
        assert len(some.questions) == 5
        assert all(known[question.episode_id] == question.request.request_id for question in some.questions)


@pytest.mark.slow
def test_a_run_that_was_limited_in_two_ways_asks_each_episode_once(store: Store) -> None:
    write(store, make_draft("d1"), toy_episodes(9))
    provider = ScriptedProvider(lambda request: text_message(json.dumps({"assessment": "", "labels": []})))
    config = AnnotateConfig(model="m", windows=2, rows=12)
    for method in METHODS:
        run = plan_run(store, "d1", CARD, config, limit=4, select=method)
        annotate_run(store, run, provider)
    assert len(provider.asked) == len(set(provider.asked)) > 4
    with store.catalog.read() as con:
        assert con.execute("SELECT count(*) FROM annotation_runs").fetchall() == [(1,)]
