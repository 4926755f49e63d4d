"""The judge: returns of policies on given seeds, played once and remembered in the catalog.

It measures and remembers; what the numbers prove is in `refine/gate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refine.gate import interval
from refine.policy import MlpPolicy, Mode
from storage.catalog import insert_rows
from storage.identity import content_id
from storage.store import Store

from .actors import Actor
from .workers import evaluate_returns

Returns = NDArray[np.float64]
Purpose = Literal["select", "accept", "report", "evaluate"]
_BATCH = 8  # policies whose returns are committed together, so that an interruption costs little


@dataclass(frozen=True)
class Contestant:
    """A policy that is judged, under the name by which the catalog knows it."""

    policy_id: str
    sha256: str
    actor: Actor

    @classmethod
    def of(cls, network: MlpPolicy, prefix: str) -> Contestant:
        """A portable network, named by its content."""
        return cls(f"{prefix}-{network.sha256[:12]}", network.sha256, network)


@dataclass(frozen=True)
class Judge:
    """Plays policies in one environment; equal questions are played once, over all commands and interruptions."""

    store: Store
    env_id: str
    env_kwargs: Mapping[str, Any]
    workers: int | None = None

    def returns(
        self,
        contestants: Sequence[Contestant],
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
        known = self._remembered(ids)
        missing = list({id_: c for id_, c in zip(ids, contestants, strict=True) if id_ not in known}.items())
        total = len(missing) * len(seeds)
        for start in range(0, len(missing), _BATCH):
            batch, before = missing[start : start + _BATCH], start * len(seeds)
            found = evaluate_returns(
                self.env_id,
                self.env_kwargs,
                [contestant.actor for _, contestant in batch],
                seeds,
                mode,
                self.workers,
                advance=lambda done, _, before=before: advance(before + done, total),
            )
            rows = {id_: values for (id_, _), values in zip(batch, found, strict=True)}
            self._remember(batch, rows, seeds, mode, purpose)
            known |= rows
        return [known[id_] for id_ in ids]

    def _evaluation_id(self, contestant: Contestant, seeds: range, mode: Mode) -> str:
        played = [contestant.sha256, self.env_id, dict(self.env_kwargs), mode, seeds.start, len(seeds)]
        return content_id("e_", played, 24)

    def _remembered(self, ids: Sequence[str]) -> dict[str, Returns]:
        with self.store.catalog.read() as con:
            rows = con.execute(
                "SELECT evaluation_id, returns FROM evaluations WHERE evaluation_id IN (SELECT unnest(?))", [list(ids)]
            ).fetchall()
        return {id_: np.array(returns, dtype=np.float64) for id_, returns in rows}

    def _remember(
        self,
        played: Sequence[tuple[str, Contestant]],
        found: Mapping[str, Returns],
        seeds: range,
        mode: Mode,
        purpose: Purpose,
    ) -> None:
        rows = [
            {
                "evaluation_id": id_,
                "policy_id": contestant.policy_id,
                "env_id": self.env_id,
                "env_kwargs": json.dumps(dict(self.env_kwargs), sort_keys=True),
                "purpose": purpose,
                "mode": mode,
                "first_seed": seeds.start,
                "episodes": len(seeds),
                "returns": found[id_].tolist(),
                **_summary(found[id_]),
            }
            for id_, contestant in played
        ]
        with self.store.catalog.write() as con:
            insert_rows(con, "evaluations", rows)


def _summary(returns: Returns) -> dict[str, float]:
    estimate = interval(returns)
    return {"return_": estimate.mean, "low": estimate.low, "high": estimate.high}
