"""How far several opinions on equal steps agree: samples of one run, runs of other models. It needs no truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from storage.schema import Annotation

from .notes import Floats, Notes, same_actions


@dataclass(frozen=True)
class Pairwise:
    """Pairs of opinions on equal steps."""

    pairs: int
    steps: int
    agreement: float | None  # share of the pairs that agree
    by_chance: float | None  # the same if each opinion were exchanged for that on another step


@dataclass(frozen=True)
class Agreement:
    """Pairs within a run (its samples), and pairs of different models."""

    samples: Pairwise
    models: Pairwise
    of_each: Floats  # (L,) share of the other opinions on its step that agree with each note, NaN where it is alone


def measure_agreement(notes: Notes, run_id: str, seed: int = 0) -> Agreement:
    """Compare notes on equal steps.

    Args:
        notes: of all runs of a dataset.
        run_id: pairs count in which at least one note is of this run.
        seed: of the exchange that gives agreement by chance.
    """
    own = [note.run_id == run_id for note in notes.annotations]
    by_step: dict[int, dict[str, int]] = defaultdict(dict)
    for place, (row, note) in enumerate(zip(notes.rows.tolist(), notes.annotations, strict=True)):
        opinion = note.request_id or note.annotation_id  # a reply that two runs share is one opinion
        if opinion not in by_step[row] or own[place]:
            by_step[row][opinion] = place
    alike = (combinations(places.values(), 2) for places in by_step.values())
    found = [pair for pairs in alike for pair in pairs if own[pair[0]] or own[pair[1]]]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    agree = same_actions(notes.suggested[pairs[:, 0]], notes.suggested[pairs[:, 1]], notes.action_space)
    shuffled = np.random.default_rng(seed).permutation(len(notes))
    chance = same_actions(notes.suggested[pairs[:, 0]], notes.suggested[shuffled[pairs[:, 1]]], notes.action_space)
    counts, agreed = np.zeros(len(notes)), np.zeros(len(notes))
    for side in (0, 1):
        np.add.at(counts, pairs[:, side], 1)
        np.add.at(agreed, pairs[:, side], agree)
    of_each = np.divide(agreed, counts, out=np.full(len(notes), np.nan), where=counts > 0)

    def select(related: Callable[[Annotation, Annotation], bool]) -> Pairwise:
        kept = [related(notes.annotations[one], notes.annotations[other]) for one, other in pairs.tolist()]
        where = np.array(kept, np.bool_)
        if not where.any():
            return Pairwise(0, 0, None, None)
        steps = len(np.unique(notes.rows[pairs[where, 0]]))
        return Pairwise(int(where.sum()), steps, float(agree[where].mean()), float(chance[where].mean()))

    return Agreement(
        samples=select(lambda one, other: one.run_id == other.run_id),
        models=select(lambda one, other: one.model != other.model),
        of_each=of_each,
    )
