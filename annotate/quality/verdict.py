"""All that is measured of a run's labels, and a verdict in plain words: fit for training, doubtful, or unfit.

Too few labels have no such verdict. The limits stand here once. They are judgements, not laws: none of them filters a
label, and a refinement's own gate with its placebo arms has the last word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from storage.annotations import LabelReplay
from storage.datasets import StepArrays
from storage.schema import Annotation, Space

from .models import FEWEST, Consistency, Salience, measure_consistency, measure_salience
from .placement import (
    TELLING_GAP,
    Agreement,
    AnnotationColumns,
    Calibration,
    Coverage,
    Floats,
    ReplayEvidence,
    measure_agreement,
    measure_calibration,
    measure_coverage,
    place_annotations,
    sum_up_replays,
)


@dataclass(frozen=True)
class Quality:
    """All that was measured of one run's labels; None where there was nothing to measure it on."""

    run_id: str
    model: str
    labels: int
    without_suggestion: int
    critical_share: float | None
    confirmation_share: float | None  # of the suggestions, those that are what the agent did
    confidence: float | None  # mean
    suggestions: Mapping[str, int]  # discrete: how often each action is suggested
    rejections: Mapping[str, int]  # by reason
    agreement: Agreement
    coverage: Coverage | None
    consistency: Consistency | None
    calibration: Calibration | None
    salience: Salience | None
    replays: ReplayEvidence | None


@threadpool_limits.wrap(limits=1, user_api="blas")  # its fits are small: more threads wait for each other
def assess_run(
    run_id: str,
    annotations: Sequence[Annotation],
    steps: StepArrays,
    action_space: Space,
    *,
    rejections: Mapping[str, int],
    replays: Sequence[LabelReplay] = (),
) -> Quality:
    """Measure the labels of one run.

    Args:
        run_id: the run.
        annotations: of all runs of the dataset, so that opinions on equal steps can be compared.
        steps: of the dataset.
        action_space: of its environment.
        rejections: what was refused of this run, by reason.
        replays: of the dataset's labels.
    """
    own = [note for note in annotations if note.run_id == run_id]
    notes = place_annotations(own, steps, action_space)
    everybody = place_annotations(annotations, steps, action_space)
    agreement = measure_agreement(everybody, run_id)
    consistency, measured = measure_consistency(notes), sum_up_replays(notes, replays)
    evidence = {"opinions": _of_own(agreement.of_each, everybody, notes)}
    if consistency is not None:
        evidence["out_of_fold"] = consistency.hits.astype(np.float64)
    if measured is not None:
        evidence["replays"] = measured.of_each
    given = notes.confidence[np.isfinite(notes.confidence)]
    return Quality(
        run_id=run_id,
        model=", ".join(sorted({note.model for note in own})),
        labels=len(own),
        without_suggestion=len(own) - len(notes),
        critical_share=float(np.mean([note.critical for note in own])) if own else None,
        confirmation_share=float(notes.agrees.mean()) if len(notes) else None,
        confidence=float(given.mean()) if len(given) else None,
        suggestions=_suggestions(notes),
        rejections=dict(rejections),
        agreement=agreement,
        coverage=measure_coverage(notes, steps) if len(notes) else None,
        consistency=consistency,
        calibration=measure_calibration(notes, evidence) if len(given) else None,
        salience=measure_salience(notes, steps),
        replays=measured,
    )


def _of_own(values: Floats, everybody: AnnotationColumns, notes: AnnotationColumns) -> Floats:
    by_id = {note.annotation_id: value for note, value in zip(everybody.annotations, values, strict=True)}
    return np.array([by_id[note.annotation_id] for note in notes.annotations], np.float64)


def _suggestions(notes: AnnotationColumns) -> Mapping[str, int]:
    if not notes.action_space.is_discrete:
        return {}
    named = (note.suggested_label or f"{value:g}" for note, value in zip(notes.annotations, notes.classes, strict=True))
    return dict(Counter(named).most_common())


Standing = Literal["good", "note", "doubtful", "bad"]

FEW_LABELS = 60
"""Refinements of the shipped examples need about this many; with 20 nothing at all can be measured."""
MOST_REJECTED = 0.1
LEAST_EVENNESS = 0.8
"""Entropy over the tenths of the episodes; labels of the last third only have 0.5."""
SURE = 2.0
"""Standard errors that a difference has to have before it counts."""
TELLING_FIT = 0.1
"""Share of the return's variance below which the fitted value function says nothing about single steps."""


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against the labels."""

    standing: Standing
    about: str
    text: str


@dataclass(frozen=True)
class Judgement:
    """The verdict and its reasons, the weightiest first."""

    verdict: Literal["fit for training", "doubtful", "unfit for training", "too few to judge"]
    reasons: tuple[Reason, ...]


_ORDER: tuple[Standing, ...] = ("bad", "doubtful", "good", "note")


def judge(quality: Quality) -> Judgement:
    """Weigh all that was measured: one bad thing makes labels unfit, one doubtful thing makes them doubtful.

    Fewer than `FEW_LABELS` are not judged, whatever was measured of them.
    """
    parts = (_amount, _rejections, _coverage, _consistency, _uniformity, _opinions, _calibration, _salience, _replays)
    reasons = [reason for part in parts for reason in part(quality)]
    standings = {reason.standing for reason in reasons}
    ordered = tuple(sorted(reasons, key=lambda reason: _ORDER.index(reason.standing)))
    if _usable(quality) < FEW_LABELS:
        return Judgement("too few to judge", ordered)
    if "bad" in standings:
        return Judgement("unfit for training", ordered)
    return Judgement("doubtful" if "doubtful" in standings else "fit for training", ordered)


def _usable(quality: Quality) -> int:
    return quality.labels - quality.without_suggestion


def _amount(quality: Quality) -> Iterator[Reason]:
    usable = _usable(quality)
    standing: Standing = "bad" if usable < FEWEST else "doubtful" if usable < FEW_LABELS else "good"
    enough = "" if standing == "good" else f"; {FEW_LABELS} or more are needed to train on or to judge them"
    yield Reason(standing, "amount", f"{usable} labels with a suggestion{enough}")


def _rejections(quality: Quality) -> Iterator[Reason]:
    total = sum(quality.rejections.values())
    share = total / max(1, total + quality.labels)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(quality.rejections.items()))
    if total:
        standing: Standing = "doubtful" if share > MOST_REJECTED else "note"
        yield Reason(standing, "rejections", f"{total} entries of replies were rejected ({share:.0%}): {reasons}")


def _coverage(quality: Quality) -> Iterator[Reason]:
    found = quality.coverage
    if found is None:
        return
    even = found.evenness >= LEAST_EVENNESS
    spread = "spread over the whole of their episodes" if even else "concentrated in a part of their episodes"
    yield Reason(
        "good" if even else "doubtful", "time", f"labels are {spread} (evenness {found.evenness:.2f} of 1 over tenths)"
    )
    yield Reason(
        "note",
        "states",
        f"{found.episodes} of {found.episodes_in_all} episodes have labels; {found.states:.0%} of all steps lie in a "
        f"region of state space with one ({found.states_by_chance:.0%} for as many random steps)",
    )


def _consistency(quality: Quality) -> Iterator[Reason]:
    found = quality.consistency
    if found is None:
        return
    what = "are predicted" if found.measure == "accuracy" else "of their variance is explained"
    rival = f"the most common action {found.trivial:.0%}" if found.measure == "accuracy" else "their mean none"
    numbers = (
        f"{found.score:.0%} {what} by a small model of the other episodes' labels, {rival}, "
        f"exchanged labels {found.shuffled:.0%}"
    )
    if found.lift > SURE * found.standard_error:
        yield Reason("good", "consistency", f"similar states have similar labels: {numbers}")
    else:
        yield Reason("bad", "consistency", f"labels do not follow from the states: {numbers}")


def _uniformity(quality: Quality) -> Iterator[Reason]:
    share = quality.confirmation_share
    if share is None:
        return
    if share == 1.0:
        yield Reason("bad", "confirmations", "every suggestion is what the agent did: training on them teaches nothing")
    elif share < 0.02 and quality.suggestions:  # numbers rarely agree within 5% by chance
        yield Reason("doubtful", "confirmations", f"only {share:.0%} of the suggestions confirm the agent")
    else:
        yield Reason("note", "confirmations", f"{share:.0%} of the suggestions confirm what the agent did")
    if quality.critical_share is not None and not 0.02 <= quality.critical_share <= 0.8:
        yield Reason(
            "note", "critical", f"{quality.critical_share:.0%} of the labels are critical: the flag says little"
        )
    if len(quality.suggestions) == 1:
        yield Reason("bad", "variety", f"every suggestion is {next(iter(quality.suggestions))}")


def _opinions(quality: Quality) -> Iterator[Reason]:
    for who, found in (("samples of the run", quality.agreement.samples), ("models", quality.agreement.models)):
        if found.agreement is None or found.by_chance is None:
            continue
        above = found.agreement > found.by_chance + 0.1
        yield Reason(
            "good" if above else "doubtful",
            "opinions",
            f"{who} agree in {found.agreement:.0%} of {found.pairs} pairs on {found.steps} equal steps "
            f"({found.by_chance:.0%} by chance)",
        )


def _calibration(quality: Quality) -> Iterator[Reason]:
    found = quality.calibration
    if found is None or not found.rise:
        yield Reason("note", "confidence", "nothing to compare the labels' confidence with")
        return
    for source, rise in found.rise.items():
        telling = "is worth a weight" if rise > TELLING_GAP else "says nothing" if rise > -TELLING_GAP else "misleads"
        standing: Standing = "note" if rise > -TELLING_GAP else "doubtful"
        side = "higher" if rise >= 0 else "lower"
        yield Reason(
            standing,
            "confidence",
            f"confidence {telling}: {_SOURCES[source]} is {abs(rise):.0%} {side} among the "
            f"more confident half (calibration error {found.errors[source]:.2f})",
        )


_SOURCES = {
    "opinions": "agreement with other opinions",
    "out_of_fold": "the share predicted from other episodes",
    "replays": "the share that did better in replays",
}


def _salience(quality: Quality) -> Iterator[Reason]:
    found = quality.salience
    if found is None:
        return
    explained = max(0.0, found.explained)
    if explained < TELLING_FIT:
        text = f"the fitted value function explains {explained:.0%} of the returns: too little to judge criticality"
    else:
        apart = found.td_rank - 0.5
        sure = abs(apart) > SURE * found.rank_error
        how = ("larger than" if apart > 0 else "smaller than") if sure else "like"
        text = (
            f"the typical TD error at a critical step is {how} that at any step of its episode (mean rank "
            f"{found.td_rank:.2f}, 0.5 by chance); the mean |TD error| is {found.td_ratio:.1f} times and the mean "
            f"|advantage| {found.advantage_ratio:.1f} times that of all steps"
        )
    yield Reason("note", "criticality", text)


def _replays(quality: Quality) -> Iterator[Reason]:
    found = quality.replays
    if found is None:
        return
    sure = abs(found.advantage) > SURE * found.standard_error
    standing: Standing = "note" if not sure else "good" if found.advantage > 0 else "doubtful"
    inexact = f"; {found.inexact} states could not be reached exactly" if found.inexact else ""
    yield Reason(
        standing,
        "replays",
        f"taken once, {found.replayed} suggestions changed the return by {found.advantage:+.3g} on average (standard "
        f"error {found.standard_error:.2g}): {found.better:.0%} better, {found.worse:.0%} worse{inexact}",
    )
