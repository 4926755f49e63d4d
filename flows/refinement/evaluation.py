"""`evaluate`: a policy's mean return on fresh seeds, with its interval, remembered in the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from refine.evaluation import interval
from refine.policies import Mode
from storage.datasets import read_manifest
from storage.errors import BadInput
from storage.policies import policy_record, resolve_policy
from storage.schema import Frozen
from storage.store import Store

from ..policies import load_policy
from ..runtime import Report, silent
from ..simulation import Named, check_mode, find_home, look_up_spaces
from .evaluator import Candidate, Evaluator


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

    Returns:
        policy_id, env_id, mode, episodes, first seed, and `return`, `low`, `high`: mean and 95% interval.

    Raises:
        BadInput: for an unknown policy or environment, or a policy that is for other spaces.
    """
    spec, home = _resolve(store, config)
    policy = load_policy(spec, look_up_spaces(home.env_id, home.env_kwargs), store)
    mode = check_mode(policy, config.mode)
    contestant = Candidate(spec.removeprefix("policy:"), policy.sha256, policy)
    judge = Evaluator(store, home.env_id, home.env_kwargs, config.workers, home.max_steps)
    (returns,) = judge.returns(
        [contestant],
        range(config.seed, config.seed + config.episodes),
        mode=mode,
        purpose="evaluate",
        advance=lambda done, total: report(f"play {contestant.policy_id}", done, total),
    )
    estimate = interval(returns)
    return {
        "policy_id": contestant.policy_id,
        "env_id": home.env_id,
        "mode": mode,
        "episodes": config.episodes,
        "seed": config.seed,
        "return": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
    }


def _resolve(store: Store, config: EvaluateConfig) -> tuple[Named, _Home]:
    """The policy's specification and its environment, which a policy of the store has recorded."""
    name = config.policy.removeprefix("policy:")
    if ":" in name or name == "random" or Path(name).is_dir():
        if config.env_id is None:
            raise BadInput(f"Which environment is {config.policy} for?", "Name it with --env ENV_ID.")
        return config.policy, _Home(config.env_id, config.env_kwargs)
    policy_id = resolve_policy(store, name)
    if config.env_id is not None:
        return Named(f"policy:{policy_id}"), _Home(config.env_id, config.env_kwargs)
    home = _home_of(store, policy_id)
    return Named(f"policy:{policy_id}"), home._replace(env_kwargs=config.env_kwargs) if config.env_kwargs else home


def _home_of(store: Store, policy_id: str) -> _Home:
    """The environment of a stored policy's dataset."""
    dataset_id = policy_record(store, policy_id)["dataset_id"]
    manifest = read_manifest(store, dataset_id) if dataset_id else None
    if manifest is None or manifest.env_id is None:
        raise BadInput(f"The store has no environment for {policy_id}.", "Name it with --env ENV_ID.")
    return _Home(*find_home(store, manifest), manifest.max_steps)
