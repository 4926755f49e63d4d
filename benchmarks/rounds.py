"""What a second and a third round gain: `python -m benchmarks.rounds --baselines baselines CartPole-v1 Acrobot-v1`.

Each round collects with the policy in force, labels it, refines it, and is judged against it on seeds of its own. The
annotator is an *oracle*: an expert policy's greedy actions at states that are spread evenly over the chosen episodes,
so this measures the rounds, not an annotator. `--keep` also gives each round the labels and rollouts of the earlier
ones; without it, its own alone. Baselines and experts that are not there are trained first, by `benchmarks.baselines`.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from annotate.importing.labels import import_annotations
from annotate.prompting.selection import select_episodes
from flows.datasets.collection import CollectConfig
from flows.labelling.annotation import LabelConfig
from flows.policies.loading import load_policy
from flows.refinement.comparison import GateConfig
from flows.refinement.present import short
from flows.refinement.refinement import ImproveConfig, Outcome, improve
from flows.refinement.rounds import Round, RoundsConfig, plain_work, run_rounds
from flows.simulation.environments import Spaces
from refine.config import RefineConfig
from storage.annotations.annotations import load_annotations
from storage.datasets import StepsWriter
from storage.datasets.reader import iterate_episodes, read_manifest
from storage.schema import Array, ManifestDraft, content_id
from storage.store import Store

from .baselines import read_configurations, train

ACTING = Literal["greedy", "sampled"]


class Oracle:
    """Labels a dataset with an expert's greedy actions."""

    def __init__(self, folder: Path, expert: Path, states: int) -> None:
        self._folder = folder
        self._expert = expert
        self._states = states

    def label(self, store_root: Path, dataset_id: str, config: LabelConfig) -> str:
        """Label evenly spread states of the episodes that the configuration selects; returns the run."""
        store = Store.open(store_root)
        manifest = read_manifest(store, dataset_id)
        expert = load_policy(f"policy:{self._expert}", Spaces(manifest.observation_space, manifest.action_space))
        episodes = list(iterate_episodes(store, dataset_id))
        lines: list[str] = []
        for episode in select_episodes(episodes, config.limit, method=config.select, seed=config.select_seed):
            count = min(self._states, len(episode))
            steps = np.unique(np.linspace(0, len(episode) - 1, count).round().astype(int))
            actions = expert.act(np.asarray(episode.observations)[steps], mode="greedy").actions
            lines += [
                _line(dataset_id, episode.episode_id, int(step), action)
                for step, action in zip(steps, actions, strict=True)
            ]
        path = self._folder / f"{dataset_id}.jsonl"
        path.write_text("".join(lines))
        return import_annotations(store, path).run_ids[0]


class Keeper:
    """Improves with the rollouts and labels of all rounds so far, joined into one dataset."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: list[tuple[str, str]] = []  # dataset and run

    def improve(self, store_root: Path, dataset_id: str, run_ids: list[str], config: ImproveConfig) -> Outcome:
        """Refine the policy of the newest dataset with all labels."""
        store = Store.open(store_root)
        self._seen.append((dataset_id, run_ids[0]))
        joined, run_id = self._join(store)
        baseline = read_manifest(store, dataset_id).policy
        return improve(store, joined, config, run_ids=[run_id], baseline=baseline)

    def _join(self, store: Store) -> tuple[str, str]:
        first, lines, offset = read_manifest(store, self._seen[0][0]), list[str](), 0
        joined = content_id("joined-", self._seen, 12)
        draft = ManifestDraft(
            dataset_id=joined,
            source="import",
            env_id=first.env_id,
            env_kwargs=first.env_kwargs,
            observation_space=first.observation_space,
            action_space=first.action_space,
            component_names=first.component_names,
            action_names=first.action_names,
            policy_output=first.policy_output,
        )
        with StepsWriter(store, draft) as writer:
            for dataset_id, run_id in self._seen:
                for note in load_annotations(store, dataset_id, [run_id]):
                    action = np.array(note.suggested_action)
                    lines.append(_line(joined, note.episode_id + offset, note.step, action))
                for episode in iterate_episodes(store, dataset_id):
                    number = episode.episode_id + offset
                    if number >= writer.episodes_done:
                        writer.write(replace(episode, episode_id=number))
                offset += read_manifest(store, dataset_id).episodes
            writer.finish()
        path = self._folder / f"{joined}.jsonl"
        path.write_text("".join(lines))
        return joined, import_annotations(store, path).run_ids[0]


def _line(dataset_id: str, episode_id: int, step: int, action: Array) -> str:
    values = np.atleast_1d(action).astype(float).tolist()
    label = {"dataset_id": dataset_id, "episode_id": episode_id, "step": step, "suggested_action": values}
    return json.dumps({**label, "model": "oracle"}) + "\n"


def go(name: str, folder: Path, baselines: Path, config: RoundsConfig, *, keep: bool, states: int) -> str:
    """Run the rounds of one environment; returns a line per round and one about the whole."""
    begun = time.perf_counter()
    oracle = Oracle(folder, baselines / name / "expert", states)
    work = replace(plain_work(), label=oracle.label)
    series = run_rounds(config, replace(work, improve=Keeper(folder).improve) if keep else work)
    seconds = time.perf_counter() - begun
    which = "labels of all rounds" if keep else "each round's own labels"
    lines = [_tell(made, config) for made in series.rounds]
    return "\n".join([f"{name}, {which}", *lines, f"  {series.ended}; {seconds:.0f} s"])


def _tell(made: Round, config: RoundsConfig) -> str:
    arms, acting = {arm.arm: arm for arm in made.outcome.comparison.arms}, config.improve.gate.mode
    before, after = (getattr(arms[name], acting) for name in ("baseline", "labels"))
    credit = "the labels did it" if made.outcome.comparison.credit.holds else "no credit to the labels"
    verdict = "accepted" if made.accepted else "rejected"
    return (
        f"  round {made.number}: {made.outcome.n_labels} labels; {acting} {short(before)} -> {short(after)},"
        f" gain {short(made.gain)}; {verdict}, {credit}"
    )


def main(
    names: Annotated[list[str], typer.Argument(help="Environments of baselines.toml.")],
    baselines: Annotated[Path, typer.Option(help="Folder of NAME/{baseline,expert}; trained where missing.")],
    out: Annotated[Path, typer.Option(help="Folder of the stores.")] = Path("rounds"),
    rounds: Annotated[int, typer.Option(help="At most.")] = 3,
    episodes: Annotated[int, typer.Option(help="Episodes that each round collects.")] = 30,
    limit: Annotated[int, typer.Option(help="Of them, how many are labelled.")] = 15,
    states: Annotated[int, typer.Option(help="Labelled states per episode.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the training, and of the first episode.")] = 0,
    gate_mode: Annotated[ACTING, typer.Option(help="How policies act in the gate.")] = "sampled",
    keep: Annotated[bool, typer.Option("--keep", help="Also use the labels of earlier rounds.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; one per core when left out.")] = None,
) -> None:
    """Measure what rounds gain with an oracle as the annotator."""
    known = read_configurations()
    for name in names:
        if not (baselines / name / "expert").is_dir():
            typer.echo(train(name, known[name], baselines))
        folder = out / f"{name}-{'all' if keep else 'own'}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        config = RoundsConfig(
            store=folder / "store",
            collect=CollectConfig(
                env_id=known[name].env_id,
                env_kwargs=known[name].env_kwargs,
                policy=f"policy:{baselines / name / 'baseline'}",
                mode="sampled",
                episodes=episodes,
                seed=seed * rounds * episodes,
            ),
            label=LabelConfig(limit=limit),
            improve=ImproveConfig(
                refine=RefineConfig(seed=seed), gate=GateConfig(mode=gate_mode, placebo_draws=2), workers=workers
            ),
            rounds=rounds,
        )
        gate = config.improve.gate.seeds
        size = gate.report.stop - gate.select.start
        first, last = config.collect.seed, config.collect.seed + rounds * episodes - 1
        typer.echo(
            f"seeds: training {seed}; episodes {first} to {last}; gates {gate.select.start} to"
            f" {gate.select.start + rounds * size - 1}"
        )
        typer.echo(go(name, folder, baselines, config, keep=keep, states=states))


if __name__ == "__main__":
    typer.run(main)
