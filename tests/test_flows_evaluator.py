"""The evaluator: right returns, each question played once, and nothing lost by an interruption."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import ask
from toy_environment import REACH, TOY, make_baseline

from flows.refinement import evaluator as judging
from flows.refinement.evaluator import Candidate, Evaluator
from flows.simulation.environments import make_environment
from flows.simulation.rollouts import returns_of
from flows.simulation.trust import Named
from refine.evaluation.gate import interval
from refine.policies.mlp import MlpPolicy
from storage.store import Store

SEEDS = range(500, 510)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many policies each call plays."""
    counts: list[int] = []
    play = judging.play_policies

    def spy(env_id: str, env_kwargs: Any, policies: Any, *rest: Any, **options: Any) -> Generator[Any]:
        counts.append(len(policies))
        return play(env_id, env_kwargs, policies, *rest, **options)

    monkeypatch.setattr(judging, "play_policies", spy)
    return counts


def candidates(count: int = 4) -> list[Candidate]:
    """Policies that push in one direction for ever, each in its own."""
    base = make_baseline()
    spaces = base.observation_space, base.action_space
    biases = [(np.zeros(8), np.eye(4)[direction]) for direction in range(count)]
    return [Candidate.of(MlpPolicy(*spaces, base.weights, bias, "tanh", "logits"), "refined") for bias in biases]


def test_returns_are_those_of_the_episodes_and_their_row_says_how_they_were_played(store: Store) -> None:
    east, north = candidates(2)
    evaluator = Evaluator(store, TOY, {}, workers=1)
    found = evaluator.returns([east, north], SEEDS, mode="sampled", purpose="accept")
    for contestant, returns in zip((east, north), found, strict=True):
        expected = returns_of(partial(make_environment, TOY), contestant.actor, SEEDS, mode="sampled")
        assert returns.tobytes() == expected.tobytes()
    estimate = interval(found[1])
    assert ask(
        store,
        f"""SELECT env_id, env_kwargs, purpose, mode, first_seed, episodes, returns, return_, low, high
            FROM evaluations WHERE policy_id = '{north.policy_id}'""",
    ) == [(TOY, "{}", "accept", "sampled", 500, 10, found[1].tolist(), estimate.mean, estimate.low, estimate.high)]


@pytest.mark.slow
def test_equal_questions_are_played_once_and_different_ones_are_not_confused(store: Store, played: list[int]) -> None:
    east, north = candidates(2)
    evaluator = Evaluator(store, TOY, {}, workers=1)
    first = evaluator.returns([east, north, east], SEEDS, mode="greedy", purpose="select")
    assert played == [2]
    assert first[0].tobytes() == first[2].tobytes()
    again = evaluator.returns([north, east], SEEDS, mode="greedy", purpose="report")
    assert played == [2]
    assert [returns.tolist() for returns in again] == [first[1].tolist(), first[0].tolist()]
    evaluator.returns([east], range(501, 511), mode="greedy", purpose="select")
    evaluator.returns([east], SEEDS, mode="sampled", purpose="select")
    Evaluator(store, TOY, {}, workers=1, max_steps=3).returns([east], SEEDS, mode="greedy", purpose="select")
    Evaluator(store, TOY, {"max_episode_steps": 5}, workers=1).returns([east], SEEDS, mode="greedy", purpose="select")
    assert played == [2, 1, 1, 1, 1]
    assert len(ask(store, "SELECT 1 FROM evaluations")) == 6


def test_some_seeds_of_what_was_played_are_not_played_again(store: Store, played: list[int]) -> None:
    evaluator = Evaluator(store, TOY, {}, workers=1)
    for _ in range(2):
        whole = evaluator.returns(candidates(2), SEEDS, mode="sampled", purpose="select")
        part = evaluator.returns(candidates(2), SEEDS[3:5], mode="sampled", purpose="select")
        assert [returns.tolist() for returns in part] == [returns[3:5].tolist() for returns in whole]
        assert played == [2]
        evaluator = Evaluator(store, TOY, {}, workers=1)
    evaluator.returns(candidates(2), SEEDS[3:5], mode="greedy", purpose="select")
    assert played == [2, 2]


def test_a_policy_that_was_played_under_another_name_is_not_played_again(store: Store, played: list[int]) -> None:
    (east,) = candidates(1)
    how = {"mode": "greedy", "purpose": "evaluate"}
    first = Evaluator(store, TOY, {}, workers=1).returns([replace(east, policy_id="a/folder")], SEEDS, **how)
    again = Evaluator(store, TOY, {}, workers=1).returns([east], SEEDS, **how)
    assert played == [1]
    assert first[0].tobytes() == again[0].tobytes()


def test_a_session_reads_once_what_was_played_before_and_writes_once_what_it_played(
    store: Store, played: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    connect = store.catalog.connect

    def spy(read_only: bool) -> Any:
        opened.append(read_only)
        return connect(read_only)

    monkeypatch.setattr(store.catalog, "connect", spy)

    def play(other: range = SEEDS[:0]) -> None:
        evaluator = Evaluator(store, TOY, {}, workers=1)
        with evaluator.session(SEEDS):
            for seeds in filter(None, (SEEDS[:4], SEEDS[4:], other)):
                evaluator.returns(candidates(2), seeds, mode="greedy", purpose="select")

    play()
    assert (played, opened) == ([2, 2], [True, False])
    play()
    assert (played, opened[2:]) == ([2, 2], [True])
    play(range(490, 500))  # seeds that the session was not announced with
    assert (played, opened[3:]) == ([2, 2, 2], [True, True, False])
    play(range(490, 500))
    assert (played, opened[6:]) == ([2, 2, 2], [True, True])


def test_an_endless_environment_is_cut_where_the_dataset_was(store: Store) -> None:
    (east,) = candidates(1)
    evaluator = Evaluator(store, Named("toy_environment:ToyEndless-v0"), {}, workers=1, max_steps=20)
    (returns,) = evaluator.returns([east], range(2), mode="greedy", purpose="select")
    assert np.all((returns >= 0) & (returns <= 20))


@pytest.mark.parametrize("pause", [0.0, 1e9])
def test_policies_that_were_played_before_an_interruption_are_not_played_again(
    store: Store, played: list[int], pause: float
) -> None:
    four, evaluator = candidates(), Evaluator(store, TOY, {}, workers=1, commit_s=pause)

    def interrupt(done: int, total: int) -> None:
        assert total == 40
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.returns(four, SEEDS, mode="greedy", purpose="select", advance=interrupt)
    assert len(ask(store, "SELECT 1 FROM evaluations")) == 2
    told: list[tuple[int, int]] = []
    found = evaluator.returns(four, SEEDS, mode="greedy", purpose="select", advance=lambda *line: told.append(line))
    assert played == [4, 2]
    assert told[-1] == (20, 20)
    assert told == sorted(told)
    assert sum(map(np.sum, found)) == 80  # every step pays one of the four directions
    assert len(ask(store, "SELECT 1 FROM evaluations")) == 4


@pytest.mark.slow
def test_the_number_of_processes_does_not_change_a_bit(tmp_path: Path) -> None:
    base = Candidate.of(make_baseline(REACH), "baseline")
    found = [
        Evaluator(Store.create(tmp_path / str(workers)), REACH, {}, workers).returns(
            [base], range(40), mode="sampled", purpose="report"
        )[0]
        for workers in (1, 2)
    ]
    assert found[0].tobytes() == found[1].tobytes()
