"""`evaluate`: a policy of the store knows its environment; equal questions are answered from the catalog."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import state_of
from toy_environment import REACH, TOY, gather_toys, make_baseline, save_folder

from flows.refinement import evaluator as judging
from flows.refinement.evaluator import EvaluateConfig, evaluate
from flows.simulation.environments import make_environment
from flows.simulation.rollouts import returns_of
from refine.evaluation.gate import interval
from storage.errors import BadInput
from storage.store import Store


def play(store: Store, policy: str, **changes: Any) -> dict[str, Any]:
    return evaluate(store, EvaluateConfig(**{"policy": policy, "episodes": 12, "workers": 1, **changes}))


@pytest.fixture
def toys(store: Store, tmp_path: Path) -> Store:
    """A store with the toy's baseline and a dataset of it."""
    gather_toys(store, tmp_path)
    return store


@pytest.mark.slow
def test_a_stored_policy_is_played_where_it_is_at_home(toys: Store) -> None:
    name = f"baseline-{make_baseline().sha256[:12]}"
    expected = returns_of(partial(make_environment, TOY), make_baseline(), range(5_000_000, 5_000_012))
    estimate = interval(expected)
    for given in (name, name[:12], f"policy:{name}"):
        assert play(toys, given) == {
            "policy_id": name,
            "env_id": TOY,
            "mode": "greedy",
            "episodes": 12,
            "seed": 5_000_000,
            "return": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
        }


@pytest.mark.slow
def test_equal_questions_are_answered_without_playing(toys: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = play(toys, "baseline", mode="sampled")
    before = state_of(toys.root)
    monkeypatch.setattr(judging, "play_policies", None)
    assert play(toys, "baseline", mode="sampled") == first
    assert state_of(toys.root) == before
    with pytest.raises(TypeError):
        play(toys, "baseline", mode="greedy")


@pytest.mark.slow
def test_arguments_of_the_environment_change_what_is_played(toys: Store) -> None:
    shorter = play(toys, "baseline", env_kwargs={"max_episode_steps": 1})
    assert 0 <= shorter["return"] <= 1
    assert play(toys, "baseline")["return"] > shorter["return"]


@pytest.mark.slow
def test_a_policy_is_cut_where_the_dataset_of_its_home_was(store: Store, tmp_path: Path) -> None:
    gather_toys(store, tmp_path, "toy_environment:ToyEndless-v0", max_steps=15)
    assert 0 < play(store, "baseline", episodes=2)["return"] <= 15


@pytest.mark.slow
def test_chance_is_played_as_chance_whatever_mode_is_asked_for(store: Store) -> None:
    asked = [play(store, "random", env_id=TOY, mode=mode, episodes=200) for mode in ("greedy", "sampled")]
    assert asked[0] == asked[1]
    assert asked[0]["mode"] == "sampled"
    assert asked[0]["return"] == pytest.approx(2.0, abs=4 * np.sqrt(8 * 3 / 16 / 200))
    assert len(state_of(store.root)["tables"]["evaluations"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"policy": "refined-none"}, "no policy 'refined-none'"),
        ({"policy": "baseline", "env_id": REACH}, "made for an action space with kind discrete.*has box"),
        ({"policy": "baseline", "env_id": "CartPole-v1"}, r"made for an observation space with size 2; .* has 4"),
        ({"policy": "baseline", "env_id": "Toy-v9"}, "Unknown environment"),
        ({"policy": "random"}, "Which environment is random for. Name it with --env"),
        ({"policy": "py:math:floor"}, "Which environment is py:math:floor for"),
        ({"policy": "baseline", "env_kwargs": {"colour": 1}}, "cannot be made with"),
    ],
)
def test_what_cannot_be_played_is_refused_and_nothing_is_written(
    toys: Store, changes: dict[str, Any], problem: str
) -> None:
    before = state_of(toys.root)
    with pytest.raises(BadInput, match=problem):
        play(toys, **changes)
    assert state_of(toys.root) == before


def test_q_values_are_not_drawn_from(store: Store, tmp_path: Path) -> None:
    folder = save_folder(make_baseline(head="q_values"), tmp_path / "q")
    assert play(store, f"policy:{folder}", env_id=TOY)["mode"] == "greedy"
    with pytest.raises(BadInput, match=r"q_values without a distribution.*Use --mode greedy"):
        play(store, f"policy:{folder}", env_id=TOY, mode="sampled")
