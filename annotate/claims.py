"""The kinds of statement about an environment that a machine can check; a card lists them beside its words.

Nothing is checked here: that takes the environment itself.

Names in expressions: a component before the step (`vx`), after it (`next_vx`), and the action (`action_NAME`: 1 or 0
for a discrete action taken or not, the number for a dimension of a continuous one).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from storage.schema import Frozen

from .expressions import Expression


class _Claim(Frozen):
    text: str = Field(min_length=1, description="the claim in words, as a reader of the card would put it")


class EffectClaim(_Claim):
    """An action moves a component up or down, compared with another action from the very same state."""

    kind: Literal["effect"]
    action: str | None = Field(default=None, description="name of a discrete action")
    dimension: str | None = Field(default=None, description="name of a dimension of a continuous action")
    value: float | None = Field(default=None, description="the dimension's value; the others are 0")
    versus: str | float = Field(description="the action or value it is compared with")
    component: str = Field(description="the component whose difference is looked at")
    effect: Literal["increases", "decreases"]
    steps: int = Field(default=1, ge=1, le=100, description="steps for which the action is held")
    when: Expression | None = Field(default=None, description="starting states that count; all when absent")
    prefix: Literal["random", "reset"] = Field(
        default="random", description="start after up to 40 random actions, or right after the reset"
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
    component: str
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] | None = Field(default=None, description="all values that occur; each must occur")

    @model_validator(mode="after")
    def _says_something(self) -> RangeClaim:
        if self.low is None and self.high is None and self.values is None:
            raise ValueError("give low, high or values")
        return self


class RateClaim(_Claim):
    """A component changes at the rate of another one: `next_component - component = rate * next_follows`.

    This is what checks units: positions in metres with velocities in metres per second have `rate` = seconds per step.
    Without `rate`, only the signs have to agree.
    """

    kind: Literal["rate"]
    component: str
    follows: str
    rate: float | None = None
    tolerance: float = Field(default=0.05, gt=0, description="allowed relative error of the rate")
    share: float = Field(default=0.95, gt=0.5, le=1, description="smallest share of steps that agree")


class LawClaim(_Claim):
    """A condition that holds on every step."""

    kind: Literal["law"]
    holds: Expression
    when: Expression | None = Field(default=None, description="steps that count; all when absent")
    share: float = Field(default=1.0, gt=0.5, le=1, description="smallest share of steps on which it holds")


class TerminationClaim(_Claim):
    """When episodes terminate.

    `exactly`: `terminated` is true if and only if the condition is; `whenever`: the condition is enough, there may be
    other causes; `never`: no episode terminates.
    """

    kind: Literal["termination"]
    exactly: Expression | None = None
    whenever: Expression | None = None
    never: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> TerminationClaim:
        if sum((self.exactly is not None, self.whenever is not None, self.never)) != 1:
            raise ValueError("give exactly one of exactly, whenever and never")
        return self


class RewardClaim(_Claim):
    """What one step pays: a number or an expression, within `tolerance`."""

    kind: Literal["reward"]
    equals: Expression
    when: Expression | None = Field(default=None, description="steps that count; all when absent")
    terminated: bool | None = Field(default=None, description="count only steps that do (or do not) terminate")
    tolerance: float = Field(default=1e-4, gt=0, description="allowed absolute difference, in units of reward")
    share: float = Field(default=1.0, gt=0.5, le=1, description="smallest share of steps on which it holds")


Claim = Annotated[
    EffectClaim | RangeClaim | RateClaim | LawClaim | TerminationClaim | RewardClaim, Field(discriminator="kind")
]
