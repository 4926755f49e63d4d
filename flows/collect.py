"""Collecting a dataset: episodes of a policy in an environment, into the store, resumable at any instant.

How episodes are played is `playing/rollout.py`; how they are written is `storage/writing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from pydantic import Field

from refine.policy import Mode
from storage.datasets import find_finished
from storage.errors import BadInput
from storage.identity import content_id
from storage.schema import Engine, Episode, Frozen, Manifest, ManifestDraft
from storage.steps import StepsWriter, read_manifest
from storage.store import Store

from .playing.actors import Policy, check_mode
from .playing.environments import EnvironmentMaker, spaces_of
from .playing.policies import load_policy
from .playing.pool import engine_versions, make_in_engine, play_pooled
from .playing.rollout import ENVIRONMENTS, rollout
from .playing.workers import play_episodes
from .progress import Report, silent
from .runners import workers_if_chosen

SHARD_BYTES = 100_000_000
_DECISIVE = (
    "env_id",
    "env_kwargs",
    "policy_sha256",
    "policy_mode",
    "seed",
    "max_steps",
    "component_names",
    "action_names",
)


class CollectConfig(Frozen):
    """What to collect."""

    env_id: str = Field(description="Gymnasium id, or module:EnvId")
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    engine: Engine = Field(
        default="gymnasium", description="whose code the environment runs in; recorded in the manifest"
    )
    policy: str = Field(description="what acts, as `load_policy` names it")
    mode: Mode = Field(default="greedy", description="greedy, or sampled from the policy's distribution")
    episodes: int = Field(default=30, ge=1, description="how many; 30 cover what a stuck policy keeps doing")
    seed: int = Field(default=0, ge=0, description="seed of the first episode; episode i has seed + i")
    envs: int = Field(default=ENVIRONMENTS, ge=1, description="environments side by side; changes the speed only")
    max_steps: int | None = Field(default=None, ge=1, description="cut longer episodes there; None: never")
    dataset: str | None = Field(default=None, description="name of the dataset; None: made from its content")


def collect(
    store: Store,
    config: CollectConfig,
    report: Report = silent,
    *,
    component_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Collect a dataset, or go on with an interrupted one, or return the one that is there already.

    Args:
        store: where it goes.
        config: what to collect.
        report: told of every episode; of all of them at once when the dataset was there already.
        component_names: of the observation, from the card; o0, o1, ... without one.
        action_names: of the actions, or of the dimensions of a continuous one; a0, a1, ... without one.
        shard_bytes: see `StepsWriter`.

    Returns:
        The manifest of the dataset, the same one every time.

    Raises:
        BadInput: when the environment or the policy is refused, or a dataset of that name was made otherwise.
        Prerequisite: when a package is missing.
        CatalogLocked: when another process is collecting the same dataset.
    """
    policy, draft = _plan(store, config, component_names, action_names)
    finished = find_finished(store, _with_known_origin(store, draft))
    if finished is not None:
        _check_count(config, finished.episodes, "has")
        report(f"{finished.dataset_id} was collected before", finished.episodes, finished.episodes)
        return finished
    with StepsWriter(store, draft, shard_bytes=shard_bytes) as writer:
        done = writer.episodes_done
        if done > config.episodes:
            _check_count(config, done, "was interrupted with")
        report(f"collect {draft.dataset_id}", done, config.episodes)
        seeds = range(config.seed + done, config.seed + config.episodes)
        with closing(_play(config, policy, draft, seeds, first_id=done)) as episodes:
            for episode in episodes:
                writer.write(episode)
                report(f"collect {draft.dataset_id}", episode.episode_id + 1, config.episodes)
        return writer.finish()


def _check_count(config: CollectConfig, episodes: int, verb: str) -> None:
    """Only a dataset that the user named can be there with another number of episodes."""
    if episodes != config.episodes:
        raise BadInput(
            f"The dataset {config.dataset} {verb} {episodes} episodes; {config.episodes} were asked for.",
            "Give the new one another name.",
        )


def _play(
    config: CollectConfig, policy: Policy, draft: ManifestDraft, seeds: range, *, first_id: int
) -> Generator[Episode]:
    """In this process, unless a runner was chosen; the workers only play, this process writes."""
    env_id, kwargs, mode = config.env_id, config.env_kwargs, draft.policy_mode or config.mode
    options: dict[str, Any] = {"mode": mode, "max_steps": config.max_steps, "first_id": first_id}
    if draft.engine == "envpool":
        return play_pooled(env_id, kwargs, policy, seeds, lanes=config.envs, **options)
    if workers_if_chosen() != 1:
        return play_episodes(env_id, kwargs, policy, seeds, **options)
    return rollout(EnvironmentMaker(env_id, kwargs), policy, seeds, envs=config.envs, **options)


def _plan(
    store: Store, config: CollectConfig, component_names: Sequence[str] | None, action_names: Sequence[str] | None
) -> tuple[Policy, ManifestDraft]:
    """Load what is asked for, and describe the dataset that it will make."""
    environment = make_in_engine(config.engine, config.env_id, config.env_kwargs)
    try:
        spaces, versions = spaces_of(environment), engine_versions(environment)
    finally:
        environment.close()
    policy = load_policy(config.policy, spaces, store)
    draft = ManifestDraft(
        dataset_id=config.dataset or "",
        source="collect",
        env_id=config.env_id,
        env_kwargs=config.env_kwargs,
        engine=config.engine,
        observation_space=spaces.observation,
        action_space=spaces.action,
        component_names=tuple(component_names or _numbered("o", spaces.observation.size)),
        action_names=tuple(action_names or _numbered("a", spaces.action.n or spaces.action.size)),
        policy=policy.spec,
        policy_sha256=policy.sha256,
        policy_mode=check_mode(policy, config.mode),
        policy_output=policy.output_kind,
        seed=config.seed,
        max_steps=config.max_steps,
        versions=versions,
    )
    return policy, draft if config.dataset else draft.model_copy(update={"dataset_id": _name(draft, config.episodes)})


def _name(draft: ManifestDraft, episodes: int) -> str:
    """A readable beginning and a hash of everything that decides the rows and their names."""
    readable = re.sub(r"[^a-z0-9.]+", "-", str(draft.env_id).lower()).strip("-.")
    made_of = {name: getattr(draft, name) for name in _DECISIVE}
    if draft.engine != "gymnasium":  # which is what names were made for before there was another one
        made_of["engine"] = draft.engine
    return content_id(f"{readable}-", {**made_of, "episodes": episodes}, length=12)


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{number}" for number in range(count))


def _with_known_origin(store: Store, draft: ManifestDraft) -> ManifestDraft:
    """The same policy may be named by another path this time; its hash says that it is the same."""
    if not store.dataset_dir(draft.dataset_id).exists():
        return draft
    known = read_manifest(store, draft.dataset_id)
    return draft.model_copy(update={"policy": known.policy}) if known.policy_sha256 == draft.policy_sha256 else draft
