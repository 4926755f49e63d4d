"""A refinement with its controls: every arm is trained alike and reported on fresh seeds.

The gate chooses among an arm's candidates on one range of seeds, accepts the winner on a second and reports on a
third; a rejected arm leaves the baseline in place. In full, every candidate plays every selection seed and the winner
every acceptance seed. By racing, the weaker half drops out from rung to rung, and the test of the winner ends when it
is clear; the fields of all arms take a rung together. Draws of chance do not pass the gate: they are compared with the
annotator's arm on few common episodes, see `arms.py`, and share the report seeds. Statistics are in
`refine/evaluation/`, episodes in `evaluator.py`, rows of the catalog in `refinement/lineage.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from refine.config import Snapshot
from refine.evaluation import (
    ERROR_RATE,
    Decision,
    Interval,
    Rank,
    SeedPlan,
    Verdict,
    deal,
    decide_acceptance,
    decide_early,
    decide_strictly,
    interval,
    interval_over_draws,
    judge_improvement,
    judge_labels,
    lengthen,
    list_looks,
    list_rungs,
    pair_with_labels,
    paired_difference,
    rank,
    rank_survivors,
)
from refine.labels import ReferenceArm
from refine.policies import Mode
from storage.errors import BadInput
from storage.policies import FIRST_SEED
from storage.schema import Frozen

from ..runtime import Report, core_count, parallel_map, silent
from .arms import (
    CHANCE,
    CHOSEN,
    PLACEBOS,
    RANKED,
    RULES_PLAYED,
    AnyArm,
    ArmDraw,
    Entrant,
    Entry,
    Material,
    batches,
    draw_placebos,
    enter_few,
    find_candidates,
    keep_candidates,
    list_draws,
    play_fields,
    rank_entries,
    rules_of,
    tell_trained,
    train_draws,
)
from .evaluator import Candidate, Evaluator, Purpose, Returns

Promote = Literal["labels", "best"]
"""Which policy is put in force: that of the annotator's labels, or the best one of the arms that were accepted."""
SELECT: Mapping[Method, int] = {"racing": 12, "full": 24}
"""Selection episodes; in a race only the last two candidates play them all."""
ACCEPT: Mapping[Method, int] = {"racing": 192, "full": 60}
"""Acceptance episodes; a race needs them all only where the gain is small."""


class GateConfig(Frozen):
    """How much evidence the gate asks for; its three ranges of seeds follow each other from `first_seed`."""

    first_seed: int | None = Field(
        default=None, ge=0, description="first seed of the evaluation; null: the first one that nothing has used"
    )
    method: Method = Field(
        default="racing", description="racing: stop when it is clear; full: every candidate plays every episode"
    )
    select: int | None = Field(
        default=None,
        ge=2,
        description="episodes per candidate that choose among them, at most; null: 12, and 24 in full",
    )
    accept: int | None = Field(
        default=None,
        ge=10,
        description="episodes that accept the winner, paired with the baseline's, at most; null: 192, and 60 in full,"
        " and more for a smaller error rate",
    )
    error_rate: float = Field(
        default=ERROR_RATE,
        gt=0,
        le=ERROR_RATE,
        description="probability of accepting what is no better; of all nights together, in a deployment",
    )
    report: int = Field(
        default=100,
        ge=10,
        description="episodes that are reported and decide the verdicts; half as many, ten at least, in the other mode",
    )
    mode: Mode = Field(default="greedy", description="how policies act while they are chosen and accepted")
    placebo_draws: int = Field(
        default=19, ge=2, description="draws of each placebo, at most; 19 are the fewest that can credit the labels"
    )

    @property
    def seeds(self) -> SeedPlan:
        """The three ranges; without a first seed, where an empty catalog has them."""
        select = self.select or SELECT[self.method]
        accept = self.accept or lengthen(ACCEPT[self.method], self.error_rate)
        first = FIRST_SEED if self.first_seed is None else self.first_seed
        return SeedPlan.starting_at(first, select=select, accept=accept, report=self.report)

    def report_seeds(self, mode: Mode) -> range:
        """The seeds that are reported: all in the gate's own mode, half of them in the one that no verdict is about."""
        seeds = self.seeds.report
        return seeds if mode == self.mode else seeds[: max(10, len(seeds) // 2)]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The gate's result for one field of candidates."""

    selection: Sequence[float]  # mean return of each candidate on the selection seeds that it played
    episodes: Sequence[int]  # selection seeds that each candidate played
    winner: int  # index of the candidate that was tested
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Trial(Finding):
    """One arm after the gate, or one draw of chance, which does not pass it."""

    draw: ArmDraw
    candidates: Sequence[Candidate]
    snapshots: Sequence[Snapshot]  # of the same order; rules that may be put in force come after them
    kept: Candidate  # the winner if it was accepted, else the baseline
    reported: Candidate  # plays the report seeds: what is kept, and of a draw of chance its best, though untested
    common: float | None = None  # mean return over candidates on the common episodes; of what is ranked


@dataclass(frozen=True)
class ArmResult:
    """One row of the table: an arm, its draws pooled."""

    arm: str
    labels: int
    draws: int
    accepted: int  # draws that the gate accepted; draws of chance are not tested
    greedy: Interval
    sampled: Interval | None  # None when the policy has no distribution

    @property
    def is_tested(self) -> bool:
        """Whether it passed the gate."""
        return self.draws > 0 and self.arm not in CHANCE


@dataclass(frozen=True)
class Comparison:
    """The result: the table, the gate's decision about the annotator's labels, and the two verdicts."""

    arms: Sequence[ArmResult]
    decision: Decision
    improvement: Verdict
    credit: Verdict
    trials: Sequence[Trial] = field(repr=False)  # the annotator's labels come first
    returns: Mapping[Mode, Mapping[str, Returns]] = field(repr=False)
    """On the report seeds, by arm; draws of chance share the seeds."""
    competing: Sequence[str] = ("labels",)  # arms whose policy could be put in force
    chosen: int = 0  # index of the trial whose policy is in force, if it was accepted

    @property
    def promoted(self) -> Trial:
        """The trial whose policy is in force, if it was accepted."""
        return self.trials[self.chosen]

    @property
    def accepted(self) -> bool:
        """Whether another policy than the baseline is in force."""
        return self.promoted.decision.accepted

    @property
    def arm(self) -> str | None:
        """The arm whose policy is in force; None: the baseline is."""
        return self.promoted.draw.arm if self.accepted else None

    @property
    def policy_id(self) -> str:
        """The id of the policy in force now: the refined one, or the baseline."""
        return self.promoted.kept.policy_id


class _Share(NamedTuple):
    """A draw's part of the report seeds."""

    arm: str
    policy: Candidate
    part: slice


@dataclass(frozen=True)
class ComparisonPlan:
    """Takes the arms of one comparison through the gate.

    Args:
        material: dataset, labels, baseline and the refinement's configuration.
        evaluator: plays episodes and remembers them.
        gate: how much evidence is asked for.
        report: shown the progress.
        references: arms that only inform, outside the verdicts.
        promote_rules: whether the rules of each arm are one more of its candidates.
        promote: which policy is put in force.
    """

    material: Material
    evaluator: Evaluator
    gate: GateConfig
    report: Report = silent
    references: Sequence[ReferenceArm] = ()
    promote_rules: bool = False
    promote: Promote = "labels"
    _trained: dict[ArmDraw, Sequence[Snapshot]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def competing(self) -> tuple[AnyArm, ...]:
        """The arms whose policy may be put in force; each is tested with an equal part of the error rate."""
        if self.promote == "labels":
            return ("labels",)
        rules = self.material.played_rules
        alone = rules is not None and len(rules.lists) == 1 and not self.promote_rules
        return ("labels", "no_labels", *([RULES_PLAYED] if alone else []))

    @property
    def baseline(self) -> Candidate:
        """The policy that every arm started from."""
        made = Candidate.of(self.material.baseline, "baseline")
        return replace(made, policy_id=self.material.baseline_id or made.policy_id)

    def run(self) -> Comparison:
        """Train, select, accept and report every arm.

        Episodes are remembered, so running it again plays nothing twice and ends the same. It runs inside a session of
        its evaluator with all of its seeds, so that the catalog is opened rarely.

        Raises:
            BadInput: as `check` does.
        """
        self.check()
        draws = list_draws(self.gate.placebo_draws, self.references, labels=self.material.labels)
        tested = [draw for draw in draws if draw.arm not in CHANCE]
        chance = [draw for draw in draws if draw.arm in CHANCE]
        trained = self._train([*tested, *next(batches(chance), [])])[: len(tested)]  # what is needed in any case
        fields = [self._field(*each) for each in zip(tested, trained, strict=True)]
        if RULES_PLAYED in self.competing:
            tested, trained = [*tested, ArmDraw(RULES_PLAYED, 0)], [*trained, []]
            fields.append(list(self._rules.values()))
        trials = self._judge(tested, trained, fields)
        promoted = trials[self._choose(trials)]
        (own,) = self._enter(tested[:1])
        accepted = trials[0].decision.accepted
        entries = draw_placebos(own, chance, self._enter, self.gate.placebo_draws, accepted=accepted)
        arms = [*dict.fromkeys(draw.arm for draw in draws), RULES_PLAYED]
        trials = sorted(
            [*trials, *(self._untested(entry) for entry in entries)], key=lambda trial: arms.index(trial.draw.arm)
        )
        greedy = self._report(trials, "greedy", own)
        sampled = self._report(trials, "sampled", own) if self.material.baseline.is_stochastic else None
        chosen = next(place for place, trial in enumerate(trials) if trial is promoted)
        alike = self._report_alike(own, greedy if sampled is None or self.gate.mode == "greedy" else sampled)
        return self._conclude(
            trials, greedy, sampled, alike, rank_entries(own, entries, self.gate.placebo_draws), chosen
        )

    @cached_property
    def played(self) -> Mapping[str, Candidate]:
        """What is reported only: the annotator's rules, played, by the name of its arm."""
        return {} if RULES_PLAYED in self.competing else self._rules

    @cached_property
    def _rules(self) -> Mapping[str, Candidate]:
        rules = self.material.played_rules
        return {} if rules is None else {RULES_PLAYED: Candidate.of(rules, "rules")}

    def _field(self, draw: ArmDraw, snapshots: Sequence[Snapshot]) -> list[Candidate]:
        """The candidates of a draw; its rules are one more of them, if they may be put in force."""
        rules = rules_of(self.material, draw) if self.promote_rules else None
        refined = [Candidate.of(snapshot.policy, "refined") for snapshot in snapshots]
        return refined if rules is None else [*refined, Candidate.of(rules, "rules")]

    def check(self) -> None:
        """Check what can be checked before anything is trained.

        Raises:
            BadInput: without labels, or if the gate is to draw from a baseline that has no distribution.
        """
        if not len(self.material.labels):
            raise BadInput("There are no labels to refine with.", "Annotate the dataset first: trajnote annotate.")
        baseline = self.material.baseline
        if self.gate.mode == "sampled" and not baseline.is_stochastic:
            raise BadInput(
                f"The baseline has {baseline.output_kind} without a distribution, so the gate cannot draw its actions.",
                "Use --gate-mode greedy.",
            )

    def _train(self, draws: Sequence[ArmDraw]) -> list[Sequence[Snapshot]]:
        """The candidates of every draw; what was trained here before is remembered."""
        if new := [draw for draw in draws if draw not in self._trained]:
            self._train_new(new)
        return [self._trained[draw] for draw in draws]

    def _train_new(self, draws: Sequence[ArmDraw]) -> None:
        """Train draws, or find them in the cache; some at once in one thread of one process."""
        store, train, workers = self.evaluator.store, partial(train_draws, self.material), self.evaluator.workers
        known = {draw: found for draw in draws if (found := find_candidates(store, self.material, draw)) is not None}
        groups = _deal([draw for draw in draws if draw not in known], workers or core_count(), self.material.together)
        with closing(parallel_map(train, groups, workers)) as arriving:
            tell_trained(store, self.report, len(known), len(draws))
            for group, trained in zip(groups, arriving, strict=True):
                for draw, snapshots in zip(group, trained, strict=True):
                    keep_candidates(store, self.material, draw, snapshots)
                    known[draw] = snapshots
                tell_trained(store, self.report, len(known), len(draws))
        self._trained.update(known)

    def _judge(
        self,
        draws: Sequence[ArmDraw],
        trained: Sequence[Sequence[Snapshot]],
        fields: Sequence[Sequence[Candidate]],
    ) -> list[Trial]:
        """Choose the best candidate of each draw and accept it, or keep the baseline in force."""
        play = partial(self._returns, mode=self.gate.mode)
        gate = self.gate
        found = try_fields(play, self.baseline, fields, gate.seeds, gate.method, gate.error_rate)
        return [
            Trial(
                **vars(finding),
                draw=draw,
                candidates=candidates,
                snapshots=snapshots,
                kept=kept,
                reported=candidates[0] if draw.arm == RULES_PLAYED else kept,  # rules inform in any case
            )
            for draw, candidates, snapshots, finding in zip(draws, fields, trained, found, strict=True)
            for kept in [candidates[finding.winner] if finding.decision.accepted else self.baseline]
        ]

    def _choose(self, trials: Sequence[Trial]) -> int:
        """The accepted trial, of those that compete, that returns most in equally many episodes; else the first."""
        accepted = [n for n, trial in enumerate(trials) if trial.draw.arm in self.competing and trial.decision.accepted]
        if len(accepted) < 2:
            return next(iter(accepted), 0)
        seeds = self.gate.seeds.accept
        looks = list_looks(len(seeds)) if self.gate.method == "racing" else [len(seeds)]
        most = max(trials[n].decision.gain.n for n in accepted)
        parts = [seeds[begin:end] for begin, end in itertools.pairwise([0, *looks]) if end <= most]
        candidates = [trials[n].kept for n in accepted]
        played = [self._returns(candidates, part, "accept", mode=self.gate.mode) for part in parts]
        means = [float(np.concatenate(returns).mean()) for returns in zip(*played, strict=True)]
        return accepted[int(np.argmax(means))]

    def _enter(self, draws: Sequence[ArmDraw]) -> list[Entry]:
        """Train draws and play their candidates on the common seeds, beside the baseline."""
        trained = [enter_few(snapshots) for snapshots in self._train(draws)]
        entrants = [
            Entrant(draw, self._field(draw, snapshots), snapshots)
            for draw, snapshots in zip(draws, trained, strict=True)
        ]
        mode: Mode = "sampled" if self.material.baseline.is_stochastic else "greedy"
        seeds, play = self.gate.seeds.select, self._play_common
        ranked = play_fields([entrant.ranked for entrant in entrants], play, seeds[:RANKED], mode)
        fields = [[self.baseline], *(entrant.candidates for entrant in entrants)]
        own, *tried = play_fields(fields, play, seeds[:CHOSEN], self.gate.mode)
        return [
            Entry(entrant, float(np.mean(common)), returns, own[0])
            for entrant, common, returns in zip(entrants, ranked, tried, strict=True)
        ]

    def _play_common(self, candidates: Sequence[Candidate], seeds: range, mode: Mode) -> list[Returns]:
        return self._returns(candidates, seeds, "select", mode=mode)

    def _untested(self, entry: Entry) -> Trial:
        """A draw of chance as a trial: it leaves the baseline in force."""
        gain = paired_difference(entry.tried[entry.best], entry.before)
        reason = f"not tested: a draw of chance; its best candidate's gain in {gain.n} selection episodes is {gain}"
        return Trial(
            draw=entry.draw,
            candidates=entry.entrant.candidates,
            snapshots=entry.entrant.snapshots,
            selection=entry.selection,
            episodes=[len(returns) for returns in entry.tried],
            winner=entry.best,
            decision=Decision(False, reason, gain),
            kept=self.baseline,
            reported=entry.winner or self.baseline,
            common=entry.common,
        )

    def _report(self, trials: Sequence[Trial], mode: Mode, own: Entry) -> dict[str, Returns]:
        """Returns on the report seeds of the baseline and of what each arm led to; draws of chance share the seeds.

        What `_report_alike` asks for is played beside them.
        """
        tested = {trial.draw.arm: trial.reported for trial in trials if trial.draw.arm not in CHANCE}
        whole = {"baseline": self.baseline, **tested, **self.played}
        seeds = self.gate.report_seeds(mode)
        shares = list(self._share_seeds(trials, len(seeds)))
        also = [own.winner or self.baseline] if mode == self.gate.mode else []
        candidates = [*whole.values(), *(share.policy for share in shares), *also]
        each = [*[seeds] * len(whole), *(seeds[share.part] for share in shares), *[seeds] * len(also)]
        played = iter(self._returns(candidates, each, "report", mode=mode))
        found = {arm: next(played) for arm in whole}
        for arm in dict.fromkeys(trial.draw.arm for trial in trials if trial.draw.arm in CHANCE):
            found[arm] = found["baseline"].copy()  # what a draw that is no better leaves in force
        for share in shares:
            found[share.arm][share.part] = next(played)
        return found

    def _share_seeds(self, trials: Sequence[Trial], count: int) -> Iterator[_Share]:
        """Who plays which part of the report seeds for an arm of chance, where that is another than the baseline."""
        for arm in dict.fromkeys(trial.draw.arm for trial in trials if trial.draw.arm in CHANCE):
            drawn = [trial.reported for trial in trials if trial.draw.arm == arm]
            for policy, part in zip(drawn, deal(count, len(drawn)), strict=False):
                if policy != self.baseline:
                    yield _Share(arm, policy, part)

    def _report_alike(self, own: Entry, judged: Mapping[str, Returns]) -> dict[str, Returns]:
        """The judged returns, the annotator's arm chosen as draws of chance are: from the common episodes."""
        (returns,) = self._returns([own.winner or self.baseline], self.gate.seeds.report, "report", mode=self.gate.mode)
        return {**judged, "labels": returns}

    def _returns(
        self, candidates: Sequence[Candidate], seeds: range | Sequence[range], purpose: Purpose, *, mode: Mode
    ) -> list[Returns]:
        words = {"select": "choose a candidate", "accept": "accept or reject", "report": f"report, {mode}"}
        advance: Callable[[int, int], None] = lambda done, total: self.report(words[purpose], done, total)  # noqa: E731
        return self.evaluator.returns(candidates, seeds, mode=mode, purpose=purpose, advance=advance)

    def _conclude(
        self,
        trials: Sequence[Trial],
        greedy: Mapping[str, Returns],
        sampled: Mapping[str, Returns] | None,
        alike: Mapping[str, Returns],
        ranks: Sequence[Rank],
        chosen: int,
    ) -> Comparison:
        decision, promoted = trials[0].decision, trials[chosen]
        arms = dict.fromkeys(trial.draw.arm for trial in trials)
        judged = greedy if sampled is None or self.gate.mode == "greedy" else sampled
        leads = {
            arm: pair_with_labels(judged["labels"] if arm == "no_labels" else alike["labels"], alike[arm], draws)
            for arm in PLACEBOS
            if (draws := sum(trial.draw.arm == arm for trial in trials))
        }
        return Comparison(
            arms=[self._arm_result(arm, trials, greedy, sampled) for arm in ("baseline", *arms, *self.played)],
            decision=decision,
            improvement=judge_improvement(
                judged[promoted.draw.arm], judged["baseline"], accepted=promoted.decision.accepted
            ),
            credit=judge_labels(ranks, leads, accepted=decision.accepted),
            trials=trials,
            returns={"greedy": greedy, "sampled": sampled or {}},
            competing=self.competing,
            chosen=chosen,
        )

    def _arm_result(
        self, arm: str, trials: Sequence[Trial], greedy: Mapping[str, Returns], sampled: Mapping[str, Returns] | None
    ) -> ArmResult:
        own = [trial for trial in trials if trial.draw.arm == arm]
        return ArmResult(
            arm=arm,
            labels=0 if arm in ("baseline", "no_labels", RULES_PLAYED) else len(self.material.labels),
            draws=len(own),
            accepted=sum(trial.decision.accepted for trial in own),
            greedy=_interval_of(greedy[arm], len(own)),
            sampled=None if sampled is None else _interval_of(sampled[arm], len(own)),
        )


def _deal(draws: Sequence[ArmDraw], workers: int, most: int) -> list[list[ArmDraw]]:
    """Draws in groups of at most so many, as many groups for each worker."""
    groups = min(len(draws), workers * -(-len(draws) // (workers * most)))
    return [list(draws[turn::groups]) for turn in range(groups)]


def _interval_of(returns: Returns, draws: int) -> Interval:
    """Over episodes, or over the draws that shared them."""
    return interval(returns) if draws < 2 else interval_over_draws(returns, draws)


Method = Literal["racing", "full"]
Play = Callable[[Sequence[Candidate], range, Purpose], list[Returns]]
"""Returns of the candidates on the seeds, (S,) each."""


def try_fields(
    play: Play,
    baseline: Candidate,
    fields: Sequence[Sequence[Candidate]],
    plan: SeedPlan,
    method: Method,
    error: float = ERROR_RATE,
) -> list[Finding]:
    """Choose a winner in each field and accept or reject it.

    Args:
        play: plays episodes; may be called again for equal ones.
        baseline: the policy to beat.
        fields: the candidates of each refinement, at least one each.
        plan: the seeds; racing uses the first of them.
        method: full or racing.
        error: probability of accepting a winner that is no better.

    Returns:
        One finding per field.
    """
    return (_race if method == "racing" else _try_in_full)(play, baseline, fields, plan, error)


def _try_in_full(
    play: Play, baseline: Candidate, fields: Sequence[Sequence[Candidate]], plan: SeedPlan, error: float
) -> list[Finding]:
    played = iter(play([candidate for candidates in fields for candidate in candidates], plan.select, "select"))
    selection = [[next(played) for _ in candidates] for candidates in fields]
    winners = [int(rank({str(n): found for n, found in enumerate(returns)})[0]) for returns in selection]
    tested = [candidates[winner] for candidates, winner in zip(fields, winners, strict=True)]
    before, *after = play([baseline, *tested], plan.accept, "accept")
    decisions = [decide_acceptance(reached, before) for reached in after]
    if error < ERROR_RATE:
        (selected,) = play([baseline], plan.select, "select")
        worst = [float((np.array(returns) - selected).min()) for returns in selection]
        decisions = [decide_strictly(r - before, worst=w, error=error) for r, w in zip(after, worst, strict=True)]
    return [
        Finding(
            selection=[float(found.mean()) for found in returns],
            episodes=[len(found) for found in returns],
            winner=winner,
            decision=decision,
        )
        for returns, winner, decision in zip(selection, winners, decisions, strict=True)
    ]


@dataclass
class _Racers:
    """The state of one field in the race."""

    candidates: Sequence[Candidate]
    returns: list[Returns] = field(init=False)  # of each candidate, so far
    alive: list[int] = field(init=False)
    differences: Returns = field(default_factory=lambda: np.empty(0))  # of the winner from the baseline, so far
    decision: Decision | None = None

    def __post_init__(self) -> None:
        self.returns = [np.empty(0) for _ in self.candidates]
        self.alive = list(range(len(self.candidates)))

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
        counts = [len(returns) for returns in self.returns]
        return Finding(selection=means, episodes=counts, winner=self.alive[0], decision=self.decision)


def _race(
    play: Play, baseline: Candidate, fields: Sequence[Sequence[Candidate]], plan: SeedPlan, error: float
) -> list[Finding]:
    racers = [_Racers(candidates) for candidates in fields]
    _halve(play, racers, plan.select)
    (before,) = play([baseline], plan.select, "select")
    worst = [each.worst_difference(before) for each in racers]
    _accept(play, baseline, racers, worst, plan.accept, error)
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


def _accept(
    play: Play, baseline: Candidate, racers: Sequence[_Racers], worst: Sequence[float], seeds: range, error: float
) -> None:
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
            each.decision = decide_early(each.differences, most=len(seeds), worst=worst[n], error=error)
        begin = look
