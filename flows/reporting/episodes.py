"""The episodes of the viewer: each is packed on its own, so that a page opens at once and unpacks only what is clicked.

A pack is deflated JSON as base64, which is safe in HTML whatever a model wrote.
Beside a logged episode stand the raw replies behind its labels, read back from the store's files, and the refined
policy in the same seed.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from annotate.parsing import read_message
from annotate.prompting import with_action_indices
from refine.policies import Mode
from storage.datasets import iterate_episodes
from storage.errors import TrajnoteError
from storage.ledger import read_frames
from storage.queries import Row, ask
from storage.schema import Episode, Manifest
from storage.store import Store

from ..policies import load_policy
from ..runtime import Report, silent
from ..simulation import EnvironmentMaker, Home, Named, Spaces, find_home, rollout
from .facts import Facts, all_visible, read_object
from .pictures import Film, Take, choose_grid, choose_steps, columns_of, film_all

MAX_COMPONENTS = 12
"""The most components of an observation that the viewer draws."""
_NUMBERS = 3_600_000  # of all timelines together: about 9 MB when packed
_MOST_POINTS, _FEWEST_POINTS = 1_001, 60
_EPISODES, _UNLABELLED = 1_500, 60  # shown of a dataset with labels, and of one without
_REMATCHES = 60  # episodes that the other policy plays too
MAX_CHARACTERS = 20_000
"""Of one reply on a page; the file has all of it."""


@dataclass(frozen=True)
class Entry:
    """One episode of the viewer: its line in the list, and its pack."""

    summary: Row
    pack: str  # base64 of deflated JSON


@dataclass(frozen=True)
class Viewer:
    """What the page needs for looking at episodes."""

    components: Sequence[Row]  # name and unit of each drawn
    entries: Sequence[Entry]
    left_out: int  # episodes with labels that did not fit
    opponent: Opponent | None
    picture_count: int
    problems: Sequence[str]  # why pictures or the other policy's episodes are missing


@dataclass
class _Scene:
    """An episode being prepared for the viewer."""

    episode: Episode
    labels: Sequence[Row]
    rematch: Episode | None = None
    film: Film = field(default_factory=lambda: Film({}))
    rematch_film: Film = field(default_factory=lambda: Film({}))


def build_viewer(
    store: Store,
    facts: Facts,
    labels: Sequence[Row],
    pictures: int,
    *,
    units: Mapping[str, str],
    env_id: Named | None = None,
    report: Report = silent,
) -> Viewer:
    """Gather episodes, play the other policy, take pictures, and pack everything.

    Args:
        store: the store.
        facts: of the subject.
        labels: of the subject, see `labels.load_labels`.
        pictures: pictures of single steps at most, about 1.5 kB each.
        units: of each named component, if known.
        env_id: the dataset's environment, if the user has to name it.
        report: shown the progress.
    """
    manifest = facts.manifest
    by_episode: dict[int, list[Row]] = defaultdict(list)
    for label in labels:
        by_episode[label["episode_id"]].append(label)
    wanted = sorted(by_episode) or list(range(min(manifest.episodes, _UNLABELLED)))
    chosen = wanted[:_EPISODES]
    scenes = [
        _Scene(episode, by_episode[episode.episode_id])
        for episode in iterate_episodes(store, manifest.dataset_id, chosen)
    ]
    opponent = find_opponent(facts)
    problems: list[str] = []
    try:
        home = find_home(store, manifest, env_id)
    except TrajnoteError as error:
        problems += [f"There are no pictures. {error.problem}"] if opponent is not None or pictures else []
    else:
        if opponent is not None:
            problems += _add_rematches(store, manifest, home, opponent, scenes[:_REMATCHES])
        problems += _add_pictures(home, scenes, pictures, report)
    names = manifest.component_names[:MAX_COMPONENTS]
    return Viewer(
        components=[{"name": name, "unit": units.get(name, "")} for name in names],
        entries=list(_pack_all(store, manifest, scenes)),
        left_out=len(wanted) - len(scenes),
        opponent=opponent,
        picture_count=sum(len(scene.film.pictures) + len(scene.rematch_film.pictures) for scene in scenes),
        problems=list(dict.fromkeys(problems)),
    )


def _add_rematches(
    store: Store, manifest: Manifest, home: Home, opponent: Opponent, scenes: Sequence[_Scene]
) -> list[str]:
    """Let the other policy play each scene's seed; returns why it could not, if so."""
    seeds = [scene.episode.seed for scene in scenes if scene.episode.seed is not None]
    try:
        played = play_rematch(store, manifest, home, opponent, seeds)
    except TrajnoteError as error:
        return [f"{opponent.policy_id} could not play these seeds: {error.problem}"]
    for scene in scenes:
        if scene.episode.seed is not None:
            scene.rematch = played[scene.episode.seed]
    return []


def _add_pictures(home: Home, scenes: Sequence[_Scene], pictures: int, report: Report) -> list[str]:
    """Film as many scenes as the limit allows; returns why some failed."""
    if not pictures:
        return []
    filmed = [scene for scene in scenes if scene.episode.seed is not None][: max(1, pictures // 8)]
    episodes = [e for scene in filmed for e in (scene.episode, scene.rematch) if e is not None]
    each = pictures // max(1, len(episodes))
    takes: list[Take] = []
    for scene in filmed:
        labelled = sorted({label["step"] for label in scene.labels})
        steps = choose_steps(len(scene.episode), labelled, each)
        takes.append(Take(home, scene.episode, steps))
        if scene.rematch is not None:
            takes.append(_rematch_take(takes[-1], scene.rematch, each))
    films = film_all(takes, report)
    for scene in filmed:
        scene.film = next(films)
        if scene.rematch is not None:
            scene.rematch_film = next(films)
    taken = any(scene.film.pictures for scene in filmed)
    return [
        f"{'Some pictures are missing' if taken else 'There are no pictures'}: {found.problem}."
        for scene in filmed
        for found in (scene.film, scene.rematch_film)
        if found.problem
    ]


def _rematch_take(take: Take, rematch: Episode, count: int) -> Take:
    """The same steps of the other policy's episode, while it lasts, and its end."""
    return replace(take, episode=rematch, steps=choose_steps(len(rematch), sorted(take.steps), count))


def _pack_all(store: Store, manifest: Manifest, scenes: Sequence[_Scene]) -> Iterator[Entry]:
    components, first = range(min(MAX_COMPONENTS, len(manifest.component_names))), manifest.action_space.start
    timelines = sum(1 + (scene.rematch is not None) for scene in scenes)
    points = _NUMBERS // max(1, timelines * (len(components) + 3))
    points = min(_MOST_POINTS, max(_FEWEST_POINTS, points))
    names = manifest.action_names if manifest.action_space.is_discrete else ()
    requests = {label["request_id"] for scene in scenes for label in scene.labels if label["request_id"]}
    replies = load_replies(store, sorted(requests))
    for scene in scenes:
        numbered = replace(scene, episode=with_action_indices(scene.episode, first))
        if numbered.rematch is not None:
            numbered = replace(numbered, rematch=with_action_indices(numbered.rematch, first))
        yield _pack(numbered, replies, points=points, components=components, action_names=names)


def _pack(
    scene: _Scene, replies: Mapping[str, Row], *, points: int, components: Sequence[int], action_names: Sequence[str]
) -> Entry:
    def tell(episode: Episode, film: Film, wanted: Sequence[int]) -> Row:
        grid = choose_grid(len(episode), {*film.pictures, *wanted}, points)
        columns = columns_of(episode, grid, components, action_names)
        return columns | {"pictures": film.encoded} | summarise_end(episode)

    used = {label["request_id"] for label in scene.labels} & replies.keys()
    content = {
        **tell(scene.episode, scene.film, [label["step"] for label in scene.labels]),
        "notes": [_note(label) for label in scene.labels],
        "replies": {request_id: replies[request_id] for request_id in sorted(used)},
        "rematch": None if scene.rematch is None else tell(scene.rematch, scene.rematch_film, ()),
    }
    return Entry(_summary(scene), pack(content))


def pack(content: Any) -> str:
    """Deflated JSON as base64, which a page unpacks itself."""
    text = json.dumps(all_visible(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 7)).decode()


def _note(label: Row) -> Row:
    suggested = label["suggested_label"]
    if suggested is None and label["suggested_action"] is not None:
        suggested = ", ".join(f"{value:.3g}" for value in label["suggested_action"])
    logged = label["action_name"] or ", ".join(f"{value:.3g}" for value in label["action_vector"] or ())
    return {
        "step": label["step"],
        "critical": label["critical"],
        "logged": logged,
        "suggested": suggested,
        "agrees": label["agrees"],
        "grade": label["implicit_reward"],
        "confidence": label["confidence"],
        "rationale": label["rationale"],
        "model": label["model"],
        "run": label["run_id"],
        "request": label["request_id"],
        "advantage": label["advantage"],
        "error": label["standard_error"],
        "pairs": label["continuations"],
    }


def _summary(scene: _Scene) -> Row:
    return {
        "id": scene.episode.episode_id,
        "seed": scene.episode.seed,
        "labels": len(scene.labels),
        "corrections": sum(label["agrees"] is False for label in scene.labels),
        **summarise_end(scene.episode),
        "rematch": None if scene.rematch is None else round(scene.rematch.return_, 2),
    }


def summarise_end(episode: Episode) -> Row:
    """Return, length and how an episode ended, in words."""
    end = "terminated" if episode.terminated else "cut by the time limit" if episode.truncated else "ended"
    return {"return": round(episode.return_, 2), "length": len(episode), "end": end}


def load_replies(store: Store, request_ids: Sequence[str]) -> dict[str, Row]:
    """The newest reply to each request: its `text`, `file` and `line`; damaged ones say so instead of a text.

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


@dataclass(frozen=True)
class Opponent:
    """The policy shown beside the logged one."""

    policy_id: str
    mode: Mode


def find_opponent(facts: Facts) -> Opponent | None:
    """The policy that the gate accepted, in the gate's mode; None without one.

    None, too, for a dataset of another engine, where the same seed is another episode.
    """
    judged = facts.judged
    is_ours = facts.manifest.env_id is not None and facts.manifest.engine == "gymnasium"
    if judged is None or not judged["accepted"] or not is_ours:
        return None
    mode = read_object(judged["config"]).get("gate", {}).get("mode")
    return Opponent(judged["policy_id"], "sampled" if mode == "sampled" else "greedy")


def play_rematch(
    store: Store, manifest: Manifest, home: Home, opponent: Opponent, seeds: Sequence[int]
) -> dict[int, Episode]:
    """Play one episode per seed, by seed.

    Args:
        store: holds the policy.
        manifest: of the dataset, with its limit of steps.
        home: its environment.
        opponent: who plays.
        seeds: of the logged episodes.

    Raises:
        TrajnoteError: if the policy or the environment cannot be loaded.
    """
    spaces = Spaces(manifest.observation_space, manifest.action_space)
    policy = load_policy(Named(f"policy:{opponent.policy_id}"), spaces, store)
    make = EnvironmentMaker(*home)
    distinct = list(dict.fromkeys(seeds))
    episodes = rollout(make, policy, distinct, mode=opponent.mode, max_steps=manifest.max_steps)
    return dict(zip(distinct, episodes, strict=True))
