"""A refinement in an experiment tracker: one run of trackio per comparison, in a folder, offline.

What is entered is read from the outcome and the store, so no secret can be among it; nothing is decided here. trackio
itself sends runs to a server only where its own environment variables name one.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from storage.errors import BadInput, Prerequisite
from storage.policies import sum_dollars
from storage.store import Store

from ..refinement import ImproveConfig, Outcome, arm_title

PROJECT = "trajnote"
_FOLDER = "TRACKIO_DIR"


def enter_run(store: Store, outcome: Outcome, config: ImproveConfig, folder: Path) -> bool:
    """Log a comparison as a run named by its id; an existing run stays unchanged.

    Args:
        store: where the refinement was written.
        outcome: its result.
        config: its settings.
        folder: of the tracker, as `TRACKIO_DIR`; made if missing.

    Returns:
        Whether the run is new.

    Raises:
        Prerequisite: if trackio is not installed.
        BadInput: if this process tracks into another folder already.
    """
    trackio = load_tracker(folder)
    from trackio.sqlite_storage import SQLiteStorage

    if SQLiteStorage.get_logs(PROJECT, outcome.comparison_id):
        return False
    with redirect_stdout(sys.stderr):  # standard output belongs to the command
        trackio.init(
            project=PROJECT,
            name=outcome.comparison_id,
            config=parameters_of(outcome, config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for name, path in _artifacts(store, outcome).items():
            trackio.log_artifact(path, name=name, type=name.split("-")[0])
        trackio.log(metrics_of(store, outcome))
        trackio.finish()
    return True


def load_tracker(folder: Path) -> Any:
    """Import trackio, which reads its folder once, on import.

    Raises:
        Prerequisite, BadInput: as `enter_run`.
    """
    wanted = folder.resolve()
    os.environ[_FOLDER] = str(wanted)
    try:
        import trackio
        from trackio.utils import TRACKIO_DIR
    except ImportError as error:
        raise Prerequisite("Tracking needs trackio.", "pip install 'trajnote[tracking]'") from error
    if Path(TRACKIO_DIR).resolve() != wanted:
        raise BadInput(f"This process tracks into {TRACKIO_DIR} already, not into {wanted}.", "Use one folder.")
    wanted.mkdir(parents=True, exist_ok=True)
    return trackio


def parameters_of(outcome: Outcome, config: ImproveConfig) -> dict[str, Any]:
    """The settings and the baseline."""
    return {
        "dataset_id": outcome.dataset_id,
        "baseline": outcome.baseline_id,
        "policy_id": outcome.comparison.policy_id,
        "refine": config.refine.model_dump(mode="json"),
        "gate": config.gate.model_dump(mode="json"),
    }


def metrics_of(store: Store, outcome: Outcome) -> dict[str, float]:
    """Returns with their intervals for each arm and mode, the verdicts as 0 or 1, labels and dollars."""
    comparison = outcome.comparison
    metrics = {
        "labels": float(outcome.n_labels),
        "dollars": sum_dollars(store, [outcome.dataset_id]),
        "accepted": float(comparison.accepted),
        "better_than_baseline": float(comparison.improvement.holds),
        "labels_did_it": float(comparison.credit.holds),
    }
    for arm in comparison.arms:
        for mode, returns in (("greedy", arm.greedy), ("sampled", arm.sampled)):
            if returns is not None:
                start = f"{mode}/{arm_title(arm.arm)}"
                metrics |= {start: returns.mean, f"{start}/low": returns.low, f"{start}/high": returns.high}
    return metrics


def _artifacts(store: Store, outcome: Outcome) -> dict[str, Path]:
    """Files of the policy in force and the report, if they exist."""
    found = {
        f"policy-{outcome.comparison_id}": store.policy_dir(outcome.comparison.policy_id),
        f"report-{outcome.comparison_id}": store.reports_dir / f"{outcome.comparison_id}.html",
    }
    return {name: path for name, path in found.items() if path.exists()}
