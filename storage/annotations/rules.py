"""Corrective rules as rows of the catalog, and the steps that they match. How a rule comes to be is not known here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..catalog import STEP, Connection, component_columns, insert_rows, match_steps, refresh_views
from ..datasets import read_manifest
from ..predicates import read_predicate
from ..schema import Manifest
from ..store import Store
from .annotations import rows_of_runs


@dataclass(frozen=True)
class Rule:
    """What should be done in all states that meet a condition."""

    rule_id: str
    run_id: str
    request_id: str | None
    dataset_id: str
    position: int  # in the annotator's list: of several rules of one list that match a step, the first one decides
    predicate: str  # canonical, see `predicates.py`
    suggested_action: tuple[float | None, ...]  # None: this dimension stays as it was logged
    suggested_label: str
    confidence: float | None  # in [0, 1]
    rationale: str | None
    model: str
    prompt_version: str | None

    @property
    def list_id(self) -> str:
        """The list that it belongs to: that of one reply, or of one import."""
        return self.request_id or self.run_id


class Matches(NamedTuple):
    """Which rules match which steps; M pairs, by episode and step, then by the order of the rules."""

    episode_id: NDArray[np.int64]  # (M,)
    step: NDArray[np.int64]  # (M,)
    rule: NDArray[np.int64]  # (M,) place in the sequence of rules


_COLUMNS = ", ".join(field.name for field in fields(Rule))


def rule_columns(manifest: Manifest) -> list[str]:
    """What conditions about a dataset may speak of: its components, as `annotated_steps` calls them, and the step."""
    return [*component_columns(manifest.component_names), STEP]


def insert_rules(con: Connection, store: Store, rules: Sequence[Rule]) -> int:
    """Insert rules and make the views again; one whose `rule_id` is there already is left as it is.

    Returns:
        How many were new.

    Raises:
        BadInput: if a condition is not allowed, or a number is out of its range; nothing is inserted.
    """
    if not rules:
        return 0
    columns = {name: rule_columns(read_manifest(store, name)) for name in {rule.dataset_id for rule in rules}}
    for rule in rules:
        read_predicate(rule.predicate, columns[rule.dataset_id], is_canonical=True)
    rows = [vars(rule) | {"suggested_action": list(rule.suggested_action)} for rule in rules]
    inserted = insert_rows(con, "rules", rows)
    if inserted:
        refresh_views(con, store.rollouts_dir)
    return inserted


def load_rules(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[Rule]:
    """The rules of a dataset, list by list, each in its order.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        run_ids: the annotation runs wanted; all when None.

    Raises:
        BadInput: if there is no such run.
    """
    rows = rows_of_runs(store, "rules", _COLUMNS, dataset_id, run_ids, order="run_id, request_id, position, rule_id")
    return [_rule(row) for row in rows]


def match_rules(store: Store, dataset_id: str, rules: Sequence[Rule]) -> Matches:
    """The steps of a dataset that rules match, in one query over its files.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        rules: of this dataset.
    """
    if not rules:
        return Matches(*(np.zeros(0, np.int64) for _ in range(3)))
    columns = component_columns(read_manifest(store, dataset_id).component_names)
    question = match_steps(dataset_id, columns, [(rule.rule_id, rule.predicate) for rule in rules])
    places = {rule.rule_id: place for place, rule in enumerate(rules)}
    with store.catalog.read() as con:
        found = con.execute(f"SELECT episode_id, step, rule_id FROM ({question})").fetchnumpy()
    rule = np.array([places[rule_id] for rule_id in found["rule_id"]], np.int64)
    order = np.lexsort((rule, found["step"], found["episode_id"]))
    return Matches(found["episode_id"][order].astype(np.int64), found["step"][order].astype(np.int64), rule[order])


def _rule(row: tuple[object, ...]) -> Rule:
    values = {field.name: value for field, value in zip(fields(Rule), row, strict=True)}
    suggestion = values["suggested_action"]
    values["suggested_action"] = tuple(suggestion) if isinstance(suggestion, list) else ()
    return Rule(**values)  # pyright: ignore[reportArgumentType] -- the table's columns have these types
