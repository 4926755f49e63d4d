"""How long a list of rules takes to label many steps, by either engine: SQL for stored steps, NumPy for training.

    python -m benchmarks.rules_at_size [--steps 10000000] [--terms 30] [--rules 20] [--only train]

Steps of the shape of HalfCheetah-v5 (17 components, 6 dimensions; the numbers are chance, seed 0) are written into a
temporary store. Terms use earlier terms, `previous` and functions; each rule has a formula in every dimension. Both
engines have to count the same labels. The time of one pass over the columns that the list reads is the yardstick.
Then all arms are trained with these labels, by two processes, in a process of their own whose memory is watched.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.streaming import watch
from flows.refinement.arms import list_draws, train_draws
from flows.refinement.refinement import gather_material
from flows.runtime import parallel_map
from flows.simulation import Named
from refine.config import RefineConfig
from refine.labels.rule_labels import labels_from_rules
from refine.policies.mlp import MlpPolicy
from refine.policies.rule_lists import CompiledRules
from storage.annotations.rules import Rule, RuleList, count_decisions, insert_rule_lists
from storage.catalog import insert_rows
from storage.datasets import StepsWriter
from storage.datasets.reader import read_manifest, read_steps
from storage.formulas import Term
from storage.queries.query import run_query
from storage.schema import Episode, ManifestDraft, Space
from storage.store import Store

T = TypeVar("T")
COMPONENTS, DIMENSIONS, LENGTH = 17, 6, 1000
NAMES = tuple(f"c{n}" for n in range(COMPONENTS))
ACTIONS = Space(kind="box", dtype="float32", size=DIMENSIONS, low=(-1.0,) * DIMENSIONS, high=(1.0,) * DIMENSIONS)


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--terms", type=int, default=30)
    parser.add_argument("--rules", type=int, default=20)
    parser.add_argument("--only", choices=("count", "train"), help="leave the other part out")
    parser.add_argument("--train", type=Path, metavar="STORE", help="train there; nothing is watched")
    asked = parser.parse_args()
    if asked.train:
        train(Store.open(asked.train))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        write_steps(store, asked.steps)
        listed = make_list(asked.terms, asked.rules)
        with store.catalog.write() as con:
            insert_rows(con, "annotation_runs", [{"run_id": "law", "dataset_id": "made", "provider": "import"}])
            insert_rule_lists(con, store, [listed])
        if asked.only != "train":
            measure(store, listed)
        if asked.only != "count":
            peak = watch("benchmarks.rules_at_size", "--train", store.root)
            own, mapped = peak.own / 1e9, (peak.with_files - peak.own) / 1e9
            print(
                f"all arms trained in {peak.seconds:.0f} s: {own:.2f} GB of own memory, {mapped:.2f} GB of mapped files"
            )


def write_steps(store: Store, steps: int) -> None:
    """Episodes of 1,000 steps."""
    rng = np.random.default_rng(0)
    draft = ManifestDraft(
        dataset_id="made",
        source="collect",
        env_id="HalfCheetah-v5",
        observation_space=Space(kind="box", dtype="float32", size=COMPONENTS),
        action_space=ACTIONS,
        component_names=NAMES,
        action_names=tuple(f"a{n}" for n in range(DIMENSIONS)),
    )
    with StepsWriter(store, draft) as writer:
        for number in range(steps // LENGTH):
            writer.write(
                Episode(
                    episode_id=number,
                    seed=number,
                    observations=rng.normal(size=(LENGTH + 1, COMPONENTS)).astype(np.float32),
                    actions=rng.uniform(-1, 1, (LENGTH, DIMENSIONS)).astype(np.float32),
                    rewards=np.zeros(LENGTH),
                    terminated=False,
                    truncated=True,
                )
            )
        writer.finish()


def make_list(terms: int, rules: int) -> RuleList:
    """Terms that read components, the step before and earlier terms; rules that together match every step."""
    named = [Term("t0", "c0 - 0.5 * previous.c0")]
    forms = ("clip({0} + c{1}, -2, 2)", "sin({0}) * c{1}", "CASE WHEN {0} > c{1} THEN {0} ELSE -c{1} END")
    for number in range(1, terms):
        form = forms[number % len(forms)]
        named.append(Term(f"t{number}", form.format(f"t{number - 1}", number % COMPONENTS)))
    last = rules - 1
    made = [
        Rule(
            rule_id=f"u_{number}",
            run_id="law",
            request_id=None,
            dataset_id="made",
            position=number,
            predicate=f"t{number % terms} > {2 - number / 10}" if number < last else "c1 > -99",
            suggested_action=(None,) * DIMENSIONS,
            suggested_label="formula",
            confidence=0.9,
            rationale=None,
            model="made",
            prompt_version=None,
            formulas=tuple(f"t{(number + place) % terms} * 0.5 + {place / 10}" for place in range(DIMENSIONS)),
        )
        for number in range(rules)
    ]
    return RuleList("law", "law", None, "made", "made", None, rules=tuple(made), terms=tuple(named))


def measure(store: Store, listed: RuleList) -> None:
    """Time both engines and print a table."""
    columns = ", ".join(f"sum(observation[{place}])" for place in range(1, COMPONENTS + 1))
    scan, _ = timed(lambda: run_query(store, f"SELECT {columns} FROM steps"))
    counted, by_sql = timed(lambda: run_query(store, "SELECT count(*) AS n FROM rule_labels").to_pylist()[0]["n"])
    with store.catalog.read() as con:
        imported, _ = timed(lambda: count_decisions(con, listed, read_manifest(store, "made")))
    summed, _ = timed(lambda: run_query(store, "SELECT sum(suggested_action[1]) AS s FROM rule_labels"))
    steps = read_steps(store, "made")
    compiled = CompiledRules(listed, NAMES, ACTIONS)
    numpy, labels = timed(lambda: labels_from_rules([compiled], steps, ACTIONS))
    if by_sql != len(labels):
        raise SystemExit(f"SQL counts {by_sql:,} labels, NumPy {len(labels):,}")
    table = Table(title=f"{len(steps):,} rows, {len(listed.terms)} terms, {len(listed.rules)} rules, {by_sql:,} labels")
    for title in ("what", "seconds", "core seconds", "in scans"):
        table.add_column(title, justify="left" if title == "what" else "right")
    rows = {
        "a scan of all components": scan,
        "labels counted in SQL": counted,
        "labels counted by rule, as `rules import` does": imported,
        "one dimension summed in SQL": summed,
        "labels as arrays, NumPy": numpy,
    }
    for what, cost in rows.items():
        table.add_row(what, f"{cost.seconds:.1f}", f"{cost.core:.1f}", f"{cost.core / scan.core:.1f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def train(store: Store) -> None:
    """Train the annotator's and the placebos' arms a little; more steps take longer, not more memory."""
    rng, manifest = np.random.default_rng(0), read_manifest(store, "made")
    weights = (rng.normal(size=(COMPONENTS, 64)), rng.normal(size=(64, DIMENSIONS)))
    biases = (np.zeros(64), np.zeros(DIMENSIONS))
    policy = MlpPolicy(
        manifest.observation_space, ACTIONS, weights, biases, "tanh", "clip", log_std=np.zeros(DIMENSIONS)
    )
    folder = store.root.parent / "baseline"
    folder.mkdir()
    for name, content in policy.to_files().items():
        (folder / name).write_bytes(content)
    config = RefineConfig(snapshots=(100,))
    material = gather_material(store, manifest, config, None, rules=True, baseline=Named(f"policy:{folder}")).material
    draws = list_draws(2, labels=material.labels)
    made = sum(len(found) for [found] in parallel_map(partial(train_draws, material), [[draw] for draw in draws]))
    print(f"{made} candidates of {len(draws)} draws with {len(material.labels):,} labels", flush=True)


class Cost(NamedTuple):
    """Seconds on the clock, and of all cores together, children included."""

    seconds: float
    core: float


def timed(action: Callable[[], T]) -> tuple[Cost, T]:
    """What it costs, and its result."""
    start, spent = time.perf_counter(), _core_seconds()
    result = action()
    return Cost(time.perf_counter() - start, _core_seconds() - spent), result


def _core_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
