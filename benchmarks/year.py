"""A year of nights: how often is a policy promoted that is no better, and how does the policy in force drift?

    python benchmarks/year.py [--years 400] [--nights 365] [--real 30]

Simulated nights play no environment: each has a winner whose true gain is known, and the differences of its episodes
have the statistics of real ones: wins and losses of +1 and -1, or returns of a shipped baseline that was played twice,
drawing its actions, on the same seeds. Real nights refine and play on CartPole-v1. Both are judged by the sequential
test of the gate, once with an error of 5% every night and once with 5% over all nights. Also measured: how likely a
useful winner is accepted after so many nights that promoted nothing, and the episodes that this takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from gate_world import LABELS_PER_EPISODE, load_network, play_episodes, steps_of
from numpy.typing import NDArray
from scipy import stats

from flows.refinement.comparison import ACCEPT, GateConfig, try_fields
from flows.refinement.evaluator import Candidate
from refine.config import RefineConfig
from refine.evaluation.gate import ERROR_RATE
from refine.evaluation.racing import (
    HOPE,
    POWER,
    SAME,
    chance_below_zero,
    lengthen,
    list_looks,
    reckon_with,
    share_over_nights,
)
from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from storage.schema import Episode

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, float, int], Floats]
"""Paired differences of so many episodes, for a true gain."""
WORLDS = ("wins", "rare", "CartPole-v1", "LunarLander-v3")
Rule = Literal["every night", "over all nights"]
RULES: tuple[Rule, ...] = ("every night", "over all nights")
EXAMPLES = Path(__file__).parents[1] / "examples"
PLAYED_SEED, NIGHT_SEED, TRUTH_SEED = 110_000_000, 120_000_000, 90_000_000
SELECTED = 46
"""Differences that the selection shows; the smallest of them is what a test reckons with."""


class World(NamedTuple):
    """Where nights are simulated."""

    name: str
    margin: float  # a gain worth having, as in `gate.py`
    draw: Draw


def draw_wins(rng: np.random.Generator, gain: float, size: int) -> Floats:
    """Returns of +1 and -1; the policy in force wins every other episode."""
    return 2.0 * (rng.random(size) < 0.5 + gain / 2) - 2.0 * (rng.random(size) < 0.5)


def draw_rare(rng: np.random.Generator, gain: float, size: int) -> Floats:
    """Two policies that nearly always do the same, and differ by 100 in one episode of 25."""
    chance = rng.random(size)
    return 100.0 * (chance < 0.02 + gain / 200) - 100.0 * (chance > 0.98 + gain / 200)


def draw_logged(differences: Floats, rng: np.random.Generator, gain: float, size: int) -> Floats:
    return differences[rng.integers(0, len(differences), size)] + gain


def play_twice(env_id: str, example: str, episodes: int) -> Floats:
    """Differences between two plays of one policy that draws its actions, seed by seed: their mean is zero."""
    policy = load_network(str(EXAMPLES / example / "baseline"))
    found: list[Floats] = []
    for first in (
        PLAYED_SEED,
        PLAYED_SEED + episodes,
    ):  # the seed also decides the actions, so the pairs are of two seeds
        parts = [range(at, min(at + 50, first + episodes)) for at in range(first, first + episodes, 50)]
        played = [play_episodes(env_id, policy, part, "sampled") for part in parts]
        found.append(np.array([episode.return_ for part in played for episode in part]))
    differences = found[0] - found[1]
    return differences - differences.mean()


def list_worlds(names: Sequence[str], episodes: int) -> list[World]:
    found = [world for world in (World("wins", 0.2, draw_wins), World("rare", 2.0, draw_rare)) if world.name in names]
    for env_id, example, margin in (("CartPole-v1", "cartpole", 45.5), ("LunarLander-v3", "lunarlander", 38.0)):
        if env_id in names:
            differences = play_twice(env_id, example, episodes)
            print(f"{env_id}: differences of {episodes} pairs, deviation {differences.std():.1f}, margin {margin}")
            found.append(World(env_id, margin, partial(draw_logged, differences)))
    return found


class Tested(NamedTuple):
    """What the test of one night came to."""

    accepted: bool
    episodes: int  # of the winner; the baseline plays as many


def level(rule: Rule, kept: int) -> float:
    return ERROR_RATE if rule == "every night" else share_over_nights(ERROR_RATE, kept)


def run_test(differences: Floats, worst: float, error: float, most: int) -> Tested:
    """As `decide_early` decides from look to look; a mean that is far from any proof is not looked at closely."""
    looks = list_looks(most)
    deviations = stats.norm.ppf(1 - error / len(looks))
    for look in looks:
        values = differences[:look]
        spread = float(values.std(ddof=1))
        is_near = values.mean() * np.sqrt(look) > deviations * spread / 3
        if (
            is_near
            and values.any()
            and _chance(tuple(np.sort(values).tolist()), reckon_with(values, worst)) < error / len(looks)
        ):
            return Tested(True, look)
        if _is_given_up(values, most, error):
            return Tested(False, look)
    return Tested(False, most)


@lru_cache(maxsize=100_000)
def _chance(values: tuple[float, ...], worst: float) -> float:
    return chance_below_zero(np.append(values, min(worst, values[0])))


def _is_given_up(values: Floats, most: int, error: float) -> bool:
    """As in `decide_early`."""
    limit = values.mean() + stats.norm.ppf(HOPE) * values.std(ddof=1) / np.sqrt(len(values))
    needed = stats.norm.ppf(1 - error) + stats.norm.ppf(POWER)
    hopeless = limit < needed * values.std(ddof=1) / np.sqrt(most)
    return bool(hopeless or (len(values) >= SAME and not values.any()))


class Year(NamedTuple):
    """What came of a year."""

    worse: bool  # whether a policy was promoted that is worse by the margin
    no_better: bool  # or no better at all
    promoted: int
    drift: float  # true gain of the policy in force at the end, in margins
    episodes: float  # of the winner, per night


def live(world: World, gains: Floats, rule: Rule, rng: np.random.Generator) -> Year:
    """Nights with winners of the given true gains over the policy that is in force then."""
    kept, promoted, episodes = 0, list[float](), 0
    for gain in gains.tolist():
        error = level(rule, kept)
        most = lengthen(ACCEPT["racing"], error)
        worst = float(world.draw(rng, gain, SELECTED).min())
        tested = run_test(world.draw(rng, gain, most), worst, error, most)
        episodes += tested.episodes
        kept += not tested.accepted
        promoted += [gain] if tested.accepted else []
    worst_promoted = min(promoted, default=1.0)
    drift = sum(promoted) / world.margin
    return Year(worst_promoted <= -world.margin, worst_promoted <= 0, len(promoted), drift, episodes / len(gains))


GAINS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "worse by the margin": lambda rng, nights: np.full(nights, -1.0),
    "worse by half of it": lambda rng, nights: np.full(nights, -0.5),
    "equal": lambda rng, nights: np.zeros(nights),
    "mostly worse": lambda rng, nights: rng.normal(-0.5, 0.5, nights),
    "now and then better": lambda rng, nights: np.where(rng.random(nights) < 0.1, 1.0, rng.normal(-0.5, 0.5, nights)),
    "better by half of it": lambda rng, nights: np.full(nights, 0.5),
}
"""True gains of a year's winners, in margins."""


def tell_years(world: World, years: int, nights: int) -> None:
    print(f"\n{world.name}: {years} years of {nights} nights; a margin is {world.margin}")
    print("winners               error            worse by a margin   no better  promotions   drift  episodes")
    for name, make in GAINS.items():
        for rule in RULES:
            rng = np.random.default_rng([20, len(name)])
            lived = [live(world, make(rng, nights) * world.margin, rule, rng) for _ in range(years)]
            _print_row(name, rule, lived)


def _print_row(name: str, rule: str, lived: Sequence[Year]) -> None:
    worse, no_better = (_share(sum(getattr(year, of) for year in lived), len(lived)) for of in ("worse", "no_better"))
    means = [np.mean([getattr(year, of) for year in lived]) for of in ("promoted", "drift", "episodes")]
    print(
        f"{name:21} {rule:16} {worse:>19} {no_better:>11} {means[0]:11.2f} {means[1]:7.2f} {means[2]:9.1f}", flush=True
    )


def _share(count: int, total: int) -> str:
    high = stats.beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
    return f"{count / total:.1%} (<{high:.1%})"


def tell_power(world: World, tries: int) -> None:
    """How likely a useful night is accepted, after so many nights that kept the policy in force."""
    print(f"\n{world.name}: a useful night after nights that promoted nothing; {tries} tries each")
    print("true gain    error            after   accepted   nights until   episodes")
    for gain in (1.0, 2.0, 4.0):
        rows: list[tuple[Rule, int]] = [("every night", 0), *[("over all nights", n) for n in (0, 5, 30, 180, 364)]]
        for rule, kept in rows:
            rng, error = np.random.default_rng([21, int(gain)]), level(rule, kept)
            most = lengthen(ACCEPT["racing"], error)
            draws = (
                (world.draw(rng, gain * world.margin, SELECTED), world.draw(rng, gain * world.margin, most))
                for _ in range(tries)
            )
            found = [run_test(differences, float(seen.min()), error, most) for seen, differences in draws]
            rate = np.mean([tested.accepted for tested in found])
            episodes = np.mean([tested.episodes for tested in found])
            until = 1 / rate if rate else np.inf
            print(f"{gain:3.0f} margins  {rule:16} {kept:5} {rate:10.1%} {until:14.2f} {episodes:10.1f}", flush=True)


# --- real nights ------------------------------------------------------------------------------------------------------

ENV = "CartPole-v1"
SHARE_RIGHT = {"useless": 0.5, "slightly useful": 0.6, "useful": 0.9, "harmful": 0.2}
"""How many of the labels are what a controller of one line does; half of random ones are."""


def label_episodes(episodes: Sequence[Episode], right: float, rng: np.random.Generator) -> Labels:
    """Labels spread over every episode, of which a share says what the controller does."""
    steps = steps_of(list(episodes))
    places = [
        start + np.sort(rng.choice(length, min(LABELS_PER_EPISODE, length), replace=False))
        for start, length in zip(steps.starts, steps.lengths, strict=True)
    ]
    rows = np.concatenate(places).astype(np.int64)
    seen = steps.observation[rows]
    best = (seen[:, 2] + 0.25 * seen[:, 3] > 0).astype(np.int64)
    suggestions = np.where(rng.random(len(rows)) < right, best, 1 - best)
    return Labels(rows, suggestions, np.ones(len(rows)), np.zeros(len(rows)))


def play_nights(kind: str, rule: Rule, nights: int, truth: range) -> None:
    """Refine the policy in force night after night, and say what is in force at the end."""
    from refine.training.train import refine  # seconds, and only where something is trained

    recipe = RefineConfig(betas=(0.1,), snapshots=(30, 100))
    policy = load_network(str(EXAMPLES / "cartpole" / "baseline"))
    start = value = true_return(policy, truth)
    kept, promoted, wrong, steps = 0, 0, list[float](), 0
    for night in range(nights):
        rng = np.random.default_rng([night, list(SHARE_RIGHT).index(kind)])
        first = NIGHT_SEED + 10_000 * night
        episodes = play_episodes(ENV, policy, range(first, first + 10), "sampled")
        labels = label_episodes(episodes, SHARE_RIGHT[kind], rng)
        snapshots = refine(steps_of(episodes), labels, policy, recipe)
        candidates = [Candidate.of(snapshot.policy, "refined") for snapshot in snapshots]
        gate = GateConfig(first_seed=first + 100, mode="sampled", error_rate=level(rule, kept))
        counted = _Counted()
        before = Candidate.of(policy, "baseline")
        (found,) = try_fields(counted.returns, before, [candidates], gate.seeds, "racing", gate.error_rate)
        steps += counted.steps
        if not found.decision.accepted:
            kept += 1
            continue
        policy, last = snapshots[found.winner].policy, value
        value = true_return(policy, truth)
        promoted += 1
        wrong += [value - last] if value <= last else []
    print(
        f"{kind:16} {rule:16} promoted {promoted:2}, no better: {len(wrong)} (worst {min(wrong, default=0):.1f});"
        f" in force {start:.1f} -> {value:.1f}; {steps / nights:,.0f} environment steps a night",
        flush=True,
    )


class _Counted:
    """Plays episodes, and counts their steps."""

    def __init__(self) -> None:
        self.steps = 0

    def returns(self, contestants: Sequence[Candidate], seeds: range, purpose: str) -> list[Floats]:
        del purpose
        return [self._returns(contestant.actor, seeds) for contestant in contestants]

    def _returns(self, actor: object, seeds: range) -> Floats:
        if not isinstance(actor, MlpPolicy):
            raise TypeError(f"{actor!r} is no network")
        parts = [seeds[at : at + 50] for at in range(0, len(seeds), 50)]
        episodes = [episode for part in parts for episode in play_episodes(ENV, actor, part, "sampled")]
        self.steps += sum(len(episode) for episode in episodes)
        return np.array([episode.return_ for episode in episodes])


def true_return(policy: MlpPolicy, seeds: range) -> float:
    parts = [seeds[at : at + 50] for at in range(0, len(seeds), 50)]
    return float(np.mean([e.return_ for part in parts for e in play_episodes(ENV, policy, part, "sampled")]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--years", type=int, default=400, help="simulated years of each kind")
    parser.add_argument("--nights", type=int, default=365, help="of a simulated year")
    parser.add_argument("--real", type=int, default=30, help="real nights of each kind; 0: none")
    parser.add_argument("--tries", type=int, default=1000, help="useful nights of each kind")
    parser.add_argument("--world", action="append", choices=WORLDS, help="default: all")
    arguments = parser.parse_args()
    started = time.perf_counter()
    names = arguments.world or WORLDS
    if arguments.real:
        print(f"{arguments.real} nights on {ENV}, actions drawn; the truth is 300 episodes")
        for kind in SHARE_RIGHT:
            for rule in RULES:
                play_nights(kind, rule, arguments.real, range(TRUTH_SEED, TRUTH_SEED + 300))
    for world in list_worlds(names, 1000) if arguments.years else []:
        tell_power(world, arguments.tries)
        tell_years(world, arguments.years, arguments.nights)
    print(f"\nwall time {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
