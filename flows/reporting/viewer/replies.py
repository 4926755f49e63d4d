"""The raw replies behind labels, read back from the store's files; a page shows their text and says where they lie."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from annotate.parsing import read_message
from storage.ledger import read_frames
from storage.queries import Row, ask
from storage.store import Store

MAX_CHARACTERS = 20_000
"""Of one reply that a page shows; the whole of it stays in its file."""


def load_replies(store: Store, request_ids: Sequence[str]) -> dict[str, Row]:
    """The newest reply to each request: its `text`, `file` and `line`; damaged ones say so in place of a text.

    Args:
        store: the store.
        request_ids: of labels; those without a reply (imported labels) are left out.
    """
    with store.catalog.read() as con:
        places = ask(con, "report/replies", requests=list(request_ids))
    by_file: dict[str, list[Row]] = defaultdict(list)
    for place in places:
        by_file[place["file"]].append(place)
    return {
        place["request_id"]: {"file": place["file"], "line": place["line"], "text": text}
        for file, found in by_file.items()
        for place, text in zip(found, _texts(store, file, found), strict=True)
    }


def _texts(store: Store, file: str, places: Sequence[Row]) -> list[str]:
    path = store.root / file
    lines = read_frames(path).lines if path.is_file() else []
    return [_text(lines[place["line"] - 1] if place["line"] <= len(lines) else None) for place in places]


def _text(line: bytes | None) -> str:
    if line is None:
        return "(the stored reply is missing or damaged: trajnote store verify)"
    raw = str(json.loads(line).get("raw", ""))
    text = read_message(raw).text or raw
    cut = len(text) - MAX_CHARACTERS
    return text if cut <= 0 else f"{text[:MAX_CHARACTERS]}\n… ({cut} more characters in the file)"
