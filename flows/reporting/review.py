"""The page of a review: a queue of labels, rules or bare states in one HTML file, answered in the browser.

The page of a gold queue holds no label at all, so that its source tells nothing either. The answers come back as JSON
lines (`annotate/importing/reviews.py`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from annotate.cards import Card, card_at_hand
from annotate.prompting import render_rows, with_action_indices
from storage.datasets import iterate_episodes, read_manifest
from storage.disk import seal, write_whole
from storage.errors import BadInput, TrajnoteError
from storage.formulas import Term
from storage.queries import Row
from storage.schema import Array, Episode, Manifest
from storage.store import Store

from ..labelling import Prepared
from ..runtime import Report, silent
from ..simulation import Named, find_home
from .episodes import pack, summarise_end
from .page import fill_page, read_parts
from .pictures import Film, Take, action_words, film_all, short_numbers

AROUND = 25
"""Steps before and after the one in question that a page shows."""
MAX_SHOWN = 24
"""The most components of an observation on a page."""
_WIDTH = 400  # pixels of a picture
_LOOKS = (0, 5, -5, 10, -10, 2, -2, 20, -20)
"""Steps from the one in question that are pictured, if there is room."""
_ROWS = (*range(-5, 6), *(sign * step for sign in (-1, 1) for step in (8, 12, 20, 40)))  # of the text of a state
_SCRIPTS = ("theme.js", "review.js")


@dataclass(frozen=True)
class WrittenReview:
    """A written review."""

    path: Path
    bytes: int
    queue_id: str
    dataset_id: str
    kind: str
    items: int
    pictures: int
    problems: tuple[str, ...] = ()  # why pictures are missing


@dataclass(frozen=True)
class _Scene:
    """One step to look at."""

    episode: Episode
    step: int
    suggested: Sequence[float] | None = None  # what a rule says there
    film: Film = field(default_factory=lambda: Film({}))


def write_review(
    store: Store,
    prepared: Prepared,
    *,
    out: Path | None = None,
    pictures: int = 900,
    env_id: Named | None = None,
    report: Report = silent,
) -> WrittenReview:
    """Write a queue as a page (`.html`), or a gold queue as JSON lines or text for a reader without a browser.

    Args:
        store: has the queue's dataset.
        prepared: the queue.
        out: the file; `reports/<queue id>.html` of the store when None.
        pictures: rendered steps at most; 0 renders nothing.
        env_id: the dataset's environment, if the user has to name it.
        report: shown the progress.

    Raises:
        BadInput: for a file of another kind.
    """
    queue = prepared.queue
    path = out or store.reports_dir / f"{queue.queue_id}.html"
    manifest = read_manifest(store, queue.dataset_id)
    card = card_at_hand(store, manifest)
    scenes = _scenes(store, prepared, manifest)
    problems: list[str] = []
    if path.suffix == ".html":
        scenes, problems = _filmed(store, manifest, scenes, pictures, env_id, report)
        content = _page(prepared, manifest, card, scenes, problems)
    elif path.suffix in (".jsonl", ".txt") and queue.kind == "gold":
        content = _texts(prepared, manifest, card, scenes, as_json=path.suffix == ".jsonl").encode()
    else:
        kinds = ".html, .jsonl or .txt" if queue.kind == "gold" else ".html"
        raise BadInput(f"A {queue.kind} queue cannot be written as {path.name}.", f"The file's name ends in {kinds}.")
    write_whole(path, content)
    count = sum(len(scene.film.pictures) for found in scenes for scene in found)
    return WrittenReview(
        path, len(content), queue.queue_id, queue.dataset_id, queue.kind, len(queue.items), count, tuple(problems)
    )


def _scenes(store: Store, prepared: Prepared, manifest: Manifest) -> list[list[_Scene]]:
    """The steps of each item: one, or those of a rule's evidence."""
    places: list[list[tuple[int, int, Sequence[float] | None]]] = [
        [(item.episode_id, item.step, None)] if item.episode_id is not None and item.step is not None else []
        for item in prepared.queue.items
    ]
    for found, rows in zip(places, prepared.evidence, strict=False):
        found += [(row["episode_id"], row["step"], row["suggested_action"]) for row in rows]
    wanted = sorted({episode_id for found in places for episode_id, _, _ in found})
    episodes = {e.episode_id: e for e in iterate_episodes(store, manifest.dataset_id, wanted)}
    return [[_Scene(episodes[name], step, action) for name, step, action in found] for found in places]


def _filmed(
    store: Store,
    manifest: Manifest,
    scenes: Sequence[Sequence[_Scene]],
    pictures: int,
    env_id: Named | None,
    report: Report,
) -> tuple[list[list[_Scene]], list[str]]:
    """The scenes with pictures, each episode replayed once, and why some are missing."""
    each = pictures // max(1, sum(map(len, scenes)))
    wanted: dict[int, set[int]] = defaultdict(set)
    episodes = {scene.episode.episode_id: scene.episode for found in scenes for scene in found}
    for scene in (scene for found in scenes for scene in found):
        steps = [scene.step + look for look in _LOOKS[: max(1, each)]]
        wanted[scene.episode.episode_id] |= {step for step in steps if 0 <= step <= len(scene.episode)}
    if not pictures:
        return [list(found) for found in scenes], []
    try:
        home = find_home(store, manifest, env_id)
    except TrajnoteError as error:
        return [list(found) for found in scenes], [f"There are no pictures. {error.problem}"]
    takes = [
        Take(home, episodes[name], frozenset(steps), _WIDTH)
        for name, steps in wanted.items()
        if episodes[name].seed is not None
    ]
    films = {take.episode.episode_id: film for take, film in zip(takes, film_all(takes, report), strict=True)}
    problems = list(dict.fromkeys(f"Some pictures are missing: {f.problem}." for f in films.values() if f.problem))
    return [[_with_film(scene, films) for scene in found] for found in scenes], problems


def _with_film(scene: _Scene, films: Mapping[int, Film]) -> _Scene:
    film = films.get(scene.episode.episode_id, Film({}))
    near = {step: data for step, data in film.pictures.items() if step - scene.step in _LOOKS}
    return replace(scene, film=Film(near))


def _page(
    prepared: Prepared,
    manifest: Manifest,
    card: Card | None,
    scenes: Sequence[Sequence[_Scene]],
    problems: Sequence[str],
) -> bytes:
    shown = _shown_components(manifest, card)
    packs = [
        pack({"scenes": [_tell(scene, manifest, shown) for scene in found], "claim": _claim(prepared, place)})
        for place, found in enumerate(scenes)
    ]
    about = _about(prepared, manifest, card, shown)
    known = {"about": about, "card": card, "problems": problems, "packs": packs}
    styles = ["report.css", "review.css"]
    return seal(fill_page("review", styles, read_parts(_SCRIPTS), {"about_json": about}, known).encode())


def _about(prepared: Prepared, manifest: Manifest, card: Card | None, shown: Sequence[int]) -> Row:
    """What the page knows of the whole queue."""
    queue, space = prepared.queue, manifest.action_space
    components = [_component(manifest, card, place) for place in shown]
    meanings = [action.meaning for action in card.actions] if card else []
    actions: list[Row] = [
        {"name": name, "meaning": meanings[place] if len(meanings) == len(manifest.action_names) else ""}
        for place, name in enumerate(manifest.action_names)
    ]
    if not space.is_discrete:
        for place, action in enumerate(actions):
            action["low"] = space.low[place] if space.low else None
            action["high"] = space.high[place] if space.high else None
    return {
        "queue": queue.queue_id,
        "kind": queue.kind,
        "dataset": queue.dataset_id,
        "title": (card.title if card else None) or manifest.env_id or queue.dataset_id,
        "discrete": space.is_discrete,
        "actions": actions,
        "components": components,
        "left_out": sum(1 for _ in manifest.component_names) - len(shown),
        "items": [{"episode": item.episode_id, "step": item.step} for item in queue.items],
    }


def _shown_components(manifest: Manifest, card: Card | None) -> list[int]:
    names = manifest.component_names
    hidden = {c.name for c in card.components if not c.show} if card else set[str]()
    return [place for place, name in enumerate(names) if name not in hidden][:MAX_SHOWN]


def _component(manifest: Manifest, card: Card | None, place: int) -> Row:
    name = manifest.component_names[place]
    known = next((c for c in card.components if c.name == name), None) if card else None
    if known is None:
        return {"name": name, "unit": "", "meaning": "", "decimals": 3}
    return {"name": name, "unit": known.unit, "meaning": known.meaning, "decimals": known.decimals}


def _tell(scene: _Scene, manifest: Manifest, shown: Sequence[int]) -> Row:
    """A step with the steps around it, as columns."""
    episode = scene.episode
    names = manifest.action_names if manifest.action_space.is_discrete else ()
    steps = np.arange(max(0, scene.step - AROUND), min(len(episode), scene.step + AROUND) + 1)
    observations = episode.observations.reshape(len(episode.observations), -1)
    rewards = np.append(episode.rewards, np.nan)
    earned = np.concatenate([[0.0], np.cumsum(episode.rewards)])
    indices = with_action_indices(episode, manifest.action_space.start)
    return {
        "episode": episode.episode_id,
        "step": scene.step,
        **summarise_end(episode),
        "t": steps.tolist(),
        "r": short_numbers(rewards[steps]),
        "g": short_numbers(earned[steps]),
        "c": [_plain(observations[steps, place]) for place in shown],
        "a": [action_words(indices, int(step), names) for step in steps],
        "pictures": scene.film.encoded,
        "acted": None if episode.actions.ndim == 1 else _plain(episode.actions[scene.step]),
        "suggested_values": None if episode.actions.ndim == 1 else scene.suggested,
    }


def _plain(values: Array) -> list[float]:
    """Numbers with at most seven digits, which is what single precision has."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def _claim(prepared: Prepared, place: int) -> Row | None:
    """What somebody says about an item; None for a gold set."""
    label = prepared.labels[place]
    if prepared.rules:
        rule = prepared.rules[place]
        return {
            "action": rule["suggested_label"],
            "predicate": rule["predicate"],
            "terms": _used_terms(rule["predicate"], prepared.terms.get(rule["rule_id"], ())),
            "covers": rule["coverage"],
            "decides": rule["decides"],
            "logged": rule["agrees_with_logged"],
            **{name: rule[name] for name in ("rationale", "model", "confidence", "critical")},
        }
    if label is None:
        return None
    return {
        "action": label["suggested_label"],
        "values": label["suggested_action"],
        "agrees": label["agrees"],
        "grade": label["implicit_reward"],
        **{name: label[name] for name in ("rationale", "model", "confidence", "critical", "advantage", "contested")},
    }


def _used_terms(text: str, terms: Sequence[Term]) -> list[Row]:
    """The terms that an expression uses, and those that these use; a term stands after those that it uses."""
    words = set(re.findall(r"\w+", text))
    used: list[Row] = []
    for term in reversed(terms):
        if term.name in words:
            used.insert(0, term._asdict())
            words |= set(re.findall(r"\w+", term.expression))
    return used


def _texts(
    prepared: Prepared,
    manifest: Manifest,
    card: Card | None,
    scenes: Sequence[Sequence[_Scene]],
    *,
    as_json: bool,
) -> str:
    """A gold queue for a reader without a browser: the states as a prompt's table shows them."""
    if card is None:
        raise BadInput(
            f"The states of {manifest.dataset_id} cannot be written as text without a card.",
            "Write the page (.html), or import the data with --card.",
        )
    guide = _guide(card)
    queue = prepared.queue
    lines: list[str] = [] if as_json else [guide]
    for number, found in enumerate(scenes, 1):
        scene = found[0]
        text = _state_text(scene, manifest, card)
        named = {"queue": queue.queue_id, "item": number, "dataset_id": queue.dataset_id}
        place = {"episode_id": scene.episode.episode_id, "step": scene.step}
        if as_json:
            lines.append(json.dumps({**named, **place, "state": text, "guide": guide}, ensure_ascii=False))
        else:
            lines.append(f"\n## Item {number} of queue {queue.queue_id}\n{text}")
    return "\n".join(lines) + "\n"


def _state_text(scene: _Scene, manifest: Manifest, card: Card) -> str:
    episode = with_action_indices(scene.episode, manifest.action_space.start)
    steps = sorted({scene.step + row for row in _ROWS if 0 <= scene.step + row <= len(episode)})
    end = summarise_end(episode)
    return (
        f"Episode {episode.episode_id}: {end['length']} steps, return {end['return']}, {end['end']}. "
        f"What should be done in step {scene.step}?\n\n{render_rows(episode, card, steps)}"
    )


def _guide(card: Card) -> str:
    """The environment in words, and how to answer."""
    components = [f"- {c.name}{f', in {c.unit}' if c.unit else ''}: {c.meaning}" for c in card.shown_components]
    actions = [f"- {a.name}: {a.meaning}" for a in card.actions]
    return "\n".join(
        [
            f"# {card.title}",
            f"Goal: {card.goal}",
            f"End: {card.termination}",
            f"Reward: {card.reward}",
            "## Components of the state",
            *components,
            "## Actions",
            *actions,
            *(["## Facts", *(f"- {fact}" for fact in card.advice)] if card.advice else []),
            "## What is asked",
            "For the step in question: `suggested_action`, what a near-optimal controller does in that very state, "
            "also where that is what was done; and `critical`, true where a wrong action there would clearly cost "
            "return.",
            "Each row is a step: the state in which the agent chose, what it chose, and the rewards since the row "
            "above.",
            "An answer is a line of JSON with queue, item, model (who answers, for example human:ann), "
            'suggested_action and critical; or verdict "unsure".',
        ]
    )
