"""Minari datasets as folders, read and written through the package `minari`. Nothing is fetched from anywhere.

A folder is `NAME/data/metadata.json` beside its data, as below `MINARI_DATASETS_PATH`, or that `data` folder itself.
"""

from __future__ import annotations

import copy
import importlib
import math
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from storage.disk import parse_json, publish_folder, read_file, require_inside, sync_to_disk
from storage.errors import BadInput, Prerequisite
from storage.exporting import Labels
from storage.importing import (
    MANIFEST_KEY,
    MAX_ROWS,
    About,
    ImportReport,
    Recording,
    RowFile,
    add_final_observation,
    check_hdf5,
    guarded,
    parse_about,
    table_of,
    unreadable,
)
from storage.schema import MAX_COMPONENTS, Episode, Manifest, Space, canonical_json

from ..simulation import (
    ALLOWED,
    ALLOWED_OBSERVATIONS,
    can_flatten,
    describe_flattened,
    flatten_rows,
    is_row,
    to_space,
)

_METADATA = "metadata.json"
_DEEPEST = 20  # spaces inside spaces
_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    MemoryError,
    gymnasium.error.Error,
)
"""What Minari raises for a malformed folder."""


@contextmanager
def open_minari(folder: Path) -> Generator[Recording]:
    """The folder of a Minari dataset.

    Raises:
        BadInput: if it is not a Minari dataset, or its spaces cannot be stored.
        Prerequisite: if Minari is not installed.
    """
    data = folder / "data" if (folder / "data").is_dir() else folder
    if not (data / _METADATA).is_file():
        raise BadInput(
            f"{folder} is not a dataset.", "Name a file, or the folder of a dataset of a store or of Minari."
        )
    try:
        _check_folder(data)
        opened = _minari("minari.dataset.minari_storage").MinariStorage.read(data)
        about = _read_about(opened.metadata, str(data / _METADATA))
    except _BROKEN as error:
        raise unreadable(folder, error) from error
    is_export = MANIFEST_KEY in opened.metadata
    yield Recording(lambda report: guarded(_tables(opened, report), folder, _BROKEN), about, is_export=is_export)


def write_minari(manifest: Manifest, episodes: Iterable[Episode], labels: Labels | None, folder: Path) -> None:
    """Write a dataset as the folder of a Minari dataset.

    Args:
        manifest: the dataset's; kept in the metadata.
        episodes: of the dataset, ascending.
        labels: written as JSON, one text per step, into `infos/annotations`.
        folder: made; it must not exist.

    Raises:
        Prerequisite: if Minari is not installed.
    """
    _minari("minari")  # before anything is written
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    ids: list[int] = []
    try:
        _fill(partial / "data", manifest, _buffers(episodes, labels, ids), ids)
        for path in (partial / "data").iterdir():
            sync_to_disk(path)
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(data: Path, manifest: Manifest, buffers: Iterator[Any], ids: list[int]) -> None:
    """Write all episodes, then the metadata of each and of all; `ids` are known only after the episodes."""
    storage = _minari("minari.dataset.minari_storage").MinariStorage.new(
        data,
        observation_space=_from_space(manifest.observation_space),
        action_space=_from_space(manifest.action_space),
        env_spec=_env_spec(manifest),
    )
    storage.update_episodes(buffers)
    storage.update_episode_metadata(({"episode_id": episode_id} for episode_id in ids), range(len(ids)))
    storage.update_metadata(
        {
            "dataset_id": f"trajnote/{re.sub(r'[^-_0-9A-Za-z]', '-', manifest.dataset_id)}-v0",
            "minari_version": _minari("minari").__version__,
            "algorithm_name": manifest.policy or "unknown",
            MANIFEST_KEY: canonical_json(manifest),
        }
    )


def _buffers(episodes: Iterable[Episode], labels: Labels | None, ids: list[int]) -> Iterator[Any]:
    buffer = _minari("minari.data_collector.episode_buffer").EpisodeBuffer
    for episode in episodes:
        ids.append(episode.episode_id)
        last = np.arange(len(episode)) == len(episode) - 1
        yield buffer(
            seed=episode.seed,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
            infos=_infos(episode, labels) or None,
        )


def _infos(episode: Episode, labels: Labels | None) -> dict[str, Any]:
    """The `infos` of an episode, one value per observation."""
    infos: dict[str, Any] = {}
    if (outputs := episode.policy_outputs) is not None:
        infos["policy_output"] = np.concatenate([outputs, np.zeros_like(outputs[:1])])
    if labels is not None:
        notes = [labels.get((episode.episode_id, step), ()) for step in range(len(episode) + 1)]
        infos["annotations"] = [canonical_json([vars(note) for note in at_step]) for at_step in notes]
    return infos


def _check_folder(data: Path) -> None:
    """Check what Minari is going to read: links out of the folder, arrays of other files, spaces that are too large.

    Without spaces Minari would make the environment, and so run the code that the file names.
    """
    metadata = data / _METADATA
    require_inside(data)
    saved = parse_json(read_file(metadata), str(metadata))
    for name in ("observation_space", "action_space"):
        if not isinstance(saved, dict) or not isinstance(saved.get(name), str):
            raise BadInput(f"{metadata} has no {name}.", "Load and save it with a newer Minari first.")
        space = parse_json(saved[name], f"{name} in {metadata}")
        _check_space(space, f"The {name} in {metadata}", flattens=name == "observation_space")
    for name in ("total_episodes", "total_steps"):
        if not isinstance(total := saved.get(name), int) or not 0 <= total <= MAX_ROWS:
            raise BadInput(f"{metadata} has {name} = {total}; allowed: 0 to {MAX_ROWS:,}.")
    for path in sorted(data.rglob("*.hdf5")):
        check_hdf5(path)
    for path in sorted(data.rglob("*.parquet")):
        with RowFile(path):
            pass  # opening it is the check


def _check_space(space: Any, where: str, *, flattens: bool) -> None:
    """Refuse a space that a dataset may not have, before an array is made of its numbers."""
    kind = space.get("type") if isinstance(space, dict) else None
    if kind == "Discrete":
        return
    allowed = ALLOWED_OBSERVATIONS if flattens else ALLOWED
    size = _size_of(space, where, allowed) if flattens or kind == "Box" else None
    if size is None:
        raise BadInput(f"{where} is of type {str(kind)[:60]!r}; allowed: {allowed}.")
    flat = flattens or len(space["shape"]) == 1
    if not flat or not 0 < size <= MAX_COMPONENTS:
        raise BadInput(
            f"{where} has shape {str(space.get('shape', size))[:60]}; allowed: {allowed}, with up to "
            f"{MAX_COMPONENTS:,} numbers."
        )


def _size_of(space: Any, where: str, allowed: str, depth: int = 0) -> int:
    """How many numbers an observation of a space becomes, from what the file says of it."""
    kind = space.get("type") if isinstance(space, dict) and depth < _DEEPEST else None
    match kind, space:
        case "Dict", {"subspaces": dict(inner)}:
            return sum(_size_of(each, where, allowed, depth + 1) for each in inner.values())
        case "Tuple", {"subspaces": list(inner)}:
            return sum(_size_of(each, where, allowed, depth + 1) for each in inner)
        case "Box", {"shape": list(shape)} if all(isinstance(n, int) and n >= 0 for n in shape):
            return math.prod(shape)
        case "Discrete", {"n": int(n)}:
            return n
        case "MultiDiscrete", {"nvec": list(counts)}:
            return _total(counts)
        case "MultiBinary", {"n": int() | list() as n}:
            return math.prod(n if isinstance(n, list) else [n])
        case _:
            raise BadInput(f"{where} is of type {str(kind)[:60]!r}; allowed: {allowed}.")


def _total(counts: Any) -> int:
    """The sum of whole numbers in lists of lists; too much of anything else."""
    if isinstance(counts, list):
        return sum(_total(each) for each in counts)
    return counts if isinstance(counts, int) and counts >= 0 else MAX_COMPONENTS + 1


def _tables(storage: Any, report: ImportReport) -> Iterator[Any]:
    numbers, space = range(storage.total_episodes), storage.metadata["observation_space"]
    is_flat = not _is_nested(space)
    report.rows = int(storage.total_steps)
    for episode, metadata in zip(storage.get_episodes(numbers), storage.get_episode_metadata(numbers), strict=True):
        length = len(episode["rewards"])
        observations = np.asarray(episode["observations"]) if is_flat else flatten_rows(space, episode["observations"])
        others: dict[str, Any] = {
            "terminated": np.asarray(episode["terminations"]),
            "truncated": np.asarray(episode["truncations"]),
            "next_observation": observations[1:],
        }
        if metadata.get("seed") is not None:
            others["seed"] = np.full(length, metadata["seed"])
        infos = episode["infos"] or {}
        report.leave_out("infos", (name for name in infos if name != "policy_output"))
        if "policy_output" in infos:
            others["policy_output"] = infos["policy_output"][:length]
        ids = np.full(length, metadata.get("episode_id", episode["id"]), np.int64)
        table = table_of(ids, observations[:-1], np.asarray(episode["actions"]), episode["rewards"], **others)
        yield add_final_observation(table, report)


def _is_nested(space: spaces.Space[Any]) -> bool:
    return not is_row(space) and can_flatten(space)


def _read_about(metadata: dict[str, Any], where: str) -> About:
    if MANIFEST_KEY in metadata:
        return parse_about(metadata[MANIFEST_KEY], where)
    spec = parse_json(metadata.get("env_spec") or "{}", f"env_spec in {where}")
    shown = metadata["observation_space"]
    flattened = describe_flattened(shown) if _is_nested(shown) else None
    return About(
        env_id=spec.get("id"),
        env_kwargs=spec.get("kwargs") or {},
        observation_space=to_space(spaces.flatten_space(shown) if flattened else shown, "observation"),
        flattened_from=flattened.space if flattened else None,
        component_names=flattened.names if flattened else None,
        action_space=to_space(metadata["action_space"], "action"),
        policy=metadata.get("algorithm_name"),
        versions={"minari": str(metadata.get("minari_version")), "minari_dataset": str(metadata.get("dataset_id"))},
    )


def _env_spec(manifest: Manifest) -> Any:
    """How Gymnasium makes the environment; None for an unknown kind."""
    try:
        spec = copy.deepcopy(gymnasium.spec(manifest.env_id or ""))
    except (gymnasium.error.Error, ImportError, ValueError):
        return None
    spec.kwargs.update(manifest.env_kwargs)
    return spec


def _from_space(space: Space) -> spaces.Space[Any]:
    if space.is_discrete:
        return spaces.Discrete(space.n or 1, start=space.start)
    kind = np.dtype(space.dtype)
    low, high = (-np.inf, np.inf) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return spaces.Box(
        np.full(space.size, low, kind) if space.low is None else np.asarray(space.low, kind),
        np.full(space.size, high, kind) if space.high is None else np.asarray(space.high, kind),
        dtype=kind.type,
    )


def _minari(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Prerequisite("Minari is not installed.", "Install it: pip install 'trajnote[minari]'.") from error
