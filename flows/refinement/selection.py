"""Fields of candidates in the gate: the best of each is chosen, then accepted or rejected.

In full, every candidate plays every selection seed and the winner every acceptance seed. By racing, the weaker half
drops out from rung to rung, and the test of the winner ends when it is clear. The fields advance together to keep
all processes busy; what each plays does not depend on the others. The statistics are in `refine/`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from refine.evaluation import (
    Decision,
    SeedPlan,
    decide_acceptance,
    decide_early,
    list_looks,
    list_rungs,
    rank,
    rank_survivors,
)

from .evaluator import Candidate, Purpose, Returns

Method = Literal["racing", "full"]
Play = Callable[[Sequence[Candidate], range, Purpose], list[Returns]]
"""Returns of the contestants on the seeds, (S,) each."""


@dataclass(frozen=True)
class Finding:
    """The gate's result for one field."""

    selection: Sequence[float]  # mean return of each candidate on the selection seeds that it played
    episodes: Sequence[int]  # selection seeds that each candidate played
    winner: int  # index of the candidate that was tested
    decision: Decision


def try_fields(
    play: Play, baseline: Candidate, fields: Sequence[Sequence[Candidate]], plan: SeedPlan, method: Method
) -> list[Finding]:
    """Choose a winner in each field and accept or reject it.

    Args:
        play: plays episodes; may be called again for equal ones.
        baseline: the policy to beat.
        fields: the candidates of each refinement, at least one each.
        plan: the seeds; racing uses the first of them.
        method: full or racing.

    Returns:
        One finding per field.
    """
    return (_race if method == "racing" else _try_in_full)(play, baseline, fields, plan)


def _try_in_full(
    play: Play, baseline: Candidate, fields: Sequence[Sequence[Candidate]], plan: SeedPlan
) -> list[Finding]:
    played = iter(play([candidate for candidates in fields for candidate in candidates], plan.select, "select"))
    selection = [[next(played) for _ in candidates] for candidates in fields]
    winners = [int(rank({str(n): found for n, found in enumerate(returns)})[0]) for returns in selection]
    tested = [candidates[winner] for candidates, winner in zip(fields, winners, strict=True)]
    before, *after = play([baseline, *tested], plan.accept, "accept")
    return [
        Finding(
            selection=[float(found.mean()) for found in returns],
            episodes=[len(found) for found in returns],
            winner=winner,
            decision=decide_acceptance(reached, before),
        )
        for returns, winner, reached in zip(selection, winners, after, strict=True)
    ]


@dataclass
class _Racers:
    """The state of one field in the race."""

    candidates: Sequence[Candidate]
    returns: list[Returns]  # of each candidate, so far
    alive: list[int]
    differences: Returns = field(default_factory=lambda: np.empty(0))  # of the winner from the baseline, so far
    decision: Decision | None = None

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> _Racers:
        return cls(candidates, [np.empty(0) for _ in candidates], list(range(len(candidates))))

    @property
    def winner(self) -> Candidate:
        return self.candidates[self.alive[0]]

    def worst_difference(self, before: Returns) -> float:
        """The smallest difference of any candidate from the baseline on the selection seeds; returns are (S,)."""
        return min(float((returns - before[: len(returns)]).min()) for returns in self.returns)

    def finding(self) -> Finding:
        if self.decision is None:
            raise RuntimeError("The race is not over.")
        means = [float(returns.mean()) for returns in self.returns]
        return Finding(means, [len(returns) for returns in self.returns], self.alive[0], self.decision)


def _race(play: Play, baseline: Candidate, fields: Sequence[Sequence[Candidate]], plan: SeedPlan) -> list[Finding]:
    racers = [_Racers.of(candidates) for candidates in fields]
    _halve(play, racers, plan.select)
    (before,) = play([baseline], plan.select, "select")
    worst = [each.worst_difference(before) for each in racers]
    _accept(play, baseline, racers, worst, plan.accept)
    return [each.finding() for each in racers]


def _halve(play: Play, racers: Sequence[_Racers], seeds: range) -> None:
    """Halve every field until its best candidate is left; fields of one size climb the rungs together."""
    for size in dict.fromkeys(len(each.candidates) for each in racers):
        _climb(play, [each for each in racers if len(each.candidates) == size], seeds)


def _climb(play: Play, racers: Sequence[_Racers], seeds: range) -> None:
    rungs = list_rungs(len(racers[0].candidates), len(seeds))
    begin = 0
    for rung, following in itertools.zip_longest(rungs, rungs[1:]):
        playing = [each.candidates[index] for each in racers for index in each.alive]
        played = iter(play(playing, seeds[begin : rung.episodes], "select"))
        for each in racers:
            for index in each.alive:
                each.returns[index] = np.append(each.returns[index], next(played))
            each.alive = rank_survivors(each.returns, each.alive, following.entrants if following else 1)
        begin = rung.episodes


def _accept(play: Play, baseline: Candidate, racers: Sequence[_Racers], worst: Sequence[float], seeds: range) -> None:
    """Play the winners and the baseline, look by look, until every field is decided."""
    begin = 0
    for look in list_looks(len(seeds)):
        running = [n for n, each in enumerate(racers) if each.decision is None]
        if not running:
            return
        before, *after = play([baseline, *(racers[n].winner for n in running)], seeds[begin:look], "accept")
        for n, reached in zip(running, after, strict=True):
            each = racers[n]
            each.differences = np.append(each.differences, reached - before)
            each.decision = decide_early(each.differences, most=len(seeds), worst=worst[n])
        begin = look
