"""Review queues: which labels, rules or bare states a person is shown, and in which order.

Equal arguments make an equal queue of an equal store. A queue is entered in the catalog, where its answers find it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import numpy as np

from storage.annotations import QueueKind, ReviewItem, ReviewQueue, enter_queue, load_rule_lists, summarise_rules
from storage.datasets import catalogued_episodes, pick, resolve_dataset
from storage.errors import BadInput, Prerequisite
from storage.formulas import Term
from storage.queries import Row, ask
from storage.store import Store

Order = Literal["disagreements", "stratified", "gold", "rules"]
EVIDENCE = 10
"""Steps shown beside a rule."""
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A queue with what is shown beside its items."""

    queue: ReviewQueue
    labels: Sequence[Row | None]  # one for each item: its label beside the step; None without one
    rules: Sequence[Row]  # those that are asked about, in the queue's order
    evidence: Sequence[Sequence[Row]]  # of each rule, steps that it matches
    terms: Mapping[str, Sequence[Term]] = field(default_factory=dict[str, Sequence[Term]])  # of each rule's list


def prepare_queue(
    store: Store,
    run: str | None = None,
    *,
    order: Order = "disagreements",
    dataset: str | None = None,
    limit: int = 100,
    seed: int = 0,
) -> Prepared:
    """Choose what is reviewed, and enter the queue.

    Args:
        store: the store.
        run: annotation run, or the beginning of its id; all runs of the dataset that are not reviews when None.
        order: labels that somebody or something contradicts first; labels of all kinds in turn; a gold set of states,
            half of them labelled, at random; or rules.
        dataset: of the store; the run's, or the newest that has labels, when None.
        limit: items at most.
        seed: of what is left to chance.

    Raises:
        BadInput: if there is no such run or dataset.
        Prerequisite: if there is nothing to review.
    """
    dataset_id, runs = _subject(store, run, dataset, order)
    rng = np.random.default_rng(seed)
    config = {"order": order, "limit": limit, "seed": seed}
    if order == "rules":
        return _prepare_rules(store, dataset_id, runs, limit, config)
    with store.catalog.read() as con:
        labels = ask(con, "review/labels", dataset=dataset_id, runs=runs)
    if order == "gold":
        steps = _gold_steps(store, dataset_id, labels, limit, rng)
        return _enter(store, dataset_id, "gold", runs, [ReviewItem(*step) for step in steps], config)
    if not labels:
        raise Prerequisite(f"The dataset {dataset_id} has no suggestions to review.", "`trajnote annotate` makes some.")
    chosen = (_contradicted_first if order == "disagreements" else _in_turn)(labels, rng)[:limit]
    items = [ReviewItem(row["episode_id"], row["step"], row["annotation_id"]) for row in chosen]
    return _enter(store, dataset_id, "labels", runs, items, config, chosen)


def _enter(
    store: Store,
    dataset_id: str,
    kind: QueueKind,
    runs: Sequence[str],
    items: Sequence[ReviewItem],
    config: dict[str, Any],
    labels: Sequence[Row] | None = None,
) -> Prepared:
    queue = ReviewQueue.of(dataset_id, kind, runs, items)
    enter_queue(store, queue, config)
    return Prepared(queue, labels or [None] * len(items), (), ())


def _subject(store: Store, run: str | None, dataset: str | None, order: Order) -> tuple[str, list[str]]:
    """The dataset, and the runs whose labels or rules are asked about."""
    with store.catalog.read() as con:
        known = {row["run_id"]: row for row in ask(con, "review/runs")}
    if run is not None:
        chosen = known[pick(run, list(known), "annotation run")]
        if dataset is not None and resolve_dataset(store, dataset) != chosen["dataset_id"]:
            raise BadInput(f"The run {chosen['run_id']} is of the dataset {chosen['dataset_id']}, not {dataset}.")
        return chosen["dataset_id"], [chosen["run_id"]]
    useful = [row for row in known.values() if row["rules" if order == "rules" else "labels"] and not row["is_review"]]
    newest = str(useful[-1]["dataset_id"]) if useful else None
    dataset_id = resolve_dataset(store, dataset or newest)
    return dataset_id, [row["run_id"] for row in useful if row["dataset_id"] == dataset_id]


def _contradicted_first(labels: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """Labels that other opinions or a replay contradict, then corrections, then the others; the surest first."""
    mixed = [labels[int(place)] for place in rng.permutation(len(labels))]

    def rank(row: Row) -> tuple[bool, bool, bool, float]:
        harmful = row["advantage"] is not None and row["advantage"] < 0
        return not row["contested"], not harmful, row["agrees"] is not False, -(row["confidence"] or 0.0)

    return sorted(mixed, key=rank)


def _in_turn(labels: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """One label of each kind after the other: by its action, whether it corrects, and the third of its episode."""

    def kind(row: Row) -> Hashable:
        action = row["suggested_label"] if row["action_name"] is not None else ""
        return str(action), str(row["agrees"]), min(2, 3 * row["step"] // max(1, row["length"]))

    mixed = [labels[int(place)] for place in rng.permutation(len(labels))]
    rounds = zip_longest(*_grouped(mixed, kind).values())
    return [row for found in rounds for row in found if row is not None]


def _grouped(rows: Sequence[T], key: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _gold_steps(
    store: Store, dataset_id: str, labels: Sequence[Row], limit: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Steps in random order, half of them with a label as far as there are some, so that being here says nothing."""
    labelled = sorted({(row["episode_id"], row["step"]) for row in labels})
    episodes = [
        (episode.episode_id, step)
        for episode in catalogued_episodes(store, dataset_id)
        for step in range(episode.length)
    ]
    others = sorted(set(episodes) - set(labelled))
    half = _drawn(labelled, min(len(labelled), max(limit // 2, limit - len(others))), rng)
    chosen = [*half, *_drawn(others, limit - len(half), rng)]
    return _drawn(chosen, len(chosen), rng)


def _drawn(items: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Some of the items, in random order."""
    return [items[int(place)] for place in rng.permutation(len(items))[:count]]


def _prepare_rules(store: Store, dataset_id: str, runs: Sequence[str], limit: int, config: dict[str, Any]) -> Prepared:
    rules = list(summarise_rules(store, dataset_id, runs).rules)[:limit]
    if not rules:
        raise Prerequisite(f"The dataset {dataset_id} has no rules to review.", "`trajnote rules list` shows all.")
    with store.catalog.read() as con:
        found = ask(con, "review/evidence", dataset=dataset_id, runs=list(runs), seed=config["seed"], most=EVIDENCE)
    by_rule = _grouped(found, lambda row: row["rule_id"])
    names = [str(rule["rule_id"]) for rule in rules]
    evidence = [by_rule.get(name, []) for name in names]
    queue = ReviewQueue.of(dataset_id, "rules", runs, [ReviewItem(None, None, rule_id=name) for name in names])
    shown = {name: [[row["episode_id"], row["step"]] for row in by_rule.get(name, [])] for name in names}
    enter_queue(store, queue, config | {"steps": shown})
    lists = load_rule_lists(store, dataset_id, runs)
    terms = {rule.rule_id: listed.terms for listed in lists for rule in listed.rules}
    return Prepared(queue, [None] * len(rules), rules, evidence, terms)
