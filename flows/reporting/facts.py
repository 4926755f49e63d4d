"""What a report is about, what the catalog says of it, and how a page writes that: numbers, names, text from strangers.

Episodes are in `episodes.py`. The questions are `storage/queries/report/*.sql`. Rationales and raw replies come from a
language model, names from cards and files of unknown origin: what a page shows of them is what it is. HTML escaping is
the template's work.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from annotate.cards import card_at_hand
from annotate.quality import EDGES, Bin
from storage.annotations import has_rules, list_runs, summarise_rules
from storage.datasets import pick, read_manifest
from storage.disk import visible
from storage.errors import Prerequisite
from storage.queries import Row, ask
from storage.schema import Manifest, Space
from storage.store import Store

from ..labelling import Checkup


@dataclass(frozen=True)
class Subject:
    """The subject of a report."""

    name: str  # as asked for; names the file
    dataset_id: str
    run_ids: tuple[str, ...]  # annotation runs whose labels are shown
    comparison_id: str | None  # None if nothing was judged yet
    refinement_id: str | None  # the one asked for; None: the one with the annotator's labels


def find_subject(store: Store, name: str | None) -> Subject:
    """Find the subject that a user means.

    Args:
        store: the store.
        name: id of a refinement, comparison, run or dataset, or a unique beginning of one; None for the newest
            comparison, or the newest dataset while there is none.

    Raises:
        BadInput: if the name fits nothing, or several.
        Prerequisite: if the store is empty.
    """
    with store.catalog.read() as con:
        known = {row["name"]: row for row in ask(con, "report/subjects")}
        if name is None:
            name = _newest(known.values())
        chosen = known[pick(name, sorted(known), "refinement, comparison, run or dataset")]
        runs = ask(con, "report/runs_of_comparison", comparison=chosen["comparison_id"], dataset=chosen["dataset_id"])
    run_ids = [row["run_id"] for row in runs] or list_runs(store, chosen["dataset_id"])
    return Subject(
        name=chosen["name"],
        dataset_id=chosen["dataset_id"],
        run_ids=(chosen["name"],) if chosen["kind"] == "run" else tuple(run_ids),
        comparison_id=chosen["comparison_id"],
        refinement_id=chosen["name"] if chosen["kind"] == "refinement" else None,
    )


def _newest(known: Collection[Row]) -> str:
    """The newest comparison, or the newest dataset while there is none."""
    for kind in ("comparison", "dataset"):
        made = [(row["created_at"], row["name"]) for row in known if row["kind"] == kind]
        if made:
            return str(max(made)[1])
    raise Prerequisite("The store is empty.", "Collect a dataset first: `trajnote collect` or `trajnote demo`.")


@dataclass(frozen=True)
class Facts:
    """Everything but labels and episodes in a report; rows are dictionaries by column."""

    subject: Subject
    manifest: Manifest  # with the names of the runs' card
    level: Row  # of the dataset's episodes
    comparison: Row | None
    arms: Sequence[Row]
    refinements: Sequence[Row]
    candidates: Sequence[Row]
    runs: Sequence[Row]
    spending: Sequence[Row]
    questions: Sequence[Row]
    rejections: Sequence[Row]
    policies: Sequence[Row]  # the policy in force, then what it came from
    prompts: Sequence[Row]  # one request of each kind, of the first run
    replays: Sequence[Row]
    rules: Sequence[Row] = ()  # of these runs, with their coverage
    ruled: Row | None = None  # steps that the rules match, and all steps

    @property
    def estimated(self) -> bool:
        """Whether the comparison is an estimate, without playing."""
        return self.comparison is not None and self.comparison["basis"] == "estimated"

    @property
    def gained(self) -> bool:
        """Whether the gate accepted the refinement with the annotator's labels."""
        return any(row["arm"] == "labels" and row["accepted"] for row in self.refinements)

    @property
    def judged(self) -> Row | None:
        """The refinement in question: the one asked for, the one in force, or the one with the annotator's labels."""
        asked = [row for row in self.refinements if row["refinement_id"] == self.subject.refinement_id]
        arm = self.comparison["promoted_arm"] if self.comparison else None
        in_force = [row for row in self.refinements if row["arm"] == arm]
        own = [row for row in self.refinements if row["arm"] == "labels"]
        return next(iter([*asked, *in_force, *own]), None)


def gather_facts(store: Store, subject: Subject) -> Facts:
    """Query the catalog, which is closed again on return."""
    runs, comparison_id = list(subject.run_ids), subject.comparison_id
    rules = summarise_rules(store, subject.dataset_id, runs) if has_rules(store, runs) else None
    with store.catalog.read() as con:
        found = ask(con, "report/comparison", comparison=comparison_id)
        comparison = found[0] if found else None
        asked = ask(con, "report/runs", runs=runs)
        return Facts(
            subject=subject,
            manifest=_in_words_of_the_card(read_manifest(store, subject.dataset_id), card_shown(asked)),
            level=ask(con, "report/level", dataset=subject.dataset_id)[0],
            comparison=comparison,
            arms=ask(con, "report/arms", comparison=comparison_id),
            refinements=ask(con, "report/refinements", comparison=comparison_id),
            candidates=ask(con, "report/candidates", comparison=comparison_id),
            runs=asked,
            spending=ask(con, "report/spending", runs=runs),
            questions=ask(con, "report/requests", runs=runs),
            rejections=ask(con, "report/rejections", runs=runs),
            policies=ask(con, "report/ancestors", policy=comparison["policy_id"] if comparison else None),
            prompts=ask(con, "report/prompts", run=runs[0]) if runs else [],
            replays=ask(con, "report/replays", dataset=subject.dataset_id),
            rules=rules.rules if rules else (),
            ruled={"covered": rules.covered, "steps": rules.steps} if rules else None,
        )


def card_shown(runs: Sequence[Row]) -> dict[str, Any]:
    """The card that the first of some runs showed its annotator, as JSON says it; empty if none did."""
    return next((card for run in runs if (card := read_object(run["card"]))), {})


def units_shown(store: Store, facts: Facts) -> dict[str, str]:
    """The unit of each component, from the card that the annotator saw, the dataset's, or the packaged one."""
    if shown := card_shown(facts.runs):
        return {str(entry["name"]): str(entry.get("unit") or "") for entry in shown.get("components", ())}
    card = card_at_hand(store, facts.manifest)
    return {component.name: component.unit for component in card.components} if card else {}


def _in_words_of_the_card(manifest: Manifest, card: Mapping[str, Any]) -> Manifest:
    """The manifest with a card's names of components and actions, which the labels use and the dataset may lack."""
    named = {
        field: tuple(str(entry["name"]) for entry in card.get(part, ()))
        for field, part in (("component_names", "components"), ("action_names", "actions"))
    }
    fitting = {field: names for field, names in named.items() if len(names) == len(getattr(manifest, field))}
    return manifest.model_copy(update=fitting)


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


def load_labels(store: Store, facts: Facts) -> list[Row]:
    """All labels of the subject's runs with their logged step and, if any, the replay that measured them.

    Discrete actions are named as in `facts.manifest`, the logged one and the suggested one alike.
    """
    subject, space = facts.subject, facts.manifest.action_space
    with store.catalog.read() as con:
        found = ask(con, "report/labels", dataset=subject.dataset_id, runs=list(subject.run_ids))
    if not space.is_discrete:
        return found
    named: dict[int | None, str] = dict(enumerate(facts.manifest.action_names, space.start))
    return [
        row
        | {
            "action_name": named.get(_value(row["action_vector"]), row["action_name"]),
            "suggested_label": named.get(_value(row["suggested_action"]), row["suggested_label"]),
        }
        for row in found
    ]


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


MOST_ACTIONS = 40
"""Rows of the table of actions; one of more is no table that anybody reads."""


def action_table(labels: Sequence[Row], space: Space, names: Sequence[str]) -> Row | None:
    """How often each logged action got each suggestion; None of continuous actions, and of too many different ones.

    Args:
        labels: as loaded; actions are counted by their values.
        space: of the actions.
        names: of its values.

    Returns:
        `columns`, the suggestions' names; `rows`, one per logged action: `logged`, `same` (the place of its column),
        `total`, and `suggested`, the counts by column. Of more than a dozen actions only those that occur.
    """
    if not space.is_discrete or not labels:
        return None
    counted = Counter((_value(row["action_vector"]), _value(row["suggested_action"])) for row in labels)
    values: list[int | None] = list(range(space.start, space.start + len(names)))
    if len(values) > MOST_ACTIONS // 3:
        values = [value for value in values if any(value in pair for pair in counted)]
    if len(values) > MOST_ACTIONS:
        return None
    suggested = values + [None] * any(pair[1] is None for pair in counted)
    rows = [
        {
            "logged": names[value - space.start],
            "same": place,
            "total": sum(n for (logged, _), n in counted.items() if logged == value),
            "suggested": [counted[value, column] for column in suggested],
        }
        for place, value in enumerate(values)
        if value is not None
    ]
    columns = ["no suggestion" if column is None else names[column - space.start] for column in suggested]
    return {"columns": columns, "rows": rows}


def _value(action: Sequence[float] | None) -> int | None:
    return None if not action else int(action[0])


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


_ARM_NAMES = {
    "baseline": "baseline",
    "labels": "refined with the labels",
    "no_labels": "no labels (plain cloning)",
    "shuffled": "shuffled labels",
    "random": "random suggestions",
    "permuted": "formulas that read other components",
    "random_states": "random states, nearest labels",
    "oracle": "an expert's actions",
    "rules_played": "the rules themselves, played",
}
_NEVER_IN_A_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_NUMBERS = {float, int, bool, type(None)}


def arm_name(arm: str) -> str:
    """An arm's name for people."""
    return _ARM_NAMES.get(arm, arm.replace("_", " "))


def number(value: float | None, digits: int = 1) -> str:
    """A number for people, with a true minus sign and thin spaces between thousands."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def spread(row: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    return f"{number(row['return_'])} {interval_of(row)}"


def interval_of(row: Mapping[str, Any]) -> str:
    """An interval."""
    return f"[{number(row['low'])}, {number(row['high'])}]"


def when(moment: datetime | None) -> str:
    """A time to the minute, in UTC."""
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M UTC")


def plain_reason(reason: str | None) -> str:
    """A sentence with the arms' names for people."""
    return re.sub(r"(?<![\w])-(?=\d)", "−", (reason or "").replace("no_labels", "no labels"))


def read_object(text: Any) -> dict[str, Any]:
    """The object in a JSON column; empty if null."""
    value = json.loads(text) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}


def all_visible(value: Any) -> Any:
    """Make all texts in a JSON-able value `disk.visible`; numbers that JSON lacks become None.

    Args:
        value: nested mappings, sequences, texts, numbers, booleans and None.
    """
    if isinstance(value, float):  # numbers first: they are by far the most frequent
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): all_visible(item) for key, item in value.items()}
    return _all_of(value)


def _all_of(values: Iterable[Any]) -> list[Any]:
    """A sequence likewise; a long one of numbers or of texts at once, as the columns of an episode are."""
    items = list(values)
    kinds = set(map(type, items))
    if kinds <= _NUMBERS:
        return [None if isinstance(item, float) and not math.isfinite(item) else item for item in items]
    if kinds == {str}:
        distinct = {item: visible(item) for item in set(items)}
        return [distinct[item] for item in items]
    return [all_visible(item) for item in items]


def script_json(value: Any) -> str:
    """JSON that is safe inside a `<script>` element: no tag, comment or line separator can begin in it."""
    text = json.dumps(all_visible(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.translate(_NEVER_IN_A_SCRIPT)
