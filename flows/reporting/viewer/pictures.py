"""Pictures of single steps of an episode, from an exact replay of its seed and actions.

A picture of any state but the logged one would mislead, so filming stops at the first difference.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from storage.errors import TrajnoteError
from storage.schema import Array, Episode

from ...runtime import PROCESSES, core_count, parallel_map
from ...simulation import Environment, Home, logged_action, make_environment

WIDTH = 240
_QUALITY = 58
_MODE = "rgb_array"
_AROUND = 5  # steps between a labelled step and the pictures beside it


@dataclass(frozen=True)
class Take:
    """One episode and the steps to picture."""

    home: Home
    episode: Episode
    steps: frozenset[int]


@dataclass(frozen=True)
class Film:
    """The pictures of a take."""

    pictures: Mapping[int, bytes]  # step -> WebP of the state in which that step's action was chosen
    problem: str | None = None  # why some or all are missing


def choose_steps(length: int, labelled: Sequence[int], count: int) -> frozenset[int]:
    """Choose steps to picture: labelled ones first, then the end and the start, their neighbours, and regular ones.

    Args:
        length: steps of the episode; step `length` is its final state.
        labelled: steps with a label.
        count: how many at most.
    """
    inside = [step for step in labelled if 0 <= step <= length]
    around = [step + offset for offset in (_AROUND, -_AROUND) for step in inside if 0 <= step + offset <= length]
    regular = np.linspace(0, length, max(2, count)).astype(int).tolist()
    return frozenset(list(dict.fromkeys([*_thinned(inside, count), length, 0, *around, *regular]))[:count])


def film_all(takes: Sequence[Take], workers: int | None = None) -> Generator[Film]:
    """Film several episodes, in other processes, since a graphics library may crash its process.

    Yields:
        One film per take, in order; without pictures if a process died.
    """
    done = 0
    try:
        for finished in parallel_map(film, takes, max(2, workers or core_count()), runner=PROCESSES):
            done += 1
            yield finished
    except TrajnoteError as error:
        yield from [Film({}, f"the pictures could not be made: {error.problem}")] * (len(takes) - done)


def film(take: Take) -> Film:
    """Replay an episode and keep pictures of the wanted steps."""
    found = _film_as(take, None)
    return found if found.pictures or not take.steps else _film_as(take, _MODE)


def _film_as(take: Take, declared: str | None) -> Film:
    """Film in an environment made with a render mode, or one whose mode is set only to render.

    With a mode from the start, many environments draw in every step, which can take ten times as long as the steps.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame needs no window and no display
    try:
        environment = make_environment(take.home.env_id, {**take.home.env_kwargs, "render_mode": declared})
    except TrajnoteError as error:
        return Film({}, f"the environment cannot be rendered: {error.problem}")
    try:
        return _play(environment, take)
    except Exception as error:  # a third party's renderer may raise anything
        return Film({}, f"the environment cannot be rendered: {type(error).__name__}: {error}")
    finally:
        environment.close()


def encode_picture(frame: Array) -> bytes:
    """A small WebP of an (H, W, 3) frame of bytes."""
    image = Image.fromarray(np.ascontiguousarray(frame, dtype=np.uint8)).convert("RGB")
    height = max(1, round(image.height * WIDTH / image.width))
    buffer = io.BytesIO()
    small = image.resize((WIDTH, height), Image.Resampling.BOX if image.width > WIDTH else Image.Resampling.NEAREST)
    small.save(buffer, "WEBP", quality=_QUALITY, method=1)
    return buffer.getvalue()


def _play(environment: Environment, take: Take) -> Film:
    pictures: dict[int, bytes] = {}
    episode, last = take.episode, max(take.steps, default=-1)
    shown, _ = environment.reset(seed=episode.seed)
    for step in range(last + 1):
        if not np.array_equal(_numbers(shown, episode), np.atleast_1d(episode.observations[step])):
            return Film(pictures, f"the replay differs from the log at step {step}")
        if step in take.steps:
            frame = _render(environment)
            if not isinstance(frame, np.ndarray) or frame.ndim != 3:
                return Film({}, "the environment renders no pictures")
            pictures[step] = encode_picture(frame)
        if step < min(last, len(episode)):
            shown, *_ = environment.step(logged_action(episode, step))
    return Film(pictures)


def _render(environment: Environment) -> Any:
    before = environment.unwrapped.render_mode
    environment.unwrapped.render_mode = _MODE
    try:
        return environment.render()
    finally:
        environment.unwrapped.render_mode = before


def _numbers(shown: Any, episode: Episode) -> Array:
    return np.atleast_1d(np.asarray(shown, dtype=episode.observations.dtype))


def _thinned(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of some steps, evenly spaced."""
    if len(steps) <= count:
        return list(steps)
    return [steps[int(place)] for place in np.linspace(0, len(steps) - 1, max(count, 1))]
