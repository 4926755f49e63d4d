"""Arms as they are compared: few common episodes of their candidates; placebos are drawn until it is clear.

The annotator's arm and every draw of a placebo are entered in the same way, on the same seeds, without a search: only
then is the labels' rank among the draws exact. Ranked is the mean return of what each training ends with, actions drawn
where there is a distribution: a greedy policy that hovers is moved by almost any labels, its distribution is not.
What the ranks prove is in `refine/evaluation/credit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refine.config import Snapshot
from refine.evaluation import Rank, rank_labels
from refine.policies import Mode

from .arms import PLACEBOS, ArmDraw
from .evaluator import Candidate, Returns

RANKED, CHOSEN = 4, 2
"""Episodes by which arms are ranked, of what their trainings end with, and by which the best of the entered candidates
is chosen, in the gate's way of acting; the first ones of the selection."""
BATCH = 5
"""Draws of each placebo that are trained and played before the ranks are looked at."""
Enter = Callable[[Sequence[ArmDraw]], "list[Entry]"]
PlayIn = Callable[[Sequence[Candidate], range, Mode], list[Returns]]


class Entrant(NamedTuple):
    """One arm, or one draw of it, with its candidates."""

    draw: ArmDraw
    candidates: Sequence[Candidate]
    snapshots: Sequence[Snapshot]  # of the same order; rules that may be put in force come after them

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates whose returns are ranked."""
        return [self.candidates[place] for place in last_of_each(self.snapshots, len(self.candidates))]

    @property
    def identity(self) -> tuple[str, ...]:
        """Hashes of what was trained; equal labels are trained to equal policies."""
        return tuple(snapshot.policy.sha256 for snapshot in self.snapshots)


@dataclass(frozen=True)
class Entry:
    """An entrant, compared with others."""

    entrant: Entrant
    common: float  # what is ranked: the mean return of its ranked candidates
    tried: Sequence[Returns]  # of every entered candidate, in the gate's way of acting
    before: Returns  # the baseline's on the same seeds

    @property
    def draw(self) -> ArmDraw:
        """Which draw of which arm."""
        return self.entrant.draw

    @property
    def selection(self) -> list[float]:
        """Mean return of each candidate."""
        return [float(returns.mean()) for returns in self.tried]

    @property
    def best(self) -> int:
        """Index of the candidate with the highest mean."""
        return int(np.argmax(self.selection))

    @property
    def winner(self) -> Candidate | None:
        """The best candidate; None where the baseline returns as much."""
        return self.entrant.candidates[self.best] if self.selection[self.best] > self.before.mean() else None


def last_of_each(snapshots: Sequence[Snapshot], candidates: int) -> list[int]:
    """Which candidates are ranked: the last one of every beta and those that are no snapshots, two at least."""
    last = {snapshot.beta: number for number, snapshot in enumerate(snapshots)}
    ends = set(last.values()) | set(range(len(snapshots), candidates))
    return sorted(ends if len(ends) > 1 else ends | set(range(max(0, candidates - 2), candidates)))


def enter_few(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Those that are entered: all ranked ones, and of the smallest beta every second one, counted from the last.

    Trainings are cheap and episodes are not; neighbours on the way of one training return nearly the same, and so do
    those that are as far on the way of another beta.
    """
    kept = set(last_of_each(snapshots, len(snapshots)))
    least = min(snapshot.beta for snapshot in snapshots)
    kept |= set([number for number, snapshot in enumerate(snapshots) if snapshot.beta == least][::-2])
    return [snapshots[number] for number in sorted(kept)]


def play_fields(fields: Sequence[Sequence[Candidate]], play: PlayIn, seeds: range, mode: Mode) -> list[list[Returns]]:
    """Returns of every field's candidates on the seeds."""
    played = iter(play([candidate for field in fields for candidate in field], seeds, mode))
    return [[next(played) for _ in field] for field in fields]


def rank_entries(own: Entry, entries: Sequence[Entry], asked: int) -> list[Rank]:
    """The labels' rank among the different draws of every placebo that is drawn."""
    ranks: list[Rank] = []
    complete = any(entry.draw.number == asked - 1 for entry in entries)
    for arm in PLACEBOS:
        drawn = {entry.entrant.identity: entry.common for entry in reversed(entries) if entry.draw.arm == arm}
        if drawn:
            exhausted = complete and len(drawn) < asked
            ranks.append(rank_labels(arm, own.common, [*drawn.values()][::-1], asked=asked, exhausted=exhausted))
    return ranks


def draw_placebos(own: Entry, draws: Sequence[ArmDraw], enter: Enter, asked: int, *, accepted: bool) -> list[Entry]:
    """Enter draws, a few of each placebo at a time, until the labels' ranks are clear or all have been played.

    Where the labels were rejected there is nothing to credit, so the first few are played for the table alone.

    Args:
        own: the annotator's arm.
        draws: of all placebos and other arms of chance.
        enter: trains and plays draws.
        asked: draws of each placebo in all.
        accepted: whether the gate accepted the labels' policy.
    """
    entries: list[Entry] = []
    for batch in batches(draws):
        entries += [entry for entry in enter(batch) if not _changes_nothing(entry, own)]
        if not accepted or any(rank.is_hopeless for rank in rank_entries(own, entries, asked)):
            break
    return entries


def _changes_nothing(entry: Entry, own: Entry) -> bool:
    """Whether other components in the formulas came out as the annotator's own, which is no placebo."""
    return entry.draw.arm == "permuted" and entry.entrant.identity == own.entrant.identity


def batches(draws: Sequence[ArmDraw]) -> Iterator[list[ArmDraw]]:
    """Draws in the order in which they are entered, a few of each placebo at a time."""
    last = max((draw.number for draw in draws), default=-1)
    for first in range(0, last + 1, BATCH):
        yield [draw for draw in draws if first <= draw.number < first + BATCH]
