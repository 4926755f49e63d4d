"""Environment cards: what the numbers and actions of an environment mean, in words a newcomer can act on.

A card is read and compared with spaces here; whether its words are true is checked in flows, where the simulator is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints, ValidationError, model_validator

from storage.disk import describe_invalid, parse_toml, read_file, shorten
from storage.errors import BadInput, DamagedStore, did_you_mean
from storage.schema import Frozen, Manifest, Space, canonical_json, sha256_bytes
from storage.store import Store

from .claims import OUTCOMES, Claim, EffectClaim, unknown_name

PLACEHOLDER = "TODO"
MAX_CARD_BYTES = 1_000_000
"""Of a card; a long one has 10,000."""
MAX_CARD_NAMES = 4_096
"""Components, and actions, that a card may explain; nobody reads so many."""
_HARMLESS = ("render_mode", "max_episode_steps")  # arguments of make that change no word of a card
_FOLDER = Path(__file__).parent

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


class Component(Frozen):
    """One number of the observation."""

    name: Name = Field(description="SQL identifier in snake_case; the column of the views and of the prompt's table")
    unit: str = Field(default="", description="unit, empty for a pure number")
    meaning: Text = Field(description="what it measures and what its sign says")
    decimals: int = Field(default=2, ge=0, le=9, description="decimals in tables")
    show: bool = Field(default=True, description="false leaves it out of tables, for constants and unknown bytes")


class Action(Frozen):
    """One discrete action, or one dimension of a continuous one (then it has bounds)."""

    name: Name = Field(description="name in snake_case, which replies use")
    meaning: Text = Field(description="what it does to the system, with the sign")
    unit: str = Field(default="", description="unit, continuous only")
    low: float | None = Field(default=None, description="lower bound, continuous only")
    high: float | None = Field(default=None, description="upper bound, continuous only")
    decimals: int = Field(default=2, ge=0, le=9, description="decimals in tables, continuous only")

    @model_validator(mode="after")
    def _both_bounds(self) -> Action:
        if (self.low is None) != (self.high is None):
            raise ValueError("a continuous dimension has both low and high, a discrete action neither")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        return self


class Event(Frozen):
    """Something that makes a step worth a row of a table."""

    component: str = Field(description="the component that is watched")
    kind: Literal["change", "crosses"] = Field(description="any change of value, or passing `value` either way")
    value: float | None = Field(default=None, description="the threshold of `crosses`")
    text: Text = Field(description="what has happened, in words")

    @model_validator(mode="after")
    def _threshold(self) -> Event:
        if (self.kind == "crosses") != (self.value is not None):
            raise ValueError("`crosses` needs a value, `change` has none")
        return self


class Card(Frozen):
    """What a language model reads about an environment."""

    env_id: Text = Field(description="Gymnasium id")
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of make that this card needs")
    title: Text = Field(description="the environment in a few words")
    goal: Text = Field(description="what a good episode is")
    termination: Text = Field(description="when an episode ends")
    reward: Text = Field(description="what is rewarded, with magnitudes")
    seconds_per_step: float | None = Field(default=None, gt=0, description="simulated time between actions, if any")
    probe_resets: tuple[Mapping[str, Any], ...] = Field(
        default=(), description="options of reset that lead to states worth checking, rare by chance"
    )
    advice: tuple[Text, ...] = Field(default=(), description="facts of the physics; never what to do")
    components: tuple[Component, ...] = Field(
        min_length=1, max_length=MAX_CARD_NAMES, description="what the observation's numbers are, in their order"
    )
    actions: tuple[Action, ...] = Field(
        min_length=1, max_length=MAX_CARD_NAMES, description="discrete actions, or the dimensions, in their order"
    )
    events: tuple[Event, ...] = Field(default=(), description="what makes a step worth a row of the table")
    claims: tuple[Claim, ...] = Field(default=(), description="statements about all this that `card check` can test")

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of all components, in the observation's order."""
        return tuple(component.name for component in self.components)

    @property
    def shown_components(self) -> tuple[Component, ...]:
        """The components that belong into a table."""
        return tuple(component for component in self.components if component.show)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the discrete actions, or of the dimensions of a continuous one."""
        return tuple(action.name for action in self.actions)

    @property
    def is_discrete(self) -> bool:
        """Whether an action is one of a list rather than a vector."""
        return self.actions[0].low is None

    @model_validator(mode="after")
    def _checked(self) -> Card:
        _refuse_duplicates("component", (*OUTCOMES, *self.component_names))
        _refuse_duplicates("action", self.action_names)
        if any((action.low is None) != self.is_discrete for action in self.actions):
            raise ValueError("either every action has low and high (continuous) or none has (discrete)")
        if not self.shown_components:
            raise ValueError("every component has show = false")
        for index, event in enumerate(self.events):
            if event.component not in self.component_names:
                known = shorten(", ".join(self.component_names))
                raise ValueError(f"events[{index}].component: {event.component!r} is not one of {known}")
        for index, claim in enumerate(self.claims):
            if problem := unknown_name(claim, self.component_names, self.action_names):
                raise ValueError(f"claims[{index}]: {problem}")
            if isinstance(claim, EffectClaim) and (claim.action is not None) != self.is_discrete:
                raise ValueError(f"claims[{index}]: discrete cards compare `action`, continuous ones `dimension`")
        return self


class CardFile(NamedTuple):
    """A card, and the bytes of the file that it was read from."""

    card: Card
    content: bytes


def packaged_cards() -> list[Path]:
    """The card files that come with trajnote."""
    return sorted(_FOLDER.glob("*.toml"))


def load_card(source: str | Path, env_kwargs: Mapping[str, Any] | None = None) -> Card:
    """Read a card from a TOML file, or the packaged card of an environment.

    Args:
        source: path of a TOML file (it ends in .toml), or a Gymnasium id.
        env_kwargs: the environment's arguments, to choose among packaged cards.

    Raises:
        BadInput: if there is no such card, or the file is not a complete and consistent card; names file and field.
    """
    return read_card(locate_card(source, env_kwargs)).card


def locate_card(source: str | Path, env_kwargs: Mapping[str, Any] | None = None) -> Path:
    """The file of a card, as `load_card` takes it.

    Raises:
        BadInput: if the environment has no packaged card.
    """
    if isinstance(source, Path) or source.endswith(".toml"):
        return Path(source)
    return _locate_packaged(source, env_kwargs)


def own_card(store: Store, manifest: Manifest) -> CardFile | None:
    """The card that a dataset keeps, since it was named when the dataset was made; None if it keeps none.

    Raises:
        DamagedStore: if the file is not what was written.
        BadInput: if it is no card.
    """
    if manifest.card_file_sha256 is None:
        return None
    path = store.card_path(manifest.dataset_id)
    content = read_file(path, limit=MAX_CARD_BYTES) if path.exists() else b""
    if sha256_bytes(content) != manifest.card_file_sha256:
        raise DamagedStore(
            f"{path} is missing or has changed since it was written.",
            "Restore it from a backup, or name a card with --card.",
        )
    return CardFile(parse_card(content, str(path)), content)


def packaged_card(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> Card:
    """The packaged card of an environment, without its claims; an id is never taken for the path of a file.

    Raises:
        BadInput: if there is none.
    """
    return _packaged(env_id)[_locate_packaged(env_id, env_kwargs)]


def find_card(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> Card | None:
    """The packaged card of an environment with exactly these arguments, without its claims, if there is one.

    Other arguments may well make a card's words untrue (gravity, wind, another map), so there is no nearest match.
    """
    path = _find_packaged(env_id, env_kwargs)
    return None if path is None else _packaged(env_id)[path]


def card_at_hand(store: Store, manifest: Manifest) -> Card | None:
    """The card that a dataset keeps, or else the packaged one of its environment, if there is either.

    Raises:
        DamagedStore, BadInput: as `own_card` does.
    """
    if (own := own_card(store, manifest)) is not None:
        return own.card
    return None if manifest.env_id is None else find_card(manifest.env_id, manifest.env_kwargs)


def check_card_against_spaces(card: Card, observation_space: Space, action_space: Space) -> None:
    """Compare a card's components and actions with the spaces of its environment.

    Raises:
        BadInput: naming what differs: counts, kind or bounds.
    """
    problem = next(_mismatches(card, observation_space, action_space), None)
    if problem is not None:
        raise BadInput(f"The card of {card.env_id} does not fit the environment: {problem}.", "Correct the card.")


def card_sha256(card: Card) -> str:
    """Hash of what a card tells an annotator; its claims and the layout of its file do not count."""
    return sha256_bytes(canonical_json(card.model_dump(exclude={"claims", "probe_resets"})).encode())


def read_card(path: Path) -> CardFile:
    """A card and the bytes of its file.

    Raises:
        BadInput: as `load_card`.
    """
    content = read_file(path, limit=MAX_CARD_BYTES)
    return CardFile(parse_card(content, str(path)), content)


def parse_card(content: bytes, where: str, *, with_claims: bool = True) -> Card:
    """The card in a file's content.

    Args:
        content: TOML.
        where: names the file, for messages.
        with_claims: False leaves the claims out, which only a check of the card asks for, and their expressions unread.

    Raises:
        BadInput: as `load_card`.
    """
    fields = parse_toml(content, where)
    if not with_claims:
        fields.pop("claims", None)
    unfinished = list(_placeholders(fields))
    if unfinished:
        places = shorten(", ".join(unfinished), 1_000)
        raise BadInput(f"{where}: {len(unfinished)} places still say {PLACEHOLDER}: {places}.", "Fill them in.")
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f"; and {len(others)} more" if others else ""
        raise BadInput(f"{where}: {describe_invalid(first)}{more}.") from error


def _placeholders(value: object, place: str = "") -> Iterable[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _placeholders(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _placeholders(inner, f"{place}[{index}]")
    elif isinstance(value, str) and PLACEHOLDER in value:
        yield place


def _packaged(env_id: str) -> dict[Path, Card]:
    """The packaged cards of an environment; parsing is slow, and a file without the id cannot be one of them.

    They come without their claims, which are checked where the project is tested.
    """
    naming = [path for path in packaged_cards() if env_id.encode() in path.read_bytes()]
    cards = _read_all(tuple((path, path.stat().st_mtime_ns) for path in naming))
    return {path: card for path, card in cards.items() if card.env_id == env_id}


@cache
def _read_all(files: tuple[tuple[Path, int], ...]) -> dict[Path, Card]:
    """The cards of some files, each with the time of the file."""
    return {path: parse_card(path.read_bytes(), str(path), with_claims=False) for path, _ in files}


def _find_packaged(env_id: str, env_kwargs: Mapping[str, Any] | None) -> Path | None:
    cards = _packaged(env_id)
    return next((path for path, card in cards.items() if card.env_kwargs == _telling(env_kwargs)), None)


def _locate_packaged(env_id: str, env_kwargs: Mapping[str, Any] | None) -> Path:
    path = _find_packaged(env_id, env_kwargs)
    if path is None:
        raise BadInput(_no_card(env_id, env_kwargs), f"Write one with `trajnote card new {env_id}`.")
    return path


def _telling(env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (env_kwargs or {}).items() if name not in _HARMLESS}


def _no_card(env_id: str, env_kwargs: Mapping[str, Any] | None) -> str:
    cards = _packaged(env_id)
    if cards:
        there = " and ".join(json.dumps(dict(card.env_kwargs)) for card in cards.values())
        given = json.dumps(_telling(env_kwargs), default=str)
        return f"There are cards of {env_id} for the arguments {there}, but none for {given}."
    known = sorted({read_card(path).card.env_id for path in packaged_cards()})
    return f"No card for {env_id!r}.{did_you_mean(env_id, known)} Known: {', '.join(known)}."


def _mismatches(card: Card, observation_space: Space, action_space: Space) -> Iterator[str]:
    """What differs between a card and the spaces of its environment, in words."""
    names = shorten(", ".join(card.component_names))
    if len(card.components) != observation_space.size:
        yield f"it has {len(card.components)} components ({names}), an observation has {observation_space.size}"
    names, is_discrete = shorten(", ".join(card.action_names)), action_space.is_discrete
    if card.is_discrete != is_discrete:
        kinds = ("continuous", "discrete") if is_discrete else ("discrete", "continuous")
        yield f"its actions ({names}) are {kinds[0]}, the environment's are {kinds[1]}"
        return
    count = (action_space.n or 0) if is_discrete else action_space.size
    if len(card.actions) != count:
        yield f"it has {len(card.actions)} actions ({names}), the environment has {count}"
    for action, low, high in zip(card.actions, action_space.low or (), action_space.high or (), strict=False):
        if not (_close(action.low, low) and _close(action.high, high)):
            yield f"{action.name} goes from {action.low} to {action.high}, in the environment from {low} to {high}"


def _close(mine: float | None, theirs: float) -> bool:
    return mine is not None and math.isclose(mine, theirs, rel_tol=1e-6)


def _refuse_duplicates(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two {what}s are called {name!r}")
        seen.add(name)
