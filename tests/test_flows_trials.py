"""Fields of candidates before the gate, with returns that are written down instead of played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from toy_environment import TOY

from flows.refinement.arms import enter_few, last_of_each
from flows.refinement.comparison import Finding, Method, try_fields
from flows.refinement.evaluator import Candidate, Returns
from flows.simulation.environments import look_up_spaces
from refine.config import Snapshot
from refine.evaluation.gate import SeedPlan
from refine.policies.mlp import MlpPolicy

PLAN = SeedPlan.starting_at(0, select=24, accept=96, report=10)
SHORT_PLAN = SeedPlan.starting_at(0, select=12, accept=13, report=10)
SPREAD = 10.0


def make_networks(count: int) -> list[MlpPolicy]:
    spaces = look_up_spaces(TOY, {})
    rng = np.random.default_rng(0)
    size, width = spaces.observation.size, int(spaces.action.n or 1)
    return [
        MlpPolicy(*spaces, (rng.normal(size=(size, width)),), (np.zeros(width),), "tanh", "logits")
        for _ in range(count)
    ]


def contestants(count: int) -> list[Candidate]:
    return [Candidate.of(network, "refined") for network in make_networks(count)]


class Table:
    """Returns by policy and seed: a true mean for each policy, and chance that depends on policy and seed alone."""

    def __init__(self, means: dict[str, float]) -> None:
        self._means = means
        self.played: Counter[str] = Counter()

    def play(self, wanted: Sequence[Candidate], seeds: range, purpose: str) -> list[Returns]:
        if len(seeds) < 2:
            raise ValueError("a judge wants two episodes at least")
        self.played.update({c.policy_id: len(seeds) for c in {c.policy_id: c for c in wanted}.values()})
        return [np.array([self._return(c, seed) for seed in seeds]) for c in wanted]

    def _return(self, contestant: Candidate, seed: int) -> float:
        chance = np.random.default_rng([seed, int(contestant.sha256[:8], 16)]).normal(0, SPREAD)
        return self._means[contestant.policy_id] + float(chance)


def judge(method: Method, gains: Sequence[float]) -> tuple[Finding, Table, list[Candidate]]:
    baseline, *candidates = contestants(1 + len(gains))
    means = dict(zip([c.policy_id for c in (baseline, *candidates)], [0.0, *gains], strict=True))
    table = Table(means)
    (finding,) = try_fields(table.play, baseline, [candidates], PLAN, method)
    return finding, table, candidates


@pytest.mark.slow
@pytest.mark.parametrize("method", ["racing", "full"])
def test_the_one_good_candidate_of_ten_wins_and_is_accepted(method: Method) -> None:
    finding, _, _ = judge(method, [-30, -20, -10, 0, 0, 0, 60, 0, -10, -20])
    assert finding.winner == 6
    assert finding.decision.accepted
    assert finding.decision.gain.mean == pytest.approx(60, abs=8)


@pytest.mark.parametrize("method", ["racing", "full"])
def test_ten_candidates_that_are_worse_are_rejected(method: Method) -> None:
    finding, _, _ = judge(method, [-30.0] * 10)
    assert not finding.decision.accepted
    assert finding.decision.gain.mean == pytest.approx(-30, abs=8)


def test_a_race_plays_the_hopeless_least_and_stops_when_it_is_clear() -> None:
    gains = [-30.0, -20.0, -10.0, 0.0, 0.0, 0.0, 60.0, 0.0, -10.0, -20.0]
    raced, few, candidates = judge("racing", gains)
    full, many, _ = judge("full", gains)
    assert sorted(raced.episodes) == [3, 3, 3, 3, 3, 6, 6, 12, 24, 24]
    assert list(full.episodes) == [24] * 10
    assert raced.episodes[6] == 24
    assert raced.decision.gain.n < full.decision.gain.n == 96
    assert few.played[candidates[0].policy_id] == 3
    assert few.played.total() < many.played.total() / 3


def test_what_a_field_plays_does_not_depend_on_the_fields_beside_it() -> None:
    baseline, *candidates = contestants(9)
    means = {c.policy_id: 5.0 * n for n, c in enumerate((baseline, *candidates))}
    fields = [candidates[:3], candidates[3:]]
    for plan in (PLAN, SHORT_PLAN):
        together = try_fields(Table(means).play, baseline, fields, plan, "racing")
        alone = [try_fields(Table(means).play, baseline, [field], plan, "racing")[0] for field in fields]
        assert together == alone


@pytest.mark.parametrize(
    ("betas", "stops", "entered", "ranked"),
    [
        ((0.1, 0.3), (100, 300, 1000, 2000), [(0.1, 300), (0.1, 2000), (0.3, 2000)], [1, 2]),
        ((0.1, 0.3), (100, 300, 1000), [(0.1, 100), (0.1, 1000), (0.3, 1000)], [1, 2]),
        ((0.1,), (100, 300, 1000), [(0.1, 100), (0.1, 300), (0.1, 1000)], [1, 2]),
        ((0.1,), (100,), [(0.1, 100)], [0]),
    ],
)
def test_arms_enter_every_second_candidate_of_the_smallest_beta_and_are_ranked_by_the_last_ones(
    betas: Sequence[float], stops: Sequence[int], entered: list[tuple[float, int]], ranked: list[int]
) -> None:
    (policy,) = make_networks(1)
    found = enter_few([Snapshot(policy, step, beta) for beta in betas for step in stops])
    assert [(snapshot.beta, snapshot.step) for snapshot in found] == entered
    assert last_of_each(found, len(found)) == ranked
