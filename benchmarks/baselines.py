"""Train the board's baselines and experts: `python -m benchmarks.baselines --out baselines Hopper-v5 Acrobot-v1`.

One training per environment, by `flows.policies.train_baseline`. The expert is the best policy of the whole training.
The baseline is the policy of the first plateau, which is what `python -m flows.policies.train_baseline` ends with by
itself; where that plateau is the solution, there is nothing to improve, and the baseline is the last policy that had
not come half the way. The arguments are in `baselines.toml`. Nothing is judged here.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.policies.train_baseline import TRAINING_LOG, TrainConfig, is_plateau, train_baseline

_NOTHING_LEFT = 0.1  # of the rise; a plateau so near to the best is the solution
_CONFIGURATIONS = Path(__file__).with_name("baselines.toml")


def read_configurations() -> dict[str, TrainConfig]:
    """How the expert of each environment is trained, by the environment's name on the board."""
    tables = tomllib.loads(_CONFIGURATIONS.read_text())
    return {name: TrainConfig(timesteps=table.pop("budget"), patience=0, **table) for name, table in tables.items()}


def train(name: str, config: TrainConfig, out: Path) -> str:
    """Train one environment's policies into `out/name/{baseline,expert,checkpoints}`; returns a line about it."""
    folder, begun = out / name, time.perf_counter()
    train_baseline(config, folder, keep_zip=True, checkpoints=True)
    return f"{choose(folder)}; {time.perf_counter() - begun:.0f} s"


def choose(folder: Path) -> str:
    """Copy the plateau's checkpoint to `baseline` and the best one to `expert`; returns a line about them.

    Works on a training that was cut off, too: the plateau and the best are those of what there is.
    """
    checkpoints = sorted((folder / "checkpoints").glob("*/evaluation.json"))
    evaluations: list[dict[str, Any]] = [json.loads(path.read_text()) for path in checkpoints]
    greedy = [float(evaluation["greedy"]) for evaluation in evaluations]
    chosen = {"baseline": _stuck(greedy), "expert": max(range(len(greedy)), key=greedy.__getitem__)}
    for role, number in chosen.items():
        shutil.copytree(checkpoints[number].parent, folder / role, dirs_exist_ok=True)
    words = [f"{role} {greedy[n]:.4g} after {evaluations[n]['timesteps']} steps" for role, n in chosen.items()]
    return f"{folder.name}: " + ", ".join(words)


def _stuck(greedy: Sequence[float]) -> int:
    """Which evaluation's policy is the baseline."""
    rule = TrainConfig(env_id="any")
    ends = [n for n in range(1, len(greedy) + 1) if is_plateau(greedy[:n], rule.patience, rule.tolerance)]
    plateau, best, rise = min(ends, default=len(greedy)) - 1, max(greedy), max(greedy) - greedy[0]
    if rise == 0 or best - greedy[plateau] > _NOTHING_LEFT * rise:
        return plateau
    arrived = next(n for n, found in enumerate(greedy) if found - greedy[0] > rise / 2)
    return max(arrived - 1, 0)


def _train_logged(job: tuple[str, TrainConfig, Path]) -> str:
    try:
        return train(*job)
    except Exception as error:  # the other environments go on
        return f"{job[0]}: failed: {type(error).__name__}: {error}"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Environments of baselines.toml; all when none.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the policies.")] = Path("baselines"),
    workers: Annotated[int | None, typer.Option(help="Processes; one per core when left out.")] = None,
) -> None:
    """Train baselines and experts, several environments side by side."""
    known = read_configurations()
    unknown: Sequence[str] = sorted(set(names or ()) - known.keys())
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; known are {', '.join(known)}")
    jobs = [(name, known[name], out) for name in names or known if not (out / name / TRAINING_LOG).is_file()]
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for line in pool.imap_unordered(_train_logged, jobs):
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
