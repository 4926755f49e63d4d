"""Decides what may be loaded: only what the user named. Names that came with data are text and are not loaded.

A manifest, a catalog or a file's metadata cannot be trusted for what they name. A dataset that this user's own command
wrote is recognised by the hash of its manifest, in a folder of the user outside every store.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import core_schema

from storage.errors import BadInput, Prerequisite
from storage.schema import Manifest, canonical_json, sha256_file

if TYPE_CHECKING:
    from storage.store import Store  # its catalog is slow to load, and workers do not need it

STATE = "TRAJNOTE_STATE"
_PICTURES = (None, "rgb_array")
_TEXTS = ("desc", "map_name", "obs_type")  # text arguments of Gymnasium's and ALE's environments
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
_MOST_VALUES, _LARGEST = 64, 1e6


class Named(str):
    """A policy's or an environment's name as the user gave it: by an option, by settings, or in a `collect` of theirs.

    Only such a name leads to an import or a pickle. Make one where options and settings are read, never from data:
    `find_home` and `own_policy` do that for the user's own datasets.
    """

    __slots__ = ()

    @classmethod
    def of(cls, text: str | None) -> Named | None:
        """An option that may be left out."""
        return None if text is None else cls(text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class Home(NamedTuple):
    """An environment that may be made."""

    env_id: Named
    env_kwargs: Mapping[str, Any]


def find_home(store: Store, manifest: Manifest, named: Named | None = None) -> Home:
    """The environment of a dataset, if it may be made: the user named it, now or in the command that wrote the dataset.

    Ids from data that need no import are made too, with harmless arguments.

    Args:
        store: holds the dataset.
        manifest: of the dataset, which has an environment.
        named: by an option or by settings.

    Raises:
        Prerequisite: if it was not named.
        BadInput: if another one was named, or the dataset has none.
    """
    what = f"The dataset {manifest.dataset_id}"
    if manifest.env_id is None:
        raise BadInput(f"{what} has no environment.", "Import it with --env ENV_ID if there is a simulator of it.")
    note = _read_note(store, manifest)
    if note is not None and "environment" in note and named is None:
        env_id = Named(manifest.env_id)
        _refuse_elsewhere(what, env_id, note["environment"], find_module(_module_of_environment(env_id)))
        return Home(env_id, manifest.env_kwargs)
    return admit(what, manifest.env_id, manifest.env_kwargs, named)


def admit(what: str, env_id: str, env_kwargs: Mapping[str, Any], named: Named | None) -> Home:
    """An environment named by data, if the user named it too, or if it needs no import.

    Args:
        what: names it, for the message.
        env_id: as the data say.
        env_kwargs: as the data say; they must be harmless in any case.
        named: by the user, if at all.

    Raises:
        Prerequisite: if it is a module's and was not named, or its arguments may be paths or code.
        BadInput: if another one was named.
    """
    if named is not None and not are_alike(named, env_id):
        raise BadInput(f"{what} is of the environment {env_id!r}, not of {str(named)!r}.", "Leave --env out.")
    if named is None and ":" in env_id:
        raise Prerequisite(
            f"{what} names the environment {env_id!r}, which came with the data, so its module is not imported.",
            f"If you trust it, name it with --env {spelled(env_id)}, or as env_id in trajnote.toml.",
        )
    if (strange := first_strange(env_kwargs)) is not None:
        raise Prerequisite(
            f"{what} names the environment {env_id!r} with {strange!r} = {env_kwargs[strange]!r}, which came with the "
            "data, may be a file or code, and is not used.",
            "If you trust it, import it with --env and --env-kwargs.",
        )
    return Home(named or Named(env_id), env_kwargs)


def are_alike(named: Named, env_id: str) -> bool:
    """Whether two names mean one environment, whichever module registers it."""
    return named.rpartition(":")[2] == env_id.rpartition(":")[2]


def spelled(name: str) -> str:
    """A name of unknown origin as one word of a command line."""
    return shlex.quote(name if name.isprintable() else repr(name))


def first_strange(env_kwargs: Mapping[str, Any]) -> str | None:
    """The first argument that could name a file, a module or a window; None if all are harmless."""
    return next((name for name, value in env_kwargs.items() if not _is_harmless(name, value)), None)


def _is_harmless(name: str, value: Any) -> bool:
    if name == "render_mode":
        return value in _PICTURES
    values = value if isinstance(value, list | tuple) else [value]
    return len(values) <= _MOST_VALUES and all(_is_plain(name, item) for item in values)


def _is_plain(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return name in _TEXTS and _WORD.fullmatch(value) is not None
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= _LARGEST)


def own_policy(store: Store, manifest: Manifest) -> Named | None:
    """The policy of a dataset, if the user named it in the command that wrote the dataset.

    Raises:
        Prerequisite: if its module's name leads to another file now.
    """
    note = _read_note(store, manifest)
    if note is None or "policy" not in note or manifest.policy is None:
        return None
    spec = Named(manifest.policy)
    _refuse_elsewhere(f"The dataset {manifest.dataset_id}", spec, note["policy"], find_module(_module_of_policy(spec)))
    return spec


def not_loaded(manifest: Manifest) -> str:
    """The message that a policy named by data is not loaded."""
    return (
        f"The dataset {manifest.dataset_id} says that it was played by the policy {manifest.policy!r}, which came with "
        "the data and is not loaded."
    )


def remember(store: Store, manifest: Manifest, *, env_id: Named | None = None, policy: Named | None = None) -> Manifest:
    """Record that the user named a dataset's environment, its policy or both, in the command that wrote it.

    Failing to write the record is not an error: the name is asked for later.

    Args:
        store: holds the dataset.
        manifest: of the dataset.
        env_id: what the user named; it counts if the manifest says the same.
        policy: likewise.

    Returns:
        The manifest.
    """
    found: dict[str, str | None] = {}
    if env_id is not None and env_id == manifest.env_id:
        found["environment"] = find_module(_module_of_environment(env_id))
    if policy is not None and policy == manifest.policy:
        found["policy"] = find_module(_module_of_policy(policy))
    with suppress(OSError, RuntimeError):
        path = _note_path(store, manifest)
        _write_private(path, canonical_json({**(_read_note(store, manifest) or {}), **found}))
    return manifest


def find_module(name: str) -> str | None:
    """The file that importing a module would run, or has run; nothing is imported.

    Args:
        name: with dots, or the path of a `.py` file; an empty one gives None.
    """
    if not name:
        return None
    if name.endswith(".py"):
        file = Path(name).expanduser()
        return _resolved(str(file)) if file.is_file() else None
    if (loaded := sys.modules.get(name)) is not None:
        return _resolved(getattr(loaded, "__file__", None))
    path: list[str] | None = None
    origin = None
    for end in range(1, name.count(".") + 2):
        found = _find_spec(".".join(name.split(".")[:end]), path)
        if found is None:
            return None
        origin, path = found.origin, list(found.submodule_search_locations or ())
    return _resolved(origin)


def _find_spec(name: str, path: list[str] | None) -> ModuleSpec | None:
    """Where Python would look without importing parent packages, and the current folder."""
    for finder in sys.meta_path:
        if (found := finder.find_spec(name, path)) is not None:
            return found
    return PathFinder.find_spec(name, [str(Path.cwd())]) if path is None else None


def _resolved(file: str | None) -> str | None:
    return str(Path(file).resolve()) if file else None


def _module_of_environment(env_id: str) -> str:
    return env_id.rpartition(":")[0]


def _module_of_policy(spec: str) -> str:
    return spec.split(":")[1] if spec.startswith("py:") else ""


def _refuse_elsewhere(what: str, name: str, noted: str | None, now: str | None) -> None:
    if noted != now:
        raise Prerequisite(
            f"{what} was collected with {name!r} of {noted}; here this name leads to {now or 'nothing'}, "
            "which is not loaded.",
            "Run this in the folder where it was collected, or name it with an option if you trust it.",
        )


def _note_path(store: Store, manifest: Manifest) -> Path:
    return state_dir() / "datasets" / f"{sha256_file(store.manifest_path(manifest.dataset_id))}.json"


def state_dir() -> Path:
    """The user's own folder.

    Raises:
        RuntimeError: if there is no home.
    """
    if named := os.environ.get(STATE):
        return Path(named).expanduser()
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "trajnote"


def _read_note(store: Store, manifest: Manifest) -> dict[str, str | None] | None:
    with suppress(OSError, RuntimeError, ValueError):
        found = json.loads(_note_path(store, manifest).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)
