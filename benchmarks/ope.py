"""How far estimates without a simulator are from the truth, in environments where the truth can be played.

    python benchmarks/ope.py
    python benchmarks/ope.py --quick --env CartPole-v1
    python benchmarks/ope.py --rules --env CartPole-v1

In each environment the shipped baseline plays a log (sampled, or greedy with `--log-mode greedy`); an expert's actions
at spread states are the labels, a part of them wrong. Every arm's candidates are estimated from the log alone and then
played. The truth of a candidate is its mean discounted return over `--episodes` fresh episodes.

Printed per environment and seed: bias and error (root mean square) of the estimates beside the spread of the truth,
rank correlation with the discounted and with the plain return, how often the 95% intervals cover the truth and the
true gain over the baseline, how many verdicts `estimated better` are wrong, and what choosing by held-out labels
loses, in plain return of the arm with the labels, against the best candidate; beside it what 24 played episodes lose.
The expert is a short PPO training, or a policy given with `--expert`; a fresh clone needs the extra `sb3` for it.

With `--rules` the labels are those of the example's recorded list of rules, which speaks of every step, and two more
numbers stand beside the estimate: how far a candidate agrees with the list over all logged steps, and how much its
actions are predicted to raise the list's potential in one step. The prediction is a regression of
`gamma * potential(s') - potential(s)` on random features of the state, for each action.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from annotate.prompting.requests import AnnotateConfig
from flows.datasets.collection import CollectConfig, gather
from flows.demo import take_example
from flows.labelling.annotation import LabelConfig, label
from flows.policies.loading import load_policy
from flows.policies.train_baseline import TrainConfig, train_baseline
from flows.refinement.arms import ArmDraw, Material, list_draws
from flows.refinement.estimation import refit_number, train_and_score
from flows.runtime.processes import core_count, parallel_map
from flows.simulation.environments import EnvironmentMaker, Spaces, look_up_spaces
from flows.simulation.rollouts import rollout
from flows.simulation.trust import Named
from refine.config import RefineConfig
from refine.evaluation.ope import Estimate, OpeConfig, collect_refits, estimated_gain
from refine.labels.labels import Labels, covers_most_steps
from refine.labels.rule_labels import RuleLabels, labels_from_rules
from refine.policies.mlp import MlpPolicy, Mode, network_inputs
from refine.policies.rule_lists import CompiledRules
from storage.annotations.rules import load_rule_lists
from storage.datasets.reader import StepArrays, read_manifest, read_steps
from storage.schema import Manifest
from storage.store import Store

EXAMPLES = Path(__file__).parent.parent / "examples"
BASELINES = {"CartPole-v1": "cartpole", "LunarLander-v3": "lunarlander", "Acrobot-v1": "acrobot"}
EXPERT_STEPS = {"CartPole-v1": 60_000, "LunarLander-v3": 600_000, "Acrobot-v1": 120_000}
TRUTH_SEED, SELECT_SEED, SELECT = 7_000_000, 6_000_000, 24
LABELS_PER_EPISODE = 8
FEATURES, RIDGE = 256, 0.1
"""Random features of the state, and the ridge penalty, of the regression of the potential's gain."""


class Truth(NamedTuple):
    """What a candidate is really worth."""

    discounted: float
    plain: float
    selected: float  # plain return on 24 other seeds, by which a simulator would choose


def play_truth(env_id: str, gamma: float, episodes: int, mode: Mode, policy: MlpPolicy) -> Truth:
    """Play one candidate, in any process."""
    make = EnvironmentMaker(env_id)
    played = list(rollout(make, policy, range(TRUTH_SEED, TRUTH_SEED + episodes), mode=mode))
    discounted = [float(np.sum(episode.rewards * gamma ** np.arange(len(episode)))) for episode in played]
    chosen = rollout(make, policy, range(SELECT_SEED, SELECT_SEED + SELECT), mode=mode)
    plain = np.mean([episode.return_ for episode in played])
    return Truth(float(np.mean(discounted)), float(plain), float(np.mean([episode.return_ for episode in chosen])))


def find_policy(env_id: str, spec: str | None, folder: Path) -> str:
    """The expert that was given, or a short training."""
    if spec is not None:
        return spec
    config = TrainConfig(env_id=env_id, timesteps=EXPERT_STEPS.get(env_id, 200_000), patience=0)
    train_baseline(config, folder / "expert")
    return f"policy:{folder / 'expert'}"


def label_steps(steps: StepArrays, spaces: Spaces, expert: Any, wrong: float, seed: int) -> Labels:
    """The expert's actions at states spread over every episode, a part of them replaced by chance."""
    rng = np.random.default_rng([seed, 0x1ABE1])
    edges = [np.linspace(0, length, LABELS_PER_EPISODE + 1).astype(int) for length in steps.lengths]
    rows = np.array(
        [
            start + rng.integers(low, high)
            for start, stops in zip(steps.starts, edges, strict=True)
            for low, high in pairwise(stops)
            if high > low
        ]
    )
    suggestions = expert.act(steps.observation[rows], mode="greedy").actions
    broken = rng.random(len(rows)) < wrong
    suggestions[broken] = rng.integers(0, spaces.action.n or 1, int(broken.sum())) + spaces.action.start
    return Labels(rows, suggestions, np.full(len(rows), 0.9), np.zeros(len(rows)))


def read_rules(env_id: str, manifest: Manifest, steps: StepArrays, folder: Path) -> RuleLabels:
    """What the example's recorded list of rules says of every logged step, with its potential."""
    example = EXAMPLES / BASELINES[env_id]
    store = Store.create(folder / f"rules-{manifest.dataset_id}")
    recorded = take_example(store, example).dataset_id
    asked = AnnotateConfig(model="claude", kind="rules")
    label(store, recorded, LabelConfig(provider="recorded", answers=example / "rules.jsonl", annotate=asked))
    compiled = [CompiledRules.of(listed, manifest) for listed in load_rule_lists(store, recorded)]
    return labels_from_rules(compiled, steps, manifest.action_space, shaped=True)


def agree(policy: MlpPolicy, rules: RuleLabels, steps: StepArrays) -> float:
    """Share of the list's suggestions that are a policy's greedy actions, over all logged steps."""
    return float(np.mean(policy.act(steps.observation[rules.rows], mode="greedy").actions == rules.suggestions))


def raise_potential(policies: Sequence[MlpPolicy], rules: RuleLabels, steps: StepArrays, gamma: float) -> list[float]:
    """How much each policy's greedy actions are predicted to raise the potential in one step, over all logged steps."""
    potential, space = np.asarray(rules.potential), policies[0].action_space
    acted = np.flatnonzero(~steps.is_final)
    gains = gamma * potential[acted + 1] - potential[acted]
    states = network_inputs(steps.observation[acted], policies[0].observation_space).astype(np.float64)
    spread = states.std(axis=0)
    states = np.column_stack([(states - states.mean(axis=0)) / np.where(spread > 1e-6, spread, 1), potential[acted]])
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((states.shape[1], FEATURES)) / np.sqrt(states.shape[1])
    features = np.cos(np.clip(states, -5, 5) @ directions + rng.uniform(0, 2 * np.pi, FEATURES))
    predicted = np.zeros((len(acted), int(space.n or 1)))
    for number in range(predicted.shape[1]):
        seen = np.isfinite(gains) & (steps.action[acted] == number + space.start)
        matrix = features[seen].T @ features[seen] + RIDGE * np.eye(FEATURES)
        predicted[:, number] = features @ np.linalg.solve(matrix, features[seen].T @ gains[seen])
    actions = [policy.act(steps.observation[acted], mode="greedy").actions - space.start for policy in policies]
    return [float(predicted[np.arange(len(acted)), chosen].mean()) for chosen in actions]


class World(NamedTuple):
    """One environment, one log, one set of labels."""

    material: Material
    manifest: Manifest
    steps: StepArrays
    rules: RuleLabels | None  # with their potential, where they are the labels


def set_up(env_id: str, seed: int, arguments: argparse.Namespace, folder: Path, expert_spec: str) -> World:
    """Log episodes of the baseline, and label them."""
    store, spaces = Store.create(folder / f"store-{seed}"), look_up_spaces(env_id)
    spec = arguments.baseline or f"policy:{EXAMPLES / BASELINES[env_id] / 'baseline'}"
    first, mode = 100_000 * (seed + 1), arguments.log_mode
    manifest = gather(store, CollectConfig(env_id=env_id, policy=spec, mode=mode, episodes=arguments.log, seed=first))
    steps = read_steps(store, manifest.dataset_id)
    rules = read_rules(env_id, read_manifest(store, manifest.dataset_id), steps, folder) if arguments.rules else None
    if rules is not None:
        labels: Labels = dataclasses.replace(rules, potential=None)
    else:
        labels = label_steps(steps, spaces, load_policy(Named(expert_spec), spaces, store), arguments.wrong, seed)
    baseline: Any = load_policy(Named(spec), spaces, store)
    recipe = RefineConfig(seed=seed).completed(spaces.action, dense=covers_most_steps(labels, steps))
    return World(Material(store.root, manifest.dataset_id, labels, baseline.network, recipe), manifest, steps, rules)


class Candidates(NamedTuple):
    """What was trained, estimated; place 0 is the baseline's."""

    policies: Sequence[MlpPolicy]
    owners: Sequence[tuple[ArmDraw, int]]  # of places 1 and up
    estimates: Sequence[Estimate]
    held_out: int  # place of the one with the labels that predicts held-out labels best

    @property
    def own(self) -> list[int]:
        """Places of those that were trained with the labels."""
        return [place for place, (draw, _) in enumerate(self.owners, start=1) if draw.arm == "labels"]


def estimate_all(world: World, arguments: argparse.Namespace, ope: OpeConfig) -> Candidates:
    """Train every arm, and estimate all candidates from the log."""
    material, workers = world.material, arguments.workers
    draws = list_draws(arguments.draws, labels=material.labels)
    trained = list(parallel_map(partial(train_and_score, material, arguments.folds), draws, workers))
    owners = [(draw, number) for draw, (found, _) in zip(draws, trained, strict=True) for number in range(len(found))]
    policies = [material.baseline, *(snapshot.policy for found, _ in trained for snapshot in found)]
    refit = partial(refit_number, material, policies, ope, arguments.mode)
    refits = list(parallel_map(refit, range(ope.resamples), workers))
    # the arm with the labels is the first draw, whose candidates follow the baseline
    return Candidates(policies, owners, collect_refits(world.steps, policies, refits), 1 + trained[0][1].best)


def measure(env_id: str, seed: int, arguments: argparse.Namespace, folder: Path, expert_spec: str) -> dict[str, Any]:
    """One environment, one log, one set of labels: what was estimated beside what was played."""
    begun = time.monotonic()
    world, ope = (
        set_up(env_id, seed, arguments, folder, expert_spec),
        OpeConfig(seed=seed, resamples=arguments.resamples),
    )
    found = estimate_all(world, arguments, ope)
    estimated = time.monotonic()
    play = partial(play_truth, env_id, ope.gamma, arguments.episodes, arguments.mode)
    truths = list(parallel_map(play, found.policies, arguments.workers))
    real, plain = (np.array(column) for column in list(zip(*truths, strict=True))[:2])
    return {
        "env_id": env_id,
        "seed": seed,
        "candidates": len(found.policies) - 1,
        "episodes_logged": world.manifest.episodes,
        "steps_logged": world.manifest.steps,
        "labels": len(world.material.labels),
        **compare_values(found.estimates, real, plain),
        **compare_gains(found.estimates, real),
        **compare_choices(found, truths),
        **judge_by_rules(found, world, plain),
        "each": list_candidates(found, truths),
        "estimate_s": estimated - begun,
        "truth_s": time.monotonic() - estimated,
    }


def compare_values(
    estimates: Sequence[Estimate], real: NDArray[np.float64], plain: NDArray[np.float64]
) -> dict[str, float]:
    """How far estimates are from the discounted returns, and whether they order candidates alike."""
    values = np.array([estimate.value for estimate in estimates])
    return {
        "truth_sd": float(real.std()),
        "bias": float(np.mean(values - real)),
        "rmse": float(np.sqrt(np.mean((values - real) ** 2))),
        "baseline_error": float(values[0] - real[0]),
        "spearman": correlation(values, real),
        "spearman_plain": correlation(values, plain),
        "coverage": share([e.interval.low <= t <= e.interval.high for e, t in zip(estimates, real, strict=True)]),
    }


def compare_gains(estimates: Sequence[Estimate], real: NDArray[np.float64]) -> dict[str, float]:
    """How often the intervals of gains over the baseline hold, and how often `estimated better` is wrong."""
    gains, truly = [estimated_gain(estimate, estimates[0]) for estimate in estimates[1:]], real[1:] > real[0]
    better = np.array([gain.is_above_zero for gain in gains])
    return {
        "gain_coverage": share([g.low <= t - real[0] <= g.high for g, t in zip(gains, real[1:], strict=True)]),
        "said_better": int(better.sum()),
        "wrongly_better": int((better & ~truly).sum()),
        "truly_better": int(truly.sum()),
    }


def compare_choices(found: Candidates, truths: Sequence[Truth]) -> dict[str, float]:
    """What each way of choosing among the candidates with the labels loses, in plain return."""
    own, best = found.own, max(truths[place].plain for place in found.own)
    chosen = {
        "held_out_labels": found.held_out,
        "simulator": max(own, key=lambda place: truths[place].selected),
        "estimate": max(own, key=lambda place: found.estimates[place].value),
    }
    regrets = {f"regret_{name}": best - truths[place].plain for name, place in chosen.items()}
    return {"best_plain": best, "baseline_plain": truths[0].plain, **regrets}


def judge_by_rules(found: Candidates, world: World, plain: NDArray[np.float64]) -> dict[str, float]:
    """Rank correlations with the plain return, of all candidates, and what choosing among those with labels loses."""
    if world.rules is None:
        return {}
    policies, own, rules, steps = found.policies, found.own, world.rules, world.steps
    scores = {
        "agreement": np.array([agree(policy, rules, steps) for policy in policies]),
        "potential": np.array(raise_potential(policies, rules, steps, OpeConfig().gamma)),
    }
    best = plain[own].max()
    ranked = {f"spearman_{name}": correlation(values, plain) for name, values in scores.items()}
    return ranked | {
        f"regret_{name}": float(best - plain[own[int(np.argmax(values[own]))]]) for name, values in scores.items()
    }


def list_candidates(found: Candidates, truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """Each candidate's estimate and truth."""
    return [
        {
            "arm": draw.name,
            "number": number,
            "estimate": estimate.value,
            "low": estimate.interval.low,
            "high": estimate.interval.high,
            "truth": truth.discounted,
            "plain": truth.plain,
            "support": estimate.support,
        }
        for (draw, number), estimate, truth in zip(found.owners, found.estimates[1:], truths[1:], strict=True)
    ]


def correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Spearman's rank correlation."""
    found: Any = spearmanr(left, right)
    return float(found.statistic)


def share(holds: list[bool]) -> float:
    """How many of them hold, from 0 to 1."""
    return float(np.mean(holds))


def show(row: dict[str, Any]) -> None:
    """One measurement in words."""
    print(
        f"{row['env_id']} seed {row['seed']}: {row['candidates']} candidates, log of {row['episodes_logged']} episodes,"
        f" {row['steps_logged']} steps\n"
        f"  error {row['rmse']:.1f} (bias {row['bias']:+.1f}; the truth's spread is {row['truth_sd']:.1f}),"
        f" rank correlation {row['spearman']:.2f}, with plain returns {row['spearman_plain']:.2f}\n"
        f"  95% intervals cover the truth in {row['coverage']:.0%}, the true gain in {row['gain_coverage']:.0%};"
        f" 'estimated better' {row['said_better']} times, wrongly {row['wrongly_better']}"
        f" ({row['truly_better']} are truly better)\n"
        f"  plain return lost by choosing with held-out labels {row['regret_held_out_labels']:.1f}, with the estimate"
        f" {row['regret_estimate']:.1f}, with 24 played episodes {row['regret_simulator']:.1f}"
        f" (best {row['best_plain']:.1f}, baseline {row['baseline_plain']:.1f})\n"
        f"  {row['estimate_s']:.0f} s to train and estimate, {row['truth_s']:.0f} s to play the truth",
        flush=True,
    )
    if "spearman_agreement" in row:
        print(
            f"  rank correlation with plain returns of the agreement with the rules {row['spearman_agreement']:.2f}, of"
            f" the potential's gain {row['spearman_potential']:.2f}; choosing by them loses"
            f" {row['regret_agreement']:.1f} and {row['regret_potential']:.1f}",
            flush=True,
        )


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", help="repeatable; default: " + ", ".join(BASELINES))
    parser.add_argument("--baseline", help="policy that plays the log; default: the shipped one of the environment")
    parser.add_argument("--expert", help="policy that labels; default: trained here")
    parser.add_argument("--rules", action="store_true", help="labels are those of the example's list of rules")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--log", type=int, default=30, help="logged episodes")
    parser.add_argument("--log-mode", choices=["sampled", "greedy"], default="sampled")
    parser.add_argument("--mode", choices=["greedy", "sampled"], default="greedy", help="how candidates act")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of labels that are chance")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=500, help="played per candidate for the truth")
    parser.add_argument("--workers", type=int, default=core_count())
    parser.add_argument("--out", type=Path, help="JSON lines, one per environment and seed")
    parser.add_argument("--quick", action="store_true", help="one seed, few episodes: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(seeds=1, log=8, draws=2, folds=2, resamples=5, episodes=20)
    return arguments


def main() -> None:
    """Measure everything that was asked for."""
    arguments, begun = parse(), time.monotonic()
    for env_id in arguments.env or list(BASELINES):
        with tempfile.TemporaryDirectory() as folder:
            expert = "" if arguments.rules else find_policy(env_id, arguments.expert, Path(folder))
            for seed in range(arguments.seeds):
                row = measure(env_id, seed, arguments, Path(folder), expert)
                show(row)
                if arguments.out:
                    with arguments.out.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
    print(f"seeds 0 to {arguments.seeds - 1}, {time.monotonic() - begun:.0f} s on {arguments.workers} processes")


if __name__ == "__main__":
    main()
