"""What decides an environment's numbers: package versions, code without a published version, arguments and limits.

Code is followed from the environment's classes and its entry point through their modules' imports, up to installed
packages; files that the code names as text count too. Nothing is imported or run for it.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from storage.schema import KnownEnvironment, content_id, sha256_bytes

from .environments import Environment, distributions_of, make_environment, name_of_module, package_versions
from .trust import Named

MOST_BYTES = 64_000_000
"""Bytes of code and data read for one environment; the rest counts by size and time of change."""
MOST_FILES = 500
"""Files examined for one environment."""
REGISTRATION = "registration"
"""The entry of `code` for an environment's registered arguments and its limit of steps."""

_ROOMS = tuple(Path(__file__).resolve().parents[2] / room for room in ("flows", "annotate", "refine", "storage"))
_PACKAGES = {"site-packages", "dist-packages"}
_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_RESULTS = {
    ".jsonl",
    ".parquet",
    ".duckdb",
    ".log",
    ".html",
    ".svg",
    ".png",
    ".gif",
    ".mp4",
    ".md",
}  # written, not read
_LONGEST_NAME = 200  # characters of a text that may name a file or a module
_UNREADABLE = f"unknown {os.urandom(8).hex()}"  # differs in every process


@dataclass(frozen=True)
class Fingerprint:
    """What an environment's episodes depend on, besides their seed and actions."""

    versions: Mapping[str, str]  # package -> version
    code: Mapping[str, str]  # module or file without a published version, and `REGISTRATION` -> sha256

    @property
    def sha256(self) -> str:
        """One hash of all of it."""
        return content_id("", [self.versions, self.code], 64)

    @property
    def own_code(self) -> dict[str, str]:
        """The code, if any of it is outside installed packages."""
        return dict(self.code) if self.code.keys() - {REGISTRATION} else {}

    @property
    def known(self) -> KnownEnvironment:
        """The fingerprint as a row of the catalog."""
        return KnownEnvironment(self.sha256, self.versions, self.code)

    def changes_since(self, versions: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
        """What differs from an earlier fingerprint, as short texts.

        Args:
            versions: the earlier ones; empty, or without Gymnasium's, if not recorded.
            code: the earlier one; None if not recorded.
        """
        names = versions.keys() | self.versions.keys() if "gymnasium" in versions else set[str]()
        changed = [
            f"{name} {versions.get(name, 'absent')} then, {self.versions.get(name, 'absent')} now"
            for name in sorted(names)
            if versions.get(name) != self.versions.get(name)
        ]
        if not code:
            return [*changed, *(["its code was not recorded then"] if self.own_code else [])]
        both = sorted(code.keys() | self.code.keys())
        return [*changed, *(self._change(name, code) for name in both if code.get(name) != self.code.get(name))]

    def _change(self, name: str, then: Mapping[str, str]) -> str:
        if self.code.get(name) == _UNREADABLE:
            return f"the source of {name} cannot be read"
        how = "is new" if name not in then else "is gone" if name not in self.code else "has changed"
        return f"{name} {how}"


def take_fingerprint(environment: Environment, env_id: str) -> Fingerprint:
    """The fingerprint of an existing environment.

    Args:
        environment: with its wrappers.
        env_id: as it was made; the module of `module:EnvId` is included.
    """
    tree = _Tree(_strings_in(environment.spec.kwargs) if environment.spec else ())
    for name in _modules_of(environment, env_id):
        tree.follow(name)
    versions = {**package_versions(environment), **tree.versions()}
    return Fingerprint(dict(sorted(versions.items())), {**tree.found, REGISTRATION: _registration(environment)})


def look_up_fingerprint(env_id: Named, env_kwargs: Mapping[str, Any] | None = None) -> Fingerprint:
    """The fingerprint of an environment that is made for this only, once per process.

    Raises:
        BadInput: as `make_environment` does.
        Prerequisite: as `make_environment` does.
    """
    return look_up_once(env_id, json.dumps(dict(env_kwargs or {}), sort_keys=True))


@functools.lru_cache
def look_up_once(env_id: Named, env_kwargs: str) -> Fingerprint:
    """As `look_up_fingerprint`, which has the arguments as a mapping and not as JSON."""
    environment = make_environment(env_id, json.loads(env_kwargs))
    try:
        return take_fingerprint(environment, env_id)
    finally:
        environment.close()


def code_of(module: ModuleType) -> dict[str, str]:
    """The code of a module and what it uses, without installed packages: module or file -> sha256."""
    tree = _Tree()
    tree.follow(module.__name__)
    return tree.found


def _modules_of(environment: Environment, env_id: str) -> Iterator[str]:
    """The modules of all that an environment is made of, wrappers and arguments included."""
    yield from filter(None, [name_of_module(env_id.rpartition(":")[0])])
    layer: object = environment
    while isinstance(layer, gymnasium.Env):
        yield from (ancestor.__module__ for ancestor in type(layer).__mro__)
        layer = getattr(layer, "env", None)
    spec = environment.spec
    if spec is not None:
        named = [spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)]
        yield from (_module_of(entry_point) for entry_point in named)
        yield from (_module_of(value) for value in spec.kwargs.values() if not isinstance(value, str))


def _module_of(thing: object) -> str:
    """The module of an entry point or of an argument."""
    if isinstance(thing, str):
        return thing.partition(":")[0]
    if isinstance(thing, functools.partial):
        return _module_of(thing.func)
    return str(getattr(thing, "__module__", None) or type(thing).__module__)


class _Unit(NamedTuple):
    """One module of the code."""

    name: str
    package: str  # where relative imports begin
    path: Path  # may lie in an archive
    content: bytes
    module: ModuleType | None  # if it is loaded


@dataclass
class _Tree:
    """Code without a published version, found by following imports up to installed packages."""

    texts: tuple[str, ...] = ()  # the environment's arguments, which may name files
    found: dict[str, str] = field(default_factory=dict[str, str])  # module or file -> sha256
    packages: set[str] = field(default_factory=set[str])  # installed packages that the code imports, by top-level name
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._add_files([Path.cwd()], self.texts)

    def follow(self, root: str) -> None:
        """Add a module and all that it imports."""
        waiting: list[tuple[str, Path | None]] = [(root, None)]
        seen = set(waiting)
        while waiting:
            unit = self._find(*waiting.pop())
            if unit is not None and unit.name not in self.found and len(self.found) < MOST_FILES:
                self.found[unit.name] = sha256_bytes(unit.content)
                imported, texts = _names_in(unit)
                above = unit.path.parents[: unit.package.count(".") + 2 if unit.package else 1]
                self._add_files([*above, Path.cwd()], texts)
                new = {(name, unit.path.parent) for name in imported} - seen
                seen |= new
                waiting += sorted(new)

    def versions(self) -> dict[str, str]:
        """Versions of the installed packages that the code imports."""
        distributions = (found for package in self.packages if (found := _distribution(package)) is not None)
        return {name.lower(): marked_version(name) for name in distributions}

    def _find(self, name: str, beside: Path | None) -> _Unit | None:
        """A module without a published version, as loaded or found beside the one that imports it."""
        module = sys.modules.get(name)
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else _look_beside(name, beside)
        if file is None:
            if _should_have_source(name, module, beside):
                self.found[name] = _UNREADABLE
            return None
        path = Path(file)
        if self._is_installed(name, path):
            return None
        content = self._read(path, module)
        if content is None:
            self.found[name] = _UNREADABLE
            return None
        package = getattr(module, "__package__", None) or (name if path.stem == "__init__" else name.rpartition(".")[0])
        return _Unit(name, package, path, content, module if isinstance(module, ModuleType) else None)

    def _is_installed(self, name: str, path: Path) -> bool:
        """Whether a published version identifies a module's source."""
        place = path.resolve()
        if any(place.is_relative_to(room) for room in _ROOMS):
            return True
        top = name.partition(".")[0]
        if _PACKAGES & set(place.parts):
            self.packages.add(top)
            return _distribution(top) is not None
        return any(place.is_relative_to(folder) for folder in _STANDARD)

    def _add_files(self, folders: list[Path], texts: tuple[str, ...]) -> None:
        """Add the files that a module names as text, relative to its folder, a folder that it names, or this one."""
        named = [text for text in texts if Path(text).name == text]
        inner = [folder / text for folder in folders for text in named if _is(Path.is_dir, folder / text)]
        for folder in [*folders, *inner]:
            for text in texts:
                path = folder / text
                may_count = path.suffix not in {"", *_RESULTS} and text not in self.found
                if may_count and len(self.found) < MOST_FILES and _is(Path.is_file, path):
                    content = self._read(path, None)
                    self.found[text] = _UNREADABLE if content is None else sha256_bytes(content)

    def _read(self, path: Path, module: ModuleType | None) -> bytes | None:
        """A file, also one in an archive; of a large one only the size and the time of its last change."""
        try:
            there = path.stat()
            if self._bytes + there.st_size > MOST_BYTES:
                return f"{there.st_size} {there.st_mtime_ns}".encode()
            self._bytes += there.st_size
            return path.read_bytes()
        except OSError:
            read = getattr(getattr(module, "__loader__", None), "get_data", None)
        try:
            return read(str(path)) if read else None
        except OSError:
            return None


def _is(question: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path exists; False if this user may not look."""
    try:
        return question(path)
    except OSError:
        return False


def _should_have_source(name: str, module: ModuleType | None, beside: Path | None) -> bool:
    """Whether a module without a file holds code that may change: not one of Python's own, nor a mere folder."""
    if module is None:
        return beside is None and name.partition(".")[0] not in sys.stdlib_module_names
    return name.partition(".")[0] not in sys.stdlib_module_names - {"__main__"} and not hasattr(module, "__path__")


def _look_beside(name: str, beside: Path | None) -> str | None:
    """The file of a module that is not loaded, from the folder of the one that imports it or from one above."""
    below = Path(*name.split(".")) if beside is not None and all(name.split(".")) else None
    if below is None or beside is None:
        return None
    folders = [beside, *beside.parents][: len(below.parts) + 1]
    files = (folder / each for folder in folders for each in (below.with_suffix(".py"), below / "__init__.py"))
    return next((str(file) for file in files if _is(Path.is_file, file)), None)


def _names_in(unit: _Unit) -> tuple[set[str], tuple[str, ...]]:
    """What a module may import, including its own packages, and short texts that may name files."""
    parts = unit.name.split(".")
    imported = {".".join(parts[:length]) for length in range(1, len(parts))}
    texts: dict[str, None] = {}
    try:
        nodes = list(ast.walk(ast.parse(unit.content)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # compiled code
        held = vars(unit.module).values() if unit.module else ()
        return imported | {thing.__name__ for thing in held if isinstance(thing, ModuleType)}, ()
    for node in nodes:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = _absolute(node, unit.package)
            imported |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _may_be_name(node.value):
            texts[node.value] = None
    called = {text for text in texts if _MODULE.fullmatch(text) and text != "__main__"}
    return {name for whole in imported | called for name in _with_parents(whole)}, tuple(texts)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    try:
        return importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:
        return node.module or ""


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _may_be_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and bool(text.strip("./ "))


def _strings_in(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if _may_be_name(value) else ()
    if isinstance(value, Mapping):
        value = list(value.values())
    return tuple(text for item in value for text in _strings_in(item)) if isinstance(value, list | tuple) else ()


@functools.lru_cache
def _distribution(package: str) -> str | None:
    """The distribution that provides an importable package."""
    try:
        return importlib.metadata.distribution(package).metadata["Name"]
    except importlib.metadata.PackageNotFoundError:
        return next(iter(distributions_of(package)), None)


@functools.lru_cache
def marked_version(distribution: str) -> str:
    """A version; if it was not published, with a hash of the installed files, since it may be ambiguous."""
    found = importlib.metadata.distribution(distribution)
    if found.read_text("direct_url.json") is None:
        return found.version
    lines = sorted(line for line in (found.read_text("RECORD") or "").splitlines() if ".dist-info/" not in line)
    return f"{found.version} ({sha256_bytes(chr(10).join(lines).encode())[:12]})"


def _registration(environment: Environment) -> str:
    """A hash of how an environment was made: arguments, wrappers and limits."""
    spec = environment.spec
    if spec is None:
        return content_id("", None, 64)
    limits = [spec.max_episode_steps, spec.order_enforce]
    wrappers = [[wrapper.name, wrapper.entry_point, _plain(wrapper.kwargs)] for wrapper in spec.additional_wrappers]
    return content_id("", [_plain(spec.entry_point), _plain(spec.kwargs), limits, wrappers], 64)


def _plain(value: object, depth: int = 8) -> Any:
    """A value for JSON, the same in every process; what is nested too deeply counts by its type."""
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if isinstance(value, np.generic | np.ndarray):
        array = np.asarray(value)
        return [str(array.dtype), list(array.shape), sha256_bytes(repr(array.tolist()).encode())]
    kind = f"{type(value).__module__}:{type(value).__qualname__}"
    if depth == 0:
        return kind
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, functools.partial):
        return [kind, *(_plain(item, depth - 1) for item in (value.func, value.args, value.keywords))]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{getattr(value, '__module__', '')}:{value.__qualname__}"
    return [kind, _plain(getattr(value, "__dict__", None), depth - 1)]
