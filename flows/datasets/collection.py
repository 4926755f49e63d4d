"""Collecting a dataset: episodes of a policy in an environment, with its card, into the store; resumable at any time.

How episodes are played is `simulation/rollouts.py`; how they are written is `storage/datasets/files.py`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from pydantic import Field

from annotate.cards import CardFile, check_card_against_spaces, find_card, locate_card, read_card
from refine.policies import Mode
from storage.datasets import StepsWriter, find_finished, read_manifest
from storage.errors import BadInput, ChangedEnvironmentWarning, LeftOutWarning
from storage.schema import Engine, Episode, Frozen, Manifest, ManifestDraft, content_id, sha256_bytes
from storage.store import DRAFT, Store

from ..policies import hash_policy_file, load_policy, record_actor
from ..runtime import Report, silent
from ..simulation import (
    ENGINES,
    ENVIRONMENTS,
    Fingerprint,
    Named,
    Playing,
    Policy,
    Spaces,
    check_mode,
    flattened_from,
    look_up_spaces,
    play_episodes,
    play_pooled,
    remember,
    spaces_of,
    take_fingerprint,
)

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

    env_id: Named = Field(description="Gymnasium id, or module:EnvId")
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    engine: Engine = Field(default="gymnasium", description="what runs the environment; recorded in the manifest")
    policy: Named = Field(description="what acts, as `load_policy` names it")
    mode: Mode = Field(default="greedy", description="greedy, or sampled from the policy's distribution")
    episodes: int = Field(default=30, ge=1, description="how many; 30 cover what a stuck policy keeps doing")
    seed: int = Field(default=0, ge=0, description="seed of the first episode; episode i has seed + i")
    envs: int = Field(
        default=ENVIRONMENTS, ge=1, description="environments played side by side; changes the speed only"
    )
    workers: int | None = Field(
        default=1, ge=1, description="processes, if episodes take long; None: one per core; does not change the result"
    )
    max_steps: int | None = Field(default=None, ge=1, description="truncate episodes after so many steps; None: never")
    dataset: str | None = Field(default=None, description="name of the dataset; None: made from its content")
    rename: bool = Field(
        default=False, description="take a further name where a dataset of that one was made in another environment"
    )


def gather(store: Store, config: CollectConfig, *, card: str | None = None, report: Report = silent) -> Manifest:
    """Collect a dataset with the card's names, and keep the policy that acted as the baseline of refinements.

    Args:
        store: where it goes.
        config: what to collect.
        card: path of a card; the packaged one of the environment, if there is one, when None.
        report: shown the progress.

    Raises:
        BadInput: as `collect` does, or if the card does not fit the environment.
    """
    named = read_named(card)
    spaces = look_up_spaces(config.env_id, config.env_kwargs)
    fitting = fit_card(named, config.env_id, config.env_kwargs, spaces)
    manifest = collect(store, config, report, **fitting._asdict())
    warn_if_not_kept(manifest, named)
    record_actor(store, load_policy(config.policy, spaces, store), manifest)
    return manifest


def collect(
    store: Store,
    config: CollectConfig,
    report: Report = silent,
    *,
    component_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    card: bytes | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Collect a dataset, go on with an interrupted one, or return the finished one.

    Args:
        store: where it goes.
        config: what to collect.
        report: called at every episode; once for all of them when the dataset exists already.
        component_names: of the observation, from the card; o0, o1, ... without one.
        action_names: of the actions, or of the dimensions of a continuous one; a0, a1, ... without one.
        card: see `StepsWriter`.
        shard_bytes: likewise.

    Returns:
        The manifest of the dataset, the same one every time.

    Raises:
        BadInput: when the environment or the policy is refused, or a dataset of that name was made differently, for
            example in an environment whose code or package versions have changed since.
        Prerequisite: when a package is missing.
        CatalogLocked: when another process is collecting the same dataset.
    """
    policy, draft = _plan(store, config, component_names, action_names)
    draft = _set_apart(store, config, draft)
    finished = find_finished(store, _with_known_origin(store, draft))
    if finished is not None:
        _check_count(config, finished.episodes, "has")
        report(f"{finished.dataset_id} was collected before", finished.episodes, finished.episodes)
        return _remember(store, config, draft, finished)
    with StepsWriter(store, draft, shard_bytes=shard_bytes, card=card) as writer:
        done = writer.episodes_done
        if done > config.episodes:
            _check_count(config, done, "was interrupted with")
        report(f"collect {draft.dataset_id}", done, config.episodes)
        seeds = range(config.seed + done, config.seed + config.episodes)
        try:
            with closing(_play(config, policy, draft, seeds, first_id=done)) as episodes:
                for episode in episodes:
                    writer.write(episode)
                    report(f"collect {draft.dataset_id}", episode.episode_id + 1, config.episodes)
        except BadInput as error:
            if not (kept := writer.keep()):
                raise
            raise _after(kept, error) from error
        return _remember(store, config, draft, writer.finish())


def _remember(store: Store, config: CollectConfig, draft: ManifestDraft, manifest: Manifest) -> Manifest:
    """Record the names that the user gave; an existing dataset may have been made with another file."""
    policy = config.policy if manifest.policy_file_sha256 == draft.policy_file_sha256 else None
    return remember(store, manifest, env_id=config.env_id, policy=policy)


def _after(kept: int, error: BadInput) -> BadInput:
    """The error, with what happens to the episodes before it."""
    whole = f"{kept} whole episodes before it are kept for the next run; --episodes {kept} asks for these alone."
    return BadInput(error.problem, f"{error.hint} {whole}".strip())


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
    """Play here and in other processes, or on a chosen runner; workers only play, this process writes."""
    mode = draft.policy_mode or config.mode
    playing = Playing(
        config.env_id, config.env_kwargs, policy, seeds, mode, config.max_steps, first_id=first_id, envs=config.envs
    )
    if draft.engine == "envpool":
        return play_pooled(playing)
    home = Fingerprint(draft.versions, draft.environment_code)
    return play_episodes(playing, workers=config.workers, home=home)


def _plan(
    store: Store, config: CollectConfig, component_names: Sequence[str] | None, action_names: Sequence[str] | None
) -> tuple[Policy, ManifestDraft]:
    """Load environment and policy, and describe the dataset to be made."""
    environment = ENGINES[config.engine](config.env_id, config.env_kwargs)
    try:
        spaces, flattened = spaces_of(environment), flattened_from(environment)
        here = take_fingerprint(environment, config.env_id)
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
        flattened_from=flattened.space if flattened else None,
        component_names=tuple(
            component_names or (flattened.names if flattened else _numbered("o", spaces.observation.size))
        ),
        action_names=tuple(action_names or _numbered("a", spaces.action.n or spaces.action.size)),
        policy=policy.spec,
        policy_sha256=policy.sha256,
        policy_file_sha256=hash_policy_file(config.policy),
        policy_mode=check_mode(policy, config.mode),
        policy_output=policy.output_kind,
        seed=config.seed,
        max_steps=config.max_steps,
        versions=here.versions,
        environment_code=here.code,
    )
    return policy, draft if config.dataset else draft.model_copy(update={"dataset_id": _name(draft, config.episodes)})


def _name(draft: ManifestDraft, episodes: int) -> str:
    """A readable prefix and a hash of everything that decides the rows and their names, except package versions.

    Code without a published version is included.
    """
    readable = re.sub(r"[^a-z0-9.]+", "-", str(draft.env_id).lower()).strip("-.")
    made_of = {name: getattr(draft, name) for name in _DECISIVE}
    if draft.engine != "gymnasium":  # which is what names were made for before there was another one
        made_of["engine"] = draft.engine
    if own_code := Fingerprint(draft.versions, draft.environment_code).own_code:
        made_of["environment_code"] = own_code
    return content_id(f"{readable}-", {**made_of, "episodes": episodes}, length=12)


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{number}" for number in range(count))


def _set_apart(store: Store, config: CollectConfig, draft: ManifestDraft) -> ManifestDraft:
    """The same draft; under a further name where a dataset of its name was made in another environment.

    Raises:
        BadInput: when the user gave the name.
    """
    name, here = draft.dataset_id, Fingerprint(draft.versions, draft.environment_code)
    if not store.dataset_dir(name).exists():
        _warn_if_begun_anew(store, draft, here)
        return draft
    known = read_manifest(store, name)
    changes = "; ".join(here.changes_since(known.versions, known.environment_code))
    if not changes:
        return draft
    if config.dataset and not config.rename:
        raise BadInput(
            f"The dataset {name} was made in another {config.env_id} ({changes}).", "Give the new one another name."
        )
    apart = draft.model_copy(update={"dataset_id": f"{name}-{here.sha256[:8]}"})
    if not store.dataset_dir(apart.dataset_id).exists():
        _warn(f"The dataset {name} was made in another {config.env_id} ({changes}): this is {apart.dataset_id}.")
    return apart


def _warn_if_begun_anew(store: Store, draft: ManifestDraft, here: Fingerprint) -> None:
    """Warn if an interrupted collection cannot be continued."""
    try:
        begun = ManifestDraft.model_validate_json((store.partial_dir(draft.dataset_id) / DRAFT).read_bytes())
    except (OSError, ValueError):
        return
    if changes := "; ".join(here.changes_since(begun.versions, begun.environment_code)):
        _warn(
            f"The collection of {draft.dataset_id} was interrupted in another {draft.env_id} ({changes}): "
            "it starts again."
        )


def _warn(text: str) -> None:
    warnings.warn(text, ChangedEnvironmentWarning, stacklevel=3)


def _with_known_origin(store: Store, draft: ManifestDraft) -> ManifestDraft:
    """The same policy may have another path this time; its hash identifies it."""
    if not store.dataset_dir(draft.dataset_id).exists():
        return draft
    known = read_manifest(store, draft.dataset_id)
    return draft.model_copy(update={"policy": known.policy}) if known.policy_sha256 == draft.policy_sha256 else draft


class Fitting(NamedTuple):
    """What a dataset takes from a card; empty without one."""

    component_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    card: bytes | None = None  # its file, where the user named it


def fit_card(
    named: CardFile | None, env_id: str | None, env_kwargs: Mapping[str, Any], spaces: Spaces | None
) -> Fitting:
    """The names in the given card, or in the environment's packaged one.

    Raises:
        BadInput: if it does not fit the spaces.
    """
    found, content = named or (None, None)
    if found is None and env_id:
        found = find_card(env_id, env_kwargs)
    if found is None:
        return Fitting()
    if spaces is not None:
        check_card_against_spaces(found, *spaces)
    return Fitting(found.component_names, found.action_names, content if env_id in (None, found.env_id) else None)


def read_named(card: str | None) -> CardFile | None:
    """The card that the user named by the path of its file, if any."""
    return read_card(locate_card(card)) if card else None


def warn_if_not_kept(manifest: Manifest, named: CardFile | None) -> None:
    """Warn if annotating the dataset would not find the given card."""
    if named is None or sha256_bytes(named.content) == manifest.card_file_sha256:
        return
    kept = "no card" if manifest.card_file_sha256 is None else "another card"
    warnings.warn(
        f"The dataset {manifest.dataset_id} keeps {kept}; the card given now is used only if --card names it again.",
        LeftOutWarning,
        stacklevel=3,
    )
