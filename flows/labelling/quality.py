"""`annotate quality`: the labels of a store's runs, measured and judged before anything is trained on them.

Reading is done here; the measures are in `annotate/quality/quality.py`, the words in `verdict.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from annotate.quality import Judgement, Quality, assess_run, judge
from storage.annotations import count_rejections, list_rule_runs, list_runs, load_annotations, load_label_replays
from storage.datasets import pick, read_manifest, read_steps
from storage.errors import Prerequisite
from storage.store import Store


@dataclass(frozen=True)
class Checkup:
    """One run's labels: the numbers and the verdict."""

    quality: Quality
    judgement: Judgement


def check_labels(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[Checkup]:
    """Measure and judge the annotation runs of a dataset, the oldest first.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        run_ids: runs, or unique beginnings of their ids; all of the dataset when None.

    Raises:
        Prerequisite: if the dataset has no annotation run.
        BadInput: for an unknown run.
    """
    known = list_runs(store, dataset_id)
    if not known:
        raise Prerequisite(f"The dataset {dataset_id} has no annotation run.", "Label it with `trajnote annotate`.")
    named = known if run_ids is None else [pick(name, known, "annotation run") for name in run_ids]
    ruled = set(list_rule_runs(store, dataset_id))
    wanted = [run_id for run_id in named if run_id not in ruled]
    if not wanted:
        raise Prerequisite(
            f"{', '.join(named)} of {dataset_id} gave rules, not labels.", "`trajnote rules list` says what rules do."
        )
    annotations, replays = load_annotations(store, dataset_id), load_label_replays(store, dataset_id, current=True)
    steps, space = read_steps(store, dataset_id), read_manifest(store, dataset_id).action_space
    refused = count_rejections(store)
    found = [
        assess_run(run_id, annotations, steps, space, rejections=refused.get(run_id, {}), replays=replays)
        for run_id in wanted
    ]
    return [Checkup(quality, judge(quality)) for quality in found]


def as_plain(checkup: Checkup) -> dict[str, Any]:
    """A checkup as JSON can say it: arrays of single labels left out, null where nothing was measured."""
    plain = {field.name: _plain(getattr(checkup.quality, field.name)) for field in fields(Quality)}
    judgement = checkup.judgement
    return plain | {"verdict": judgement.verdict, "reasons": [_plain(reason) for reason in judgement.reasons]}


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: _plain(item) for name, item in named.items() if not isinstance(item, np.ndarray)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
