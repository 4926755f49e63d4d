"""Why a request has no answer in the store: the most similar one that has, and where their texts part."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from storage.errors import BadInput
from storage.ledger import EnteredRequest, entered_request, find_requests, similar_requests
from storage.schema import sha256_bytes
from storage.store import Store

from .parsing import clean_text
from .prompting import Request
from .runs import RunPlan, unanswered_requests

_DIFF_LINES = 6
_LINE = 160
_HEADING = re.compile(r"^#{1,2} (.+)$", re.MULTILINE)
_ALIKE_LINES = 400
"""Lines of a field that are compared for likeness; more of a table than a request ever has."""

_MEANINGS: tuple[tuple[str, str], ...] = (
    ("Your role", "the prompt's words"),
    ("The environment", "the card: title, goal, end, reward or time"),
    ("Components of the state", "the card: components"),
    ("Actions, one in each step", "the card: actions"),
    ("Dimensions of the action", "the card: actions"),
    ("Facts of the physics", "the card: facts of the physics"),
    ("How to read the tables", "the prompt's words, or the card's events"),
    ("What the agent usually does", "the statistics of the dataset"),
    ("Episode", "the dataset's median episode, or --labels and --rows"),
    ("Your task", "the prompt's words, or the card's actions"),
)


@dataclass(frozen=True)
class FieldDifference:
    """One part of a request that another one has otherwise."""

    field: str  # for example `system: Components of the state`
    kind: Literal["changed", "only here", "only there"]
    meaning: str  # what it comes from, in words
    diff: tuple[str, ...]  # lines that begin with - (the other request) or + (this one)


def parts_of(params: Mapping[str, Any]) -> dict[str, str]:
    """A request as named parts of text, in their order: parameters, sections of the prompt, the table, the schema."""
    parts: dict[str, str] = {}
    for name, value in params.items():
        if name == "system":
            parts |= {f"system: {title}": text for title, text in _sections(_text_of(value))}
        elif name == "messages":
            parts |= _message_parts(value)
        elif name == "output_config":
            parts["schema"] = json.dumps(value, indent=1, ensure_ascii=False)
        else:
            parts[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return parts


def compare_parts(mine: Mapping[str, str], other: Mapping[str, str]) -> list[FieldDifference]:
    """What this request says otherwise than the other one, in the order of its parts."""
    names = [*mine, *(name for name in other if name not in mine)]
    return [
        FieldDifference(
            name,
            "changed" if name in mine and name in other else "only here" if name in mine else "only there",
            _meaning(name),
            _diff(other.get(name, ""), mine.get(name, "")),
        )
        for name in names
        if mine.get(name) != other.get(name)
    ]


def distance(mine: Mapping[str, str], other: Mapping[str, str]) -> tuple[int, float]:
    """How far apart two requests are: parts that differ, then how unlike those are."""
    differing = [name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)]
    return len(differing), sum(_unlike(mine.get(name, ""), other.get(name, "")) for name in sorted(differing))


def _sections(text: str) -> list[tuple[str, str]]:
    """A prompt cut at its headings; numbers in a heading stand as a sign, so that like sections have one name."""
    found = list(_HEADING.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [
        (re.sub(r"\d+", "N", match[1]).split(":")[0], text[match.start() : end].strip())
        for match, end in zip(found, ends, strict=True)
    ] or [("text", text)]


def _message_parts(messages: Any) -> dict[str, str]:
    parts: dict[str, str] = {}
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": str(content)}]
        for block in blocks:
            if block.get("type") == "text":
                parts |= _episode_parts(str(block.get("text")))
            else:
                parts["image"] = f"{block.get('type')} {sha256_bytes(json.dumps(block).encode())[:16]}"
    return parts


def _episode_parts(text: str) -> dict[str, str]:
    """The text about one episode: its summary, its table, and the steps found to matter."""
    about, _, marks = text.partition("\n# Steps found to matter")
    summary, _, table = about.partition("\n\n") if about.startswith("# ") else ("", "", about)
    found = {"episode": summary, "table": table.strip(), "steps found": marks.strip()}
    return {name: part for name, part in found.items() if part}


def _text_of(system: Any) -> str:
    if isinstance(system, list):
        return "\n".join(str(block.get("text", "")) for block in system if isinstance(block, dict))
    return str(system)


def _meaning(name: str) -> str:
    title = name.removeprefix("system: ")
    for beginning, meaning in _MEANINGS:
        if name != title and title.startswith(beginning):
            return meaning
    return {
        "model": "another model",
        "max_tokens": "another cap on the reply",
        "schema": "another schema of the reply: the card's actions, or one stage against two",
        "episode": "another episode, or other returns beside it",
        "table": "other steps, rows or windows of an episode (--rows, --labels, the card's decimals or events)",
        "steps found": "the first stage found other steps",
        "image": "other frames",
    }.get(name, "another parameter")


def _diff(old: str, new: str) -> tuple[str, ...]:
    lines = [
        line
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    shown = [_around_difference(line, lines) for line in lines[:_DIFF_LINES]]
    more = [f"… {len(lines) - _DIFF_LINES} more lines"] if len(lines) > _DIFF_LINES else []
    return (*shown, *more)


def _around_difference(line: str, lines: Sequence[str]) -> str:
    """A long line from where it begins to differ from its counterpart."""
    start = 1
    others = [other for other in lines if other[0] != line[0]]
    if len(line) > _LINE and others:
        counterpart = difflib.get_close_matches(line, others, 1, 0.3) or others[:1]
        pairs = enumerate(zip(line[1:], counterpart[0][1:], strict=False), start=1)
        start = max(1, next((place for place, (a, b) in pairs if a != b), 1) - _LINE // 4)
    return line[0] + ("…" if start > 1 else "") + clean_text(line[start:], _LINE)


def _unlike(one: str, other: str) -> float:
    lines = (one.splitlines()[:_ALIKE_LINES], other.splitlines()[:_ALIKE_LINES])
    return 1 - difflib.SequenceMatcher(None, *lines, autojunk=False).quick_ratio()


MOST_CANDIDATES = 2_000
"""Requests that are looked at: those about the same episode first, then the newest."""


@dataclass(frozen=True)
class Explanation:
    """What a request has in common with the store, and what not."""

    request_id: str
    episode_id: int | None
    state: str  # of the request in the store; `unknown` when it was never entered
    relative: str | None  # the nearest request; None when the store has no other of its kind
    relative_state: str | None
    relative_run: str | None
    differences: tuple[FieldDifference, ...]  # none: the same words, asked as another sample

    @property
    def words(self) -> str:
        """The explanation in one sentence."""
        if self.relative is None:
            return "the store has no other request of its kind to compare it with"
        if not self.differences:
            return f"it has the words of {self.relative} ({self.relative_state}) and is another sample of it"
        named = "; ".join(f"{found.field} ({found.meaning})" for found in self.differences)
        return f"nearest is {self.relative} ({self.relative_state}, run {self.relative_run}); it differs in {named}"


def explain_request(store: Store, request_id: str) -> Explanation:
    """Compare a request of the store with all others.

    Args:
        store: the store.
        request_id: its id, or the unique beginning of it.

    Raises:
        BadInput: if there is no such request, or several.
    """
    with store.catalog.read() as con:
        found = find_requests(con, request_id)
        if len(found) != 1:
            problem = "is a prefix of several requests" if found else "is not a request of this store"
            raise BadInput(f"{request_id!r} {problem}.", "`trajnote sql 'SELECT request_id FROM requests'` lists them.")
        (mine,) = found
        others = similar_requests(con, mine.kind, mine.episode_id, answered=False, limit=MOST_CANDIDATES)
    return _explain(mine, [other for other in others if other.request_id != mine.request_id])


def explain_misses(store: Store, plan: RunPlan, limit: int = 3) -> tuple[list[Explanation], int]:
    """Compare the requests of a run that no reply in the store answers with those that are answered.

    Returns:
        Explanations of the first few, and how many unanswered requests there are.
    """
    missing = unanswered_requests(store, plan)
    episodes = {question.request.request_id: question.episode_id for question in plan.questions}
    return [_explain_miss(store, request, episodes.get(request.request_id)) for request in missing[:limit]], len(
        missing
    )


def _explain_miss(store: Store, request: Request, episode_id: int | None) -> Explanation:
    with store.catalog.read() as con:
        entered = entered_request(con, request.request_id)
        others = similar_requests(con, request.kind, episode_id, answered=True, limit=MOST_CANDIDATES)
    state = entered.state if entered else "unknown"
    return _explain(EnteredRequest(request.request_id, request.kind, state, request.body, episode_id, None), others)


def _explain(mine: EnteredRequest, others: Sequence[EnteredRequest]) -> Explanation:
    parts = parts_of(json.loads(mine.body))
    near = [(distance(parts, found), other, found) for other in others for found in [parts_of(json.loads(other.body))]]
    if not near:
        return Explanation(mine.request_id, mine.episode_id, mine.state, None, None, None, ())
    _, nearest, nearest_parts = min(near, key=lambda each: (each[0], each[1].request_id))
    return Explanation(
        request_id=mine.request_id,
        episode_id=mine.episode_id,
        state=mine.state,
        relative=nearest.request_id,
        relative_state=nearest.state,
        relative_run=nearest.run_id,
        differences=tuple(compare_parts(parts, nearest_parts)),
    )
