"""The shipped example, end to end: adopt the rollouts, replay the recorded answers, refine, judge, report.

Nothing here is special to the demo: it takes the steps of the flow `pipeline`. Prefect would only record them, and its
server takes longer to start than the labels take to train with, so it has no part here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from annotate.prompting import AnnotateConfig
from storage.datasets import adopt_dataset
from storage.errors import Prerequisite
from storage.schema import Manifest
from storage.store import Store

from .labelling import LabelConfig, label_some
from .policies import load_policy, record_actor
from .refinement import GateConfig, ImproveConfig, Outcome, improve
from .reporting import write_report
from .runtime import listener
from .simulation import Named, Replay, Spaces, replay_episode

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lunarlander"
RECORDED_MODEL = "claude"
_PICTURES = 576  # one of each label, and one of the refined policy beside it
_REPORTED = 60  # episodes; `refine` reports 100


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    outcome: Outcome
    replay: Replay  # of the first episode, here and now
    report: Path | None  # the page to look at; None without the extra `plots`
    seconds: float


def run_demo(store_root: Path, workers: int | None = None) -> DemoResult:
    """Run the shipped LunarLander example; a second run finds everything done and says the same.

    Args:
        store_root: folder of the store; made if need be.
        workers: processes; one per core when None.
    """
    started = time.monotonic()
    store = Store.create(store_root)
    manifest = take_example(store, EXAMPLE)
    asked = AnnotateConfig(model=RECORDED_MODEL)
    label = LabelConfig(provider="recorded", answers=EXAMPLE / "answers.jsonl", annotate=asked)
    run = label_some(store, manifest.dataset_id, label, listener())
    improved = ImproveConfig(gate=GateConfig(report=_REPORTED), workers=workers)
    outcome = improve(store, manifest.dataset_id, improved, run_ids=[run.run_id], report=listener())
    replay = replay_episode(store, manifest.dataset_id, 0)
    page = _write_page(store, outcome.comparison_id)
    return DemoResult(outcome, replay, page, time.monotonic() - started)


def _write_page(store: Store, comparison_id: str) -> Path | None:
    try:
        return write_report(store, comparison_id, pictures=_PICTURES, report=listener()).path
    except Prerequisite:
        return None


def take_example(store: Store, folder: Path) -> Manifest:
    """Take an example's dataset and its baseline into a store."""
    manifest = adopt_dataset(store, folder / "rollouts")
    spaces = Spaces(manifest.observation_space, manifest.action_space)
    record_actor(store, load_policy(Named(f"policy:{folder / 'baseline'}"), spaces, store), manifest)
    return manifest
