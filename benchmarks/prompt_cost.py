"""Input tokens per label: our prompts against two plain ones, and how good the labels are that they brought.

    python benchmarks/prompt_cost.py            (about half a minute; no key, no network)

The shipped examples are taken into a temporary store with the answers that a real model gave to our prompts. Their
requests are compared with

- naive: one request for each labelled state, which holds the whole trajectory in full precision;
- full precision: one request for each episode, which holds the whole trajectory in full precision.

All three have the same instructions and ask for the same labels. Numbers are written with as few digits as read back
to the same bits, and as `json.dumps(array.tolist())` writes them (a float32 as a float64), which is what most people
would send. Tokens are estimated from characters alike for all; digits make more tokens per character than words do, so
the true ratios are rather larger. `prefix apart` leaves out the instructions that all requests of a run share. The two
plain prompts were never sent, so the quality below is that of labels from our prompts only.

Quality is agreement with an expert controller on the labelled states: Gymnasium's own heuristic for LunarLander, a
linear-quadratic regulator for CartPole. The experts only judge; no label comes from them. The model that annotated may
well know such controllers from its training, so agreement says that its labels are good, not that it found them alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.box2d.lunar_lander import heuristic
from rich.console import Console
from rich.table import Table
from scipy.linalg import solve_discrete_are

from annotate.costs import Tokens as Counted
from annotate.costs import estimate_input, estimate_tokens, price
from annotate.prompting.requests import DEFAULT_MODEL, AnnotateConfig, Request
from annotate.quality import EDGES
from flows.demo import take_example
from flows.labelling.annotation import LabelConfig, label, plan
from storage.annotations.annotations import load_annotations
from storage.datasets.reader import iterate_episodes
from storage.schema import Annotation, Episode
from storage.store import Store

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GOALS = {"naive": 50, "full precision": 10}
Expert = Callable[[np.ndarray], int]


@dataclass(frozen=True)
class Study:
    """One example: what was asked, what came back, and what happened in its episodes."""

    name: str
    requests: list[Request]
    labels: list[Annotation]
    episodes: dict[int, Episode]


def main() -> int:
    """Print costs and quality; the exit code says whether the goals are met on LunarLander."""
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        lander = take_study(Path(folder) / "lunarlander", "lunarlander")
        pole = take_study(Path(folder) / "cartpole", "cartpole")
    met = [print_costs(console, study) for study in (lander, pole)]
    print_quality(console, lander, lander_expert(), "gymnasium's heuristic", "LunarLander-v3")
    print_quality(console, pole, pole_expert(), "a linear-quadratic regulator", "CartPole-v1")
    console.print("The annotating model may know these controllers; they judge here and make no label.")
    return 0 if met[0] else 1


def take_study(folder: Path, name: str) -> Study:
    """Take an example and its recorded answers into a new store."""
    store = Store.create(folder)
    dataset_id = take_example(store, EXAMPLES / name).dataset_id
    config = LabelConfig(
        provider="recorded", answers=EXAMPLES / name / "answers.jsonl", annotate=AnnotateConfig(model="claude")
    )
    requests = plan(store, dataset_id, config).plan.requests
    run_id = label(store, dataset_id, config).run_id
    labels = load_annotations(store, dataset_id, [run_id])
    return Study(name, requests, labels, {e.episode_id: e for e in iterate_episodes(store, dataset_id)})


def print_costs(console: Console, study: Study) -> bool:
    """One table of input tokens per label; returns whether both goals are met."""
    shared = estimate_tokens(str(study.requests[0].params["system"]))
    ours = sum(map(estimate_input, study.requests))
    table = Table(title=f"{study.name}: input tokens for {len(study.labels)} labels", title_justify="left")
    for column in ("prompt", "requests", "tokens", "per label", "times ours", "prefix apart", "dollars"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    rows = [("ours", len(study.requests), ours)]
    for digits in ("shortest", "tolist"):
        whole = {key: estimate_tokens(full_precision(e, digits)) for key, e in study.episodes.items()}
        overhead = shared + estimate_tokens(json.dumps(study.requests[0].params["output_config"]))
        rows += [
            (f"full precision, {digits}", len(whole), sum(size + overhead for size in whole.values())),
            (f"naive, {digits}", len(study.labels), sum(whole[n.episode_id] + overhead for n in study.labels)),
        ]
    for name, requests, tokens in rows:
        apart = (tokens - shared * requests) / (ours - shared * len(study.requests))
        dollars = price(DEFAULT_MODEL, Counted(input=tokens))
        table.add_row(
            name,
            f"{requests:,}",
            f"{tokens:,}",
            f"{tokens / len(study.labels):,.0f}",
            f"{tokens / ours:.1f}",
            f"{apart:.1f}",
            "" if dollars is None else f"{dollars:.2f}",
        )
    console.print(table)
    ratios = {name.partition(",")[0]: tokens / ours for name, _, tokens in rows if "shortest" in name}
    for name, goal in GOALS.items():
        met = "met" if ratios[name] >= goal else "not met"
        console.print(f"  {name}: {ratios[name]:.1f} times our tokens (goal {goal}: {met})")
    console.print(
        f"  the shared prefix of {shared:,} tokens is the same in every request of ours, so it can be cached\n"
    )
    return all(ratios[name] >= goal for name, goal in GOALS.items())


def full_precision(episode: Episode, digits: str) -> str:
    """A whole trajectory as JSON: every step, no digit left out."""

    def number(value: np.generic) -> str:
        return str(value) if digits == "shortest" else json.dumps(value.item())

    steps = [
        f'{{"step":{step},"observation":[{",".join(map(number, observation))}],'
        f'"action":{int(episode.actions[step])},"reward":{number(episode.rewards[step])}}}'
        for step, observation in enumerate(episode.observations[:-1])
    ]
    return "[" + ",".join(steps) + "]"


def print_quality(console: Console, study: Study, expert: Expert, who: str, env_id: str) -> None:
    """Agreement of labels and of the agent with an expert, on the labelled states."""
    right = np.array([expert(state_of(study, note)) for note in study.labels])
    said = np.array([int((note.suggested_action or (-1,))[0]) for note in study.labels])
    done = np.array([int(study.episodes[note.episode_id].actions[note.step]) for note in study.labels])
    confidence = np.array([note.confidence or 0.0 for note in study.labels])
    table = Table(title=f"{study.name}: agreement with {who} on labelled states", title_justify="left")
    for column in ("confidence", "labels", "labels agree", "the agent agrees"):
        table.add_column(column, justify="right")
    parts = [("all", np.ones(len(said), bool))]
    for low, high in pairwise(EDGES):
        parts.append((f"{low:g} to {high:g}", (confidence >= low) & ((confidence < high) | (high == EDGES[-1]))))
    for name, inside in parts:
        if inside.any():
            shares = ((said == right)[inside].mean(), (done == right)[inside].mean())
            table.add_row(name, str(inside.sum()), *(f"{share:.0%}" for share in shares))
    console.print(table)
    returns = play(env_id, expert)
    agent = np.mean([episode.return_ for episode in study.episodes.values()])
    console.print(f"  return of the expert {returns.mean():.0f} on {len(returns)} seeds, of the agent {agent:.0f}\n")


def state_of(study: Study, note: Annotation) -> np.ndarray:
    """The state that a label is about."""
    return study.episodes[note.episode_id].observations[note.step]


def lander_expert() -> Expert:
    """Gymnasium's hand-written controller of LunarLander."""
    environment = gymnasium.make("LunarLander-v3").unwrapped
    return lambda state: int(heuristic(environment, state))


def pole_expert() -> Expert:
    """Push with the sign of the optimal linear-quadratic force for the linearised cart-pole (Barto et al., 1983).

    Gymnasium's constants: gravity 9.8, cart 1.0 kg, pole 0.1 kg with half length 0.5 m, 0.02 s a step; unit weights.
    """
    gravity, pole, half, total, tau = 9.8, 0.1, 0.5, 1.1, 0.02
    inertia = half * (4 / 3 - pole / total)
    a = np.eye(4) + tau * np.array(
        [
            [0, 1, 0, 0],
            [0, 0, -pole * half * gravity / (inertia * total), 0],
            [0, 0, 0, 1],
            [0, 0, gravity / inertia, 0],
        ]
    )
    b = tau * np.array([[0], [1 / total + pole * half / (inertia * total**2)], [0], [-1 / (inertia * total)]])
    p = solve_discrete_are(a, b, np.eye(4), np.eye(1))
    gains = np.linalg.solve(np.eye(1) + b.T @ p @ b, b.T @ p @ a)[0]
    return lambda state: int(-gains @ state > 0)


def play(env_id: str, expert: Expert, seeds: Sequence[int] = range(9000, 9020)) -> np.ndarray:
    """Returns of an expert, so that its word can be weighed."""
    environment = gymnasium.make(env_id)
    returns: list[float] = []
    for seed in seeds:
        state, _ = environment.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            state, reward, terminated, truncated, _ = environment.step(expert(state))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    environment.close()
    return np.array(returns)


if __name__ == "__main__":
    sys.exit(main())
