"""Where the episodes of a recording end: its final rows, and the resets that vector environments log as if steps.

A recording of T rows per episode has T observations, the steps schema T+1. With `next_observation` nothing is missing.
Without it, the observation after the last step is unknown:

- after a *terminal* step the last observation is repeated. Learners do not read it: a terminal state has no value.
- after a *truncated* step it would be read, so that step is given up, and its observation is the final one.

Since Gymnasium 1.0 a vector environment answers the step after an episode's end with the first observation of the next
one, whatever the action, and reward 0: a log of it has a row that leads from one episode into the other. Environments
that reset within the last step log the next episode's first observation as that step's next observation. The evidence
for either is the probability that clean rows look so by chance; no single row decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb, log
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import BadInput
from ..schema import Array, Episode
from .row_validation import ImportReport

Bools = NDArray[np.bool_]


def add_final_observation(table: pa.Table, report: ImportReport) -> pa.Table:
    """Rows of whole episodes with a final row each, in the columns of the steps schema.

    Args:
        table: ascending `episode_id`, `observation`, `action`, `reward`; `step`, `terminated`, `truncated`,
            `next_observation`, `seed` and `policy_output` may be missing. An episode whose last action is null has its
            final row already.
        report: its counts are increased.

    Raises:
        BadInput: if a flag is not 0 or 1, or a next observation is not the observation of the next row.
    """
    if missing := [name for name in ("observation", "action", "reward") if name not in table.column_names]:
        raise BadInput(f"The column {missing[0]!r} is missing.", "Map it with --column MEANING=NAME.")
    ids = np.asarray(table["episode_id"])
    is_last = np.append(ids[1:] != ids[:-1], True)
    ends = is_last & np.asarray(table["action"].is_valid())
    terminated, truncated = (_flag(table, name, report) for name in ("terminated", "truncated"))
    stopped = ends & ~terminated & ~truncated
    truncated = truncated | stopped
    known = "next_observation" in table.column_names
    if known:
        _check_next(table, ids, is_last)
    given_up = ends & ~terminated if not known else np.zeros_like(ends)
    vanished = given_up & np.append(True, is_last[:-1])
    report.finals += int((is_last & ~ends).sum())
    report.stopped += int((stopped & ~vanished).sum())
    report.repeated += 0 if known else int((ends & terminated).sum())
    report.vanished += int(vanished.sum())
    report.dropped += int((given_up & ~vanished).sum())
    truncated = (truncated | np.append(given_up[1:] & ~is_last[:-1], False)) & ~given_up
    return _build(table, (ids, is_last), (terminated, truncated), ends & ~given_up, given_up)


def _build(
    table: pa.Table, place: tuple[NDArray[np.int64], Bools], flags: tuple[Bools, Bools], added: Bools, emptied: Bools
) -> pa.Table:
    """The table with a final row after each of `added`, and the rows `emptied` as final rows themselves."""
    ids, is_last = place
    first = np.append(True, is_last[:-1])
    source = np.repeat(np.arange(len(ids)), 1 + added)[np.repeat(~(emptied & first), 1 + added)]
    is_new = np.append(False, source[1:] == source[:-1])
    is_final = is_new | emptied[source]
    rows, acted = pa.array(source), pa.array(source, mask=is_final)
    columns = {
        "episode_id": pa.array(ids[source]),
        "step": pa.array(_steps(table, first)[source] + is_new),
        "observation": _observations(table, source, is_new),
        "action": table["action"].take(acted),
        "reward": table["reward"].take(acted),
        "terminated": pa.array(flags[0][source] & ~is_final),
        "truncated": pa.array(flags[1][source] & ~is_final),
    }
    if "policy_output" in table.column_names:
        columns["policy_output"] = table["policy_output"].take(acted)
    if "seed" in table.column_names:
        columns["seed"] = table["seed"].take(rows)
    return pa.table(columns)


def _observations(table: pa.Table, source: NDArray[np.int64], is_new: Bools) -> pa.ChunkedArray:
    if "next_observation" not in table.column_names:
        return table["observation"].take(pa.array(source))
    both = pa.chunked_array(
        [*table["observation"].chunks, *table["next_observation"].cast(table["observation"].type).chunks]
    )
    return both.take(pa.array(source + is_new * table.num_rows))


def _steps(table: pa.Table, first: Bools) -> NDArray[np.int64]:
    if "step" in table.column_names and pa.types.is_integer(table["step"].type) and not table["step"].null_count:
        return np.asarray(table["step"]).astype(np.int64)
    starts = np.flatnonzero(first)
    return np.arange(len(first)) - np.repeat(starts, np.diff(starts, append=len(first)))


def _flag(table: pa.Table, name: str, report: ImportReport) -> Bools:
    """One flag per row, (N,); an empty one counts as false, which is reported."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    column = table[name]
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise BadInput(f"The column {name!r} is of type {column.type}; it has to be true or false, or 1 or 0.")
    is_empty = column.is_null().to_numpy() & table["action"].is_valid().to_numpy()
    report.note_empty(name, int(is_empty.sum()))
    values = np.asarray(pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0))
    if (wrong := np.flatnonzero(~np.isin(values, (0, 1)))).size:
        row = wrong[0]
        step = row - np.flatnonzero(np.asarray(table["episode_id"]) == table["episode_id"][row].as_py())[0]
        place = f"Episode {table['episode_id'][row]}, step {step}"
        raise BadInput(f"{place}: {name} is {values[row]}; it has to be true or false, or 1 or 0.")
    return values.astype(np.bool_)


def _check_next(table: pa.Table, ids: NDArray[np.int64], is_last: Bools) -> None:
    shown, after = (_matrix(table[name]) for name in ("observation", "next_observation"))
    if shown.shape != after.shape:
        raise BadInput(f"The next observations have {after.shape[1]} numbers, the observations {shown.shape[1]}.")
    both, neither = after[:-1] == shown[1:], (after[:-1] != after[:-1]) & (shown[1:] != shown[1:])
    same = np.append((both | neither).all(axis=1), True) | is_last
    if (wrong := np.flatnonzero(~same)).size:
        step = wrong[0] - np.flatnonzero(ids == ids[wrong[0]])[0]
        raise BadInput(
            f"Episode {ids[wrong[0]]}, step {step}: its next observation is not the observation of the next row.",
            "Rows of an episode have to follow each other; often an episode's end lacks its flag.",
        )


def _matrix(column: pa.ChunkedArray) -> NDArray[np.generic]:
    flat = np.asarray(column.combine_chunks().flatten())
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1)


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
        count = self.observations.total()
        pairs = sum(times * (times - 1) for times in self.observations.values()) / 2
        collision = (pairs + 1) / (count * (count - 1) / 2 + 2)  # probability that two rows have equal observations
        chain = _log_chance(len(self.seen) - 1, len(begun), collision * finals)
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
    """An episode without its reset, of the kind that its id has; None if nothing remains."""
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
