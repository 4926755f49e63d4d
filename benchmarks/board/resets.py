"""Resets to critical states: an environment that sometimes begins where an annotator marked a step of a logged episode.

The state is reached by playing the logged episode again from its seed and its actions, and every step on the way is
counted. What is learned from there is in `online.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from flows.simulation.environments import Environment
from flows.simulation.replay import play_until
from storage.schema import Episode, Manifest


class Counted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that counts its steps."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.steps = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step and count."""
        self.steps += 1
        return self.env.step(action)


class CriticalResets(gymnasium.Wrapper[Any, Any, Any, Any]):
    """With some probability an episode begins at a critical state, otherwise as the environment begins.

    RICE (Cheng, Wu, Yu, Yang and Xing, ICML 2024) mixes these two distributions of initial states. It finds critical
    states by a mask network (StateMask); here an annotator marked them. Behind the critical state chance is drawn anew,
    so that the logged episode is one of many that may follow; an emulator with chance of its own repeats it.

    Args:
        environment: the environment of the dataset, counted.
        episodes: logged episodes by id.
        manifest: of their dataset.
        states: (episode_id, step) of each critical state; without any it resets as the environment does.
        probability: of beginning at one of them.
        seed: of the choice.
    """

    def __init__(
        self,
        environment: Counted,
        episodes: Mapping[int, Episode],
        manifest: Manifest,
        *,
        states: Sequence[tuple[int, int]],
        probability: float,
        seed: int,
    ) -> None:
        super().__init__(environment)
        self._episodes, self._manifest = episodes, manifest
        self._states, self._probability = states, probability
        self._rng = np.random.default_rng(seed)
        self.counted = environment
        self.replayed = 0  # steps that led to critical states
        self.missed = 0  # critical states that were not reached exactly

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode at a critical state or as the environment begins; a seed decides what comes by chance."""
        shown = None if seed is None else self.env.reset(seed=seed, options=options)
        if self._states and self._rng.random() < self._probability:
            episode_id, step = self._states[int(self._rng.integers(len(self._states)))]
            if self._go_to(self._episodes[episode_id], step):
                return self._episodes[episode_id].observations[step], {}
            shown = None
        return shown or self.env.reset(options=options)

    def _go_to(self, episode: Episode, step: int) -> bool:
        """Play an episode again up to a step; False when it went another way, which leaves chance as it was."""
        chance, before = self.unwrapped.np_random, self.counted.steps
        difference = play_until(self.counted, episode, self._manifest, step)
        self.replayed += self.counted.steps - before
        fresh = np.random.default_rng(self._rng.integers(2**63))
        self.unwrapped.np_random = chance if difference is not None else fresh
        self.missed += difference is not None
        return difference is None
