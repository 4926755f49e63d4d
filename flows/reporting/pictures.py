"""An episode as columns of numbers for stepping, and pictures of single steps from an exact replay of its actions.

A picture of any state but the logged one would mislead, so filming stops at the first difference.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from storage.errors import TrajnoteError
from storage.schema import Array, Episode

from ..runtime import PROCESSES, Report, core_count, parallel_map
from ..simulation import Environment, EnvironmentMaker, Home, describe_raised, logged_action

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
    width: int = WIDTH


@dataclass(frozen=True)
class Film:
    """The pictures of a take."""

    pictures: Mapping[int, bytes]  # step -> WebP of the state in which that step's action was chosen
    problem: str | None = None  # why some or all are missing

    @property
    def encoded(self) -> dict[str, str]:
        """The pictures as base64, by step, as a page's JSON has them."""
        return {str(step): base64.b64encode(data).decode() for step, data in sorted(self.pictures.items())}


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


def film_all(takes: Sequence[Take], report: Report) -> Generator[Film]:
    """Film several episodes, in other processes, since a graphics library may crash its process.

    Yields:
        One film per take, in order; without pictures if a process died.
    """
    done = 0
    try:
        for finished in parallel_map(film, takes, max(2, core_count()), runner=PROCESSES):
            done += 1
            report("take pictures", done, len(takes))
            yield finished
    except TrajnoteError as error:
        for missing in range(done + 1, len(takes) + 1):
            report("take pictures", missing, len(takes))
            yield Film({}, f"the pictures could not be made: {error.problem.rstrip('.')}")


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
        environment = EnvironmentMaker(take.home.env_id, {**take.home.env_kwargs, "render_mode": declared})()
    except TrajnoteError as error:
        return Film({}, _unrendered(error.__cause__ or error, error.problem))
    try:
        return _play(environment, take)
    except Exception as error:  # a third party's renderer may raise anything
        return Film({}, _unrendered(error, describe_raised(error)))
    finally:
        environment.close()


NO_PICTURES = f"the environment renders no pictures, which needs its render mode {_MODE}"


def _unrendered(error: BaseException, text: str) -> str:
    """Why nothing was rendered: an environment without pictures says so in one of these ways, the others are faults."""
    plain = str(error).lower().replace("_", " ")
    has_none = isinstance(error, NotImplementedError) or "render mode" in plain
    return NO_PICTURES if has_none else f"the environment cannot be rendered: {text}"


def encode_picture(frame: Array, width: int = WIDTH) -> bytes:
    """A small WebP, `width` pixels wide, of an (H, W, 3) frame of bytes."""
    image = Image.fromarray(np.ascontiguousarray(frame, dtype=np.uint8))
    height = max(1, round(image.height * width / image.width))
    buffer = io.BytesIO()
    way = Image.Resampling.BOX if image.width > width else Image.Resampling.NEAREST
    small = image.resize((width, height), way, reducing_gap=1.0)  # by whole pixels first, in two thirds of the time
    small.save(buffer, "WEBP", quality=_QUALITY, method=1)
    return buffer.getvalue()


def _play(environment: Environment, take: Take) -> Film:
    pictures: dict[int, bytes] = {}
    episode, last = take.episode, max(take.steps, default=-1)
    shown, _ = environment.reset(seed=episode.seed)
    seen = [np.array(shown)]  # since the last picture; a copy, as an environment may reuse its array
    for step in range(last + 1):
        if step in take.steps:
            wrong = _first_difference(seen, episode, step + 1 - len(seen))
            if wrong is not None:
                return Film(pictures, f"the replay differs from the log at step {wrong}")
            seen.clear()
            frame = _render(environment)
            if not isinstance(frame, np.ndarray) or frame.ndim != 3:
                return Film({}, NO_PICTURES)
            pictures[step] = encode_picture(frame, take.width)
        if step < min(last, len(episode)):
            shown, *_ = environment.step(logged_action(episode, step))
            seen.append(np.array(shown))
    return Film(pictures)


def _render(environment: Environment) -> Any:
    before = environment.unwrapped.render_mode
    environment.unwrapped.render_mode = _MODE
    try:
        return environment.render()
    finally:
        environment.unwrapped.render_mode = before


def _first_difference(seen: Sequence[Array], episode: Episode, first: int) -> int | None:
    """The first step at which some observations, from step `first` on, are others than the logged ones."""
    logged = episode.observations[first : first + len(seen)]
    shown = np.stack(seen).astype(logged.dtype)
    if shown.shape != logged.shape:
        return first
    wrong = np.flatnonzero((shown != logged).reshape(len(seen), -1).any(axis=1))
    return first + int(wrong[0]) if len(wrong) else None


def _thinned(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of some steps, evenly spaced."""
    if len(steps) <= count:
        return list(steps)
    return [steps[int(place)] for place in np.linspace(0, len(steps) - 1, max(count, 1))]


Columns = dict[str, Any]
_DIGITS = 4


def choose_grid(length: int, wanted: Collection[int], points: int) -> Array:
    """The steps shown: all if there are few, otherwise regular ones and the wanted ones.

    Args:
        length: steps of the episode; step `length` is its final state.
        wanted: steps that must be included.
        points: approximate number.

    Returns:
        (P,) int64, ascending, from 0 to `length`.
    """
    if length < points:
        return np.arange(length + 1)
    regular = np.linspace(0, length, max(2, points)).astype(np.int64)
    inside = [step for step in wanted if 0 <= step <= length]
    return np.unique(np.concatenate([regular, np.array(inside, dtype=np.int64)]))


def columns_of(episode: Episode, grid: Array, components: Sequence[int], action_names: Sequence[str]) -> Columns:
    """The columns of an episode at the steps of a grid.

    Where the grid skips steps, `r` is the largest reward by size up to the next one, so that no spike is lost.

    Args:
        episode: the episode.
        grid: (P,) steps, ascending, the last one the final state.
        components: indices into the observation.
        action_names: of a discrete action space; empty otherwise.

    Returns:
        `t` the steps, `r` the reward, `g` the return so far, `c` one list per component, `a` the actions in words.
    """
    observations = episode.observations.reshape(len(episode.observations), -1)
    earned = np.concatenate([[0.0], np.cumsum(episode.rewards)])
    return {
        "t": grid.tolist(),
        "r": short_numbers(_peaks(episode.rewards, grid)),
        "g": short_numbers(earned[grid]),
        "c": [short_numbers(observations[grid, place]) for place in components],
        "a": [action_words(episode, int(step), action_names) for step in grid],
    }


def short_numbers(values: Array) -> list[float | None]:
    """Numbers rounded to about four digits of the largest one; None for what is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    largest = float(np.abs(numbers[finite]).max(initial=0.0))
    decimals = _DIGITS - 1 - int(np.floor(np.log10(largest))) if largest > 0 else 0
    rounded = np.round(numbers, min(max(decimals, 0), 12)).tolist()
    return [value if known else None for value, known in zip(rounded, finite.tolist(), strict=True)]


def _peaks(rewards: Array, grid: Array) -> Array:
    """The largest reward by size from each step of the grid up to the next one; NaN for the final state."""
    if len(grid) == len(rewards) + 1:
        return np.append(rewards, np.nan)
    pieces = np.split(rewards, grid[1:-1])
    return np.array([*(piece[np.abs(piece).argmax()] for piece in pieces), np.nan])


def action_words(episode: Episode, step: int, names: Sequence[str]) -> str:
    """The action of a step: its name, or its numbers; empty in the final state."""
    if step >= len(episode):
        return ""
    action = episode.actions[step]
    if episode.actions.ndim == 1:
        return names[int(action)] if 0 <= int(action) < len(names) else str(int(action))
    return ", ".join(f"{value:.3g}" for value in action)
