"""Wrong labels: the plain and the robust recipe when a share of the suggestions is wrong.

    python -m benchmarks.noise --out noise.jsonl --baselines FOLDER
    python -m benchmarks.noise --env CartPole-v1 --kinds uniform,mirrored --quick

The clean labels are the recorded answers of the shipped examples; for other environments an expert's actions at 250
states, with the policies `FOLDER/ENV_ID/baseline` and `FOLDER/ENV_ID/expert`. Each cell is refined with several
training seeds, each with its own noise and its own episodes for selection, acceptance and report; what the gate leaves
in force plays the report. Intervals are 95% ones of the mean over training seeds and episodes, for both are drawn. Rows
are appended to `--out` as they come, and are not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.label_noise import Noise
from flows.refinement.comparison import Method
from flows.runtime.processes import core_count, parallel_map
from refine.evaluation.gate import interval_over_seeds

from .noise_world import RECIPES, RECORDED, Cell, Effort, Home, Kind, prepare, refine_and_judge
from .notebook import Notebook

FIRST_SEED = 40_000_000
SEEDS = (10, 11, 12, 13, 14)
RATES = {"LunarLander-v3": (0.3, 0.5), "CartPole-v1": (0.3, 0.5), "Hopper-v5": (0.3,)}
CONTINUOUS_KINDS = ("uniform", "region", "mirrored")
_ORDER = ("baseline", "clean", *get_args(Noise))
QUICK = Effort(select=8, accept=20, report=20)

Row = dict[str, Any]


def list_cells(env_id: str, arguments: argparse.Namespace) -> Iterator[Cell]:
    """All refinements of an environment; the long ones first, so that no process waits for the last."""
    effort = (QUICK if arguments.quick else Effort())._replace(method=arguments.gate)
    seeds = SEEDS[:1] if arguments.quick else tuple(arguments.seeds)
    kinds: list[Noise] = [kind for kind in arguments.kinds if env_id in RECORDED or kind in CONTINUOUS_KINDS]
    noises: list[tuple[Kind, float]] = [("clean", 0.0), *itertools.product(kinds, RATES.get(env_id, (0.3,)))]
    for recipe in reversed(arguments.recipes):
        for (kind, rate), seed in itertools.product(noises, seeds):
            yield Cell(env_id, kind, rate, recipe, seed, arguments.first_seed, effort)
    for seed in seeds:
        yield Cell(env_id, "baseline", 0.0, "plain", seed, arguments.first_seed, effort)


def compute(book: Notebook, home: Home, cells: Sequence[Cell], workers: int) -> list[Row]:
    """The rows of all cells, from the notebook or computed now."""
    missing = [cell for cell in cells if _key(cell) not in book.rows]
    with closing(parallel_map(refine_and_judge, [(home, cell) for cell in missing], workers)) as rows:
        for number, (cell, row) in enumerate(zip(missing, rows, strict=True), start=1):
            book.add({"key": _key(cell), **row})
            if number % 10 == 0:
                print(f"  {number} of {len(missing)} refinements", flush=True)
    return [book.rows[_key(cell)] for cell in cells]


def _key(cell: Cell) -> str:
    return json.dumps(cell)


def print_table(env_id: str, rows: Sequence[Row], recipes: Sequence[str]) -> None:
    """One line per kind and rate; a column per recipe: mean, interval, and how many refinements were accepted."""
    print(f"\n{env_id}: greedy return [95%], and refinements accepted")
    print(f"  {'labels':15} {'wrong':>6}  " + "".join(f"{recipe:38}" for recipe in recipes))
    order = sorted({(row["kind"], row["rate"]) for row in rows}, key=lambda kind: (_ORDER.index(kind[0]), kind[1]))
    for kind, rate in order:
        own = [row for row in rows if (row["kind"], row["rate"]) == (kind, rate)]
        name = kind if rate == 0 else f"{kind} {rate:.0%}"
        wrong = np.mean([row["wrong"] for row in own])
        columns = [
            _describe([row for row in own if row["recipe"] == recipe or row["kind"] == "baseline"])
            for recipe in recipes
        ]
        print(f"  {name:15} {wrong:6.0%}  " + "".join(f"{column:38}" for column in columns))


def _describe(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    found = interval_over_seeds([row["report"] for row in rows])
    words = f"{found.mean:7.1f} [{found.low:7.1f}, {found.high:7.1f}]"
    return words if rows[0]["accepted"] is None else f"{words}  {sum(row['accepted'] for row in rows)} of {len(rows)}"


def _parse() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", action="append", help="Gymnasium id; may be given again; default: all that there are")
    parser.add_argument("--baselines", type=Path, help="folder with ENV_ID/baseline and ENV_ID/expert, for Hopper-v5")
    parser.add_argument("--kinds", type=words, default=list(get_args(Noise)), help="of noise, separated by commas")
    parser.add_argument("--recipes", type=words, default=list(RECIPES), help="plain, robust")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in words(text)], default=SEEDS)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="first seed of the gate's episodes")
    parser.add_argument("--gate", choices=get_args(Method), default="racing", help="racing, or every episode")
    parser.add_argument("--quick", action="store_true", help="one training seed and few episodes: does it work?")
    parser.add_argument("--out", type=Path, help="file of rows, one JSON object a line; an interrupted run goes on")
    parser.add_argument("--workers", type=int, default=core_count())
    arguments = parser.parse_args()
    arguments.env = arguments.env or [*RECORDED, *(["Hopper-v5"] if arguments.baselines else [])]
    if missing := [env_id for env_id in arguments.env if env_id not in RECORDED and not arguments.baselines]:
        parser.error(f"{missing[0]} has no recorded answers: name a folder of policies with --baselines")
    return arguments


def main() -> None:
    arguments, started = _parse(), time.monotonic()
    book = Notebook(arguments.out)
    seeds = SEEDS[:1] if arguments.quick else arguments.seeds
    print(f"training seeds {list(seeds)}, gate's episodes from {arguments.first_seed}, {arguments.workers} processes")
    with tempfile.TemporaryDirectory() as folder:
        home = prepare(Path(folder) / "store", arguments.env, arguments.baselines)
        cells = {env_id: list(list_cells(env_id, arguments)) for env_id in arguments.env}
        rows = compute(book, home, [cell for own in cells.values() for cell in own], arguments.workers)
    for env_id in arguments.env:
        print_table(env_id, [row for row in rows if row["env_id"] == env_id], arguments.recipes)
    busy = sum(row["seconds"] for row in rows)
    print(f"\n{time.monotonic() - started:.0f} s; the rows took {busy:.0f} core-seconds, some of them perhaps earlier")


if __name__ == "__main__":
    main()
