"""The board's commands: `run` plays the rows of environments, `table` writes them into a page.

    python -m benchmarks.board run CartPole-v1 LunarLander-v3 --baselines baselines
    python -m benchmarks.board table

A run that was stopped goes on where it was: rows that are in the file of `--out` are not played again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.runtime.processes import core_count, parallel_map
from storage.errors import BadInput, TrajnoteError
from storage.store import Store

from .entries import FIRST_SEED, SEEDS_APART, Entry, list_entries
from .jobs import ARMS, JUDGED, STAGES, Job, budget_of, run_job
from .results import record_results, summarise
from .rows import Row, append_row, judged, read_rows
from .scenes import FIRST_LIST, ROUNDS, Scene, Sources, set_scene
from .table import draw_labels, draw_rules, draw_table, write_between

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "board.md"
OutOption = Annotated[Path, typer.Option(help="JSON lines, one per row; rows that are there are not played again.")]
app = typer.Typer(add_completion=False, help="The board of all environments and methods.", no_args_is_help=True)


@app.command()
def run(
    names: Annotated[list[str], typer.Argument(help="Environments, see baselines.toml; `all` for all.")],
    store: Annotated[Path, typer.Option(help="Store of the datasets and of the results.")] = Path("board-store"),
    out: OutOption = Path("board.jsonl"),
    baselines: Annotated[Path, typer.Option(help="Folder with NAME/baseline and NAME/expert.")] = Path("baselines"),
    answers: Annotated[Path | None, typer.Option(help="Recorded answers in place of the example's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds.")] = 5,
    arms: Annotated[str, typer.Option(help="Methods, separated by commas.")] = ",".join(ARMS),
    rules: Annotated[str, typer.Option(help="File of the list of rules in an example's folder.")] = FIRST_LIST,
    feedback_steps: Annotated[int, typer.Option(min=0, help="Environment steps that a later list took.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of relabelling.")] = ROUNDS,
    episodes: Annotated[int, typer.Option(min=0, help="Collect so many in all for the rules; 0: as they are.")] = 0,
    study: Annotated[bool, typer.Option(help="Labels after a study: `studied.jsonl` of an example's folder.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; one per core when left out.")] = None,
) -> None:
    """Play the rows of some environments and record them in a store."""
    began, chosen = time.perf_counter(), _choose(names)
    wanted, processes = _choose_arms(arms), workers or core_count()
    sources = Sources(baselines, answers, rules, feedback_steps, rounds, episodes, study)
    opened = Store.open(store) if store.exists() else Store.create(store)
    scenes = _set_scenes(opened, chosen, sources, out)
    for stage in STAGES:
        jobs = _list_jobs(scenes, [arm for arm in stage if arm in wanted], seeds, out)
        for row in parallel_map(run_job, jobs, min(processes, max(len(jobs), 1))):
            _tell(row)
    results = summarise([row for row in read_rows(out) if row.env in {scene.title for scene in scenes}])
    for scene in scenes:
        record_results(opened, scene, [result for result in results if result.env == scene.title])
    typer.echo(draw_table(results))
    last = FIRST_SEED + SEEDS_APART * seeds
    typer.echo(f"training seeds 0 to {seeds - 1}; the gates' and test episodes' seeds lie in {FIRST_SEED} .. {last}")
    typer.echo(f"{time.perf_counter() - began:.0f} s with {processes} processes; rows in {out}, leaderboard in {store}")


@app.command()
def table(
    out: OutOption = Path("board.jsonl"),
    page: Annotated[Path, typer.Option(help="Page with the place for the table.")] = PAGE,
) -> None:
    """Write the table of all rows into a page."""
    rows = read_rows(out)
    if not rows:
        raise BadInput(f"{out} has no rows.", "Run `python -m benchmarks.board run` first.")
    order = {name: place for place, name in enumerate(list_entries())}
    results = summarise(sorted(rows, key=lambda row: order.get(row.env.partition(",")[0], len(order))))
    for name, text in (("board", draw_labels(results)), ("rules", draw_rules(results, list(order)))):
        if text:
            write_between(page, name, text)
    typer.echo(f"{len(rows)} rows of {len({row.env for row in rows})} environments in {page}")


def _choose(names: Sequence[str]) -> list[Entry]:
    known = list_entries()
    if list(names) == ["all"]:
        return list(known.values())
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"{', '.join(unknown)} is not on the board.", f"Known are {', '.join(known)}.")
    return [known[name] for name in names]


def _choose_arms(text: str) -> set[str]:
    wanted = set(text.split(","))
    if unknown := wanted - set(ARMS):
        raise BadInput(f"Unknown methods {', '.join(sorted(unknown))}.", f"Known are {', '.join(ARMS)}.")
    return wanted


def _set_scenes(store: Store, entries: Sequence[Entry], sources: Sources, out: Path) -> list[Scene]:
    """The scenes of all environments; one that cannot be set is a failed row."""
    scenes: list[Scene] = []
    for entry in entries:
        try:
            scene = set_scene(store, entry, sources)
        except TrajnoteError as error:
            failed = Row(key="", env=entry.name, arm="baseline", seed=0, status="failed", reason=error.problem)
            append_row(out, failed)
            _tell(failed)
            continue
        scenes.append(scene)
        labels = scene.unlabelled or f"{len(scene.labels or ())} labels"
        typer.echo(f"{entry.name}: {scene.manifest.dataset_id}, {scene.manifest.steps} steps; {labels}", err=True)
    return scenes


def _list_jobs(scenes: Sequence[Scene], arms: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """The jobs of a stage that have no row yet; the hard environments, which take long, come first."""
    known = {(row.env, row.arm, row.seed): row for row in read_rows(out)}
    jobs: list[Job] = []
    for scene in reversed(scenes):
        for seed in range(seeds):
            own = {arm: known[name, arm, seed] for arm in ARMS if ((name := scene.title_of(arm)), arm, seed) in known}
            jobs += [_make_job(scene, arm, seed, out, own) for arm in arms]
    done = {row.key for row in known.values() if row.status == "done"}
    return [job for job in jobs if job.key not in done]


def _make_job(scene: Scene, arm: str, seed: int, out: Path, own: dict[str, Row]) -> Job:
    before = own.get("baseline") if arm in STAGES[1] or arm in JUDGED else None
    return Job(scene, arm, seed, out, before, own.get(JUDGED.get(arm, "")), budget_of(own, arm))


def _tell(row: Row) -> None:
    returns = judged(row)
    came = row.reason if row.status == "failed" else f"{sum(returns) / len(returns):.2f}; {row.reason}"
    typer.echo(f"{row.env} {row.arm} {row.seed}: {came} ({row.seconds:.0f} s)", err=True)


if __name__ == "__main__":
    try:
        app(standalone_mode=False)
    except TrajnoteError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
