"""The refinements whose gate `gate.py` measures: baselines, experts, labels of many kinds, and the truth about them.

One `refine_and_try` is one refinement from its labels to the gate's decisions, by racing and in full, and the truth of
the tested winners. It touches no store; every number depends on its job alone. Rates are in `gate_rates.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.policies.train_baseline import TrainConfig, train_baseline
from flows.refinement.comparison import ACCEPT, SELECT, Method, try_fields
from flows.refinement.evaluator import Candidate, Returns
from flows.simulation.environments import Environment, EnvironmentMaker, spaces_of
from flows.simulation.rollouts import play
from refine.config import RefineConfig
from refine.evaluation.gate import SeedPlan, paired_difference
from refine.labels.labels import Labels, arm_labels
from refine.policies.mlp import MlpPolicy, Mode
from storage.datasets.columns import StepArrays
from storage.schema import Episode

METHODS: tuple[Method, ...] = ("racing", "full")
REPORT = 100
DATASET_SEED, GATE_SEED, TRUTH_SEED = 10_000_000, 20_000_000, 90_000_000
SEEDS_APART = 10_000
LABELLED_EPISODES, LABELS_PER_EPISODE = 30, 8
SIDE_BY_SIDE = 50


class Course(NamedTuple):
    """What is known about an environment, and how its policies are trained when none are given."""

    solved: float  # the return at which Gymnasium's registry calls it solved
    poor: float  # of a policy that has learned nothing
    baselines: tuple[tuple[int, int], ...]  # (steps of PPO, seed)
    expert: tuple[int, int]

    @property
    def margin(self) -> float:
        """A gain worth having: a tenth of the way from a poor return to the solved one."""
        return (self.solved - self.poor) / 10


COURSES = {
    "CartPole-v1": Course(475, 20, ((6_144, 5), (8_192, 3), (10_240, 6), (12_288, 4)), (81_920, 1)),
    "Acrobot-v1": Course(-100, -500, ((49_152, 0), (57_344, 0), (40_960, 3), (61_440, 4)), (122_880, 0)),
    "LunarLander-v3": Course(200, -180, ((81_920, 1), (122_880, 2), (163_840, 0), (122_880, 3)), (409_600, 0)),
}


class Question(NamedTuple):
    """Which episodes of which policy are wanted."""

    env_id: str
    folder: str
    seeds: range
    mode: Mode

    @property
    def key(self) -> str:
        """Names it in the file of rows."""
        return json.dumps([self.env_id, self.folder, self.seeds.start, len(self.seeds), self.mode])

    def parts(self, size: int) -> list[Question]:
        """The same, a few seeds at a time."""
        return [self._replace(seeds=self.seeds[at : at + size]) for at in range(0, len(self.seeds), size)]


class Plan(NamedTuple):
    """One comparison: a baseline, its logged episodes, and the gate's seeds, as all its refinements share them."""

    env_id: str
    number: int  # of the comparison, within the environment
    baseline: str  # folder
    expert: str  # folder
    mode: Mode
    truth_episodes: int

    @property
    def seeds(self) -> range:
        """Enough seeds for the longest gate."""
        first = GATE_SEED + self.number * SEEDS_APART
        return range(first, first + max(SELECT.values()) + max(ACCEPT.values()) + REPORT)

    def gate_seeds(self, method: Method) -> SeedPlan:
        """Of one comparison; both methods report on the same seeds."""
        accept, report = self.seeds.start + max(SELECT.values()), self.seeds.stop - REPORT
        return SeedPlan(
            range(self.seeds.start, self.seeds.start + SELECT[method]),
            range(accept, accept + ACCEPT[method]),
            range(report, self.seeds.stop),
        )

    def question(self, seeds: range) -> Question:
        """The baseline's episodes on some seeds."""
        return Question(self.env_id, self.baseline, seeds, self.mode)

    @property
    def truth_seeds(self) -> range:
        """Seeds that serve no other purpose."""
        return range(TRUTH_SEED, TRUTH_SEED + self.truth_episodes)


class Job(NamedTuple):
    """One refinement of a comparison."""

    plan: Plan
    kind: str
    draw: int

    @property
    def key(self) -> str:
        """Names everything that decides its row."""
        return json.dumps([*self.plan, self.kind, self.draw])


class Played(NamedTuple):
    """Episodes of one policy, (S,) each."""

    returns: Returns
    steps: NDArray[np.int64]


# --- policies ---------------------------------------------------------------------------------------------------------


def train_policy(task: tuple[str, tuple[int, int], str]) -> None:
    """Train one baseline or expert into its folder, unless it is there."""
    env_id, (timesteps, seed), folder = task
    config = TrainConfig(
        env_id=env_id, timesteps=timesteps, seed=seed, patience=0, evaluate_every=timesteps, evaluation_episodes=10
    )
    train_baseline(config, Path(folder))


def list_trainings(env_id: str, root: Path) -> list[tuple[str, tuple[int, int], str]]:
    """What `train_policy` is to do, expert first."""
    course = COURSES[env_id]
    folders = ["expert", *(f"checkpoints/{steps}-{seed}" for steps, seed in course.baselines)]
    runs = (course.expert, *course.baselines)
    return [(env_id, run, str(root / env_id / folder)) for folder, run in zip(folders, runs, strict=True)]


@functools.cache
def load_network(folder: str) -> MlpPolicy:
    return MlpPolicy.from_files({name: (Path(folder) / name).read_bytes() for name in ("policy.json", "weights.npz")})


# --- episodes ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _environments(env_id: str) -> list[Environment]:
    make = EnvironmentMaker(env_id)
    return [make() for _ in range(SIDE_BY_SIDE)]


def play_episodes(env_id: str, policy: MlpPolicy, seeds: Sequence[int], mode: Mode) -> list[Episode]:
    """One episode per seed, in this process."""
    return list(play(_environments(env_id)[: len(seeds)], policy, seeds, mode=mode))


def play_many(question: Question) -> tuple[list[float], list[int]]:
    """Returns and lengths of a policy's episodes, as JSON takes them."""
    episodes = play_episodes(question.env_id, load_network(question.folder), question.seeds, question.mode)
    return [episode.return_ for episode in episodes], [len(episode) for episode in episodes]


class Memory:
    """Plays policies on seeds, each pair once, and counts for each method what it asked for."""

    def __init__(self, plan: Plan, baseline: MlpPolicy, played: Played) -> None:
        self._plan = plan
        known = zip(plan.seeds, played.returns.tolist(), played.steps.tolist(), strict=True)
        self._known: dict[tuple[str, int], tuple[float, int]] = {
            (baseline.sha256, seed): (return_, steps) for seed, return_, steps in known
        }
        self._baseline = baseline.sha256
        self._asked: set[tuple[str, int]] = set()

    def returns(self, contestants: Sequence[Candidate], seeds: range, purpose: str = "") -> list[Returns]:
        """As a judge answers."""
        return [self._returns(contestant, seeds) for contestant in contestants]

    def count(self) -> dict[str, int]:
        """Episodes and steps since the last count, of candidates and of the baseline (which draws share)."""
        own = [pair for pair in self._asked if pair[0] != self._baseline]
        shared = [pair for pair in self._asked if pair[0] == self._baseline]
        self._asked = set()
        return {
            "episodes": len(own),
            "steps": sum(self._known[pair][1] for pair in own),
            "baseline_episodes": len(shared),
            "baseline_steps": sum(self._known[pair][1] for pair in shared),
        }

    def _returns(self, contestant: Candidate, seeds: range) -> Returns:
        sha = contestant.sha256
        missing = [seed for seed in seeds if (sha, seed) not in self._known]
        if missing:
            network = contestant.actor
            if not isinstance(network, MlpPolicy):
                raise TypeError(f"{contestant.policy_id} is no network")
            for episode in play_episodes(self._plan.env_id, network, missing, self._plan.mode):
                self._known[sha, int(episode.seed or 0)] = (episode.return_, len(episode))
        self._asked |= {(sha, seed) for seed in seeds}
        return np.array([self._known[sha, seed][0] for seed in seeds])


# --- labels -----------------------------------------------------------------------------------------------------------


def _steps_of(episodes: Sequence[Episode]) -> StepArrays:
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
    return _steps_of(play_episodes(plan.env_id, load_network(plan.baseline), seeds, "sampled"))


def _clean_labels(plan: Plan, steps: StepArrays, rng: np.random.Generator, per_episode: int) -> Labels:
    """The expert's greedy actions at states spread over every episode."""
    rows = np.concatenate(
        [
            start + np.array([rng.choice(part) for part in np.array_split(np.arange(length), per_episode) if part.size])
            for start, length in zip(steps.starts, steps.lengths, strict=True)
        ]
    ).astype(np.int64)
    suggestions = load_network(plan.expert).act(steps.observation[rows]).actions
    return Labels(rows, suggestions, np.ones(len(rows)), np.zeros(len(rows)))


def make_labels(job: Job, steps: StepArrays) -> tuple[Labels, RefineConfig]:
    """Labels of a kind and the recipe that uses them.

    - `clean`: the expert's actions, eight per episode; `few`: one per episode.
    - `half`: the expert's, half of them replaced by random ones; `worse`: four of five.
    - `tiny`: the expert's, but one to ten training steps: gains near zero, which are the hard cases of a gate.
    - `shuffled`, `random`, `no_labels`: the placebos, made from the clean labels as the program makes them.
    """
    space = spaces_of(_environments(job.plan.env_id)[0]).action
    # placebos of one comparison share their states, as they do in the program
    placing = np.random.default_rng([job.plan.number, 0 if job.kind in PLACEBOS else job.draw, 1])
    rng = np.random.default_rng([job.plan.number, job.draw, KINDS.index(job.kind), 2])
    labels = _clean_labels(job.plan, steps, placing, 1 if job.kind == "few" else LABELS_PER_EPISODE)
    if job.kind in PLACEBOS:
        labels = arm_labels(job.kind, labels, steps, space, rng)
    wrong = {"half": 0.5, "worse": 0.8}.get(job.kind, 0.0)
    chance = arm_labels("random", labels, steps, space, rng).suggestions
    where = rng.random(len(labels)) < wrong
    if labels.suggestions.ndim > 1:
        where = where[:, None]
    labels = dataclasses.replace(labels, suggestions=np.where(where, chance, labels.suggestions))
    recipe = RefineConfig(snapshots=(1, 2, 4, 7, 10)) if job.kind == "tiny" else RefineConfig()
    return labels, recipe


PLACEBOS = ("no_labels", "shuffled", "random")
KINDS = (*PLACEBOS, "clean", "few", "half", "worse", "tiny")
DRAWS = {"clean": 3, "few": 1, "half": 1, "worse": 1, "tiny": 2, "no_labels": 1}


def list_jobs(plan: Plan, placebo_draws: int) -> list[Job]:
    """All refinements of a comparison; one draw more of each placebo than a comparison has, to stand as the labels."""
    counts = DRAWS | dict.fromkeys(("shuffled", "random"), placebo_draws + 1)
    return [Job(plan, kind, draw) for kind in KINDS for draw in range(counts[kind])]


# --- one refinement ---------------------------------------------------------------------------------------------------


def refine_and_try(task: tuple[Job, Played, Played]) -> dict[str, Any]:
    """Refine, let both gates decide, and measure the truth of the winners.

    Args:
        task: the job, and what its baseline returned on the gate's seeds and on the truth's.
    """
    job, gated, truth = task
    started = time.process_time()
    from refine.training.train import refine  # seconds, and only where something is trained

    steps, baseline = _logged_steps(job.plan), load_network(job.plan.baseline)
    labels, recipe = make_labels(job, steps)
    snapshots = refine(steps, labels, baseline, recipe)
    trained = time.process_time()
    candidates = [Candidate.of(snapshot.policy, "refined") for snapshot in snapshots]
    memory = Memory(job.plan, baseline, gated)
    found = {method: _try(job, method, memory, baseline, candidates) for method in METHODS}
    for winner in {row["winner"] for row in found.values()}:
        (reached,) = memory.returns([candidates[winner]], job.plan.truth_seeds)
        true = _describe_truth(reached, truth.returns)
        for row in found.values():
            row |= true if row["winner"] == winner else {}
    ended = time.process_time()
    return {
        "key": job.key,
        "env": job.plan.env_id,
        "comparison": job.plan.number,
        "baseline": job.plan.baseline,
        "kind": job.kind,
        "draw": job.draw,
        "baseline_return": float(truth.returns.mean()),
        "methods": found,
        "training_s": trained - started,
        "seconds": ended - started,
    }


def _try(
    job: Job, method: Method, memory: Memory, baseline: MlpPolicy, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    seeds = job.plan.gate_seeds(method)
    memory.count()
    (finding,) = try_fields(memory.returns, Candidate.of(baseline, "baseline"), [candidates], seeds, method)
    spent = memory.count()
    gain = finding.decision.gain
    kept = candidates[finding.winner] if finding.decision.accepted else Candidate.of(baseline, "baseline")
    (report,) = memory.returns([kept], seeds.report)
    return {
        "winner": finding.winner,
        "accepted": finding.decision.accepted,
        "gain": [gain.mean, gain.low, gain.high, gain.n],
        **spent,
        "report": report.tolist(),
    }


def _describe_truth(returns: Returns, before: Returns) -> dict[str, Any]:
    """The winner against the baseline, paired on the truth's seeds, with the 95% interval of the difference."""
    difference = paired_difference(returns, before)
    return {
        "truth": float(returns.mean()),
        "truth_gain": difference.mean,
        "truth_low": difference.low,
        "truth_high": difference.high,
        "identical": bool(np.array_equal(returns, before)),
    }
