"""The command `trajnote`, which leaves the names `storage`, `annotate`, `refine` and `flows` to a project of its user.

This project's rooms are top-level packages with common names. Where the current folder or the Python path has a module
of one of these names, the command imports its own rooms as `trajnote.storage` and so on: the same files under names
that nobody else has. In them, `from storage.x import y` means `trajnote.storage.x`; everywhere else `storage` is the
project's. A room that the project does not have stays what it is: `refine` is then the same module as
`trajnote.refine`. Worker processes import `trajnote.flows...` by name, and so get the same.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOMS = ("storage", "annotate", "refine", "flows")
HOME = Path(__file__).resolve().parent
__path__ = [str(HOME)]  # so that `trajnote.storage` is found


def main() -> None:
    """Run the command line."""
    has_namesakes = any(_find_elsewhere(room, [str(Path.cwd()), *sys.path]) for room in ROOMS)
    import_module("trajnote.flows.cli" if has_namesakes else "flows.cli").main()


class RoomFinder(MetaPathFinder):
    """Finds this project's rooms below `trajnote`, and once one was, somebody else's under the bare names first."""

    is_apart = False  # whether the rooms are imported below `trajnote` in this process

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python's import system asks."""
        top, _, below = fullname.partition(".")
        if top == "trajnote" and below.partition(".")[0] in ROOMS:
            self.is_apart = True
            return _with_own_imports(PathFinder.find_spec(fullname, path))
        if not self.is_apart or top not in ROOMS:
            return None
        if below:
            is_ours = sys.modules.get(top) is sys.modules.get(f"trajnote.{top}")
            return ModuleSpec(fullname, _SameModule()) if is_ours else None
        return _find_elsewhere(top, sys.path) or ModuleSpec(fullname, _SameModule(), is_package=True)


def _find_elsewhere(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """A top-level module that is not this project's."""
    others = [entry for entry in path if Path(entry or ".").resolve() != HOME]
    if (found := PathFinder.find_spec(name, others)) is not None:
        return found
    for finder in sys.meta_path:  # those of editable installations, for example
        if finder is not PathFinder and not isinstance(finder, RoomFinder):
            found = finder.find_spec(name, None)
            if found is not None and not (found.origin and HOME in Path(found.origin).parents):
                return found
    return None


class _SameModule(Loader):
    """Gives a room below `trajnote` its bare name too."""

    _spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"trajnote.{spec.name}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _OwnImports(SourceFileLoader):
    """Runs a module so that its `import storage` means `trajnote.storage`."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


def _with_own_imports(spec: ModuleSpec | None) -> ModuleSpec | None:
    if spec is not None and isinstance(spec.loader, SourceFileLoader):
        spec.loader = _OwnImports(spec.loader.name, spec.loader.path)
    return spec


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """As `builtins.__import__`."""
    top = name.partition(".")[0]
    if level or top not in ROOMS:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    found = builtins.__import__(f"trajnote.{name}", globals, locals, fromlist or ())
    return found if fromlist else sys.modules[f"trajnote.{top}"]


if __name__ == "trajnote":
    sys.meta_path.insert(0, RoomFinder())
elif __name__ == "__main__":
    import_module("trajnote").main()
