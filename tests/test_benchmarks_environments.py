"""The board's own environments: their cards' claims hold, and the sparse robots are paid as they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import benchmarks.environments  # registers them
from annotate.cards.cards import load_card
from benchmarks.environments import SparseReward
from flows.cards.probe import probe_card
from flows.simulation.trust import Named

CARDS = Path(benchmarks.environments.__file__).parent / "cards"
NEEDS = {"doorkey": "minigrid", "pongobjects": "ale_py"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_claim_of_a_card_of_the_board_holds(path: Path):
    package = NEEDS.get(path.stem, "mujoco")
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    card = load_card(path)
    findings = probe_card(card, env_id=Named(card.env_id), trials=4, steps=2500)
    assert findings
    assert [f"{finding.claim.text}: {finding.evidence}" for finding in findings if not finding.held] == []


class Walk(gymnasium.Env[Any, Any]):
    """A walker that is one metre further in every step."""

    def __init__(self) -> None:
        self.x = 0.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += 1.0
        return np.zeros(1), 100.0, False, False, {"x_position": self.x}


def test_a_sparse_robot_is_paid_its_position_beyond_the_mark_only():
    environment = SparseReward(Walk(), mark=2.0)
    assert [environment.step(0)[1] for _ in range(4)] == [0.0, 0.0, 3.0, 4.0]
