"""`refine`: from a dataset and its annotations to a judged policy. The arms and the gate are in `contest.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from refine.config import RefineConfig
from refine.labels import labels_from_annotations
from storage.annotations import load_annotations
from storage.errors import BadInput, Prerequisite
from storage.schema import Frozen
from storage.steps import read_manifest, read_steps
from storage.store import Store

from .arms import Material
from .baselines import Baseline, find_baseline
from .contest import Comparison, Contest, GateConfig
from .judge import Judge
from .lineage import record_comparison
from .progress import Report, silent


class ImproveConfig(Frozen):
    """One refinement with its controls."""

    refine: RefineConfig = Field(default_factory=RefineConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    workers: int | None = Field(default=None, ge=1, description="processes; one per core when null; never the result")


@dataclass(frozen=True)
class Outcome:
    """A judged refinement and where it stands in the catalog."""

    comparison_id: str
    dataset_id: str
    baseline: Baseline
    comparison: Comparison
    n_labels: int


def improve(
    store: Store,
    dataset_id: str,
    config: ImproveConfig,
    *,
    run_ids: Sequence[str] | None = None,
    baseline: str | None = None,
    report: Report = silent,
) -> Outcome:
    """Refine the policy that made a dataset with the dataset's annotations, beside its controls, and judge it.

    Running it again gives the same and repeats no episode that was played.

    Args:
        store: the store.
        dataset_id: a dataset that was collected in a Gymnasium environment.
        config: refinement, gate and processes.
        run_ids: annotation runs whose labels count; all when None.
        baseline: another baseline than the dataset's policy, see `policies.load_policy`.
        report: shown the progress.

    Raises:
        Prerequisite: if the dataset has no annotations.
        BadInput: if it has no environment, or its seeds are among the gate's.
    """
    manifest = read_manifest(store, dataset_id)
    if manifest.env_id is None:
        raise BadInput(
            f"The dataset {dataset_id} has no environment, so nothing can judge a refinement.",
            "Import it with --env ENV_ID if there is a simulator of it.",
        )
    notes = load_annotations(store, dataset_id, run_ids)
    if not notes:
        raise Prerequisite(f"The dataset {dataset_id} has no annotations.", "Run `trajnote annotate` first.")
    steps = read_steps(store, dataset_id)
    _refuse_shared_seeds(store, dataset_id, config.gate)
    start = find_baseline(store, manifest, steps, baseline)
    labels = labels_from_annotations(notes, steps, manifest.action_space)
    material = Material(store.root, dataset_id, labels, start.policy, config.refine)
    judge = Judge(store, manifest.env_id, manifest.env_kwargs, config.workers)
    contest = Contest(material, judge, config.gate, report)
    comparison = contest.run()
    used = sorted({note.run_id for note in notes})
    return Outcome(record_comparison(contest, comparison, used), dataset_id, start, comparison, len(labels))


def _refuse_shared_seeds(store: Store, dataset_id: str, gate: GateConfig) -> None:
    with store.catalog.read() as con:
        rows = con.execute(
            "SELECT seed FROM episodes WHERE dataset_id = ? AND seed IS NOT NULL", [dataset_id]
        ).fetchall()
    gate.seeds.check_unused(seed for (seed,) in rows)
