"""What is asked, of which model, about which episode: canonical requests and their content-made names.

It sends nothing and stores nothing. A request is exactly the parameters of a Messages call; its id is a hash of their
JSON text in the order they are built in (the order of a schema's properties is the order a model answers in, so it
counts), so any change of prompt, model, card, schema or data is a new request and equal content has an equal id.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from storage.errors import BadInput
from storage.schema import Episode, Frozen

from ..cards import Card
from .rendering import Kind, Table, render_episode, render_feedback, render_system, render_table
from .selection import DatasetStatistics

DEFAULT_MODEL = "claude-sonnet-5-5"
DEFAULT_MAX_TOKENS = 12_000
"""Cap on a reply, room for a model's thinking included, where neither the user nor the server says another one."""
MOST_UNSTREAMED_TOKENS = 21_333
"""Cap on a reply of a single call where only the server's own limit is known: more can take longer than ten minutes."""


class AnnotateConfig(Frozen):
    """How a dataset is annotated; every field changes what is asked."""

    model: str = Field(default=DEFAULT_MODEL, min_length=1, description="name of the model, as its provider calls it")
    windows: int = Field(default=8, ge=1, le=64, description="labels asked for in an episode, one for each window")
    rows: int = Field(default=40, ge=4, le=2000, description="rows of an episode's table; five for each window")
    median_rows: int = Field(default=16, ge=4, le=2000, description="rows of the median episode's table")
    max_tokens: int = Field(
        default=DEFAULT_MAX_TOKENS,
        ge=256,
        description="cap on a reply that names requests; what is sent is the label option max_tokens",
    )
    two_stage: bool = Field(
        default=False, description="identify critical steps first, suggest actions in a second call"
    )
    samples: int = Field(default=1, ge=1, le=100, description="independent answers asked for each episode")
    frames: bool = Field(default=False, description="show a picture of the critical steps in the second stage")
    kind: Literal["labels", "rules", "study"] = Field(
        default="labels", description="labels of steps, corrective rules, or a study before labels"
    )
    rules: int = Field(default=10, ge=1, le=40, description="rules asked for, at most")
    tables: int = Field(default=4, ge=1, le=50, description="episodes shown where rules or a study are asked for")
    playbook: str | None = Field(default=None, description="a study of the dataset, shown with every episode")
    feedback: str | None = Field(default=None, description="an earlier list of rules, and what came of it")
    parent: str | None = Field(default=None, description="id of that list")

    @model_validator(mode="after")
    def _choice(self) -> AnnotateConfig:
        if self.kind == "labels" and self.rows < 3 * self.windows:
            raise ValueError(
                f"{self.rows} rows leave no choice in {self.windows} windows; give 3 rows a window or more"
            )
        if self.frames and not self.two_stage:
            raise ValueError("frames show the critical steps, which only the second stage knows; add --two-stage")
        if self.kind != "labels" and self.two_stage:
            raise ValueError(f"{self.kind} are asked for in one stage; leave --two-stage out")
        return self

    def for_study(self) -> AnnotateConfig:
        """The configuration of the study that comes before the labels.

        Raises:
            BadInput: where no labels of single steps are asked for.
        """
        if self.kind != "labels":
            raise BadInput(f"A study comes before labels of single steps; {self.kind} are asked for.", "Leave it out.")
        return AnnotateConfig(
            model=self.model,
            kind="study",
            rows=self.rows,
            median_rows=self.median_rows,
            max_tokens=self.max_tokens,
            tables=self.tables,
        )

    @property
    def entries(self) -> int:
        """How many entries a reply has, at most."""
        return self.windows if self.kind == "labels" else self.rules

    def cap(self, given: int | None, limit: int | None, *, streamed: bool) -> int | None:
        """The cap on a reply that is sent; None for the one in the requests.

        Args:
            given: what the user wants.
            limit: the longest reply that the server allows the model.
            streamed: whether a reply may take its time, as in Message Batches.
        """
        given = given or (self.max_tokens if self.max_tokens != DEFAULT_MAX_TOKENS else None)
        if given is not None or limit is None:
            return given
        return limit if streamed else min(limit, MOST_UNSTREAMED_TOKENS)

    @property
    def identity_fields(self) -> dict[str, Any]:
        """What a run is named by; an option that was added later counts only where it is used."""
        unused = {name for name in ("playbook", "feedback", "parent") if getattr(self, name) is None}
        if self.kind != "labels":
            return self.model_dump(mode="json", exclude={"windows", "two_stage", "frames"} | unused)
        unused |= {"kind", "rules", "tables"} | (set[str]() if self.frames else {"frames"})
        return self.model_dump(mode="json", exclude=unused)


@dataclass(frozen=True)
class Request:
    """One call to a model."""

    request_id: str
    kind: Kind
    params: Mapping[str, Any]  # of a Messages call
    max_tokens: int | None = None  # cap on the reply that is sent in place of that in `params`; the id does not know it

    @property
    def sent(self) -> Mapping[str, Any]:
        """The parameters as they are sent."""
        return self.params if self.max_tokens is None else {**self.params, "max_tokens": self.max_tokens}

    @property
    def model(self) -> str:
        """The model asked."""
        return str(self.params["model"])

    @property
    def body(self) -> str:
        """The canonical JSON text that the id is made of."""
        return canonical_body(self.params)


@dataclass(frozen=True)
class Question:
    """A request, and what its reply may speak about."""

    request: Request
    episode_id: int | None  # None where rules for all episodes are asked for
    sample: int
    steps: frozenset[int]  # the steps shown, which a label may name


def canonical_body(params: Mapping[str, Any]) -> str:
    """The JSON text of a call's parameters: as built, without spaces, not escaped."""
    return json.dumps(params, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def request_id_of(params: Mapping[str, Any], sample: int = 0) -> str:
    """`r_` and a hash of the call's parameters; samples after the first get names of their own."""
    text = canonical_body(params) + (f"#{sample}" if sample else "")
    return f"r_{hashlib.sha256(text.encode()).hexdigest()[:48]}"


class RequestBuilder:
    """Writes the questions of one run; they share their system prompt, byte by byte, and their schemas."""

    def __init__(
        self,
        card: Card,
        config: AnnotateConfig,
        statistics: DatasetStatistics,
        median: Episode,
        frames: FrameSource | None = None,
    ) -> None:
        if config.frames and frames is None:
            raise BadInput("Frames are asked for, but nothing renders them.", "Leave the option frames out.")
        self.frames = frames if config.frames else None
        self.card = card
        self.config = config
        self.statistics = statistics
        kinds: tuple[Kind, ...] = ("identify", "suggest") if config.two_stage else ("mark",)
        kinds = kinds if config.kind == "labels" else (config.kind,)
        self.systems: Mapping[Kind, str] = {
            kind: render_system(
                card,
                statistics,
                median,
                kind=kind,
                median_rows=config.median_rows,
                rules=config.rules,
                playbook=config.playbook,
            )
            for kind in kinds
        }
        self.schemas = {kind: reply_schema(kind, card) for kind in kinds}

    def ask_first(self, episode: Episode) -> list[Question]:
        """The questions an episode starts with, one for each sample."""
        table = self.table(episode)
        kind: Kind = "identify" if self.config.two_stage else "mark"
        text = render_episode(self.card, self.statistics, episode, table)
        return [self._question(kind, episode.episode_id, text, table.steps, n) for n in range(self.config.samples)]

    def ask_whole(self, shown: Sequence[Episode]) -> list[Question]:
        """The questions about the dataset, one for each sample: some episodes, one table below the other.

        Where an earlier list of rules is to be bettered, what came of it stands below them.
        """
        kind: Kind = "study" if self.config.kind == "study" else "rules"
        tables = [render_table(episode, self.card, rows=self.config.rows, windows=1) for episode in shown]
        texts = [
            render_episode(self.card, self.statistics, episode, table)
            for episode, table in zip(shown, tables, strict=True)
        ]
        texts += [] if self.config.feedback is None else [render_feedback(self.config.feedback)]
        return [self._question(kind, None, "\n\n".join(texts), (), n) for n in range(self.config.samples)]

    def ask_second(self, episode: Episode, marks: Sequence[tuple[int, str]], sample: int) -> Question:
        """The second stage: what to do at the steps that the first one found.

        Args:
            episode: the same episode.
            marks: steps with their rationales, from the validated first reply; at least one.
            sample: which of the first stage's samples they come from.
        """
        text = render_episode(self.card, self.statistics, episode, self.table(episode), marks=marks)
        steps = [step for step, _ in marks]
        shown = text if self.frames is None else with_frames(text, self.frames(episode.episode_id, steps), steps)
        return self._question("suggest", episode.episode_id, shown, steps, sample)

    def table(self, episode: Episode) -> Table:
        """The table of an episode, as its questions show it."""
        return render_table(episode, self.card, rows=self.config.rows, windows=self.config.windows)

    def _question(
        self,
        kind: Kind,
        episode_id: int | None,
        content: str | list[dict[str, Any]],
        steps: Sequence[int],
        sample: int,
    ) -> Question:
        params = {
            "model": self.config.model,
            "max_tokens": self.config.max_tokens,
            "system": self.systems[kind],
            "messages": [{"role": "user", "content": content}],
            "output_config": {"format": {"type": "json_schema", "schema": self.schemas[kind]}},
        }
        request = Request(request_id_of(params, sample), kind, params)
        return Question(request, episode_id, sample, frozenset(steps))


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


Schema = dict[str, Any]


def reply_schema(kind: Kind, card: Card) -> Schema:
    """The JSON schema of a whole reply: an assessment and a list of labels, of steps, or of rules, as was asked for.

    Its bytes are part of a request's id, so it is written out by hand and changes with no library. Structured output
    knows no numeric bounds; the prompt states them and `parsing/replies.py` checks them. The order of the properties is
    the order of the answer: the reason comes before the action, so that the action follows from it.
    """
    if kind == "rules":
        return _object(
            {
                "assessment": {"type": "string"},
                "terms": {"type": "array", "items": _object(_term())},
                "rules": {"type": "array", "items": _object(_rule(card))},
                "potential": _OPEN_TEXT,
            }
        )
    if kind == "study":
        return _object({"assessment": {"type": "string"}, "terms": {"type": "array", "items": _object(_term())}})
    items = "steps" if kind == "identify" else "labels"
    entry = _step() if kind == "identify" else _step() | _label(card)
    return _object({"assessment": {"type": "string"}, items: {"type": "array", "items": _object(entry)}})


def _step() -> Schema:
    return {"step": {"type": "integer"}, "rationale": {"type": "string"}}


def _label(card: Card) -> Schema:
    return {
        "suggested_action": _action(card),
        "implicit_reward": {"type": "number"},
        "confidence": {"type": "number"},
        "critical": {"type": "boolean"},
    }


_OPEN_TEXT: Schema = {"anyOf": [{"type": "string"}, {"type": "null"}]}


def _term() -> Schema:
    return {name: {"type": "string"} for name in ("name", "expression", "meaning")}


def _rule(card: Card) -> Schema:
    return {
        "rationale": {"type": "string"},
        "predicate": {"type": "string"},
        "suggested_action": _action(card) if card.is_discrete else _open_action(card),
        "critical": {"type": "boolean"},
        "confidence": {"type": "number"},
    }


def _open_action(card: Card) -> Schema:
    """An action whose dimensions may be computed, or left as they were."""
    part: Schema = {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}
    return _object(dict.fromkeys(card.action_names, part))


def _action(card: Card) -> Schema:
    if card.is_discrete:
        return {"type": "string", "enum": list(card.action_names)}
    return _object({name: {"type": "number"} for name in card.action_names})


def _object(properties: Mapping[str, Any]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
