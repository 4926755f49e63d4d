"""Lists the doors of a room on its page of the manual, as the folders are when the manual is built."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PLACE = re.compile(r"<!-- doors of (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A hook of mkdocs: put one entry of mkdocstrings for each inner room in place of the comment."""
    return _PLACE.sub(lambda found: list_doors(found[1]), markdown)


def list_doors(room: str) -> str:
    """The entries of a room's folders that offer names."""
    stubs = sorted((ROOT / room).glob("*/**/__init__.pyi"))
    return "\n\n".join(f"::: {'.'.join(stub.relative_to(ROOT).parent.parts)}" for stub in stubs)
