"""Plays episodes in envpool, an optional C++ engine: many environments step at once, each episode with its own seed.

Its physics may differ from Gymnasium's, so a dataset says which engine made it. An environment of a pool can be seeded
only when the pool is made, so each plays only one episode.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from refine.policies import Acts, Past
from storage.errors import BadInput, Prerequisite
from storage.schema import Array, Engine, Episode

from .actors import Actor, choose
from .complaints import broken
from .environments import Environment, Spaces, are_finite, look_up_spaces, make_environment, not_finite, spaces_of
from .rollouts import Playing, RolloutBuffer, acting_generator
from .trust import Named

POOL = 256
"""Environments of one pool."""
_SEEDS = 2**31  # envpool keeps a seed in an int32
_GYMNASIUM = "Leave --engine out to play in Gymnasium."


class PooledEnvironment(gymnasium.Env[Any, Any]):
    """One environment of envpool behind Gymnasium's interface, for replaying a stored episode.

    Raises:
        Prerequisite: when envpool or the environment's own package is not installed.
        BadInput: when Gymnasium or envpool does not know the environment or refuses its arguments.
    """

    def __init__(self, env_id: Named, env_kwargs: Mapping[str, Any]) -> None:
        with_spaces = make_environment(env_id, env_kwargs)
        self.observation_space, self.action_space = with_spaces.observation_space, with_spaces.action_space
        with_spaces.close()
        self._made_of = (env_id, env_kwargs, spaces_of(self))
        self._pool: Any = make_pool(*self._made_of, seeds=[0])
        self.engine_versions = {"envpool": str(_envpool().__version__)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the episode of a seed, in a pool of its own."""
        if seed is None:
            raise BadInput("An environment of envpool is reset with a seed.")
        self._pool = make_pool(*self._made_of, seeds=[seed])
        return self._pool.reset()[0][0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step."""
        observation, reward, terminated, truncated, _ = self._pool.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


ENGINES: Mapping[Engine, Callable[[Named, Mapping[str, Any]], Environment]] = {
    "gymnasium": make_environment,
    "envpool": PooledEnvironment,
}
"""What makes one environment of an id and its arguments, by the engine that a manifest names."""


def play_pooled(playing: Playing[Actor], *, pool_size: int = POOL) -> Generator[Episode]:
    """Play one episode per seed, several side by side.

    An episode depends on its environment, policy, seed and mode, and not on what is played beside it.

    Args:
        playing: the episodes; Gymnasium and envpool know the environment and take its arguments; seeds are below 2**31.
        pool_size: environments that are made at once; never changes an episode.

    Yields:
        Episodes in the order of the seeds.

    Raises:
        Prerequisite: as `make_pool` does.
        BadInput: as `make_pool` does.
    """
    spaces = look_up_spaces(playing.env_id, playing.env_kwargs)
    for piece in playing.pieces(pool_size):
        pool = make_pool(piece.env_id, piece.env_kwargs, spaces, piece.seeds)
        yield from _Round(pool, piece, spaces).play()


def make_pool(env_id: str, env_kwargs: Mapping[str, Any], spaces: Spaces, seeds: Sequence[int]) -> Any:
    """A pool of one environment per seed.

    Raises:
        Prerequisite: when envpool is not installed.
        BadInput: for an id or arguments that envpool does not take, a seed that it cannot keep, or numbers of another
            type than Gymnasium's.
    """
    envpool = _envpool()
    if env_id not in envpool.list_all_envs():
        raise BadInput(f"envpool has no environment {env_id!r}.", _GYMNASIUM)
    if max(seeds) >= _SEEDS:
        raise BadInput(f"The seed {max(seeds)} is too large for envpool; it takes seeds below {_SEEDS}.")
    made = {"env_type": "gymnasium", "num_envs": len(seeds), "seed": [int(seed) for seed in seeds]}
    try:
        pool = envpool.make(env_id, **made, **env_kwargs)
    except Exception as error:  # a third party's constructor may raise anything
        kwargs = json.dumps(dict(env_kwargs), default=str)
        raise BadInput(f"envpool cannot make {env_id} with {kwargs}: {error}.", _GYMNASIUM) from error
    _check_types(env_id, pool, spaces)
    return pool


def _envpool() -> Any:
    if importlib.util.find_spec("envpool") is None:
        raise Prerequisite("The engine envpool needs the package envpool.", "pip install 'trajnote[envpool]'")
    return importlib.import_module("envpool")


def _check_types(env_id: str, pool: Any, spaces: Spaces) -> None:
    """Refuse an environment whose numbers would not fit exactly into Gymnasium's types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # envpool's bounds are rounded to float32, of which Gymnasium warns
        shown, taken = pool.observation_space, pool.action_space
    same_shapes = [shown.shape, taken.shape] == [() if space.is_discrete else (space.size,) for space in spaces]
    if not same_shapes or not np.can_cast(shown.dtype, spaces.observation.dtype):
        raise BadInput(
            f"{env_id} is another environment in envpool: it shows {shown} and takes {taken}; Gymnasium's shows "
            f"{spaces.observation.size} of {spaces.observation.dtype} and takes {spaces.action.size} of "
            f"{spaces.action.dtype}.",
            _GYMNASIUM,
        )


class _Round:
    """The environments of one fresh pool, each playing its one episode, as many at a time as there are lanes."""

    def __init__(self, pool: Any, playing: Playing[Actor], spaces: Spaces) -> None:
        self._pool, self._playing = pool, playing
        seeds = playing.seeds
        self._buffer = RolloutBuffer(min(playing.envs, len(seeds)), *spaces)
        self._starts = pool.reset()[0].copy()  # first observation of every environment
        self._waiting = iter(range(len(seeds)))
        self._ids = np.zeros(self._buffer.lanes, dtype=np.int32)  # of the environment that a lane shows
        self._firsts = np.zeros(self._buffer.lanes, dtype=np.int64)  # tick of its first step
        self._rngs = [acting_generator(seed) for seed in seeds]
        self._running = np.array([lane for lane in range(self._buffer.lanes) if self._begin(lane)])
        self._played: dict[int, Episode] = {}

    def play(self) -> list[Episode]:
        """Play all of them, in the order of the seeds."""
        while len(self._running):
            self._tick()
        return [self._played[place] for place in range(len(self._playing.seeds))]

    def _tick(self) -> None:
        buffer, running = self._buffer, self._running
        if buffer.is_full:
            buffer.make_room(int(self._firsts[running].min()))
        ids = self._ids[running]
        rngs = [self._rngs[place] for place in ids]
        acts = choose(
            self._playing.policy, buffer.observations(running), self._past, mode=self._playing.mode, rngs=rngs
        )
        following, rewards = buffer.act(acts, running)
        following[running], rewards[running], terminated, truncated, _ = self._pool.step(acts.actions, ids)
        self._check(following, rewards, acts)
        buffer.tick += 1
        over = terminated | truncated | (buffer.tick - self._firsts[running] == self._playing.max_steps)
        for place in np.flatnonzero(over):
            ended = bool(terminated[place])
            self._end(int(running[place]), ended, bool(truncated[place]) or not ended)

    def _past(self) -> Past:
        return Past(self._buffer.before(self._running), self._buffer.tick - self._firsts[self._running])

    def _check(self, following: Array, rewards: Array, acts: Acts) -> None:
        """Refuse the first number that is not finite."""
        if all(map(are_finite, (following, rewards, acts.actions, acts.outputs))):
            return
        for row, lane in enumerate(self._running):
            if wrong := not_finite(following[lane], rewards[lane], acts, row):
                step = self._buffer.tick - int(self._firsts[lane]) + wrong[0]
                raise broken(self._playing.first_id + int(self._ids[lane]), step, wrong[1])

    def _begin(self, lane: int) -> bool:
        """Put the next waiting environment into a lane; False if none waits."""
        place = next(self._waiting, None)
        if place is None:
            return False
        self._buffer.begin(lane, self._starts[place])
        self._ids[lane], self._firsts[lane] = place, self._buffer.tick
        return True

    def _end(self, lane: int, terminated: bool, truncated: bool) -> None:
        place = int(self._ids[lane])
        columns = self._buffer.cut(lane, int(self._firsts[lane]))
        self._played[place] = Episode(
            episode_id=self._playing.first_id + place,
            seed=int(self._playing.seeds[place]),
            terminated=terminated,
            truncated=truncated,
            **columns,
        )
        if not self._begin(lane):
            self._running = self._running[self._running != lane]
