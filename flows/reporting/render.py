"""Renders the page: template, style and scripts in one file that cannot reach a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from storage.disk import write_whole
from storage.errors import TrajnoteError

from .page.wording import script_json, visible
from .viewer.episodes import Viewer

_TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
_SCRIPTS = ("theme.js", "charts.js", "viewer.js")
_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def render_page(story: Mapping[str, Any], charts: Mapping[str, Any], viewer: Viewer, *, library: str) -> str:
    """Render one self-contained HTML document.

    Args:
        story: texts and tables, see `template_context.tell`.
        charts: for the scripts: `specs` by name, and the data of those that change.
        viewer: the episodes.
        library: JavaScript of Vega-Lite.
    """
    scripts = [library, *((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)]
    listed = {
        "components": viewer.components,
        "episodes": [entry.summary for entry in viewer.entries],
        "opponent": viewer.opponent.policy_id if viewer.opponent else None,
    }
    return (
        _environment()
        .get_template("report.html")
        .render(
            story=story,
            viewer=viewer,
            policy=_content_policy(scripts),
            style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
            scripts=[Markup(script) for script in scripts],
            charts_json=Markup(script_json(charts)),
            viewer_json=Markup(script_json(listed)),
        )
    )


def _environment() -> Environment:
    """Jinja that escapes everything and makes deceptive characters visible."""
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return "" if value is None else visible(value) if isinstance(value, str) else value


def _content_policy(scripts: Sequence[str]) -> str:
    """A content security policy: only these scripts, pictures from the page itself, no connections."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def vega_bundle() -> str:
    """The text; the same for the same version of vl-convert.

    Raises:
        TrajnoteError: if it contains anything that would end a script element.
    """
    version = importlib.metadata.version("vl-convert-python")
    kept = _cache_folder() / f"vega-{version}.js"
    with suppress(OSError, UnicodeDecodeError):
        if text := kept.read_text(encoding="utf-8"):
            return text
    text = vl_convert.javascript_bundle(_SNIPPET)
    if "</script" in text.lower() or "<!--" in text:
        raise TrajnoteError(f"vl-convert {version} has JavaScript that cannot be embedded in a page.")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, text.encode())
    return text


def _cache_folder() -> Path:
    """The user's cache folder (XDG base directory specification)."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "trajnote"
