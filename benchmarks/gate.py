"""Error rates of the verdicts: false and true accepts, and how often the labels get credit, rightly and wrongly.

    python benchmarks/gate.py --out gate.jsonl
    python benchmarks/gate.py --quick

Baselines of several environments are refined with an expert's labels, with partly wrong ones and with placebos; each is
judged with greedy and with sampled actions. The truth of a
tested winner is `--truth` episodes that serve nothing else, paired with the baseline's on the same seeds.

Credit is decided as the program decides it. True credit: the expert's labels against `--draws` draws of each placebo.
False credit: each draw of a placebo stands once as the labels, against the others. A draw can only be credited if it is
ahead of all others, so only such draws are taken through the gate.

A gain worth having is a tenth of the way from a poor return to the solved one, a number per environment that is
printed. Rows are appended to `--out` as they come and are not computed again, so that an interrupted run goes on; a
changed gate or recipe needs a new file. Baselines are the shipped ones, and short trainings in `--work`, which are
skipped where the extra `sb3` is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import chain, zip_longest
from pathlib import Path

from gate_rates import Row, describe, standing_draws
from gate_world import COURSES, MODES, Job, Plan, list_jobs, list_trainings, refine_and_try, train_policy
from notebook import Notebook

from flows.runtime.processes import core_count, parallel_map

EXAMPLES = Path(__file__).parents[1] / "examples"
FIRST_PLAN = 10
"""Plans before this one chose what is ranked."""


def list_plans(env_id: str, arguments: argparse.Namespace) -> list[Plan]:
    """Refinements of an environment share a baseline, its log and its seeds; the shipped baseline comes first."""
    shipped = EXAMPLES / env_id.split("-")[0].lower() / "baseline"
    folders = [
        str(shipped),
        *(folder for _, _, folder in list_trainings(env_id, arguments.work) if Path(folder).exists()),
    ]
    wanted = arguments.plans.get(env_id, arguments.plans[""])
    modes = tuple(arguments.mode or MODES)
    return [Plan(env_id, FIRST_PLAN + n, folders[n % len(folders)], arguments.truth, modes) for n in range(wanted)]


def run_jobs(book: Notebook, jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """All refinements that are not in the notebook yet."""
    tasks = [(job, arguments.draws) for job in jobs if job.key not in book.rows]
    with closing(parallel_map(refine_and_try, tasks, arguments.workers)) as rows:
        for number, row in enumerate(rows, start=1):
            book.add(row)
            if number % 10 == 0:
                print(f"  {number} of {len(tasks)} refinements", flush=True)


def run_plan(book: Notebook, plan: Plan, arguments: argparse.Namespace) -> list[Row]:
    """One plan's refinements, then the draws of chance that are ahead of all others, through the gate."""
    jobs = list_jobs(plan, arguments.draws, arguments.gated if plan.number == FIRST_PLAN else 0)
    run_jobs(book, jobs, arguments)
    rows = [book.rows[job.key] for job in jobs]
    ahead = [Job(plan, kind, draw, -1) for kind, draw in standing_draws(rows, arguments.draws)]
    run_jobs(book, ahead, arguments)
    return list({row["key"]: row for row in (*rows, *(book.rows[job.key] for job in ahead))}.values())


def tell(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    margins = {env_id: COURSES[env_id].margin for env_id in arguments.env}
    groups = {env_id: [row for row in rows if row["env"] == env_id] for env_id in arguments.env}
    for name, members in (*groups.items(), ("all environments", list(rows))):
        if members:
            print(f"\n{name}: {len(members)} refinements, {len({(r['env'], r['plan']) for r in members})} plans")
            print("\n".join(f"  {line}" for line in describe(members, margins, arguments.draws)), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--env", action="append", help="Gymnasium id; may be given again; default: " + ", ".join(COURSES)
    )
    parser.add_argument("--work", type=Path, default=Path("gate-baselines"), help="where baselines are trained")
    parser.add_argument("--out", type=Path, default=Path("gate.jsonl"), help="rows, one JSON object a line")
    parser.add_argument("--plans", default=[], nargs="+", help="per environment; ENV=N for one; default: 3")
    parser.add_argument("--draws", type=int, default=19, help="draws of each placebo in a comparison")
    parser.add_argument(
        "--gated",
        type=int,
        default=3,
        help="draws of an environment's first plan that pass the gate, too: the cost before",
    )
    parser.add_argument("--truth", type=int, default=100, help="episodes per policy that are the truth")
    parser.add_argument("--mode", choices=MODES, action="append", help="how policies act; default: both")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--quick", action="store_true", help="CartPole-v1, one plan, 50 episodes of truth")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.env, arguments.plans, arguments.truth = ["CartPole-v1"], ["1"], 50
    pairs = (text.rpartition("=") for text in ["3", *arguments.plans])
    arguments.plans = {env_id: int(number) for env_id, _, number in pairs}
    arguments.env = arguments.env or list(COURSES)
    return arguments


def main() -> None:
    arguments, started = parse_arguments(), time.perf_counter()
    if importlib.util.find_spec("stable_baselines3") and not arguments.quick:
        trainings = [task for env_id in arguments.env for task in list_trainings(env_id, arguments.work)]
        list(parallel_map(train_policy, trainings, arguments.workers or core_count()))
        print(f"baselines in {arguments.work}: {time.perf_counter() - started:.0f} s", flush=True)
    book, rows = Notebook(arguments.out), list[Row]()
    turns = zip_longest(*(list_plans(env_id, arguments) for env_id in arguments.env))
    for plan in filter(None, chain.from_iterable(turns)):
        print(f"{plan.env_id}, plan {plan.number}, {plan.baseline}", flush=True)
        rows += run_plan(book, plan, arguments)
        tell(rows, arguments)
    print(f"{sum(row['seconds'] for row in rows) / 60:.0f} core-minutes, ", end="")
    print(f"{sum(row['training_s'] for row in rows) / 60:.0f} of them training")
    print(f"wall time {time.perf_counter() - started:.0f} s with {arguments.workers or core_count()} processes")


if __name__ == "__main__":
    main()
