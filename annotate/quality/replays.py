"""What measured replays say of a run's labels as a whole. They are evidence; no label is dropped because of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.annotations import LabelReplay

from .fitting import clustered_error
from .notes import Floats, Notes


@dataclass(frozen=True)
class ReplayEvidence:
    """Suggestions that were taken once in their exact state, and then the policy went on."""

    replayed: int
    inexact: int  # states that could not be reached bit for bit; nothing was measured there
    advantage: float  # mean over the suggestions, in units of return
    standard_error: float  # by episodes
    better: float  # share of suggestions with a positive advantage
    worse: float
    environment_steps: int
    of_each: Floats  # (L,) 1 better, 0 worse, NaN when equal or not replayed


def sum_up_replays(notes: Notes, replays: Sequence[LabelReplay]) -> ReplayEvidence | None:
    """Sum up the replays of some notes; a label replayed in several ways counts with its newest measure by id order."""
    of_note = {replay.annotation_id: replay for replay in replays}
    mine = [of_note.get(note.annotation_id) for note in notes.annotations]
    found = [replay.advantage if replay is not None else None for replay in mine]
    advantages = np.array([np.nan if value is None else value for value in found], np.float64)
    known = np.isfinite(advantages)
    if not known.any():
        return None
    return ReplayEvidence(
        replayed=int(known.sum()),
        inexact=sum(replay is not None and not replay.exact for replay in mine),
        advantage=float(advantages[known].mean()),
        standard_error=clustered_error(advantages[known], notes.episodes[known]),
        better=float((advantages[known] > 0).mean()),
        worse=float((advantages[known] < 0).mean()),
        environment_steps=sum(replay.environment_steps for replay in mine if replay is not None),
        of_each=np.where(known & (advantages != 0), (advantages > 0).astype(np.float64), np.nan),
    )
