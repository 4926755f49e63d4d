"""What acts in a rollout: a portable network, random actions, or external code called row by row.

They are loaded in `policies/loading.py` and act in `simulation/rollouts.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

import numpy as np

from refine.policies import Acts, MlpPolicy, Mode, OutputKind, Past, action_bounds, draw_uniforms, stand_abreast
from storage.errors import BadInput
from storage.schema import Array, Space

from .environments import Spaces

if TYPE_CHECKING:
    from refine.policies import RulePolicy


class Actor(Protocol):
    """Anything that chooses actions, such as `refine.policies.mlp.MlpPolicy`."""

    def act(
        self, observations: Array, *, mode: Mode = "greedy", rngs: Sequence[np.random.Generator] | None = None
    ) -> Acts:
        """Choose one action per observation; each row depends on its observation and its generator only.

        Args:
            observations: (N, n), or (N,) when discrete.
            mode: `greedy` or `sampled`.
            rngs: one generator per row.

        Returns:
            N legal actions, and the outputs behind them, (N, 0) if there are none.
        """
        ...


def choose(
    actor: Actor,
    observations: Array,
    past: Callable[[], Past],
    *,
    mode: Mode = "greedy",
    rngs: Sequence[np.random.Generator] | None = None,
) -> Acts:
    """Ask an actor, as `Actor.act`; one that needs it is given what came before."""
    if _needs_past(actor):
        return actor.act(observations, mode=mode, rngs=rngs, past=past())
    return actor.act(observations, mode=mode, rngs=rngs)


def _needs_past(actor: Actor) -> TypeGuard[RulePolicy]:
    """By its attribute, since processes that play networks load no catalog, which rules come from."""
    return bool(getattr(actor, "needs_past", False))


@dataclass(frozen=True)
class Crowd:
    """Networks of one shape that play side by side, one for each episode."""

    networks: Sequence[MlpPolicy]  # by the place of the episode's seed

    def cast(self, episodes: Sequence[int]) -> MlpPolicy:
        """Who acts in these episodes: row by row with the same bits as each network alone."""
        return stand_abreast([self.networks[episode] for episode in episodes])


class Policy(Actor, Protocol):
    """An actor with an origin, which a dataset's manifest records."""

    @property
    def spec(self) -> str:
        """How it was named, for example `sb3:PPO:model.zip`."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of what decides its actions: its weights, its file, or its source."""
        ...

    @property
    def output_kind(self) -> OutputKind | None:
        """What `Acts.outputs` means; None without outputs."""
        ...

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes in which it can act."""
        ...


@dataclass(frozen=True)
class NetworkActor:
    """A policy that is, or was converted without loss to, a portable network; NumPy alone."""

    spec: str
    network: MlpPolicy

    @property
    def sha256(self) -> str:
        """Hash of the weights, whatever their file: equal networks are one policy."""
        return self.network.sha256

    @property
    def output_kind(self) -> OutputKind:
        """What the network's last layer means."""
        return self.network.output_kind

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Sampled too, if the network has a distribution."""
        return ("greedy", "sampled") if self.network.is_stochastic else ("greedy",)

    def act(
        self, observations: Array, *, mode: Mode = "greedy", rngs: Sequence[np.random.Generator] | None = None
    ) -> Acts:
        """Act as the network does."""
        return self.network.act(observations, mode=mode, rngs=rngs)


@dataclass(frozen=True)
class RandomActor:
    """Random actions: uniform if discrete, boxes as Gymnasium samples them, from each episode's own generator.

    A bounded component is uniform, a half-bounded one exponential from its bound, an unbounded one standard normal.
    """

    action_space: Space
    spec: str = "random"
    output_kind: OutputKind | None = None
    modes: tuple[Mode, ...] = ("sampled",)

    @property
    def sha256(self) -> str:
        """A constant: there is one such policy."""
        return hashlib.sha256(b"trajnote: uniformly random actions").hexdigest()

    def act(
        self, observations: Array, *, mode: Mode = "greedy", rngs: Sequence[np.random.Generator] | None = None
    ) -> Acts:
        """Draw one action per row, whatever the observation and the mode."""
        if rngs is None or len(rngs) != len(observations):
            raise BadInput(f"Random actions for {len(observations)} rows need one generator for each.")
        nothing = np.empty((len(observations), 0), dtype=np.float32)
        if self.action_space.is_discrete:
            count = int(self.action_space.n or 1)
            chosen = (draw_uniforms(rngs) * count).astype(np.int64)
            return Acts(chosen + self.action_space.start, nothing)
        return Acts(np.stack([self._draw_box(rng) for rng in rngs]), nothing)

    def _draw_box(self, rng: np.random.Generator) -> Array:
        low, high, is_integer = self._bounds
        below, above = np.isfinite(low), np.isfinite(high)
        drawn = rng.standard_normal(len(low))
        tail = rng.exponential(size=len(low))
        share = rng.random(len(low))
        drawn = np.where(below, low + tail, drawn)
        drawn = np.where(above, high - tail, drawn)
        both = below & above
        drawn[both] = low[both] + (high[both] - low[both]) * share[both]
        return (np.floor(drawn) if is_integer else drawn).astype(self.action_space.dtype)

    @cached_property
    def _bounds(self) -> tuple[Array, Array, bool]:
        """Bounds, (m,) float64 each, and whether numbers are whole; an upper bound that is whole is itself drawn."""
        space = self.action_space
        is_integer = np.dtype(space.dtype).kind in "iu"
        low = np.full(space.size, -np.inf) if space.low is None else np.array(space.low)
        high = np.full(space.size, np.inf) if space.high is None else np.array(space.high)
        return low, high + is_integer, is_integer


class Answer(NamedTuple):
    """An external policy's answer to one observation."""

    action: Any  # (1,) or (1, m)
    outputs: Array | None = None  # (1, k)


class Foreign(NamedTuple):
    """A loaded external policy: how to call it, and its modes."""

    respond: Callable[[Array, Mode, np.random.Generator | None], Answer]
    output_kind: OutputKind | None = None
    modes: tuple[Mode, ...] = ("greedy",)
    place: str = ""  # of the user's own function, for messages


@dataclass(frozen=True)
class ForeignActor:
    """An external policy, called for one row at a time.

    A batched product rounds by its shape, so calling row by row makes an episode independent of how many run
    beside it. Loaded on first use, also after travelling to another process.
    """

    spec: str
    sha256: str
    spaces: Spaces
    load: Callable[[str, Spaces], Foreign]

    @cached_property
    def foreign(self) -> Foreign:
        """The loaded policy."""
        return self.load(self.spec, self.spaces)

    @property
    def output_kind(self) -> OutputKind | None:
        """What its outputs mean; None without outputs."""
        return self.foreign.output_kind

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes in which it can act."""
        return self.foreign.modes

    def act(
        self, observations: Array, *, mode: Mode = "greedy", rngs: Sequence[np.random.Generator] | None = None
    ) -> Acts:
        """Call it for every row, and check the results.

        Raises:
            BadInput: for an action of a wrong shape, not finite, or outside a discrete space.
        """
        answers = [
            self.foreign.respond(observations[row : row + 1], mode, rngs[row] if rngs else None)
            for row in range(len(observations))
        ]
        asked = self.spec + self.foreign.place
        actions = [legal_action(answer.action, self.spaces.action, asked) for answer in answers]
        outputs = [np.empty((1, 0), np.float32) if answer.outputs is None else answer.outputs for answer in answers]
        return Acts(np.concatenate(actions), np.concatenate(outputs))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "foreign"}


def legal_action(action: Any, space: Space, spec: str) -> Array:
    """Check one action: (1,) int64 inside a discrete space, or (1, m) in the box's dtype, cut to its bounds.

    Raises:
        BadInput: for a wrong shape, a number that is not finite, or a value outside a discrete space.
    """
    try:
        numbers = np.asarray([] if action is None else action, dtype=np.float64).reshape(1, space.size)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor with a gradient is a RuntimeError
        raise BadInput(f"{spec} returned {action!r}; {space.size} number(s) per observation are expected.") from error
    if not np.isfinite(numbers).all():
        raise BadInput(f"{spec} returned an action that is not finite: {action!r}.")
    if not space.is_discrete:
        low, high = action_bounds(space)
        return np.clip(numbers, low, high).astype(space.dtype)
    last = space.start + int(space.n or 1) - 1
    chosen = int(numbers[0, 0])
    if chosen != numbers[0, 0] or not space.start <= chosen <= last:
        raise BadInput(f"{spec} returned action {action!r}; the environment takes {space.start} .. {last}.")
    return np.array([chosen], dtype=np.int64)


def check_mode(policy: Policy, mode: Mode) -> Mode:
    """The mode in which a policy will really act; random actions are random in either.

    Raises:
        BadInput: when it cannot act so: Q values and bare actions give no distribution to sample from.
    """
    if mode in policy.modes:
        return mode
    if policy.modes == ("sampled",):
        return "sampled"
    kind = policy.output_kind or "bare actions"
    raise BadInput(
        f"{policy.spec} gives {kind} without a distribution that can be sampled; its mode is greedy.",
        "Use --mode greedy.",
    )
