"""Datasets with their card: collecting or importing one under the names that its environment's card gives.

Playing is `collect.py`; checking rows is `storage/importing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from annotate.cards import Card, check_card_against_spaces, find_card, load_card
from storage.action_kinds import Choices
from storage.adopting import adopt_dataset
from storage.column_mapping import Columns
from storage.import_report import ImportReport
from storage.importing import import_recording, open_recording
from storage.schema import Manifest
from storage.store import MANIFEST, Store

from .collect import CollectConfig, collect
from .judging.lineage import record_baseline
from .minari_files import open_minari
from .playing.actors import NetworkActor
from .playing.environments import Spaces, look_up_spaces
from .playing.policies import load_policy
from .playing.trust import Named, remember
from .progress import Report, silent


def gather(store: Store, config: CollectConfig, *, card: str | None = None, report: Report = silent) -> Manifest:
    """Collect a dataset with the card's names, and keep the policy that acted, for it is the baseline of refinements.

    Args:
        store: where it goes.
        config: what to collect.
        card: path of a card; the packaged one of the environment, if there is one, when None.
        report: shown the progress.

    Raises:
        BadInput: as `collect` does, or if the card does not fit the environment.
    """
    spaces = look_up_spaces(config.env_id, config.env_kwargs)
    fitting = fitting_card(card, config.env_id, config.env_kwargs, spaces)
    manifest = collect(
        store,
        config,
        report,
        component_names=fitting.component_names if fitting else None,
        action_names=fitting.action_names if fitting else None,
    )
    policy = load_policy(config.policy, spaces, store)
    if isinstance(policy, NetworkActor):
        record_baseline(
            store,
            policy.network,
            env_id=config.env_id,
            dataset_id=manifest.dataset_id,
            origin=f"{policy.spec}, its own weights",
        )
    return manifest


def take_in(
    store: Store,
    path: Path,
    *,
    dataset_id: str | None = None,
    env_id: Named | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    card: str | None = None,
    columns: Columns | None = None,
    choices: Choices | None = None,
    report: ImportReport | None = None,
) -> Manifest:
    """Import what was recorded elsewhere, or adopt the folder of a dataset as it is.

    Args:
        store: where it goes.
        path: a file as `storage.importing.open_recording` takes it, or the folder of a dataset of Minari or of a store.
        dataset_id: its name; made from the content when None.
        env_id: Gymnasium id of the environment; what the file says, if anything, when None. It need not be installed
            then.
        env_kwargs: arguments with which it was made.
        card: path of a card; the packaged one of the environment, if there is one, when None.
        columns: as `storage.importing.open_recording`.
        choices: what the user decided where the file does not say.
        report: counted up: what was decided, given up and left out.

    Raises:
        BadInput: naming what is wrong with the rows, the environment or the card; nothing was written then.
        DamagedStore: if a shard of the folder is not what its manifest says.
    """
    if (path / MANIFEST).is_file():
        return _remember(store, adopt_dataset(store, path), env_id, env_kwargs)
    opened = open_minari(path) if path.is_dir() else open_recording(path, columns)
    with opened as recording:
        told = recording.about
        id_, kwargs = (env_id, env_kwargs or {}) if env_id else (told.env_id, told.env_kwargs)
        spaces = look_up_spaces(env_id, env_kwargs) if env_id else None
        fitting = fitting_card(card, id_, kwargs, spaces) if card or env_id or not told.component_names else None
        about = told.but(
            env_id=env_id,
            env_kwargs=env_kwargs,
            observation_space=spaces.observation if spaces else None,
            action_space=spaces.action if spaces else None,
            component_names=fitting.component_names if fitting else None,
            action_names=fitting.action_names if fitting else None,
        )
        manifest = import_recording(store, recording, about, dataset_id, choices=choices, report=report)
    return _remember(store, manifest, env_id, env_kwargs)


def _remember(store: Store, manifest: Manifest, env_id: Named | None, env_kwargs: Mapping[str, Any] | None) -> Manifest:
    """Note that the user named the environment, unless the data have brought arguments that the user did not name."""
    if env_id is None or dict(manifest.env_kwargs) != dict(env_kwargs or {}):
        return manifest
    return remember(store, manifest, env_id=env_id)


def fitting_card(
    card: str | None, env_id: str | None, env_kwargs: Mapping[str, Any], spaces: Spaces | None
) -> Card | None:
    """The card that was named, or the packaged one of the environment; None if neither is there.

    Raises:
        BadInput: if it does not fit the spaces.
    """
    found = load_card(card) if card else find_card(env_id, env_kwargs) if env_id else None
    if found is not None and spaces is not None:
        check_card_against_spaces(found, *spaces)
    return found
