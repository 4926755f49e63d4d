"""The evaluator: returns of policies on given seeds, played once and remembered in the catalog.

What the numbers prove is in `refine/evaluation/gate.py`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refine.evaluation import interval
from refine.policies import MlpPolicy, Mode
from storage.catalog import Connection, insert_rows
from storage.content_hash import content_id
from storage.errors import ChangedEnvironmentWarning
from storage.policies import insert_environment, list_environments, load_returns
from storage.store import Store

from ..simulation import Actor, Fingerprint, Named, look_up_fingerprint, play_policies

Returns = NDArray[np.float64]
Purpose = Literal["select", "accept", "report", "evaluate"]
COMMIT_S = 10.0
"""Seconds of playing that are committed together, so that a kill costs little."""


@dataclass(frozen=True)
class Candidate:
    """A policy to be judged, with its id in the catalog."""

    policy_id: str
    sha256: str
    actor: Actor

    @classmethod
    def of(cls, network: MlpPolicy, prefix: str) -> Candidate:
        """A portable network, named by its content."""
        return cls(f"{prefix}-{network.sha256[:12]}", network.sha256, network)


@dataclass
class _Memory:
    """An evaluator's state in this process."""

    returns: dict[str, Returns] = field(default_factory=dict)  # by the ids of evaluations
    policies: set[str] = field(default_factory=set)  # policies whose evaluations were all read from the catalog
    is_warned: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)  # played, not committed yet
    since: float = 0.0  # when the first of them was played, on the monotonic clock
    is_open: bool = False  # whether more evaluations follow, so that rows may wait


@dataclass(frozen=True)
class Evaluator:
    """Plays policies in one environment; equal episodes are played once, over all commands and interruptions.

    Episodes count as different once the environment's code, its registration or a package version has changed.

    Args:
        store: remembers what was played.
        env_id: as for `make_environment`.
        env_kwargs: as for `make_environment`.
        workers: processes; one per core when None. They do not change a return.
        max_steps: longer episodes are cut there, as in the dataset; None: never.
        commit_s: seconds of playing that are committed together.
    """

    store: Store
    env_id: Named
    env_kwargs: Mapping[str, Any]
    workers: int | None = None
    max_steps: int | None = None
    commit_s: float = field(default=COMMIT_S, kw_only=True, compare=False)
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the environment."""
        return look_up_fingerprint(self.env_id, self.env_kwargs)

    @contextmanager
    def session(self, contestants: Sequence[Candidate] = ()) -> Generator[None]:
        """Batch several evaluations of known policies: the catalog is read once and written every few seconds.

        Played episodes are kept if the block is interrupted; a killed process replays its last seconds.

        Args:
            contestants: the policies that will be evaluated.
        """
        self._recall(contestants)
        self._memory.is_open = True
        try:
            yield
        finally:
            self._memory.is_open = False
            self._commit()

    def returns(
        self,
        contestants: Sequence[Candidate],
        seeds: range,
        *,
        mode: Mode,
        purpose: Purpose,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Returns]:
        """Undiscounted returns, one (S,) array per contestant, of one episode per seed.

        Args:
            contestants: the policies; equal ones are played once.
            seeds: the episodes, the same for all, so that returns are paired.
            mode: `greedy` or `sampled`.
            purpose: what the seeds are for, for the catalog.
            advance: called with episodes done and episodes in all.
        """
        ids = [self._evaluation_id(contestant, seeds, mode) for contestant in contestants]
        known = self._memory.returns
        self._recall(contestants, ids)
        missing = {id_: c for id_, c in zip(ids, contestants, strict=True) if id_ not in known}
        if missing:
            self._play(missing, seeds, mode, purpose, advance)
        return [known[id_] for id_ in ids]

    def _play(
        self,
        missing: Mapping[str, Candidate],
        seeds: range,
        mode: Mode,
        purpose: Purpose,
        advance: Callable[[int, int], None],
    ) -> None:
        """Play what is not in the catalog yet; finished episodes are kept on an interrupt."""
        actors = [contestant.actor for contestant in missing.values()]
        play = partial(play_policies, self.env_id, self.env_kwargs, actors, seeds, mode, self.workers)
        try:
            with closing(play(max_steps=self.max_steps, advance=advance)) as played:
                for (id_, contestant), returns in zip(missing.items(), played, strict=True):
                    self._remember(id_, returns, self._row(id_, contestant, returns, seeds, mode=mode, purpose=purpose))
        finally:
            if not self._memory.is_open:
                self._commit()

    def _recall(self, contestants: Sequence[Candidate], evaluation_ids: Sequence[str] = ()) -> None:
        """Read, once, the catalog's evaluations of policies, also under names from another role."""
        memory = self._memory
        unread = {c.policy_id: c.sha256 for c in contestants if c.sha256 not in memory.policies}
        if not unread:
            return
        with self.store.catalog.read() as con:
            found = load_returns(con, self.fingerprint.sha256, unread, evaluation_ids)
            memory.returns |= {id_: np.array(returns, dtype=np.float64) for id_, returns in found.items()}
            memory.policies |= set(unread.values())
            self._warn_of_changes(con)

    def _warn_of_changes(self, con: Connection) -> None:
        """Warn once why earlier episodes do not count."""
        if self._memory.is_warned:
            return
        self._memory.is_warned = True
        known, here = list_environments(con, self.env_id, self.env_kwargs), self.fingerprint
        if known and here.sha256 not in {environment.environment_sha256 for environment in known}:
            changes = "; ".join(here.changes_since(known[0].versions, known[0].code))
            warnings.warn(
                f"{self.env_id} has changed since it was played ({changes}): its episodes are played again, and the "
                "earlier rows of the table evaluations keep their environment_sha256.",
                ChangedEnvironmentWarning,
                stacklevel=2,
            )

    def _evaluation_id(self, contestant: Candidate, seeds: range, mode: Mode) -> str:
        place = [self.env_id, dict(self.env_kwargs), self.fingerprint.sha256, self.max_steps]
        return content_id("e_", [contestant.sha256, place, mode, seeds.start, len(seeds)], 24)

    def _row(
        self, id_: str, contestant: Candidate, returns: Returns, seeds: range, *, mode: Mode, purpose: Purpose
    ) -> dict[str, Any]:
        estimate = interval(returns)
        return {
            "evaluation_id": id_,
            "policy_id": contestant.policy_id,
            "env_id": self.env_id,
            "env_kwargs": dict(self.env_kwargs),
            "environment_sha256": self.fingerprint.sha256,
            "purpose": purpose,
            "mode": mode,
            "first_seed": seeds.start,
            "episodes": len(seeds),
            "returns": returns.tolist(),
            "return_": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
        }

    def _remember(self, id_: str, returns: Returns, row: dict[str, Any]) -> None:
        memory, now = self._memory, time.monotonic()
        memory.returns[id_] = returns
        memory.since = memory.since if memory.rows else now
        memory.rows.append(row)
        if now - memory.since > self.commit_s:
            self._commit()

    def _commit(self) -> None:
        if not self._memory.rows:
            return
        with self.store.catalog.write() as con:
            insert_environment(con, self.fingerprint.known, self.env_id, self.env_kwargs)
            insert_rows(con, "evaluations", self._memory.rows)
        self._memory.rows = []
