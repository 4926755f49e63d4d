"""Frames of stored episodes: rendered by exact replay, tiled into one image, and written as a PNG.

Only a replay that matches the log bit for bit is shown. The words about the image are in
`annotate/prompting/requests.py`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from annotate.prompting import COLUMNS
from storage.datasets import read_episode, read_manifest
from storage.errors import BadInput, Prerequisite
from storage.schema import Manifest
from storage.store import Store

from .environments import Environment, make_environment
from .replay import play_until
from .trust import Named, find_home

WIDEST_TILE = 256
"""Pixels; larger frames shrink by whole factors, which keeps an image of eight tiles under 400 tokens."""

Picture = NDArray[np.uint8]  # (height, width, 3)


class FrameRenderer:
    """Renders steps of one dataset's episodes; equal requests are rendered once.

    Args:
        store: holds the dataset.
        dataset_id: collected from an environment that renders, with seeds.
        env_id: its environment, if the user has to name it.
    """

    def __init__(self, store: Store, dataset_id: str, env_id: Named | None = None) -> None:
        self._store = store
        self._env_id = env_id
        self._dataset_id = dataset_id
        self._rendered: dict[tuple[int, tuple[int, ...]], bytes] = {}

    def __call__(self, episode_id: int, steps: Sequence[int]) -> bytes:
        """A PNG with the frames of some steps, in their order.

        Raises:
            BadInput: if the environment does not render, or the episode does not replay exactly here.
        """
        key = (episode_id, tuple(steps))
        if key not in self._rendered:
            self._rendered[key] = encode_png(tile(self._render(episode_id, steps)))
        return self._rendered[key]

    @cached_property
    def _manifest(self) -> Manifest:
        return read_manifest(self._store, self._dataset_id)

    def _render(self, episode_id: int, steps: Sequence[int]) -> list[Picture]:
        episode = read_episode(self._store, self._dataset_id, episode_id)
        if episode.seed is None:
            raise BadInput(f"Episode {episode_id} has no seed, so there are no frames of it.", "Leave --frames out.")
        environment = make_rendering(self._store, self._manifest, self._env_id)
        try:
            pictures: dict[int, Picture] = {}
            for step in sorted(set(steps)):
                difference = play_until(environment, episode, self._manifest, step)
                if difference is not None:
                    raise BadInput(
                        f"Episode {episode_id} does not replay exactly here (step {difference.step}, "
                        f"{difference.what}), so its frames would show something else.",
                        "Leave --frames out.",
                    )
                pictures[step] = shrink(np.asarray(environment.render(), np.uint8))
            return [pictures[step] for step in steps]
        finally:
            environment.close()


def make_rendering(store: Store, manifest: Manifest, env_id: Named | None = None) -> Environment:
    """A dataset's environment, rendering into arrays.

    Raises:
        BadInput: if there is no environment, or it does not render.
        Prerequisite: if the user has to name it.
    """
    if manifest.env_id is None:
        raise BadInput(f"{manifest.dataset_id} has no environment, so there are no frames.", "Leave --frames out.")
    home = find_home(store, manifest, env_id)
    environment = make_environment(home.env_id, {**home.env_kwargs, "render_mode": "rgb_array"})
    if "rgb_array" not in environment.metadata.get("render_modes", ()):
        environment.close()
        raise BadInput(f"{manifest.env_id} does not render.", "Leave --frames out.")
    return environment


def shrink(picture: Picture) -> Picture:
    """Make a picture at most `WIDEST_TILE` wide, by the mean over whole blocks of pixels."""
    factor = -(-picture.shape[1] // WIDEST_TILE)
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    blocks = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def tile(pictures: Sequence[Picture]) -> Picture:
    """Put pictures of one size side by side, `COLUMNS` in a row, with a white line between them.

    Raises:
        Prerequisite: if there are no pictures.
    """
    if not pictures:
        raise Prerequisite("There is no step to show.")
    framed = [np.pad(picture, ((0, 2), (0, 2), (0, 0)), constant_values=255) for picture in pictures]
    columns = min(COLUMNS, len(framed))
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    rows = [np.concatenate(framed[start : start + columns], axis=1) for start in range(0, len(framed), columns)]
    return np.concatenate(rows, axis=0)


def encode_png(picture: Picture) -> bytes:
    """A PNG of 8-bit RGB without filters; the same pixels are always the same bytes (for one zlib)."""
    height, width, _ = picture.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
