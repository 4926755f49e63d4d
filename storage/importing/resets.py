"""Finds the resets that vector environments log as if they were steps.

Since Gymnasium 1.0 such an environment answers the step after an episode's end with the first observation of the next
one, whatever the action, and reward 0: a log of it has a row that leads from one episode into the other. Environments
that reset within the last step log the next episode's first observation as that step's next observation.

The evidence is the probability that clean rows look so by chance; no single row decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb, log
from typing import Literal

import numpy as np

from ..errors import BadInput
from ..schema import Array, Episode
from .import_report import ImportReport

Autoreset = Literal["drop", "keep"]
Kind = Literal["next step", "same step"]
_EPISODES = 20_000  # looked at
_ROWS = 20_000  # observations compared with each other
_COMPONENTS = 64  # above, only the size of a change is kept
_SURE, _LIKELY, _TELLING = log(1e-3), log(1e-2), log(0.05)
_OPTIONS = "--autoreset drop leaves out the resets, --autoreset keep imports the rows unchanged."


@dataclass(frozen=True)
class _Seen:
    """What of one episode may come from a reset."""

    episode_id: int
    first: bytes  # its first observation
    final: bytes  # its last one
    first_reward: float
    jumps: tuple[Array, Array]  # change of the observation in the first and in the last step, (n,) each
    gap: Array  # change from the end of the episode before, (n,)


@dataclass(frozen=True)
class Finding:
    """Resets found in a recording."""

    kind: Kind
    is_sure: bool
    episodes: frozenset[int]  # their first row (next step) or last observation (same step) is a reset


@dataclass
class ResetSigns:
    """Collects signs of resets, episode by episode."""

    limit: int = _EPISODES  # episodes that are looked at
    seen: list[_Seen] = field(default_factory=list[_Seen])
    rows: int = 0
    zeros: int = 0  # rewards of 0, each episode's first one left aside
    usual: Array | None = None  # largest changes of an observation within an episode, (n,)
    observations: Counter[bytes] = field(default_factory=Counter[bytes])
    last: Array | None = None  # of the episode before

    def see(self, episode: Episode) -> None:
        """Add an episode."""
        if len(self.seen) >= self.limit:
            return
        shown = episode.observations.reshape(len(episode) + 1, -1)
        changes = _sizes(np.diff(shown.astype(np.float64), axis=0))
        gap = _sizes(shown[:1].astype(np.float64) - self.last)[0] if self.last is not None else changes[0] * 0
        self.seen.append(
            _Seen(
                episode.episode_id,
                shown[0].tobytes(),
                shown[-1].tobytes(),
                float(episode.rewards[0]),
                (changes[0], changes[-1]),
                gap,
            )
        )
        self.last = shown[-1:].astype(np.float64)
        self.rows += len(episode) - 1
        self.zeros += int(np.count_nonzero(episode.rewards[1:] == 0))
        if len(inner := changes[1:-1]):
            largest = inner.max(axis=0)
            self.usual = largest if self.usual is None else np.maximum(self.usual, largest)
        if self.observations.total() < _ROWS:
            self.observations.update(row.tobytes() for row in shown[:-1])

    def find(self) -> Finding | None:
        """What the signs say; None if they say nothing."""
        return self._find_chain() or self._find_next_step()

    def _find_chain(self) -> Finding | None:
        """Episodes that begin with the observation with which another one ended."""
        begun, ended, finals = self._chained()
        if not begun or 2 * len(begun) < len(self.seen) - 1:
            return None
        chain = _log_chance(len(self.seen) - 1, len(begun), self._collision() * finals)
        paid = all(each.first_reward == 0 for each in begun)
        telling = self._rewards(begun) + self._jumps([each.jumps[0] for each in begun]) if paid else 0.0
        if telling < _TELLING:
            return Finding("next step", chain + telling < _SURE, _ids(begun))
        if (telling := self._jumps([each.jumps[1] for each in ended])) < _TELLING:
            return Finding("same step", chain + telling < _SURE, _ids(ended))
        return Finding("next step", is_sure=False, episodes=_ids(begun)) if paid and chain < _LIKELY else None

    def _find_next_step(self) -> Finding | None:
        """The same where the observation after an episode's last step is unknown."""
        begun = self._leaping()
        if self.usual is None or not begun or 2 * len(begun) < len(self.seen) - 1:
            return None
        chance = self._rewards(begun) + self._jumps([each.jumps[0] for each in begun])
        alike = [each for each in self.seen[1:] if each.first_reward == 0 and np.all(each.gap <= 2 * self.usual)]
        return Finding("next step", is_sure=False, episodes=_ids(alike)) if chance < _SURE else None

    def _chained(self) -> tuple[list[_Seen], list[_Seen], int]:
        """Episodes that begin where another one ended, those that ended there, and how many ends there are."""
        finals = Counter(each.final for each in self.seen)
        firsts = Counter(each.first for each in self.seen)
        start = self.seen[0].first if self.seen else b""

        def is_other(counts: Counter[bytes], shown: bytes, each: _Seen) -> bool:
            return counts[shown] > (each.first == each.final) and shown != start

        begun = [each for each in self.seen[1:] if is_other(finals, each.first, each)]
        return begun, [each for each in self.seen if is_other(firsts, each.final, each)], len(finals)

    def _leaping(self) -> list[_Seen]:
        """Episodes whose first row starts where the one before ended, has reward 0 and jumps."""
        if self.usual is None:
            return []
        usual = self.usual
        begun = [each for each in self.seen[1:] if each.first_reward == 0 and np.all(each.gap <= usual)]
        return [each for each in begun if np.any(each.jumps[0] > usual)]

    def likely_rows(self) -> frozenset[int]:
        """Episodes whose first row may be a reset, each judged alone."""
        return _ids([each for each in self._chained()[0] if each.first_reward == 0] or self._leaping())

    def _collision(self) -> float:
        """Probability that two rows have equal observations."""
        count = self.observations.total()
        pairs = sum(times * (times - 1) for times in self.observations.values()) / 2
        return (pairs + 1) / (count * (count - 1) / 2 + 2)

    def _rewards(self, begun: Sequence[_Seen]) -> float:
        """Log of the chance that so many rewards are 0."""
        return len(begun) * log((self.zeros + 1) / (self.rows + 2))

    def _jumps(self, changes: Sequence[Array]) -> float:
        """Log of the chance that so many changes are larger than all usual ones."""
        if self.usual is None:
            return 0.0
        usual = self.usual
        larger = sum(bool(np.any(change > usual)) for change in changes)
        return _log_chance(len(changes), larger, len(usual) / (self.rows + 2)) if 2 * larger >= len(changes) else 0.0


def refuse_or_warn(finding: Finding | None, report: ImportReport) -> None:
    """Report what was found.

    Raises:
        BadInput: if it is certain.
    """
    if finding is None:
        return
    what = {
        "next step": "begin where another one ended, as if the environment had reset itself in that row (autoreset)",
        "same step": "end where another one begins, as if the environment had reset itself in that step (autoreset)",
    }[finding.kind]
    shown = ", ".join(map(str, sorted(finding.episodes)[:5])) + (", ..." if len(finding.episodes) > 5 else "")
    sentence = f"{len(finding.episodes)} episodes ({shown}) {what}"
    if finding.is_sure:
        raise BadInput(f"{sentence}.", _OPTIONS)
    report.warnings.append(f"{sentence}; {_OPTIONS}")


def without_reset(episode: Episode, kinds: Mapping[int, Kind], report: ImportReport) -> Episode | None:
    """An episode without its reset; None if nothing remains.

    Args:
        episode: as it was recorded.
        kinds: episode id -> kind of reset.
        report: counted up.
    """
    kind = kinds.get(episode.episode_id)
    if kind is None:
        return episode
    if kind == "next step":
        report.resets += 1
        return _cut(episode, slice(1, None)) if len(episode) > 1 else None
    if episode.terminated:
        report.repeated += 1
        shown = np.concatenate([episode.observations[:-1], episode.observations[-2:-1]])
        return replace(episode, observations=shown)
    if len(episode) == 1:
        report.vanished += 1
        return None
    report.dropped += 1
    return _cut(episode, slice(0, -1))


def resets_to_drop(signs: ResetSigns, report: ImportReport) -> dict[int, Kind]:
    """What to leave out when the user says that there are resets: those found, or every row that looks like one."""
    finding = signs.find() or Finding("next step", is_sure=False, episodes=signs.likely_rows())
    if not finding.episodes:
        report.decide("--autoreset drop: no row looks like a reset; nothing is left out")
    return dict.fromkeys(finding.episodes, finding.kind)


def _cut(episode: Episode, steps: slice) -> Episode:
    outputs = episode.policy_outputs
    return replace(
        episode,
        observations=episode.observations[steps],
        actions=episode.actions[steps],
        rewards=episode.rewards[steps],
        policy_outputs=None if outputs is None else outputs[steps],
    )


def _sizes(changes: Array) -> Array:
    """Absolute changes, (N, n); (N, 1) for long observations."""
    sizes = np.abs(changes)
    return sizes if sizes.shape[1] <= _COMPONENTS else sizes.sum(axis=1, keepdims=True)


def _ids(episodes: Sequence[_Seen]) -> frozenset[int]:
    return frozenset(each.episode_id for each in episodes)


def _log_chance(of: int, found: int, chance: float) -> float:
    """Log of a bound on the chance that `found` out of `of` happen, each with a chance of its own."""
    return min(0.0, log(comb(of, found)) + found * log(min(1.0, chance)))
