"""Cards: what loads, what is refused and how, and what they promise about themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotate.cards.cards import Card, card_sha256, check_card_against_spaces, find_card, load_card, packaged_cards
from annotate.cards.claims import EffectClaim, RangeClaim, RateClaim, names_in
from storage.errors import BadInput
from storage.schema import Space

CARD = """
env_id = "Toy-v0"
title = "A toy"
goal = "reach the right end"
termination = "at the right end"
reward = "1 there"

[[components]]
name = "x"
unit = "m"
meaning = "position, positive to the right"

[[components]]
name = "v"
unit = "m/s"
meaning = "speed, positive to the right"

[[actions]]
name = "stay"
meaning = "nothing"

[[actions]]
name = "push"
meaning = "speeds up to the right"

[[claims]]
kind = "effect"
text = "push speeds up"
action = "push"
versus = "stay"
component = "v"
effect = "increases"
"""
CONTINUOUS = CARD.replace(
    '[[actions]]\nname = "stay"\nmeaning = "nothing"\n\n[[actions]]\nname = "push"\nmeaning = "speeds up to the right"',
    '[[actions]]\nname = "push"\nmeaning = "positive speeds up to the right"\nlow = -1.0\nhigh = 1.0',
).replace('action = "push"\nversus = "stay"', 'dimension = "push"\nvalue = 1.0\nversus = 0.0')
TWO_NUMBERS = Space(kind="box", dtype="float32", size=2)
TWO_CHOICES = Space(kind="discrete", dtype="int64", size=1, n=2)


def write(folder: Path, text: str) -> Path:
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_card(write(folder, text))
    assert "\n" not in str(caught.value)
    assert "toy.toml" in str(caught.value)
    return str(caught.value)


def test_a_card_is_read_from_its_file(tmp_path: Path):
    card = load_card(write(tmp_path, CARD))
    assert card.component_names == ("x", "v")
    assert card.action_names == ("stay", "push")
    assert card.is_discrete
    assert not load_card(write(tmp_path, CONTINUOUS)).is_discrete


@pytest.mark.parametrize("path", packaged_cards(), ids=lambda path: path.stem)
def test_every_packaged_card_loads_and_is_found_by_its_id_and_arguments(path: Path):
    card = load_card(path)
    assert find_card(card.env_id, card.env_kwargs) == card.model_copy(update={"claims": ()})
    assert load_card(card.env_id, {**card.env_kwargs, "render_mode": "rgb_array"}) == card


@pytest.mark.parametrize("path", packaged_cards(), ids=lambda path: path.stem)
def test_every_shown_component_and_every_action_of_a_packaged_card_is_the_subject_of_a_claim(path: Path):
    card = load_card(path)
    claimed = names_claimed(card)
    assert {component.name for component in card.shown_components} <= claimed
    assert {f"action_{name}" for name in card.action_names} <= claimed


def names_claimed(card: Card) -> set[str]:
    names: set[str] = set()
    for claim in card.claims:
        fields = claim.model_dump()
        for key in ("when", "holds", "exactly", "whenever", "equals"):
            names |= names_in(fields[key]) if fields.get(key) else set()
        if isinstance(claim, EffectClaim):
            names |= {claim.component, f"action_{claim.action or claim.dimension}", f"action_{claim.versus}"}
        if isinstance(claim, RangeClaim | RateClaim):
            names |= {claim.component}
        if isinstance(claim, RateClaim):
            names |= {claim.follows}
    return names | {name.removeprefix("next_") for name in names}


def test_the_same_id_with_other_arguments_has_another_card():
    assert load_card("LunarLander-v3").action_names == ("noop", "left_engine", "main_engine", "right_engine")
    assert load_card("LunarLander-v3", {"continuous": True}).action_names == ("main", "side")


@pytest.mark.slow
def test_a_card_is_not_used_for_arguments_that_may_make_it_untrue():
    assert find_card("LunarLander-v3", {"gravity": -3.0}) is None
    with pytest.raises(
        BadInput, match=r'cards of ALE/Pong-v5 for the arguments \{"obs_type": "ram"\}, but none for \{\}'
    ):
        load_card("ALE/Pong-v5")


@pytest.mark.slow
def test_an_environment_without_a_card_is_refused_with_what_to_do():
    with pytest.raises(BadInput, match=r"No card for 'Nowhere-v0'.*CartPole-v1.*trajnote card new Nowhere-v0"):
        load_card("Nowhere-v0")
    assert find_card("Nowhere-v0") is None


def test_a_missing_file_and_a_file_that_is_not_toml_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"none\.toml cannot be read: No such file"):
        load_card(tmp_path / "none.toml")
    assert "is not TOML" in refusal(tmp_path, "title = ")


def test_a_card_with_todos_is_refused_with_the_list_of_what_remains(tmp_path: Path):
    text = CARD.replace("a toy".title(), "TODO").replace("speed, positive to the right", "TODO: speed?")
    text = text.replace('title = "A toy"', 'title = "TODO"')
    assert "2 places still say TODO: title, components[1].meaning." in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('unit = "m"\n', 'unit = "m"\nunits = "m"\n', "components[0].units: Extra inputs are not permitted"),
        ('goal = "reach the right end"\n', "", "goal is missing"),
        ('name = "v"', 'name = "x"', "two components are called 'x'"),
        ('name = "v"', 'name = "reward"', "two components are called 'reward'"),
        ('name = "v"', 'name = "speed now"', "components[1].name: String should match pattern"),
        ('name = "v"', 'name = "Speed"', "(received 'Speed')"),
        ('meaning = "nothing"', 'meaning = "nothing"\nlow = 0.0', "actions[0]: a continuous dimension has both"),
        ('meaning = "nothing"', 'meaning = "nothing"\nlow = 0.0\nhigh = 1.0', "either every action has low and high"),
        ('meaning = "nothing"', 'meaning = "nothing"\nlow = 1.0\nhigh = 0.0', "low = 1.0 is not below high = 0.0"),
        ('component = "v"', 'component = "w"', "claims[0]: 'w' is not one of x, v"),
        ('versus = "stay"', 'versus = "pull"', "claims[0]: 'pull' is not one of stay, push"),
        ('versus = "stay"', "versus = 0.0", "give either action and versus (names), or dimension"),
        ('effect = "increases"', 'effect = "improves"', "claims[0].effect.effect: Input should be 'increases'"),
        ('effect = "increases"', 'effect = "increases"\nwhen = "next_x > 0"', "'next_x' is not one of x, v"),
        ('effect = "increases"', 'effect = "increases"\nwhen = "x >"', "`x >` is no expression"),
        ('kind = "effect"', 'kind = "opinion"', "claims[0]: Input tag 'opinion'"),
    ],
)
def test_a_mistake_in_a_card_is_one_line_that_names_file_and_field(tmp_path: Path, old: str, new: str, expected: str):
    assert old in CARD
    assert expected in refusal(tmp_path, CARD.replace(old, new))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ('component = "w"\nkind = "change"', "events[0].component: 'w' is not one of x, v"),
        ('component = "v"\nkind = "crosses"', "events[0]: `crosses` needs a value"),
        ('component = "v"\nkind = "change"\nvalue = 1.0', "events[0]: `crosses` needs a value, `change` has none"),
    ],
)
def test_an_event_names_a_component_and_a_threshold_only_where_it_has_one(tmp_path: Path, event: str, expected: str):
    assert expected in refusal(tmp_path, f'{CARD}\n[[events]]\n{event}\ntext = "it happened"\n')


def test_a_continuous_card_compares_dimensions_not_actions(tmp_path: Path):
    text = CONTINUOUS.replace('dimension = "push"\nvalue = 1.0\nversus = 0.0', 'action = "push"\nversus = "push"')
    assert "discrete cards compare `action`, continuous ones `dimension`" in refusal(tmp_path, text)


def test_a_card_that_fits_its_spaces_passes(tmp_path: Path):
    check_card_against_spaces(load_card(write(tmp_path, CARD)), TWO_NUMBERS, TWO_CHOICES)
    one_push = Space(kind="box", dtype="float32", size=1, low=(-1.0,), high=(1.0,))
    check_card_against_spaces(load_card(write(tmp_path, CONTINUOUS)), TWO_NUMBERS, one_push)


@pytest.mark.parametrize(
    ("observation", "action", "expected"),
    [
        (Space(kind="box", dtype="float32", size=3), TWO_CHOICES, r"2 components \(x, v\), an observation has 3"),
        (
            Space(kind="discrete", dtype="int64", size=1, n=9),
            TWO_CHOICES,
            r"2 components \(x, v\), an observation has 1",
        ),
        (TWO_NUMBERS, TWO_CHOICES.model_copy(update={"n": 3}), r"2 actions \(stay, push\), the environment has 3"),
        (TWO_NUMBERS, Space(kind="box", dtype="float32", size=2), r"\(stay, push\) are discrete, .* are continuous"),
    ],
)
def test_a_card_that_does_not_fit_says_what_differs(tmp_path: Path, observation: Space, action: Space, expected: str):
    card = load_card(write(tmp_path, CARD))
    with pytest.raises(BadInput, match=expected):
        check_card_against_spaces(card, observation, action)


def test_bounds_of_a_continuous_action_have_to_be_those_of_the_space(tmp_path: Path):
    card = load_card(write(tmp_path, CONTINUOUS))
    wider = Space(kind="box", dtype="float32", size=1, low=(-2.0,), high=(2.0,))
    with pytest.raises(BadInput, match=r"push goes from -1\.0 to 1\.0, in the environment from -2\.0 to 2\.0"):
        check_card_against_spaces(card, TWO_NUMBERS, wider)


def test_the_hash_follows_the_words_and_ignores_layout_and_claims(tmp_path: Path):
    plain = card_sha256(load_card(write(tmp_path, CARD)))
    assert card_sha256(load_card(write(tmp_path, f"# a comment\n{CARD}"))) == plain
    assert card_sha256(load_card(write(tmp_path, CARD[: CARD.index("[[claims]]")]))) == plain
    assert (
        card_sha256(load_card(write(tmp_path, CARD.replace("positive to the right", "positive to the left")))) != plain
    )
