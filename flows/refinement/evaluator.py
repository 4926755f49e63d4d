"""Returns of policies on given seeds, played once and remembered in the catalog; `evaluate`, their mean on fresh ones.

What the numbers prove is in `refine/evaluation/gate.py`.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from refine.evaluation import interval
from refine.policies import MlpPolicy, Mode, RulePolicy
from storage.annotations import find_rule_list
from storage.catalog import Connection, insert_rows
from storage.datasets import read_manifest
from storage.errors import BadInput, ChangedEnvironmentWarning, UsedSeedsWarning
from storage.policies import (
    insert_environment,
    is_reserved,
    list_environments,
    load_returns,
    policy_record,
    resolve_policy,
)
from storage.schema import Frozen, content_id
from storage.store import Store

from ..policies import is_portable, load_policy
from ..runtime import Report, silent
from ..simulation import (
    Actor,
    Fingerprint,
    Named,
    check_mode,
    find_home,
    look_up_fingerprint,
    look_up_spaces,
    play_policies,
)

Returns = NDArray[np.float64]
Purpose = Literal["select", "accept", "report", "evaluate"]
COMMIT_S = 30.0
"""Seconds of playing that are committed together: what a kill costs at most, and others see late."""


@dataclass(frozen=True)
class Candidate:
    """A policy to be judged, with its id in the catalog."""

    policy_id: str
    sha256: str
    actor: Actor

    @classmethod
    def of(cls, policy: MlpPolicy | RulePolicy, prefix: str) -> Candidate:
        """A portable policy, named by its content."""
        return cls(f"{prefix}-{policy.sha256[:12]}", policy.sha256, policy)


@dataclass
class _Memory:
    """An evaluator's state in this process."""

    returns: dict[str, Returns] = field(default_factory=dict)  # by the ids of evaluations
    asked: dict[tuple[str, Mode], dict[str, range]] = field(default_factory=lambda: defaultdict(dict))
    """By policy and mode: the ids of evaluations that were asked for, and the seeds of each."""
    seeds: range | None = None  # of the session under way; what was played on them before was read from the catalog
    is_warned: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)  # played, not committed yet
    played_s: float = 0.0  # how long that took

    def covers(self, seeds: range) -> bool:
        """Whether the session under way has read all that was played on some seeds."""
        return self.seeds is not None and _holds(self.seeds, seeds)

    def find(self, id_: str, sha256: str, seeds: range, mode: Mode) -> bool:
        """Whether an evaluation is known by now; one on some seeds of another is taken from that."""
        asked = self.asked[sha256, mode]
        if id_ not in self.returns:
            for other, whole in asked.items():
                if other in self.returns and _holds(whole, seeds):
                    first = seeds.start - whole.start
                    self.returns[id_] = self.returns[other][first : first + len(seeds)]
                    break
        asked[id_] = seeds
        return id_ in self.returns


def _holds(whole: range, seeds: range) -> bool:
    return whole.start <= seeds.start and seeds.stop <= whole.stop


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
    def session(self, seeds: range) -> Generator[None]:
        """Batch the evaluations of one comparison: the catalog is read once, and written where much was played.

        Played episodes are kept if the block is interrupted; a killed process replays its last seconds.

        Args:
            seeds: all that will be played.
        """
        self._recall(seeds=seeds)
        self._memory.seeds = seeds
        try:
            yield
        finally:
            self._memory.seeds = None
            self.commit()

    def returns(
        self,
        candidates: Sequence[Candidate],
        seeds: range | Sequence[range],
        *,
        mode: Mode,
        purpose: Purpose,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Returns]:
        """Undiscounted returns, one (S,) array per candidate, of one episode per seed.

        Args:
            candidates: the policies; equal ones are played once.
            seeds: the episodes, the same for all, so that returns are paired; or those of each candidate.
            mode: `greedy` or `sampled`.
            purpose: what the seeds are for, for the catalog.
            advance: called with episodes done and episodes in all.
        """
        each = [seeds] * len(candidates) if isinstance(seeds, range) else list(seeds)
        ids = [self._evaluation_id(*asked, mode) for asked in zip(candidates, each, strict=True)]
        known = self._memory.returns
        if unread := [id_ for id_, part in zip(ids, each, strict=True) if not self._memory.covers(part)]:
            self._recall([id_ for id_ in unread if id_ not in known])
        asked = zip(ids, zip(candidates, each, strict=True), strict=True)
        find = self._memory.find
        missing = {id_: (who, part) for id_, (who, part) in asked if not find(id_, who.sha256, part, mode)}
        if missing:
            self._play(missing, mode, purpose, advance)
        return [known[id_] for id_ in ids]

    def _play(
        self,
        missing: Mapping[str, tuple[Candidate, range]],
        mode: Mode,
        purpose: Purpose,
        advance: Callable[[int, int], None],
    ) -> None:
        """Play what is not in the catalog yet; finished episodes are kept on an interrupt."""
        actors, lengths = [candidate.actor for candidate, _ in missing.values()], list[int]()
        each = [seeds for _, seeds in missing.values()]
        play = partial(play_policies, self.env_id, self.env_kwargs, actors, each, mode, self.workers)
        began = time.monotonic()
        try:
            with closing(play(max_steps=self.max_steps, advance=advance, lengths=lengths)) as played:
                for (id_, (candidate, seeds)), returns in zip(missing.items(), played, strict=True):
                    row = self._row(id_, candidate, returns, seeds, mode=mode, purpose=purpose)
                    began = self._remember(id_, returns, row | {"steps": sum(lengths)}, began)
                    lengths.clear()
        finally:
            if self._memory.seeds is None:
                self.commit()

    def _recall(self, evaluation_ids: Sequence[str] = (), seeds: range | None = None) -> None:
        """Read some of the catalog's evaluations, under whatever name their policy was played."""
        if not evaluation_ids and seeds is None:
            return
        with self.store.catalog.read() as con:
            found = load_returns(con, self.fingerprint.sha256, evaluation_ids, seeds or range(0))
            self._memory.returns |= {id_: np.array(returns, dtype=np.float64) for id_, returns in found.items()}
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

    def _evaluation_id(self, candidate: Candidate, seeds: range, mode: Mode) -> str:
        place = [self.env_id, dict(self.env_kwargs), self.fingerprint.sha256, self.max_steps]
        return content_id("e_", [candidate.sha256, place, mode, seeds.start, len(seeds)], 24)

    def _row(
        self, id_: str, candidate: Candidate, returns: Returns, seeds: range, *, mode: Mode, purpose: Purpose
    ) -> dict[str, Any]:
        estimate = interval(returns)
        return {
            "evaluation_id": id_,
            "policy_id": candidate.policy_id,
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

    def _remember(self, id_: str, returns: Returns, row: dict[str, Any], began: float) -> float:
        """Keep what was played since a time of the monotonic clock; returns the time now."""
        memory, now = self._memory, time.monotonic()
        memory.returns[id_] = returns
        memory.rows.append(row)
        memory.played_s += now - began
        if memory.played_s > self.commit_s:
            self.commit()
        return now

    def commit(self, also: Callable[[], None] | None = None) -> None:
        """Write what was played, in one transaction with what else belongs to it; what is not written is kept."""
        memory = self._memory
        if not memory.rows and also is None:
            return
        with self.store.catalog.write() as con:
            if memory.rows:
                insert_environment(con, self.fingerprint.known, self.env_id, self.env_kwargs)
                insert_rows(con, "evaluations", memory.rows)
            if also is not None:
                also()
        memory.rows, memory.played_s = [], 0.0


class EvaluateConfig(Frozen):
    """Which policy is played, where, and how often."""

    policy: Named = Field(description="id in the store, or a specification as `load_policy` takes it")
    env_id: Named | None = Field(default=None, description="Gymnasium id; null: the environment of the stored policy")
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    episodes: int = Field(default=100, ge=2)
    seed: int = Field(default=5_000_000, ge=0, description="seed of the first episode; beyond the gate's by default")
    mode: Mode = "greedy"
    workers: int | None = Field(default=None, ge=1)


class _Home(NamedTuple):
    """The environment in which a policy is played."""

    env_id: Named
    env_kwargs: Mapping[str, Any]
    max_steps: int | None = None


def evaluate(store: Store, config: EvaluateConfig, report: Report = silent) -> dict[str, Any]:
    """Play a policy; equal evaluations are answered from the catalog.

    Warns where a gate of the environment has used some of the seeds.

    Returns:
        policy_id, env_id, mode, episodes, first seed, and `return`, `low`, `high`: mean and 95% interval.

    Raises:
        BadInput: for an unknown policy or environment, or a policy that is for other spaces.
    """
    spec, home = _resolve(store, config)
    policy = load_policy(spec, look_up_spaces(home.env_id, home.env_kwargs), store)
    mode = check_mode(policy, config.mode)
    candidate = Candidate(spec.removeprefix("policy:"), policy.sha256, policy)
    evaluator = Evaluator(store, home.env_id, home.env_kwargs, config.workers, home.max_steps)
    seeds = range(config.seed, config.seed + config.episodes)
    _warn_of_a_gate(store, home.env_id, seeds)
    (returns,) = evaluator.returns(
        [candidate],
        seeds,
        mode=mode,
        purpose="evaluate",
        advance=lambda done, total: report(f"play {candidate.policy_id}", done, total),
    )
    estimate = interval(returns)
    return {
        "policy_id": candidate.policy_id,
        "env_id": home.env_id,
        "mode": mode,
        "episodes": config.episodes,
        "seed": config.seed,
        "return": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
    }


def _warn_of_a_gate(store: Store, env_id: str, seeds: range) -> None:
    with store.catalog.read() as con:
        if is_reserved(con, env_id, seeds):
            warnings.warn(
                f"A gate has chosen or judged policies on some of the seeds {seeds.start} to {seeds.stop - 1}, so the"
                " return may be too good; without --seed, evaluate plays seeds that no gate uses.",
                UsedSeedsWarning,
                stacklevel=3,
            )


def _resolve(store: Store, config: EvaluateConfig) -> tuple[Named, _Home]:
    """The policy's specification and its environment, which a policy of the store has recorded."""
    if config.policy.startswith("rules:"):
        listed = find_rule_list(store, config.policy.removeprefix("rules:"))
        return _at_home(store, config, Named(f"rules:{listed.list_id}"), listed.dataset_id)
    name = config.policy.removeprefix("policy:")
    if ":" in name or name == "random" or is_portable(name):
        if config.env_id is None:
            raise BadInput(f"Which environment is {config.policy} for?", "Name it with --env ENV_ID.")
        return config.policy, _Home(config.env_id, config.env_kwargs)
    policy_id = resolve_policy(store, name)
    return _at_home(store, config, Named(f"policy:{policy_id}"), policy_record(store, policy_id)["dataset_id"])


def _at_home(store: Store, config: EvaluateConfig, spec: Named, dataset_id: str | None) -> tuple[Named, _Home]:
    """A policy of the store in the environment that was named, or else in its dataset's."""
    if config.env_id is not None:
        return spec, _Home(config.env_id, config.env_kwargs)
    home = _home_of(store, spec.removeprefix("policy:"), dataset_id)
    return spec, home._replace(env_kwargs=config.env_kwargs) if config.env_kwargs else home


def _home_of(store: Store, policy: str, dataset_id: str | None) -> _Home:
    """The environment of the dataset that a policy comes from."""
    manifest = read_manifest(store, dataset_id) if dataset_id else None
    if manifest is None or manifest.env_id is None:
        raise BadInput(f"The store has no environment for {policy}.", "Name it with --env ENV_ID.")
    return _Home(*find_home(store, manifest), manifest.max_steps)
