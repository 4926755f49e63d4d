"""Vega, Vega-Lite and Vega-Embed as one text of JavaScript, which a page carries in itself.

Putting it together takes seconds, so the text is kept in the user's cache folder, named by its version.
"""

from __future__ import annotations

import importlib.metadata
import os
from contextlib import suppress
from pathlib import Path

import vl_convert

from storage.disk import write_whole
from storage.errors import TrajnoteError

_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def vega_bundle() -> str:
    """The text; the same for the same version of vl-convert.

    Raises:
        TrajnoteError: if it holds something that would end a script element.
    """
    version = importlib.metadata.version("vl-convert-python")
    kept = _cache_folder() / f"vega-{version}.js"
    with suppress(OSError, UnicodeDecodeError):
        if text := kept.read_text(encoding="utf-8"):
            return text
    text = vl_convert.javascript_bundle(_SNIPPET)
    if "</script" in text.lower() or "<!--" in text:
        raise TrajnoteError(f"vl-convert {version} brings JavaScript that cannot stand in a page.")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, text.encode())
    return text


def _cache_folder() -> Path:
    """Where programs keep what they can make again (the XDG base directory specification)."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "trajnote"
