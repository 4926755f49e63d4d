"""The labels of a subject beside their steps, and the summaries that charts and tables show."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from annotate.quality import EDGES, Bin
from storage.queries import Row, ask
from storage.store import Store

from ...labelling import Checkup
from .facts import Subject

POSITION_BINS = 20
CONFIRMS = "confirms the logged action"
QUESTIONS = {
    "out_of_fold": "predicted from other episodes’ labels",
    "opinions": "other opinions agree",
    "replays": "better when replayed",
}
"""Short names for what `annotate.quality.calibration` compares a label with."""
_Z = 1.959963984540054  # of a 95% interval


class Share(NamedTuple):
    """A share of some cases, with Wilson's interval for it (Wilson, JASA 1927)."""

    share: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: int, n: int) -> Share:
        """The share of `hits` among `n` > 0 cases."""
        p, spread = hits / n, _Z * math.sqrt(hits / n * (1 - hits / n) / n + _Z**2 / (4 * n * n))
        centre, scale = p + _Z**2 / (2 * n), 1 + _Z**2 / n
        return cls(p, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale), n)


def load_labels(store: Store, subject: Subject) -> list[Row]:
    """All labels of the subject's runs with their logged step and, if any, the replay that measured them."""
    with store.catalog.read() as con:
        return ask(con, "report/labels", dataset=subject.dataset_id, runs=list(subject.run_ids))


def sample_states(store: Store, dataset_id: str) -> list[list[float]]:
    """Some of the states that a dataset visited, always the same ones, (1500, n) at most."""
    with store.catalog.read() as con:
        return [row["observation"] for row in ask(con, "report/states", dataset=dataset_id)]


def position_rows(labels: Sequence[Row]) -> list[Row]:
    """Number of labels per twentieth of their episode, by whether they confirm the logged action."""
    counted = Counter((_bin(row["step"] / max(row["length"], 1), POSITION_BINS), _stance(row)) for row in labels)
    return [
        {"from": 100 * place / POSITION_BINS, "to": 100 * (place + 1) / POSITION_BINS, "stance": stance, "labels": n}
        for (place, stance), n in sorted(counted.items())
    ]


def confidence_rows(labels: Sequence[Row], checkups: Sequence[Checkup]) -> list[Row]:
    """Agreement of labels with everything they can be compared with, by stated confidence.

    Args:
        labels: as loaded; compared with the logged action.
        checkups: of their runs; compared with other opinions, a classifier of other episodes' labels, and replays.

    Returns:
        `question`, `confidence` (mean of the bin), `share` with `low` and `high` (95%), and `n`.
    """
    rows = [
        row
        for low, high in pairwise(EDGES)
        for row in _logged_share([label for label in labels if _lies_in(label["confidence"], low, high)])
    ]
    bins = [found for checkup in checkups if checkup.quality.calibration for found in checkup.quality.calibration.bins]
    for source, question in QUESTIONS.items():
        compared: dict[float, list[Bin]] = defaultdict(list)
        for found in bins:
            if source in found.compared:
                compared[found.low].append(found)
        rows += [_pooled(question, source, alike) for _, alike in sorted(compared.items())]
    return rows


def _logged_share(labels: Sequence[Row]) -> list[Row]:
    known = [label for label in labels if label["agrees"] is not None]
    if not known:
        return []
    mean = sum(label["confidence"] for label in known) / len(known)
    share = Share.of(sum(label["agrees"] for label in known), len(known))
    return [{"question": CONFIRMS, "confidence": mean} | share._asdict()]


def _pooled(question: str, source: str, bins: Sequence[Bin]) -> Row:
    """One bin of several runs."""
    n = sum(found.compared[source] for found in bins)
    agreed = sum(found.agreement[source] * found.compared[source] for found in bins)
    labels = sum(found.labels for found in bins)
    mean = sum(found.confidence * found.labels for found in bins) / labels
    return {"question": question, "confidence": mean} | Share.of(round(agreed), n)._asdict()


def _lies_in(confidence: float | None, low: float, high: float) -> bool:
    return confidence is not None and (low <= confidence < high or confidence == high == EDGES[-1])


def action_table(labels: Sequence[Row], action_names: Sequence[str]) -> list[Row]:
    """How often each logged action got each suggestion; empty if actions have no names.

    Returns:
        One row per logged action: `logged`, `total`, and `suggested`, the counts in the order of the names.
    """
    counted = Counter((row["action_name"], row["suggested_label"]) for row in labels)
    known = set(action_names)
    if not counted or any(logged not in known for logged, _ in counted):
        return []
    return [
        {
            "logged": logged,
            "total": sum(n for (was, _), n in counted.items() if was == logged),
            "suggested": [counted[logged, suggested] for suggested in action_names],
        }
        for logged in action_names
    ]


def state_rows(labels: Sequence[Row], visited: Sequence[Sequence[float]], components: int, limit: int) -> list[Row]:
    """Points of the state space: visited ones, and labelled ones with their stance.

    Args:
        labels: as loaded.
        visited: states without a label.
        components: number of leading components kept, as c0, c1 ...
        limit: labelled points at most, evenly spaced.
    """
    shown = labels[:: max(1, math.ceil(len(labels) / limit))]
    points = [(row["observation"], _stance(row)) for row in shown]
    points = [(state, "visited") for state in visited] + points
    return [
        {f"c{n}": _four_digits(value) for n, value in enumerate(state[:components])} | {"stance": stance}
        for state, stance in points
    ]


def _stance(row: Row) -> str:
    return "no suggestion" if row["agrees"] is None else "confirms" if row["agrees"] else "corrects"


def _bin(share: float, bins: int) -> int:
    return min(bins - 1, max(0, int(share * bins)))


def _four_digits(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
