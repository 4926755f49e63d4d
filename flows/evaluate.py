"""`evaluate`: a policy's mean return on fresh seeds, with its interval, remembered in the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from refine.gate import interval
from refine.policy import Mode
from storage.errors import BadInput
from storage.policies import policy_record, resolve_policy
from storage.schema import Frozen
from storage.steps import read_manifest
from storage.store import Store

from .actors import check_mode
from .environments import Spaces, make_environment, spaces_of
from .judge import Contestant, Judge
from .policies import load_policy
from .progress import Report, silent


class EvaluateConfig(Frozen):
    """Which policy is played where, and how often."""

    policy: str = Field(description="id in the store, or a specification as `flows.policies.load_policy` takes it")
    env_id: str | None = Field(
        default=None, description="Gymnasium id; the one that the stored policy is for when null"
    )
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    episodes: int = Field(default=100, ge=2)
    seed: int = Field(default=5_000_000, ge=0, description="seed of the first episode; beyond the gate's by default")
    mode: Mode = "greedy"
    workers: int | None = Field(default=None, ge=1)


def evaluate(store: Store, config: EvaluateConfig, report: Report = silent) -> dict[str, Any]:
    """Play a policy; equal questions are answered from the catalog.

    Returns:
        policy_id, env_id, mode, episodes, first seed, and `return`, `low`, `high`: mean and 95% interval.

    Raises:
        BadInput: for an unknown policy or environment, or a policy that is for other spaces.
    """
    spec, env_id, env_kwargs = _resolve(store, config)
    environment = make_environment(env_id, env_kwargs)
    try:
        spaces = spaces_of(environment)
    finally:
        environment.close()
    contestant = _contestant(store, spec, spaces, config.mode)
    (returns,) = Judge(store, env_id, env_kwargs, config.workers).returns(
        [contestant],
        range(config.seed, config.seed + config.episodes),
        mode=config.mode,
        purpose="evaluate",
        advance=lambda done, total: report(f"play {contestant.policy_id}", done, total),
    )
    estimate = interval(returns)
    return {
        "policy_id": contestant.policy_id,
        "env_id": env_id,
        "mode": config.mode,
        "episodes": config.episodes,
        "seed": config.seed,
        "return": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
    }


def _resolve(store: Store, config: EvaluateConfig) -> tuple[str, str, Mapping[str, Any]]:
    """The policy's specification and its environment; a policy of the store knows the environment it is for."""
    if ":" in config.policy or config.policy == "random":
        if config.env_id is None:
            raise BadInput(f"Which environment is {config.policy} for?", "Name it with --env ENV_ID.")
        return config.policy, config.env_id, config.env_kwargs
    policy_id = resolve_policy(store, config.policy)
    if config.env_id is not None:
        return f"policy:{policy_id}", config.env_id, config.env_kwargs
    return f"policy:{policy_id}", *_home_of(store, policy_id)


def _home_of(store: Store, policy_id: str) -> tuple[str, Mapping[str, Any]]:
    """The environment of the dataset that a stored policy came from."""
    dataset_id = policy_record(store, policy_id)["dataset_id"]
    manifest = read_manifest(store, dataset_id) if dataset_id else None
    if manifest is None or manifest.env_id is None:
        raise BadInput(f"The store does not know which environment {policy_id} is for.", "Name it with --env ENV_ID.")
    return manifest.env_id, manifest.env_kwargs


def _contestant(store: Store, spec: str, spaces: Spaces, mode: Mode) -> Contestant:
    policy = load_policy(spec, spaces, store)
    check_mode(policy, mode)
    kind, _, name = spec.partition(":")
    return Contestant(name if kind == "policy" else spec, policy.sha256, policy)
