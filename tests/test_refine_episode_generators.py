"""Numbers that are drawn ahead are, one for one, those that every generator would have given by itself."""

from __future__ import annotations

import numpy as np

from refine.policies.mlp import EpisodeGenerators, draw_uniforms


def stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_numbers_drawn_ahead_are_those_of_the_generators_through_renewals_and_drops() -> None:
    ahead, expected = EpisodeGenerators(map(stream, (1, 2, 3))), [stream(1), stream(2), stream(3)]
    for tick in range(200):
        if tick in (5, 64, 70, 128):  # inside a stretch of numbers, and at its edge
            ahead.renew(1, stream(100 + tick))
            expected[1] = stream(100 + tick)
        if tick == 100:
            ahead.drop(0)
            del expected[0]
        assert draw_uniforms(ahead).tolist() == [rng.random() for rng in expected]


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    ahead = EpisodeGenerators([stream(1), stream(2)])
    ahead.renew(1, stream(3))
    ahead.drop(0)
    assert len(ahead) == 1
    assert ahead[0].standard_normal() == stream(3).standard_normal()


def test_plain_generators_give_one_number_each() -> None:
    generators = [stream(1), stream(2)]
    assert draw_uniforms(generators).tolist() == [stream(1).random(), stream(2).random()]
    assert generators[0].random() != stream(1).random()
