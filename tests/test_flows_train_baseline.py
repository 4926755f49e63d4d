"""Training a baseline: when it stops, that chance has no say in it, and what it writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flows.policies.loading import load_policy
from flows.policies.train_baseline import EVALUATION_SEEDS, TrainConfig, is_plateau, train_baseline
from flows.simulation.environments import make_environment, spaces_of
from flows.simulation.rollouts import returns_of
from flows.simulation.trust import Named
from storage.errors import BadInput

pytest.importorskip("stable_baselines3")

TINY = {"n_steps": 16, "batch_size": 32, "n_epochs": 1}
CONFIG = TrainConfig(
    env_id="CartPole-v1", ppo=TINY, timesteps=512, evaluate_every=256, evaluation_episodes=4, patience=0
)


@pytest.mark.parametrize(
    ("returns", "patience", "tolerance", "expected"),
    [
        ([-227.0, -130.0, -109.0], 2, 1 / 3, False),  # nothing rose before the last two: they rose from the first
        ([-227.0, -130.0, -109.0, -103.0], 2, 1 / 3, True),  # 27 after 97
        ([-227.0, -130.0, -109.0, -97.0], 2, 1 / 3, False),  # 33 after 97
        ([0.0, 100.0, 90.0], 1, 0.1, True),
        ([0.0, 100.0, 111.0], 1, 0.1, False),
        ([100.0, 50.0], 1, 0.1, True),  # it only fell
        ([100.0, 100.0], 1, 0.1, False),  # nothing was learned yet
        ([0.0, 0.0, 0.0, 0.0], 0, 0.1, False),
        ([5.0], 1, 0.1, False),
    ],
)
def test_a_plateau_is_too_little_rise_for_the_rise_before(
    returns: list[float], patience: int, tolerance: float, expected: bool
) -> None:
    assert is_plateau(returns, patience, tolerance) is expected


@pytest.mark.slow
def test_equal_configurations_give_equal_policies_which_act_as_was_logged(tmp_path: Path) -> None:
    first = train_baseline(CONFIG, tmp_path / "first", keep_zip=True)
    second = train_baseline(CONFIG, tmp_path / "second")
    other = train_baseline(CONFIG.model_copy(update={"seed": 1}), tmp_path / "other")
    assert first == second
    assert (tmp_path / "first/weights.npz").read_bytes() == (tmp_path / "second/weights.npz").read_bytes()
    assert first.policy_sha256 != other.policy_sha256
    assert [evaluation.timesteps for evaluation in first.evaluations] == [256, 512]
    assert first.stopped == "the budget of 512 steps is used up"

    make = partial(make_environment, "CartPole-v1")
    spaces = spaces_of(make())
    policy = load_policy(f"policy:{tmp_path / 'first'}", spaces)
    assert policy.sha256 == first.policy_sha256
    for mode in ("greedy", "sampled"):
        returns = returns_of(make, policy, EVALUATION_SEEDS[:4], mode=mode)
        assert float(np.mean(returns)) == getattr(first.evaluations[-1], mode)
    assert load_policy(Named(f"sb3:PPO:{tmp_path / 'first/model.zip'}"), spaces).sha256 == policy.sha256
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "policy.json",
        "training.json",
        "weights.npz",
    ]


@pytest.mark.slow
def test_a_second_run_reads_what_is_there_and_another_one_is_refused(tmp_path: Path) -> None:
    first = train_baseline(CONFIG, tmp_path)
    written = (tmp_path / "training.json").stat().st_mtime_ns
    assert train_baseline(CONFIG, tmp_path) == first
    assert (tmp_path / "training.json").stat().st_mtime_ns == written
    with pytest.raises(BadInput, match="trained differently"):
        train_baseline(CONFIG.model_copy(update={"seed": 2}), tmp_path)


def test_training_stops_at_its_first_plateau(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"patience": 1, "tolerance": 10.0, "timesteps": 20_000})
    training = train_baseline(config, tmp_path)
    greedy = [evaluation.greedy for evaluation in training.evaluations]
    assert [is_plateau(greedy[:count], 1, 10.0) for count in range(1, len(greedy))] == [False] * (len(greedy) - 1)
    assert is_plateau(greedy, 1, 10.0)
    assert training.stopped == "the greedy return rose too little over the last 1 evaluations"
    assert training.evaluations[-1].timesteps < 20_000


def test_an_argument_that_ppo_refuses_is_named(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"ppo": {"momentum": 1}})
    with pytest.raises(BadInput, match=r'PPO refuses \{"momentum": 1\}.*momentum'):
        train_baseline(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
