"""Chance that is drawn ahead is the same chance: number for number what every generator would have given by itself."""

from __future__ import annotations

import numpy as np

from refine.policies.mlp import Chance, draw_uniforms


def stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_numbers_drawn_ahead_are_those_of_the_generators_through_renewals_and_drops() -> None:
    chance, expected = Chance(map(stream, (1, 2, 3))), [stream(1), stream(2), stream(3)]
    for tick in range(200):
        if tick in (5, 64, 70, 128):  # inside a stretch of numbers, and at its edge
            chance.renew(1, stream(100 + tick))
            expected[1] = stream(100 + tick)
        if tick == 100:
            chance.drop(0)
            del expected[0]
        assert draw_uniforms(chance).tolist() == [rng.random() for rng in expected]


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    chance = Chance([stream(1), stream(2)])
    chance.renew(1, stream(3))
    chance.drop(0)
    assert len(chance) == 1
    assert chance[0].standard_normal() == stream(3).standard_normal()


def test_plain_generators_give_one_number_each() -> None:
    generators = [stream(1), stream(2)]
    assert draw_uniforms(generators).tolist() == [stream(1).random(), stream(2).random()]
    assert generators[0].random() != stream(1).random()
