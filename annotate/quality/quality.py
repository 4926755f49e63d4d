"""The health of a run's labels before anything is trained on them: every measure of it, gathered.

What the numbers mean for a user is in `verdict.py`; how each is taken in the module that it comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from storage.annotations import LabelReplay
from storage.datasets import StepArrays
from storage.schema import Annotation, Space

from .agreement import Agreement, measure_agreement
from .calibration import Calibration, measure_calibration
from .consistency import Consistency, measure_consistency
from .coverage import Coverage, measure_coverage
from .notes import Floats, Notes, place_notes
from .replays import ReplayEvidence, sum_up_replays
from .salience import Salience, measure_salience


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
    notes = place_notes(own, steps, action_space)
    everybody = place_notes(annotations, steps, action_space)
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


def _of_own(values: Floats, everybody: Notes, notes: Notes) -> Floats:
    by_id = {note.annotation_id: value for note, value in zip(everybody.annotations, values, strict=True)}
    return np.array([by_id[note.annotation_id] for note in notes.annotations], np.float64)


def _suggestions(notes: Notes) -> Mapping[str, int]:
    if not notes.action_space.is_discrete:
        return {}
    named = (note.suggested_label or f"{value:g}" for note, value in zip(notes.annotations, notes.classes, strict=True))
    return dict(Counter(named).most_common())
