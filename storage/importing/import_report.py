"""What an import decided, given up and left out. Nothing is dropped without a line here; rows are counted twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput

_NAMED = 20  # names listed in one sentence


@dataclass
class ImportReport:
    """Counted up while a recording is read; rows are those of its file, final rows included."""

    repeated: int = 0  # episodes, terminated; the final observation is the last one again
    dropped: int = 0  # episodes, truncated; their last step was given up
    vanished: int = 0  # episodes of one step, truncated; nothing of them is left
    stopped: int = 0  # episodes that ended without a flag; they count as truncated
    empty_flags: dict[str, int] = field(default_factory=dict[str, int])  # flag -> rows without it
    resets: int = 0  # rows in which an environment reset itself; left out
    rows: int = field(default=0, compare=False)  # in the file
    finals: int = field(default=0, compare=False)  # of these, final rows, which hold no step
    steps: int = field(default=0, compare=False)  # that were kept
    episodes: int = field(default=0, compare=False)  # that were kept
    stained: list[int] = field(default_factory=list[int], compare=False)  # episodes with numbers that are not finite
    decided: list[str] = field(default_factory=list[str], compare=False)
    warnings: list[str] = field(default_factory=list[str], compare=False)
    left_out: dict[str, list[str]] = field(default_factory=dict[str, list[str]], compare=False)

    @property
    def given_up(self) -> int:
        """Rows whose step is not in the dataset."""
        return self.dropped + self.vanished + self.resets

    def leave_out(self, kind: str, names: Iterable[str]) -> None:
        """Note names that are left out; a kind is `columns`, `arrays`, ..."""
        if found := sorted(set(names) - set(self.left_out.get(kind, ()))):
            self.left_out.setdefault(kind, []).extend(found)

    def decide(self, sentence: str) -> None:
        """Note, once, a decision that the file left open."""
        if sentence not in self.decided:
            self.decided.append(sentence)

    def note_empty(self, name: str, rows: int) -> None:
        """Count rows with an empty flag, which counts as false."""
        if rows:
            self.empty_flags[name] = self.empty_flags.get(name, 0) + rows

    def see(self, episode_id: int, *, finite: bool) -> None:
        """Count an episode that is kept; exports of older versions may hold numbers that are not finite."""
        self.episodes += 1
        if not finite:
            self.stained.append(episode_id)

    def check(self) -> None:
        """Compare the rows that were read with those that were kept and given up.

        Raises:
            BadInput: if they do not add up, so that no row gets lost.
        """
        if self.rows != self.steps + self.finals + self.given_up:
            raise BadInput(
                f"{self.rows} rows were read, but {self.steps} steps and {self.finals} final rows kept and "
                f"{self.given_up} given up; nothing is imported.",
                "Keep the rows of an episode together, or add the columns episode_id and step.",
            )

    def note_stains(self) -> None:
        """Warn of numbers that are not finite."""
        if self.stained:
            self.warnings.append(
                f"numbers that are not finite in {len(self.stained)} episodes, the first is {self.stained[0]}: "
                "they are never asked about or trained on"
            )

    def sentences(self) -> list[str]:
        """One sentence for each thing that was decided, given up or left out, or may be wrong."""
        counted = {
            "terminated: their final observation is not in the file, the one before is repeated": self.repeated,
            "truncated: the observation after their last step is not in the file, that step was given up": self.dropped,
            "of one step, truncated, given up: the observation after that step is not in the file": self.vanished,
            "without a flag at their end: they count as truncated": self.stopped,
        }
        said = [f"episodes {what}: {count}" for what, count in counted.items() if count]
        said += [f"rows without {name}, which counts as false there: {rows}" for name, rows in self.empty_flags.items()]
        if self.resets:
            said.append(f"rows in which the environment reset itself, left out: {self.resets}")
        if self.given_up:
            kept = self.rows - self.given_up
            said.append(f"rows read: {self.rows}, kept: {kept}, given up: {self.given_up}")
        left = [f"{kind} left out: {_listed(names)}" for kind, names in self.left_out.items()]
        return [*self.decided, *said, *left, *(f"warning: {text}" for text in self.warnings)]

    def as_json(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "rows": {"read": self.rows, "kept": self.rows - self.given_up, "given_up": self.given_up},
            "episodes": {"read": self.episodes + self.vanished, "kept": self.episodes, "given_up": self.vanished},
            "final_observation_repeated": self.repeated,
            "last_step_given_up": self.dropped,
            "ended_without_flag": self.stopped,
            "flags_empty": self.empty_flags,
            "resets_left_out": self.resets,
            "decided": self.decided,
            "left_out": self.left_out,
            "warnings": self.warnings,
        }


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
