"""The refinements whose verdicts `gate.py` measures: baselines, experts, labels of many kinds, the truth about them.

One `refine_and_try` is one refinement from its labels to the gate's decisions in both ways of acting, and the truth of
the winners. It touches no store; every number depends on its job alone. Rates are in `gate_rates.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from gymnasium.envs.box2d import lunar_lander
from numpy.typing import NDArray

from flows.policies.train_baseline import TrainConfig, train_baseline
from flows.refinement.arms import CHOSEN, RANKED, enter_few, last_of_each
from flows.refinement.comparison import ACCEPT, SELECT, Play, try_fields
from flows.refinement.evaluator import Candidate, Returns
from flows.simulation.environments import Environment, EnvironmentMaker, spaces_of
from flows.simulation.rollouts import play
from flows.simulation.trust import Named
from refine.config import Snapshot
from refine.evaluation.gate import SeedPlan, deal, paired_difference
from refine.labels.labels import Labels, arm_labels
from refine.policies.mlp import MlpPolicy, Mode
from storage.datasets.columns import StepArrays
from storage.schema import Array, Episode

MODES: tuple[Mode, ...] = ("greedy", "sampled")
REPORT = 100
DATASET_SEED, GATE_SEED, TRUTH_SEED = 10_000_000, 20_000_000, 90_000_000
SEEDS_APART = 10_000
LABELLED_EPISODES, LABELS_PER_EPISODE = 30, 8
SIDE_BY_SIDE = 50


def balance(observations: Array) -> Array:
    """CartPole-v1: push towards the side to which the pole falls, and a little back to the middle."""
    return (observations @ np.array([0.05, 0.1, 3.0, 1.0]) > 0).astype(np.int64)


def swing(observations: Array) -> Array:
    """Acrobot-v1: push the way the joint turns."""
    return np.where(observations[:, 5] > 0, 2, 0)


def swing_up(observations: Array) -> Array:
    """Pendulum-v1: pump energy below, a spring and a damper near the top."""
    cosine, sine, speed = np.asarray(observations, dtype=np.float64).T
    lacking = 5 - (speed**2 / 6 + 5 * cosine)
    torque = np.where(cosine > 0.8, -10 * sine - 2 * speed, 2 * np.sign(speed + 1e-9) * np.sign(lacking))
    return np.clip(torque, -2, 2)[:, None]


def land(observations: Array) -> Array:
    """Gymnasium's own controller of LunarLander-v3."""
    lander: Any = SimpleNamespace(unwrapped=SimpleNamespace(continuous=False), continuous=False)
    return np.array([lunar_lander.heuristic(lander, row) for row in observations], dtype=np.int64)


class Course(NamedTuple):
    """What is known about an environment, and how its policies are trained when none are given."""

    solved: float  # the return at which Gymnasium's registry calls it solved, or a controller's
    poor: float  # of a policy that has learned nothing
    baselines: tuple[tuple[int, int], ...]  # (steps of PPO, seed)
    expert: Callable[[Array], Array]  # written by hand: actions by observation
    ppo: Mapping[str, Any] = {}  # arguments beside the trainer's own

    @property
    def margin(self) -> float:
        """A gain worth having: a tenth of the way from a poor return to the solved one."""
        return (self.solved - self.poor) / 10


_PENDULUM = {"gamma": 0.9, "gae_lambda": 0.95, "n_epochs": 10, "learning_rate": 1e-3, "ent_coef": 0.0}
COURSES = {
    "CartPole-v1": Course(475, 20, ((6_144, 5), (8_192, 3), (12_288, 4)), balance),
    "Acrobot-v1": Course(-100, -500, ((40_960, 3),), swing),
    "Pendulum-v1": Course(-160, -1_200, ((20_480, 2),), swing_up, _PENDULUM),
    "LunarLander-v3": Course(200, -180, (), land),
}


class Plan(NamedTuple):
    """A baseline, its logged episodes and the gate's seeds, as all refinements share them; judged in both modes."""

    env_id: str
    number: int  # within the environment
    baseline: str  # folder
    truth_episodes: int
    modes: tuple[Mode, ...] = MODES  # in which it is judged

    @property
    def seeds(self) -> SeedPlan:
        """Of the racing gate."""
        first = GATE_SEED + self.number * SEEDS_APART
        return SeedPlan.starting_at(first, select=SELECT["racing"], accept=ACCEPT["racing"], report=REPORT)

    @property
    def truth_seeds(self) -> range:
        """Seeds that serve no other purpose."""
        return range(TRUTH_SEED, TRUTH_SEED + self.truth_episodes)


class Job(NamedTuple):
    """One refinement."""

    plan: Plan
    kind: str
    draw: int
    part: int  # of the report seeds, for a draw of chance; -1: the refinement passes the gate

    @property
    def key(self) -> str:
        """Names everything that decides its row."""
        return json.dumps([*self.plan, self.kind, self.draw, self.part])


# --- policies ---------------------------------------------------------------------------------------------------------


def train_policy(task: tuple[Named, tuple[int, int], str]) -> None:
    """Train one baseline into its folder, unless it is there."""
    env_id, (timesteps, seed), folder = task
    config = TrainConfig(
        env_id=env_id,
        timesteps=timesteps,
        seed=seed,
        ppo=COURSES[env_id].ppo,
        patience=0,
        evaluate_every=timesteps,
        evaluation_episodes=10,
    )
    train_baseline(config, Path(folder))


def list_trainings(env_id: str, root: Path) -> list[tuple[Named, tuple[int, int], str]]:
    """What `train_policy` is to do."""
    return [(Named(env_id), run, str(root / env_id / f"{run[0]}-{run[1]}")) for run in COURSES[env_id].baselines]


@functools.cache
def load_network(folder: str) -> MlpPolicy:
    return MlpPolicy.from_files({name: (Path(folder) / name).read_bytes() for name in ("policy.json", "weights.npz")})


# --- episodes ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _environments(env_id: str) -> list[Environment]:
    make = EnvironmentMaker(Named(env_id))
    return [make() for _ in range(SIDE_BY_SIDE)]


def play_episodes(env_id: str, policy: MlpPolicy, seeds: Sequence[int], mode: Mode) -> list[Episode]:
    """One episode per seed, in this process."""
    return list(play(_environments(env_id)[: len(seeds)], policy, seeds, mode=mode))


class Memory:
    """Plays policies on seeds, each once, and counts the episodes and steps of what is asked for."""

    def __init__(self, env_id: str) -> None:
        self._env_id = env_id
        self._known: dict[tuple[str, int, Mode], tuple[float, int]] = {}
        self._asked: set[tuple[str, int, Mode]] = set()

    def play_in(self, mode: Mode) -> Play:
        """As a judge answers, in one way of acting."""

        def returns(contestants: Sequence[Candidate], seeds: range, purpose: str = "") -> list[Returns]:
            return [self._returns(contestant, seeds, mode) for contestant in contestants]

        return returns

    def count(self, baseline: str) -> dict[str, int]:
        """Episodes and steps since the last count, of candidates and of the baseline, which all refinements share."""
        own = [asked for asked in self._asked if asked[0] != baseline]
        shared = [asked for asked in self._asked if asked[0] == baseline]
        self._asked = set()
        return {
            "episodes": len(own),
            "steps": sum(self._known[asked][1] for asked in own),
            "baseline_episodes": len(shared),
            "baseline_steps": sum(self._known[asked][1] for asked in shared),
        }

    def _returns(self, contestant: Candidate, seeds: range, mode: Mode) -> Returns:
        missing = [seed for seed in seeds if (contestant.sha256, seed, mode) not in self._known]
        network = contestant.actor
        if not isinstance(network, MlpPolicy):
            raise TypeError(f"{contestant.policy_id} is no network")
        for at in range(0, len(missing), SIDE_BY_SIDE):
            for episode in play_episodes(self._env_id, network, missing[at : at + SIDE_BY_SIDE], mode):
                self._known[contestant.sha256, int(episode.seed or 0), mode] = (episode.return_, len(episode))
        self._asked |= {(contestant.sha256, seed, mode) for seed in seeds}
        return np.array([self._known[contestant.sha256, seed, mode][0] for seed in seeds])


@functools.lru_cache(maxsize=2)
def _memory_of(env_id: str, baseline: str) -> Memory:
    """One memory for all refinements of a baseline, so that its own episodes are played once in a process."""
    return Memory(env_id)


# --- labels -----------------------------------------------------------------------------------------------------------


def steps_of(episodes: Sequence[Episode]) -> StepArrays:
    """The episodes as a dataset's columns, without a store."""

    def flags(name: str) -> NDArray[np.bool_]:
        return np.concatenate([[*[False] * (len(e) - 1), getattr(e, name), False] for e in episodes]).astype(np.bool_)

    actions = [np.concatenate([e.actions, np.zeros((1, *e.actions.shape[1:]), e.actions.dtype)]) for e in episodes]
    return StepArrays(
        episode_id=np.concatenate([np.full(len(e) + 1, number) for number, e in enumerate(episodes)]),
        step=np.concatenate([np.arange(len(e) + 1, dtype=np.int32) for e in episodes]),
        observation=np.concatenate([e.observations for e in episodes]),
        action=np.concatenate(actions),
        reward=np.concatenate([np.append(e.rewards, 0.0) for e in episodes]),
        terminated=flags("terminated"),
        truncated=flags("truncated"),
        is_final=np.concatenate([np.arange(len(e) + 1) == len(e) for e in episodes]),
        policy_output=None,
    )


@functools.lru_cache(maxsize=2)
def _logged_steps(plan: Plan) -> StepArrays:
    first = DATASET_SEED + plan.number * SEEDS_APART
    seeds = range(first, first + LABELLED_EPISODES)
    return steps_of(play_episodes(plan.env_id, load_network(plan.baseline), seeds, "sampled"))


def _clean_labels(plan: Plan, steps: StepArrays, rng: np.random.Generator, per_episode: int) -> Labels:
    """The expert's greedy actions at states spread over every episode."""
    rows = np.concatenate(
        [
            start + np.array([rng.choice(part) for part in np.array_split(np.arange(length), per_episode) if part.size])
            for start, length in zip(steps.starts, steps.lengths, strict=True)
        ]
    ).astype(np.int64)
    suggestions = COURSES[plan.env_id].expert(steps.observation[rows])
    return Labels(rows, suggestions, np.ones(len(rows)), np.zeros(len(rows)))


def make_labels(job: Job, steps: StepArrays) -> Labels:
    """Labels of a kind.

    - `clean`: the expert's actions, eight per episode.
    - `half`: the expert's, half of them replaced by random ones; `worse`: four of five.
    - `shuffled`, `random`, `no_labels`: the placebos, made from the clean labels as the program makes them.
    """
    space = spaces_of(_environments(job.plan.env_id)[0]).action
    # placebos of one comparison share their states, as they do in the program
    placing = np.random.default_rng([job.plan.number, 0 if job.kind in PLACEBOS else job.draw, 1])
    rng = np.random.default_rng([job.plan.number, job.draw, KINDS.index(job.kind), 2])
    labels = _clean_labels(job.plan, steps, placing, LABELS_PER_EPISODE)
    if job.kind in PLACEBOS:
        labels = arm_labels(job.kind, labels, steps, space, rng)
    wrong = {"half": 0.5, "worse": 0.8}.get(job.kind, 0.0)
    chance = arm_labels("random", labels, steps, space, rng).suggestions
    where = rng.random(len(labels)) < wrong
    if labels.suggestions.ndim > 1:
        where = where[:, None]
    labels = dataclasses.replace(labels, suggestions=np.where(where, chance, labels.suggestions))
    return labels


PLACEBOS = ("no_labels", "shuffled", "random")
DRAWN = ("shuffled", "random")
KINDS = (*PLACEBOS, "clean", "half", "worse")
JUDGED = (("clean", 0), ("clean", 1), ("no_labels", 0), ("half", 0), ("worse", 0))


def list_jobs(plan: Plan, placebo_draws: int, gated_draws: int) -> list[Job]:
    """Refinements that pass the gate, also some draws of chance as it was done before; then all draws of chance.

    There is one draw more of each placebo than a comparison has, to stand as the labels.
    """
    gated = [(kind, draw) for kind in DRAWN for draw in range(gated_draws)]
    drawn = [(kind, draw) for draw in range(placebo_draws + 1) for kind in DRAWN]
    return [*(Job(plan, *each, each[1]) for each in drawn), *(Job(plan, *each, -1) for each in (*JUDGED, *gated))]


# --- one refinement ---------------------------------------------------------------------------------------------------


def refine_and_try(task: tuple[Job, int]) -> dict[str, Any]:
    """Refine, play the common episodes, and let the gate decide, or play a part of the report.

    Args:
        task: the job, and the draws of a placebo, among which the report seeds are dealt.
    """
    job, draws = task
    started = time.process_time()
    from refine.training.train import refine  # seconds, and only where something is trained

    steps, baseline = _logged_steps(job.plan), load_network(job.plan.baseline)
    snapshots = refine(steps, make_labels(job, steps), baseline)
    trained = time.process_time()
    memory = _memory_of(job.plan.env_id, job.plan.baseline)
    trial = Refinement(job, memory, Candidate.of(baseline, "baseline"), snapshots)
    return {
        "key": job.key,
        "env": job.plan.env_id,
        "plan": job.plan.number,
        "kind": job.kind,
        "draw": job.draw,
        "gated": job.part < 0,
        "common": trial.common,
        "modes": {mode: trial.gate(mode) if job.part < 0 else trial.share(mode, draws) for mode in job.plan.modes},
        "training_s": trained - started,
        "seconds": time.process_time() - started,
    }


class Refinement:
    """The candidates of one refinement, and what the program would play of them."""

    def __init__(self, job: Job, memory: Memory, baseline: Candidate, snapshots: Sequence[Snapshot]) -> None:
        self.plan, self.part, self.memory, self.baseline = job.plan, job.part, memory, baseline
        self.candidates = [Candidate.of(snapshot.policy, "refined") for snapshot in snapshots]
        entered = enter_few(snapshots)
        self.entered = [Candidate.of(snapshot.policy, "refined") for snapshot in entered]
        self.last = [self.entered[place] for place in last_of_each(entered, len(entered))]

    @functools.cached_property
    def common(self) -> float:
        """What is ranked."""
        found = self.memory.play_in("sampled")(self.last, self.plan.seeds.select[:RANKED], "select")
        return float(np.mean(found))

    def choose(self, mode: Mode) -> Candidate:
        """The best of what is entered, on the first common seeds, the baseline among it."""
        contestants = [self.baseline, *self.entered]
        found = self.memory.play_in(mode)(contestants, self.plan.seeds.select[:CHOSEN], "select")
        return contestants[int(np.argmax([returns.mean() for returns in found]))]

    def share(self, mode: Mode, draws: int) -> dict[str, Any]:
        """A draw of chance: its part of the report seeds, and what it cost in this mode."""
        self.memory.count(self.baseline.sha256)
        self.memory.play_in("sampled")(self.last, self.plan.seeds.select[:RANKED], "select")
        chosen = self.choose(mode)
        part = self.plan.seeds.report[deal(REPORT, draws)[self.part % draws]]
        report = {each: self.memory.play_in(each)([chosen], part, "report")[0].tolist() for each in MODES}
        return {"report": report[mode], **self.memory.count(self.baseline.sha256)}

    def gate(self, mode: Mode) -> dict[str, Any]:
        """The gate's decision with what it cost, the report, and the truth of the winner."""
        play, seeds = self.memory.play_in(mode), self.plan.seeds
        self.memory.count(self.baseline.sha256)
        (finding,) = try_fields(play, self.baseline, [self.candidates], seeds, "racing")
        winner = self.candidates[finding.winner]
        kept = winner if finding.decision.accepted else self.baseline
        report = {each: self.memory.play_in(each)([kept], seeds.report, "report")[0] for each in MODES}
        spent = self.memory.count(self.baseline.sha256)
        (alike,) = play([self.choose(mode)], seeds.report, "report")
        alike_spent = self.memory.count(self.baseline.sha256)
        before, reached = play([self.baseline, winner], self.plan.truth_seeds, "evaluate")
        true = paired_difference(reached, before)
        self.memory.count(self.baseline.sha256)
        return {
            "accepted": finding.decision.accepted,
            "report": report[mode].tolist(),
            "alike": alike.tolist(),
            **spent,
            "alike_steps": alike_spent["steps"],
            "truth": float(reached.mean()),
            "truth_gain": true.mean,
            "truth_low": true.low,
            "truth_high": true.high,
            "identical": bool(np.array_equal(reached, before)),
        }
