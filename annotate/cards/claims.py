"""The kinds of statement about an environment that a machine can check; a card lists them beside its words.

Whether they are true is not checked here: that takes the environment itself.

Names in their expressions: a component before the step (`vx`) and after it (`next_vx`), the action (`action_NAME`: 1 or
0 for a discrete action taken or not, the number for a dimension of a continuous one), `reward` and `terminated`. The
language is that of `storage/expressions.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from storage import expressions
from storage.errors import BadInput
from storage.schema import Array, Frozen

OUTCOMES = ("reward", "terminated")
_FLAGS = ("terminated",)


def _checked(expression: str) -> str:
    try:
        names_in(expression)
    except BadInput as refused:
        raise ValueError(refused.problem) from None
    return expression


Expression = Annotated[str, AfterValidator(_checked)]


def names_in(expression: str) -> frozenset[str]:
    """The names that an expression needs values for.

    Raises:
        BadInput: if the text is not an expression.
    """
    return expressions.read_expression(expression, None, flags=_FLAGS).columns


def evaluate(expression: str, values: Mapping[str, Array]) -> Array:
    """The value of an expression, element by element.

    Args:
        expression: of a claim.
        values: an array of shape (N,) for each name.

    Returns:
        An array of shape (N,), boolean for a condition; of shape () if the expression has no names.

    Raises:
        BadInput: if the text is not an expression, or a name has no value.
    """
    read = expressions.read_expression(expression, None, flags=_FLAGS)
    missing = read.columns - values.keys()
    if missing:
        raise BadInput(f"{expression!r} uses {', '.join(sorted(missing))}; known: {', '.join(sorted(values))}.")
    return read.compute(values)


class _Claim(Frozen):
    text: str = Field(min_length=1, description="the claim in words, as a reader of the card would put it")


class EffectClaim(_Claim):
    """An action moves a component up or down (or not at all), compared with another action from the very same state."""

    kind: Literal["effect"]
    action: str | None = Field(default=None, description="name of a discrete action")
    dimension: str | None = Field(default=None, description="name of a dimension of a continuous action")
    value: float | None = Field(default=None, description="the dimension's value; the others are 0")
    versus: str | float = Field(description="the action or value it is compared with")
    component: str = Field(description="the component whose difference is tested")
    effect: Literal["increases", "decreases", "keeps"] = Field(description="`keeps`: makes no difference at all")
    steps: int = Field(default=1, ge=1, le=100, description="steps for which the action is held")
    when: Expression | None = Field(default=None, description="starting states that count (components only)")
    prefix: Literal["random", "reset"] = Field(
        default="random", description="start after up to 60 random actions, or right after the reset"
    )
    share: float = Field(default=0.95, gt=0.5, le=1, description="smallest share of trials with the claimed sign")

    @model_validator(mode="after")
    def _one_way_of_acting(self) -> EffectClaim:
        discrete = self.action is not None and self.dimension is None and self.value is None
        continuous = self.action is None and self.dimension is not None and self.value is not None
        if not (discrete if isinstance(self.versus, str) else continuous):
            raise ValueError("give either action and versus (names), or dimension, value and versus (numbers)")
        return self


class RangeClaim(_Claim):
    """A component stays within bounds, or takes only certain values, on everything that was visited."""

    kind: Literal["range"]
    component: str = Field(description="the component that is tested")
    low: float | None = Field(default=None, description="smallest allowed value")
    high: float | None = Field(default=None, description="largest allowed value")
    values: tuple[float, ...] | None = Field(default=None, description="all values that occur; each must occur")

    @model_validator(mode="after")
    def _says_something(self) -> RangeClaim:
        if self.low is None and self.high is None and self.values is None:
            raise ValueError("give low, high or values")
        return self


class RateClaim(_Claim):
    """A component changes at the rate of another one: `next_component - component = rate * follows` in every step.

    This is what checks units and signs: a position in metres with its speed in metres per second has the seconds per
    step as its rate. `follows` may be taken before or after the step, or anything in between.
    """

    kind: Literal["rate"]
    component: str = Field(description="the component that changes")
    follows: str = Field(description="the component that says how fast")
    rate: float = Field(description="change of the component per step and unit of the other; negative if opposed")
    when: Expression | None = Field(default=None, description="steps that count; all when absent")
    tolerance: float = Field(default=0.05, gt=0, description="allowed relative error")
    share: float = Field(default=0.95, gt=0.5, le=1, description="smallest share of steps that agree")


class LawClaim(_Claim):
    """A condition that holds on every step."""

    kind: Literal["law"]
    holds: Expression = Field(description="the condition")
    when: Expression | None = Field(default=None, description="steps that count; all when absent")
    share: float = Field(default=1.0, gt=0.5, le=1, description="smallest share of steps on which it holds")


class TerminationClaim(_Claim):
    """When episodes terminate.

    `exactly`: `terminated` is true if and only if the condition is; `whenever`: the condition is enough, there may be
    other causes; `never`: no episode terminates.
    """

    kind: Literal["termination"]
    exactly: Expression | None = Field(default=None, description="the condition, where nothing else ends an episode")
    whenever: Expression | None = Field(default=None, description="the condition, where other things may end one, too")
    never: bool = Field(default=False, description="true: no episode terminates")

    @model_validator(mode="after")
    def _one_form(self) -> TerminationClaim:
        if sum((self.exactly is not None, self.whenever is not None, self.never)) != 1:
            raise ValueError("give exactly one of exactly, whenever and never")
        return self


class RewardClaim(_Claim):
    """What one step pays: a number or an expression, within `tolerance`."""

    kind: Literal["reward"]
    equals: Expression = Field(description="the reward")
    when: Expression | None = Field(default=None, description="steps that count; all when absent")
    tolerance: float = Field(default=1e-4, gt=0, description="allowed absolute difference, in units of reward")
    share: float = Field(default=1.0, gt=0.5, le=1, description="smallest share of steps on which it holds")


Claim = Annotated[
    EffectClaim | RangeClaim | RateClaim | LawClaim | TerminationClaim | RewardClaim, Field(discriminator="kind")
]


def names_of_a_step(components: Iterable[str], actions: Iterable[str]) -> list[str]:
    """All names that an expression may use."""
    before = list(components)
    return [*before, *(f"next_{name}" for name in before), *(f"action_{name}" for name in actions), *OUTCOMES]


def unknown_name(claim: Claim, components: Sequence[str], actions: Sequence[str]) -> str:
    """What a claim refers to and its card does not have, in words; empty if all is known."""
    match claim:
        case EffectClaim():
            acts = [name for name in (claim.action, claim.dimension, claim.versus) if isinstance(name, str)]
            return _unknown([claim.component], components) or _unknown(acts, actions) or _stray(claim.when, components)
        case RangeClaim():
            return _unknown([claim.component], components)
        case RateClaim():
            strangers = _unknown([claim.component, claim.follows], components)
            return strangers or _stray(claim.when, names_of_a_step(components, actions))
        case LawClaim():
            expressions = (claim.holds, claim.when)
        case TerminationClaim():
            expressions = (claim.exactly, claim.whenever)
        case RewardClaim():
            expressions = (claim.equals, claim.when)
    known = names_of_a_step(components, actions)
    return next(filter(None, (_stray(expression, known) for expression in expressions)), "")


def _stray(expression: str | None, known: Sequence[str]) -> str:
    return _unknown(sorted(names_in(expression)), known) if expression else ""


def _unknown(names: Iterable[str], known: Sequence[str]) -> str:
    return next((f"{name!r} is not one of {', '.join(known)}" for name in names if name not in known), "")
