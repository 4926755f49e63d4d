"""Pictures in a request: one image with a tile for each critical step, and the sentence that says which is which.

The caller, who has the environment, hands each picture in as the bytes of a PNG.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

FrameSource = Callable[[int, Sequence[int]], bytes]
"""From an episode's id and some of its steps to a PNG: a tile for each step, row by row, `COLUMNS` in a row."""
COLUMNS = 4


def with_frames(text: str, png: bytes, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The content of a message that shows an image and then says `text`.

    Args:
        text: the words about the episode.
        png: the image, with a tile for each step.
        steps: the steps shown, in the order of the tiles.
    """
    named = ", ".join(map(str, steps))
    words = (
        f"The image shows what the environment looked like at the steps {named}: one tile for each, in this order, "
        f"from left to right and from top to bottom, {COLUMNS} in a row."
    )
    data = base64.b64encode(png).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    return [{"type": "image", "source": source}, {"type": "text", "text": f"{words}\n\n{text}"}]
