"""The board's own environments: sparse rewards for three robots, DoorKey in numbers, and Pong's objects.

Importing this registers them, so `benchmarks.environments:trajnote/SparseHopper-v0` names one. Everything else about
them is Gymnasium's, MiniGrid's and the Arcade Learning Environment's.

The sparse robots follow RICE (Cheng, Wu, Yu, Yang and Xing, ICML 2024): the reward is the x position and nothing
else, and only beyond a mark. It is read here as `reward = x if x > mark else 0` in every step.
"""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = NDArray[np.float32]
_MARKS = {"Hopper": 0.6, "Walker2d": 0.6, "HalfCheetah": 5.0}  # metres
_MOVES = (0, 1, 2, 3, 5)  # MiniGrid's turn left, turn right, forward, pick up and toggle; drop and done do nothing here
_PADDLE = (0, 2, 3)  # the console's stay, up and down
_PLAYER_Y, _ENEMY_Y, _BALL_X, _BALL_Y = 51, 50, 49, 54  # bytes of Pong's memory
_PLAYER_X = 188  # where the player's paddle stands, in the ball's coordinates


class SparseReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A MuJoCo robot that is paid its x position, beyond a mark only."""

    def __init__(self, environment: gymnasium.Env[Any, Any], mark: float) -> None:
        super().__init__(environment)
        self._mark = mark

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and replace the reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        x = float(info["x_position"])
        return observation, x if x > self._mark else 0.0, terminated, truncated, info


class DoorKey(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MiniGrid's DoorKey as ten numbers seen from the agent: where key, door and goal are, and what is in front.

    Distances are in cells, ahead and to the right of the agent; 0 and 0 for a key that is carried.
    """

    def __init__(self, environment: gymnasium.Env[Any, Any]) -> None:
        super().__init__(environment)
        self.observation_space = spaces.Box(-16.0, 16.0, (10,), np.float32)
        self.action_space = spaces.Discrete(len(_MOVES))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Reset and look."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._look(), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one of the five moves and look."""
        _, reward, terminated, truncated, info = self.env.step(_MOVES[int(action)])
        return self._look(), float(reward), terminated, truncated, info

    def _look(self) -> Observation:
        grid: Any = self.env.unwrapped
        things = {thing.type: (index, thing) for index, thing in enumerate(grid.grid.grid) if thing is not None}
        key = [0.0, 0.0] if grid.carrying is not None else self._offset(grid, things["key"][0])
        door_index, door = things["door"]
        front = grid.grid.get(*grid.front_pos)
        kinds = {"wall": -1.0, "key": 1.0, "door": 2.0, "goal": 3.0}
        ahead = 0.0 if front is None or (front.type == "door" and front.is_open) else kinds.get(front.type, 0.0)
        carried = float(grid.carrying is not None)
        seen = [*key, carried, *self._offset(grid, door_index), float(door.is_open)]
        seen += [*self._offset(grid, things["goal"][0]), ahead, float(grid.agent_dir)]
        return np.asarray(seen, dtype=np.float32)

    @staticmethod
    def _offset(grid: Any, index: int) -> list[float]:
        """Cells ahead and to the right, from the index of a cell."""
        away = np.array([index % grid.width, index // grid.width]) - np.asarray(grid.agent_pos)
        return [float(away @ grid.dir_vec), float(away @ grid.right_vec)]


class PongObjects(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pong as six numbers read from the console's memory, with three actions: stay, up, down.

    Heights grow downwards, as on the screen; one unit is 100 pixels. The ball's speed is its way since the last step;
    a ball that is not in play is at 0, 0 and at rest.
    """

    def __init__(self, environment: gymnasium.Env[Any, Any]) -> None:
        super().__init__(environment)
        self.observation_space = spaces.Box(-3.0, 3.0, (6,), np.float32)
        self.action_space = spaces.Discrete(len(_PADDLE))
        self._ball = np.zeros(2, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Reset and look."""
        memory, info = self.env.reset(seed=seed, options=options)
        self._ball = np.zeros(2, dtype=np.float32)
        return self._look(memory), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the paddle and look."""
        memory, reward, terminated, truncated, info = self.env.step(_PADDLE[int(action)])
        return self._look(memory), float(reward), terminated, truncated, info

    def _look(self, memory: Any) -> Observation:
        x, y = int(memory[_BALL_X]), int(memory[_BALL_Y])
        playing = x > 0 and y > 0
        ball = np.array([(_PLAYER_X - x) / 100, y / 100] if playing else [0, 0], dtype=np.float32)
        speed = ball - self._ball if playing and self._ball.any() else np.zeros(2, dtype=np.float32)
        self._ball = ball
        paddles = [int(memory[_PLAYER_Y]) / 100, int(memory[_ENEMY_Y]) / 100]
        return np.array([*paddles, *ball, *np.clip(speed, -3, 3)], dtype=np.float32)


def _make_sparse(robot: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return SparseReward(gymnasium.make(f"{robot}-v5", max_episode_steps=-1, **kwargs), _MARKS[robot])


def _make_door_key(size: int = 6, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    import minigrid  # registers its environments

    gymnasium.register_envs(minigrid)
    return DoorKey(gymnasium.make(f"MiniGrid-DoorKey-{size}x{size}-v0", **kwargs))


def _make_pong(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    import ale_py

    ale = cast(Any, ale_py)
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    return PongObjects(gymnasium.make("ALE/Pong-v5", obs_type="ram", **kwargs))


for _robot in _MARKS:
    gymnasium.register(f"trajnote/Sparse{_robot}-v0", _make_sparse, kwargs={"robot": _robot}, max_episode_steps=1000)
gymnasium.register("trajnote/DoorKey-v0", _make_door_key)
gymnasium.register("trajnote/PongObjects-v0", _make_pong)
