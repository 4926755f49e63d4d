"""Labels against a gold set: how often suggestions and `critical` are right, and which of two annotators more often.

A gold set is what a trusted reader says of some states. A suggestion is right where it is the reader's action: equal
when discrete, else each number within 5% of its range, as the views say. "No better action" is the action that was
done. A state counts once for each annotator, whatever the number of its samples there: by most of them. Shares of few
cases have their intervals, and tests of which of two sides is right more often are exact.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second

from storage.errors import BadInput
from storage.schema import Space

from .placement import EDGES, Bools, Floats, action_extent, same_actions
from .verdict import FEW_LABELS

_DRAWS = 4_000  # from a posterior
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
_TINY = 1e-9

Place = tuple[int, int]
"""Episode and step."""


class Rate(NamedTuple):
    """A share of some cases with its exact interval (Clopper and Pearson, Biometrika 1934)."""

    hits: int
    n: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, cases: Iterable[bool]) -> Rate | None:
        """The share of the true ones; None without a case."""
        known = list(cases)
        return cls.counted(sum(known), len(known)) if known else None

    @classmethod
    def counted(cls, hits: int, n: int) -> Rate:
        """The share of `hits` among `n` > 0 cases."""
        interval = scipy.stats.binomtest(hits, n).proportion_ci(CONFIDENCE, "exact")
        return cls(hits, n, hits / n, float(interval.low), float(interval.high))


class Estimated(NamedTuple):
    """A share that is no plain count, with a 95% interval, and the states behind it."""

    share: float
    low: float
    high: float
    n: int  # states
    positive: int  # of them: the higher side of an order, or those that the reader calls critical


class Paired(NamedTuple):
    """Two sides judged on the same states, and the exact McNemar test of their difference."""

    states: int
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float

    @classmethod
    def of(cls, cases: Sequence[tuple[bool, bool]]) -> Paired:
        """Of (first is right, second is right) on each state."""
        counted = Counter(cases)
        first, second = counted[True, False], counted[False, True]
        p = float(scipy.stats.binomtest(min(first, second), first + second).pvalue) if first + second else 1.0
        return cls(len(cases), counted[True, True], first, second, counted[False, False], p)


def order_of(high: Sequence[float], low: Sequence[float]) -> Estimated | None:
    """Probability that one of the first numbers is above one of the second, ties half; None without both.

    The interval is Newcombe's score interval (Statistics in Medicine 2006, method 5), which holds for few states too.
    """
    if not high or not low:
        return None
    one, other = np.array(high)[:, None], np.array(low)[None, :]
    share = float(((one > other) + 0.5 * (one == other)).mean())
    pairs, extra = len(high) * len(low), (len(high) + len(low)) / 2 - 1
    z = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))

    def beyond(true: float) -> float:
        spread = true * (1 - true) * (1 + extra * (1 - true) / (2 - true) + extra * true / (1 + true)) / pairs
        return (true - share) ** 2 - z**2 * spread

    def end(edge: float) -> float:
        if abs(edge - share) <= _TINY:
            return edge
        inside = share + _TINY * (1 if edge > share else -1)
        return float(scipy.optimize.root_scalar(beyond, bracket=sorted((edge, inside)), method="brentq").root)

    return Estimated(share, end(0.0), end(1.0), len(high) + len(low), len(high))


@dataclass(frozen=True)
class Opinion:
    """What one annotator says of one step, beside what was done there."""

    opinion_id: str  # of the annotation or the rule
    run_id: str
    model: str
    prompt_version: str | None
    place: Place
    suggested: tuple[float, ...] | None
    label: str | None  # the suggestion in words
    logged: tuple[float, ...]
    critical: bool | None
    grade: float | None  # of what was done, in [-1, 1]
    confidence: float | None


@dataclass(frozen=True)
class GoldState:
    """What the readers of a gold set say of one state; None where they say nothing."""

    logged: tuple[float, ...]
    action: tuple[float, ...] | None
    wrong: bool  # what was done is wrong, though nobody says what is right
    critical: bool | None


@dataclass(frozen=True)
class Stratum:
    """States of which some were drawn at random into a gold set."""

    places: frozenset[Place]  # those that were drawn
    size: int  # all of them


@dataclass(frozen=True)
class GoldSet:
    """The readers' answers by state."""

    run_ids: tuple[str, ...]
    readers: tuple[str, ...]
    states: Mapping[Place, GoldState]
    answered: int  # states with any answer
    contested: int  # states without a verdict on the action, since the readers' answers differ
    unusable: int  # answers whose action holds a number that is not finite
    between: Rate | None  # of states that several answers name an action for, those on which all agree
    refused: Mapping[str, bool]  # verdicts on single opinions, by their id: right or not
    strata: tuple[Stratum, ...] = ()  # how the states were drawn; empty: not known to be random


@dataclass(frozen=True)
class GoldBin:
    """States whose suggestions have like confidence."""

    low: float
    high: float
    confidence: float  # mean
    right: Rate


@dataclass(frozen=True)
class GoldScore:
    """One annotator against the gold set; None where there is nothing to count."""

    run_id: str
    model: str
    prompt_version: str | None
    shared: int  # gold states that the run has labelled
    right: Rate | None  # suggestions
    nearer: Rate | None  # continuous: suggestions nearer to the reader's action than what was done
    corrections: Rate | None  # the right ones of those that correct the agent
    confirmations: Rate | None
    agent: Rate | None  # what was done is right, on the same states
    gain: Paired | None  # suggestion first, what was done second
    by_action: Mapping[str, Rate]
    bins: tuple[GoldBin, ...]
    calibration_error: float | None  # mean |confidence - share right| over the bins
    confidence_order: Estimated | None  # probability that a right suggestion has more confidence than a wrong one
    grade_order: Estimated | None  # the same of the grades of what was done, right or wrong
    critical_right: Rate | None  # of the states that it calls critical, those that the reader calls so
    critical_found: Rate | None  # of the labelled states that the reader calls critical, those that it calls so
    critical_base: Rate | None  # of the labelled states, those that the reader calls critical
    critical_found_anywhere: Estimated | None  # of all critical steps of the dataset; needs a random gold set
    verdict: str


@dataclass(frozen=True)
class Rivalry:
    """Two annotators on the states that both have labelled."""

    first: str  # run
    second: str
    paired: Paired
    answer: str


@dataclass(frozen=True)
class _Judged:
    """What one annotator says of one gold state, its samples taken together."""

    place: Place
    label: str
    right: bool | None
    nearer: bool | None
    corrects: bool | None
    agent_right: bool | None
    critical: bool | None
    gold_critical: bool | None
    confidence: float | None
    grade: float | None


def read_gold(
    opinions: Sequence[Opinion],
    space: Space,
    *,
    refused: Mapping[str, bool] | None = None,
    strata: Sequence[Stratum] = (),
) -> GoldSet:
    """Make one gold set of the answers of one or more readers.

    An answer without an action says by its grade whether what was done is right: above zero there is no better
    action, below zero it is wrong. States on which answers differ have no verdict.

    Args:
        opinions: the answers.
        space: of the actions.
        refused: verdicts on single opinions of others, by their id.
        strata: how the states were drawn, if at random.

    Raises:
        BadInput: if there is no answer.
    """
    if not opinions:
        raise BadInput("The gold run has no answers.", "Import some with `trajnote annotations import`.")
    usable = [opinion for opinion in opinions if opinion.suggested is None or np.isfinite(opinion.suggested).all()]
    by_place = _by_place(usable)
    actions = {place: _actions(found) for place, found in by_place.items()}
    several = {
        place: all(_same(one, other, space) for one, other in combinations(found, 2))
        for place, found in actions.items()
        if len(found) > 1
    }
    varied = len({opinion.critical for opinion in usable}) > 1
    states = {
        place: GoldState(
            logged=found[0].logged,
            action=actions[place][0] if actions[place] and several.get(place, True) else None,
            wrong=not actions[place]
            and any(opinion.suggested is None and (opinion.grade or 0) < 0 for opinion in found),
            critical=_unanimous(opinion.critical for opinion in found) if varied else None,
        )
        for place, found in by_place.items()
    }
    return GoldSet(
        run_ids=tuple(dict.fromkeys(opinion.run_id for opinion in opinions)),
        readers=tuple(dict.fromkeys(opinion.model for opinion in opinions)),
        states=states,
        answered=len(by_place),
        contested=sum(not agree for agree in several.values()),
        unusable=len(opinions) - len(usable),
        between=Rate.of(several.values()),
        refused=dict(refused or {}),
        strata=tuple(strata),
    )


def _by_place(opinions: Iterable[Opinion]) -> dict[Place, list[Opinion]]:
    found: dict[Place, list[Opinion]] = defaultdict(list)
    for opinion in opinions:
        found[opinion.place].append(opinion)
    return found


def _actions(answers: Sequence[Opinion]) -> list[tuple[float, ...]]:
    """The actions that answers name for one state, in their order."""
    named = [answer.suggested or (answer.logged if (answer.grade or 0) > 0 else None) for answer in answers]
    return [action for action in named if action is not None]


def _same(left: Sequence[float], right: Sequence[float], space: Space) -> bool:
    return bool(same_actions(np.array([left], np.float64), np.array([right], np.float64), space)[0])


def _unanimous(values: Iterable[bool | None]) -> bool | None:
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def score_run(opinions: Sequence[Opinion], gold: GoldSet, space: Space) -> GoldScore:
    """Judge one run by a gold set.

    Args:
        opinions: of the run, at least one; those on other states count for nothing but the recall of `critical`.
        gold: the set.
        space: of the actions.
    """
    judged = [_judge(found, gold, space) for _, found in _shared(opinions, gold)]
    known = [state for state in judged if state.right is not None]
    graded = [state for state in judged if state.grade is not None and state.agent_right is not None]
    gain = Paired.of([(bool(s.right), s.agent_right) for s in known if s.agent_right is not None]) if known else None
    bins = _bins(known)
    called = [state for state in judged if state.critical is not None and state.gold_critical is not None]
    return GoldScore(
        run_id=opinions[0].run_id,
        model=opinions[0].model,
        prompt_version=opinions[0].prompt_version,
        shared=len(judged),
        right=Rate.of(bool(state.right) for state in known),
        nearer=Rate.of(state.nearer for state in judged if state.nearer is not None),
        corrections=Rate.of(bool(state.right) for state in known if state.corrects),
        confirmations=Rate.of(bool(state.right) for state in known if state.corrects is False),
        agent=Rate.of(state.agent_right for state in known if state.agent_right is not None),
        gain=gain,
        by_action=_by_action(known) if space.is_discrete else {},
        bins=bins,
        calibration_error=_calibration_error(bins),
        confidence_order=order_of(
            [s.confidence for s in known if s.right and s.confidence is not None],
            [s.confidence for s in known if not s.right and s.confidence is not None],
        ),
        grade_order=order_of(
            [s.grade for s in graded if s.agent_right and s.grade is not None],
            [s.grade for s in graded if not s.agent_right and s.grade is not None],
        ),
        critical_right=Rate.of(bool(state.gold_critical) for state in called if state.critical),
        critical_found=Rate.of(bool(state.critical) for state in called if state.gold_critical),
        critical_base=Rate.of(bool(state.gold_critical) for state in called),
        critical_found_anywhere=_found_anywhere(called, gold),
        verdict=_verdict(known, gain),
    )


def _shared(opinions: Sequence[Opinion], gold: GoldSet) -> list[tuple[Place, list[Opinion]]]:
    return sorted((place, found) for place, found in _by_place(opinions).items() if place in gold.states)


def _judge(samples: Sequence[Opinion], gold: GoldSet, space: Space) -> _Judged:
    state = gold.states[samples[0].place]
    suggested = [sample for sample in samples if sample.suggested is not None]
    corrects = [not _same(sample.suggested, sample.logged, space) for sample in suggested if sample.suggested]
    shown = Counter(sample.label or "–" for sample in suggested).most_common(1)
    return _Judged(
        place=samples[0].place,
        label=shown[0][0] if shown else "–",
        right=_by_most(_right(sample, state, gold, space) for sample in suggested),
        nearer=None if space.is_discrete else _by_most(_nearer(sample, state, space) for sample in suggested),
        corrects=_by_most(corrects),
        agent_right=_agent_right(state, space),
        critical=_by_most(sample.critical for sample in samples),
        gold_critical=state.critical,
        confidence=_mean(sample.confidence for sample in suggested),
        grade=_mean(sample.grade for sample in samples),
    )


def _right(sample: Opinion, state: GoldState, gold: GoldSet, space: Space) -> bool | None:
    """Whether a suggestion is the reader's action; None where that is not known."""
    if sample.suggested is None or not np.isfinite(sample.suggested).all():
        return None
    if sample.opinion_id in gold.refused:
        return gold.refused[sample.opinion_id]
    if state.action is not None:
        return _same(sample.suggested, state.action, space)
    return False if state.wrong and _same(sample.suggested, state.logged, space) else None


def _agent_right(state: GoldState, space: Space) -> bool | None:
    if state.action is not None:
        return _same(state.logged, state.action, space)
    return False if state.wrong else None


def _nearer(sample: Opinion, state: GoldState, space: Space) -> bool | None:
    """Whether a suggestion lies nearer to the reader's action than what was done; None where both are as near."""
    if sample.suggested is None or state.action is None:
        return None
    extent = action_extent(space, np.array([state.action], np.float64))[0]
    actions = np.array([sample.suggested, state.logged], np.float64)
    own, theirs = np.mean(np.abs(actions - state.action) / extent, axis=1).tolist()
    return None if own == theirs or not np.isfinite(own) else own < theirs


def _by_most(values: Iterable[bool | None]) -> bool | None:
    """What most say; a tie counts as false, and None where nobody says anything."""
    known = [value for value in values if value is not None]
    return 2 * sum(known) > len(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _by_action(judged: Sequence[_Judged]) -> dict[str, Rate]:
    """The share of right ones among the suggestions of each action, the commonest first."""
    counted = Counter(state.label for state in judged)
    hits = Counter(state.label for state in judged if state.right)
    return {label: Rate.counted(hits[label], n) for label, n in counted.most_common()}


def _bins(judged: Sequence[_Judged]) -> tuple[GoldBin, ...]:
    made: list[GoldBin] = []
    for low, high in pairwise(EDGES):
        inside = [s for s in judged if s.confidence is not None and low <= s.confidence < high + (high == EDGES[-1])]
        right = Rate.of(bool(state.right) for state in inside)
        if right is not None:
            made.append(GoldBin(low, high, _mean(state.confidence for state in inside) or 0.0, right))
    return tuple(made)


def _calibration_error(bins: Sequence[GoldBin]) -> float | None:
    total = sum(found.right.n for found in bins)
    return sum(found.right.n * abs(found.confidence - found.right.share) for found in bins) / total if total else None


def _found_anywhere(called: Sequence[_Judged], gold: GoldSet) -> Estimated | None:
    """Recall of `critical` over all steps, each stratum weighed by its size; a step without a label is not found.

    The interval is the posterior's, with half a case before each kind of state (critical and found, critical and
    missed, neither); nothing can be found in a stratum where the annotator says nothing.
    """
    called_critical = {state.place: bool(state.critical) for state in called}
    rng = np.random.default_rng(0)
    there, hits, drawn = np.zeros(_DRAWS + 1), np.zeros(_DRAWS + 1), 0  # the first is the sample itself
    critical = 0
    for stratum in gold.strata:
        known = {place: gold.states[place].critical for place in stratum.places & gold.states.keys()}
        states = {place: flag for place, flag in known.items() if flag is not None}
        if not states:
            continue
        found = sum(flag and called_critical.get(place, False) for place, flag in states.items())
        missed = sum(states.values()) - found
        counts = np.array([found, missed, len(states) - found - missed], np.float64)
        possible = np.array([bool(called_critical.keys() & states.keys()), True, True])
        shares = np.vstack([counts / len(states), _posterior(counts, possible, rng)])
        hits += stratum.size * shares[:, 0]
        there += stratum.size * (shares[:, 0] + shares[:, 1])
        drawn, critical = drawn + len(states), critical + found + missed
    if not critical:
        return None
    recalls = hits / np.maximum(there, np.finfo(np.float64).tiny)
    low, high = np.quantile(recalls[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    share = float(recalls[0])
    return Estimated(share, min(float(low), share), max(float(high), share), drawn, critical)


def _posterior(counts: Floats, possible: Bools, rng: np.random.Generator) -> Floats:
    """Draws of the shares of three kinds of states, (draws, 3); zero for what is not possible."""
    shares = np.zeros((_DRAWS, len(counts)))
    shares[:, possible] = rng.dirichlet(counts[possible] + 0.5, _DRAWS)
    return shares


def _verdict(judged: Sequence[_Judged], gain: Paired | None) -> str:
    if len(judged) < FEW_LABELS or gain is None:
        return "too few to judge"
    if gain.p >= SIGNIFICANT:
        return "not shown to be better than what the agent did"
    return f"{'better' if gain.only_first > gain.only_second else 'worse'} than what the agent did"


def compare_runs(first: Sequence[Opinion], second: Sequence[Opinion], gold: GoldSet, space: Space) -> Rivalry | None:
    """Judge two runs on the gold states that both have labelled; None without any."""
    sides = [{place: _judge(found, gold, space) for place, found in _shared(run, gold)} for run in (first, second)]
    cases: list[tuple[bool, bool]] = []
    for place in sorted(sides[0].keys() & sides[1].keys()):
        one, other = sides[0][place].right, sides[1][place].right
        if one is not None and other is not None:
            cases.append((one, other))
    if not cases:
        return None
    paired = Paired.of(cases)
    return Rivalry(first[0].run_id, second[0].run_id, paired, _answer(paired))


def _answer(paired: Paired) -> str:
    if paired.states < FEW_LABELS:
        return "too few to judge"
    if paired.p >= SIGNIFICANT:
        return "not shown to differ"
    return f"the {'first' if paired.only_first > paired.only_second else 'second'} is right more often"
