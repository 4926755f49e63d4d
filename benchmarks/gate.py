"""Error rates of the gate: how often it accepts what is no better, misses what is better, or credits a placebo.

    python benchmarks/gate.py --out gate.jsonl
    python benchmarks/gate.py --quick

Baselines of several environments are refined with an expert's labels, with partly wrong ones, with placebos, and with
so few training steps that hardly anything changes. Each tested winner is then played on 500 seeds that serve nothing
else; that is the truth, paired with the baseline's on the same seeds. Both gates, racing and in full, judge the same
candidates with the same seeds. A gain worth having is a tenth of the way from a poor return to the solved one, a number
per environment that is printed. Rows are appended to `--out` as they come and are not computed again, so that an
interrupted run goes on; a changed gate or recipe needs a new file. Without `--baselines` policies are trained first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from gate_rates import Row, acceptance_rates, credit_rates, outcome, spending
from gate_world import (
    COURSES,
    METHODS,
    Job,
    Plan,
    Played,
    Question,
    list_jobs,
    list_trainings,
    load_network,
    play_many,
    refine_and_try,
    train_policy,
)
from notebook import Notebook

from flows.runtime.processes import core_count, parallel_map
from refine.policies.mlp import Mode

EXAMPLES = Path(__file__).parents[1] / "examples"
SCOUT_SEED = 80_000_000
SCOUT_EPISODES = 100
CHUNK = 50
MODES: tuple[Mode, ...] = ("greedy", "sampled")


def play_all(book: Notebook, wanted: Sequence[Question], workers: int) -> dict[str, Played]:
    """Episodes of policies, remembered in the notebook under their question."""
    asked = list(dict.fromkeys(wanted))
    keys = [question.key for question in asked]
    missing = [(key, question) for key, question in zip(keys, asked, strict=True) if key not in book.rows]
    parts = [(key, part) for key, question in missing for part in question.parts(CHUNK)]
    collected: dict[str, tuple[list[float], list[int]]] = {key: ([], []) for key, _ in missing}
    with closing(parallel_map(play_many, [task for _, task in parts], workers)) as played:
        for (key, _), (returns, steps) in zip(parts, played, strict=True):
            collected[key][0].extend(returns)
            collected[key][1].extend(steps)
    for key, (returns, steps) in collected.items():
        book.add({"key": key, "returns": returns, "steps": steps})
    return {key: Played(np.array(book.rows[key]["returns"]), np.array(book.rows[key]["steps"])) for key in keys}


def find_policies(root: Path, env_id: str) -> list[str]:
    """Folders of policies, the shipped baseline among them, equal ones once."""
    shipped = EXAMPLES / env_id.split("-")[0].lower() / "baseline"
    found = [*(root / env_id).rglob("policy.json"), *shipped.glob("policy.json")]
    folders = sorted((str(file.parent) for file in found), reverse=True)
    return sorted({load_network(folder).sha256: folder for folder in folders}.values())


def choose_policies(
    book: Notebook, root: Path, env_id: str, arguments: argparse.Namespace, workers: int
) -> tuple[list[str], str]:
    """The expert is the best policy; baselines are spread over those that are neither solved nor worse than poor."""
    course, folders = COURSES[env_id], find_policies(root, env_id)
    seeds = range(SCOUT_SEED, SCOUT_SEED + SCOUT_EPISODES)
    questions = [Question(env_id, folder, seeds, arguments.mode[0]) for folder in folders]
    played = play_all(book, questions, workers)
    reached = {folder: float(found.returns.mean()) for folder, found in zip(folders, played.values(), strict=True)}
    expert = max(reached, key=lambda folder: reached[folder])
    fit = [f for f in folders if course.poor <= reached[f] < min(course.solved, reached[expert]) - course.margin]
    fit.sort(key=lambda folder: reached[folder])
    places = np.linspace(0, len(fit) - 1, min(arguments.policies, len(fit))).round().astype(int)
    baselines = [fit[place] for place in places]
    print(f"{env_id}: gain worth having {course.margin:.0f}; expert {reached[expert]:.0f}; baselines", end=" ")
    print(", ".join(f"{reached[folder]:.0f}" for folder in baselines) or "none", flush=True)
    return baselines, expert


def list_plans(arguments: argparse.Namespace, env_id: str, baselines: Sequence[str], expert: str) -> list[Plan]:
    """Comparisons of an environment; modes take turns, and so do baselines."""
    turns: list[tuple[str, Mode]] = [(folder, mode) for folder in baselines for mode in arguments.mode]
    wanted = arguments.comparisons.get(env_id, arguments.comparisons[""])
    turns = [turns[n % len(turns)] for n in range(wanted if turns else 0)]
    return [Plan(env_id, n, folder, expert, mode, arguments.truth) for n, (folder, mode) in enumerate(turns)]


def run_jobs(book: Notebook, plans: Sequence[Plan], arguments: argparse.Namespace, workers: int) -> list[Row]:
    """All refinements of all plans, the long ones first; returns their rows."""
    asked = [plan.question(seeds) for plan in plans for seeds in (plan.seeds, plan.truth_seeds)]
    played = play_all(book, asked, workers)
    jobs = [job for plan in plans for job in list_jobs(plan, arguments.draws)]
    tasks = [(job, *_baseline_of(job, played)) for job in jobs if job.key not in book.rows]
    tasks.sort(key=lambda task: -float(task[1].steps.mean()))
    with closing(parallel_map(refine_and_try, tasks, workers)) as rows:
        for number, row in enumerate(rows, start=1):
            book.add(row)
            if number % 10 == 0:
                print(f"  {number} of {len(tasks)} refinements", flush=True)
    return [book.rows[job.key] for job in jobs]


def _baseline_of(job: Job, played: dict[str, Played]) -> tuple[Played, Played]:
    plan = job.plan

    def found(seeds: range) -> Played:
        return played[plan.question(seeds).key]

    return found(plan.seeds), found(plan.truth_seeds)


def tell(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    groups = {env_id: [row for row in rows if row["env"] == env_id] for env_id in arguments.env}
    for name, members in (*groups.items(), ("all environments", rows)):
        if not members:
            continue
        print(
            f"\n{name}: {len(members)} refinements, {len({(r['env'], r['comparison']) for r in members})} comparisons"
        )
        for method in METHODS:
            for line in _describe(members, method, arguments):
                print(f"  {method:7} {line}")


def _describe(rows: Sequence[Row], method: str, arguments: argparse.Namespace) -> Iterator[str]:
    margins = {env_id: COURSES[env_id].margin for env_id in arguments.env}
    rates = (*acceptance_rates(rows, method, margins), *credit_rates(rows, method, arguments.draws))
    yield from map(str, rates)
    same = sum(row["methods"][method]["identical"] for row in rows)
    in_force, tested = outcome(rows, method)
    spent, full = spending(rows, method, arguments.draws), spending(rows, "full", arguments.draws)
    yield f"winners that return exactly what the baseline does, counted nowhere above: {same}"
    yield f"mean true gain in force {in_force:.1f}, of the tested winners {tested:.1f}"
    arms, ratio = 2 + 2 * arguments.draws, full["steps"] / spent["steps"]
    yield f"to judge a comparison of {arms} arms: {spent['episodes']:.0f} episodes, {spent['steps']:,.0f} steps"
    yield f"environment steps in full, over these: {ratio:.2f}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--env", action="append", help="Gymnasium id; may be given again; default: " + ", ".join(COURSES)
    )
    parser.add_argument("--baselines", type=Path, help="folder ENV/.../policy.json; default: train them into --work")
    parser.add_argument("--work", type=Path, default=Path("gate-baselines"), help="where policies are trained")
    parser.add_argument("--out", type=Path, default=Path("gate.jsonl"), help="rows, one JSON object a line")
    parser.add_argument("--comparisons", default=[], nargs="+", help="per environment; ENV=N for one; default: 9")
    parser.add_argument("--policies", type=int, default=4, help="baselines per environment at most")
    parser.add_argument("--draws", type=int, default=3, help="draws of each placebo in a comparison")
    parser.add_argument("--truth", type=int, default=500, help="episodes per policy that are the truth")
    parser.add_argument("--mode", choices=MODES, action="append", help="how policies act; default: both, in turn")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--quick", action="store_true", help="CartPole-v1, one comparison, 100 episodes of truth")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.env, arguments.comparisons, arguments.truth = ["CartPole-v1"], ["1"], 100
    pairs = (text.rpartition("=") for text in ["9", *arguments.comparisons])
    arguments.comparisons = {env_id: int(number) for env_id, _, number in pairs}
    arguments.env = arguments.env or list(COURSES)
    arguments.mode = arguments.mode or MODES
    return arguments


def main() -> None:
    arguments, started = parse_arguments(), time.perf_counter()
    workers = arguments.workers or core_count()
    root = arguments.baselines or arguments.work
    if arguments.baselines is None:
        trainings: list[Any] = [task for env_id in arguments.env for task in list_trainings(env_id, root)]
        list(parallel_map(train_policy, sorted(trainings, key=lambda task: -task[1][0]), workers))
        print(f"baselines and experts in {root}: {time.perf_counter() - started:.0f} s", flush=True)
    book = Notebook(arguments.out)
    plans: list[Plan] = []
    for env_id in arguments.env:
        plans += list_plans(arguments, env_id, *choose_policies(book, root, env_id, arguments, workers))
    rows = run_jobs(book, plans, arguments, workers)
    tell(rows, arguments)
    if plans:
        gate, truth = plans[0].seeds.start, plans[0].truth_seeds
        print(f"\nseeds: the gate's from {gate:,}, the truth's from {truth.start:,}; modes {', '.join(arguments.mode)}")
    core_s = sum(row["seconds"] for row in rows)
    training_s = sum(row["training_s"] for row in rows)
    print(f"{core_s / 60:.0f} core-minutes of refinements, {training_s / 60:.0f} of them training")
    print(f"wall time {time.perf_counter() - started:.0f} s with {workers} processes")


if __name__ == "__main__":
    main()
