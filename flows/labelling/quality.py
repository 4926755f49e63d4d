"""`annotate quality`: the labels of a store's runs, judged before anything is trained on them, alone or against gold.

Reading is done here; the measures are in `annotate/quality/`. Gold is what a trusted reader says of the same states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from annotate.quality import (
    Estimated,
    GoldScore,
    GoldSet,
    Judgement,
    Opinion,
    Paired,
    Quality,
    Rate,
    Rivalry,
    Stratum,
    assess_run,
    compare_runs,
    judge,
    read_gold,
    score_run,
)
from storage.annotations import count_rejections, list_rule_runs, list_runs, load_annotations, load_label_replays
from storage.datasets import pick, read_manifest, read_steps, resolve_dataset
from storage.errors import BadInput, Prerequisite
from storage.queries import Row, ask
from storage.schema import Space
from storage.store import Store

PERSON = "human:"
"""The beginning of the name of an annotator who is a person."""
_EMPTY = dict.fromkeys(("prompt_version", "suggested_action", "suggested_label", "implicit_reward", "confidence"))


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
            f"{', '.join(named)} of {dataset_id} gave rules, not labels.", "`trajnote rules list` shows what rules do."
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
    judgement = checkup.judgement
    reasons = [_plain(reason) for reason in judgement.reasons]
    return {**_plain(checkup.quality), "verdict": judgement.verdict, "reasons": reasons}


def _plain(value: Any) -> Any:
    if isinstance(value, Rate | Estimated | Paired):
        return value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(item) for name, item in vars(value).items() if not isinstance(item, np.ndarray)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class GoldReport:
    """Runs judged by a gold set."""

    dataset_id: str
    gold: GoldSet
    scores: tuple[GoldScore, ...]
    rivalries: tuple[Rivalry, ...]  # each two runs with common gold states
    remarks: tuple[str, ...]  # what was left out, and what the numbers do not say


def score_against_gold(
    store: Store, gold: Sequence[str], *, dataset: str | None = None, runs: Sequence[str] | None = None
) -> GoldReport:
    """Judge annotation runs, labels and rules alike, by one or more gold runs.

    Args:
        store: the store.
        gold: runs of trusted readers, or unique beginnings of their ids; the name of a reader means all of theirs.
        dataset: theirs, if the user names it.
        runs: the runs to judge; all of the dataset with a common state when None.

    Raises:
        BadInput: for an unknown run, one of another dataset, a run that is gold and judged at once, or a gold run
            that is named twice or gave rules.
        Prerequisite: if no run has labelled a state of the gold set.
    """
    with store.catalog.read() as con:
        known = {row["run_id"]: row for row in ask(con, "quality/runs")}
    trusted = _gold_runs(known, gold)
    dataset_id = _common_dataset(store, [known[run_id] for run_id in trusted], dataset)
    judged = _judged_runs(known, runs, trusted, dataset_id)
    space = read_manifest(store, dataset_id).action_space
    with store.catalog.read() as con:
        reviews = ask(con, "quality/reviews", runs=trusted)
    found = _read_set(store, dataset_id, trusted, reviews, space)
    opinions = _opinions(store, dataset_id, judged, found)
    shared = {run_id: own for run_id in judged if (own := opinions.get(run_id))}
    if not shared or (runs is not None and len(shared) < len(judged)):
        _refuse_strangers(found, [run_id for run_id in judged if run_id not in shared])
    rivals = [compare_runs(one, other, found, space) for one, other in combinations(shared.values(), 2)]
    return GoldReport(
        dataset_id=dataset_id,
        gold=found,
        scores=tuple(score_run(own, found, space) for own in shared.values()),
        rivalries=tuple(rivalry for rivalry in rivals if rivalry is not None),
        remarks=tuple(_remarks(found, reviews, known, space)),
    )


def find_gold_runs(store: Store, dataset_id: str) -> list[str]:
    """The gold set of a dataset: the runs that answer a gold queue, or else all that people have labelled."""
    with store.catalog.read() as con:
        rows = ask(con, "quality/runs")
    own = [row for row in rows if row["dataset_id"] == dataset_id and row["labels"]]
    blind = [row["run_id"] for row in own if row["review"] == "gold"]
    return blind or [row["run_id"] for row in own if str(row["model"] or "").startswith(PERSON)]


def score_by_readers(store: Store, dataset_id: str, runs: Sequence[str]) -> GoldReport | None:
    """Judge runs by the gold set of their dataset; None if it has none, or nobody has labelled its states.

    Args:
        store: the store.
        dataset_id: of the runs.
        runs: those to judge; gold runs among them judge themselves in no way.
    """
    gold = find_gold_runs(store, dataset_id)
    judged = [run_id for run_id in runs if run_id not in gold]
    if not gold or not judged:
        return None
    try:
        found = score_against_gold(store, gold, dataset=dataset_id)
    except Prerequisite:
        return None
    scores = tuple(score for score in found.scores if score.run_id in judged)
    pairs = tuple(pair for pair in found.rivalries if pair.first in judged and pair.second in judged)
    return replace(found, scores=scores, rivalries=pairs) if scores else None


def _gold_runs(known: Mapping[str, Row], names: Sequence[str]) -> list[str]:
    picked = [run_id for name in names for run_id in _runs_named(known, name)]
    for run_id in picked:
        if picked.count(run_id) > 1:
            raise BadInput(f"--gold names {run_id} twice.", "Name each gold run once.")
        if known[run_id]["rules"] or known[run_id]["review"] == "rules":
            raise BadInput(f"{run_id} is about rules; a gold set has answers about single states.")
    return picked


def _runs_named(known: Mapping[str, Row], name: str) -> list[str]:
    """The runs of a reader, or the run of that id or its beginning."""
    of_reader = [run_id for run_id, row in known.items() if row["model"] == name and row["labels"]]
    return of_reader or [pick(name, list(known), "annotation run")]


def _common_dataset(store: Store, gold: Sequence[Row], dataset: str | None) -> str:
    """The dataset of the gold runs, which has to be one."""
    wanted = gold[0]["dataset_id"] if dataset is None else resolve_dataset(store, dataset)
    for row in gold:
        if row["dataset_id"] != wanted:
            raise BadInput(f"The gold run {row['run_id']} is of the dataset {row['dataset_id']}, not {wanted}.")
    return str(wanted)


def _judged_runs(
    known: Mapping[str, Row], names: Sequence[str] | None, gold: Sequence[str], dataset_id: str
) -> list[str]:
    if not names:
        return [name for name, row in known.items() if row["dataset_id"] == dataset_id and name not in gold]
    picked = list(dict.fromkeys(pick(name, list(known), "annotation run") for name in names))
    for run_id in picked:
        if run_id in gold:
            raise BadInput(f"{run_id} is the gold run itself.", "Name another run with --run, or none for all.")
        if known[run_id]["dataset_id"] != dataset_id:
            raise BadInput(
                f"The run {run_id} is of the dataset {known[run_id]['dataset_id']}; the gold run is of {dataset_id}."
            )
    return picked


def _read_set(store: Store, dataset_id: str, gold: Sequence[str], reviews: Sequence[Row], space: Space) -> GoldSet:
    blind = [row for row in reviews if row["kind"] == "gold"]
    queues = {row["queue_id"] for row in blind}
    is_random = len(queues) == 1 and {row["run_id"] for row in blind} == set(gold)
    with store.catalog.read() as con:
        rows = ask(con, "quality/opinions", dataset=dataset_id, runs=list(gold), episodes=None, steps=None)
        strata = ask(con, "quality/strata", queue=queues.pop()) if is_random else []
    answers = _as_reviewed([_opinion(row) for row in rows], reviews)
    drawn = [
        Stratum(frozenset((episode_id, step) for episode_id, step in row["places"]), row["size"]) for row in strata
    ]
    return read_gold(answers, space, refused=_verdicts(reviews), strata=drawn)


def _as_reviewed(answers: Sequence[Opinion], reviews: Sequence[Row]) -> list[Opinion]:
    """Answers of reviews say of `critical` only what the reader said, and a refusal alone is an answer, too."""
    known = {(row["run_id"], row["episode_id"], row["step"]): row["critical"] for row in reviews}
    reviewed = {row["run_id"] for row in reviews}
    kept = [
        replace(answer, critical=known.get((answer.run_id, *answer.place))) if answer.run_id in reviewed else answer
        for answer in answers
    ]
    there = {(answer.run_id, *answer.place) for answer in answers}
    refusals = [row for row in reviews if row["verdict"] == "reject" and row["action_vector"] is not None]
    lone = [row for row in refusals if (row["run_id"], row["episode_id"], row["step"]) not in there]
    return kept + [_opinion({**_EMPTY, **row, "opinion_id": row["review_id"]}) for row in lone]


def _verdicts(reviews: Sequence[Row]) -> dict[str, bool]:
    """Annotation -> whether the readers find its suggestion right, where they say so with one voice."""
    found: dict[str, set[bool]] = {}
    for row in reviews:
        if row["annotation_id"] and row["verdict"] in ("accept", "correct", "reject"):
            found.setdefault(row["annotation_id"], set()).add(row["verdict"] == "accept")
    return {name: verdicts.pop() for name, verdicts in found.items() if len(verdicts) == 1}


def _opinions(store: Store, dataset_id: str, runs: Sequence[str], gold: GoldSet) -> dict[str, list[Opinion]]:
    """What runs say of the states of a gold set, by run."""
    episodes, steps = ([place[axis] for place in gold.states] for axis in (0, 1))
    with store.catalog.read() as con:
        rows = ask(con, "quality/opinions", dataset=dataset_id, runs=list(runs), episodes=episodes, steps=steps)
    found: dict[str, list[Opinion]] = {}
    for row in rows:
        found.setdefault(row["run_id"], []).append(_opinion(row))
    return found


def _opinion(row: Row) -> Opinion:
    return Opinion(
        opinion_id=row["opinion_id"],
        run_id=row["run_id"],
        model=row["model"],
        prompt_version=row["prompt_version"],
        place=(row["episode_id"], row["step"]),
        suggested=None if row["suggested_action"] is None else tuple(row["suggested_action"]),
        label=row["suggested_label"],
        logged=tuple(row["action_vector"]),
        critical=row["critical"],
        grade=row["implicit_reward"],
        confidence=row["confidence"],
    )


def _refuse_strangers(gold: GoldSet, runs: Sequence[str]) -> None:
    named = ", ".join(runs) if runs else "The dataset's other runs"
    raise Prerequisite(
        f"{named} and the gold run {', '.join(gold.run_ids)} have no state in common.",
        "`trajnote review --queue gold` asks about states that runs have labelled.",
    )


def _remarks(gold: GoldSet, reviews: Sequence[Row], known: Mapping[str, Row], space: Space) -> list[str]:
    """What a reader of the numbers has to know, a line each; a run without any usable answer is not spoken of."""
    reviews = [row for row in reviews if row["run_id"] in gold.run_ids]
    remarks: list[str] = []
    if unsure := sum(row["verdict"] == "unsure" for row in reviews):
        remarks.append(f"{unsure} states are left out, because a reader is unsure")
    if any(row["kind"] == "labels" for row in reviews):
        remarks.append("a reader saw the suggestions before answering, which favours them")
    if gold.contested:
        remarks.append(f"{gold.contested} states have no verdict, because the readers' answers differ")
    if gold.unusable:
        remarks.append(f"{gold.unusable} answers hold an action that is not finite; they are left out")
    readers = [str(known[run_id]["model"]) for run_id in gold.run_ids]
    for reader in sorted({reader for reader in readers if readers.count(reader) > 1}):
        remarks.append(f"{reader} has {readers.count(reader)} of the gold runs, which count as one reader")
    if not space.is_discrete:
        remarks.append("a suggestion is right if each number differs from the reader's by at most 5% of its range")
    if all(state.critical is None for state in gold.states.values()):
        remarks.append("the gold set marks no critical states, so `critical` is not judged")
    elif not gold.strata:
        remarks.append("the gold set may not be random, so the recall of `critical` is among labelled states only")
    return remarks


def score_rows(score: GoldScore) -> list[dict[str, object]]:
    """A score as a table: each measure with its share, interval and the number behind it."""
    named: list[tuple[str, Rate | Estimated | None]] = [
        ("suggestions that are right", score.right),
        ("suggestions nearer to it than what was done", score.nearer),
        ("of those that correct the agent", score.corrections),
        ("of those that confirm it", score.confirmations),
        *((f"of those that say {action}", rate) for action, rate in score.by_action.items()),
        ("what the agent did, right", score.agent),
        ("called critical, and critical", score.critical_right),
        ("critical, and called so", score.critical_found),
        ("critical among the states that it labels", score.critical_base),
        ("critical among all steps, and called so", score.critical_found_anywhere),
        *((f"right at confidence {found.low:g} to {found.high:g}", found.right) for found in score.bins),
        ("confidence higher where right", score.confidence_order),
        ("grade higher where the agent is right", score.grade_order),
    ]
    return [_row(name, rate) for name, rate in named if rate is not None]


def _row(name: str, rate: Rate | Estimated) -> dict[str, object]:
    behind = f"{rate.hits} of {rate.n}" if isinstance(rate, Rate) else f"{rate.positive} and {rate.n - rate.positive}"
    return {
        "measure": name,
        "share": f"{rate.share:.0%}",
        "95% interval": f"{rate.low:.0%} to {rate.high:.0%}",
        "behind it": behind,
    }


def describe_gold(found: GoldReport) -> list[str]:
    """What the gold set is, a line each."""
    gold = found.gold
    between = gold.between
    lines = [f"gold: {gold.answered} states by {', '.join(gold.readers)} ({', '.join(gold.run_ids)})"]
    if between is not None:
        lines.append(f"  answers to one state agree on {between.hits} of {between.n} states")
    return [*lines, *(f"  {remark}" for remark in found.remarks)]


def describe_gain(score: GoldScore) -> str:
    """A score's verdict, and the test behind it."""
    gain = score.gain
    if gain is None:
        return score.verdict
    return (
        f"{score.verdict}: only the suggestion is right in {gain.only_first} states, only what was done in "
        f"{gain.only_second} of {gain.states} (exact McNemar test, p = {gain.p:.2g})"
    )


def describe_rivalry(rivalry: Rivalry) -> str:
    """Two runs on their common states, and the test of their difference."""
    paired = rivalry.paired
    answer = rivalry.answer.replace("the first", rivalry.first).replace("the second", rivalry.second)
    return (
        f"{rivalry.first} and {rivalry.second}: {answer}; of {paired.states} common states both are right in "
        f"{paired.both}, only the first in {paired.only_first}, only the second in {paired.only_second} "
        f"(exact McNemar test, p = {paired.p:.2g})"
    )


def gold_as_plain(found: GoldReport) -> dict[str, Any]:
    """A report as JSON can say it."""
    gold = found.gold
    return {
        "dataset_id": found.dataset_id,
        "gold": {
            "run_ids": gold.run_ids,
            "readers": gold.readers,
            "states": gold.answered,
            "contested": gold.contested,
            "agreement": _plain(gold.between),
            "is_random": bool(gold.strata),
        },
        "runs": [_plain(score) for score in found.scores],
        "pairs": [_plain(rivalry) for rivalry in found.rivalries],
        "remarks": list(found.remarks),
    }
