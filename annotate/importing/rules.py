"""Rules from anybody: a person, another program. All of them are checked before the first one is entered.

The file is JSON (a list, or an object with a list `rules`), TOML (tables `[[rules]]`) or CSV with a header. A rule has
`predicate` and `suggested_action`: the name of an action, a number, a list with null for dimensions that stay as they
were logged, or an object of numbers by dimension. `confidence` and `rationale` may be left out.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from storage.annotations import Rule, insert_rules, rule_columns
from storage.content_hash import content_id
from storage.datasets import read_manifest
from storage.disk import UnreadableError, decode_json, decode_toml, describe_invalid, read_text
from storage.errors import BadInput
from storage.expressions import read_predicate
from storage.ledger import enter_imported_run
from storage.schema import Frozen, Manifest
from storage.store import Store

from ..parsing import MAX_RATIONALE, clean_text
from ..prompting import label_vector
from .labels import DEFAULT_MODEL, read_import_action

MAX_BYTES = 1_000_000
"""Of a file of rules; an honest one has a few thousand."""
MAX_RULES = 1_000
"""In one file: each step is compared with all of them."""


class RuleRow(Frozen):
    """One rule, as its author wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    predicate: str
    suggested_action: float | list[float | None] | dict[str, float | None] | str
    confidence: float | None = Field(default=None, ge=0, le=1)
    rationale: str | None = None


@dataclass(frozen=True)
class RuleImport:
    """What an import did."""

    run_id: str
    dataset_id: str
    rules: int  # in the file
    entered: int  # now; 0 when the same rules were imported before


def import_rules(store: Store, dataset_id: str, path: Path, model: str | None = None) -> RuleImport:
    """Enter the rules of a file, in its order; entering the same rules again changes nothing.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        path: the file.
        model: who wrote the rules.

    Raises:
        BadInput: listing every bad rule with its number and reason; nothing is written then.
    """
    manifest = read_manifest(store, dataset_id)
    entries = _read_entries(path)
    if len(entries) > MAX_RULES:
        raise BadInput(f"{path} has {len(entries):,} rules; {MAX_RULES:,} are allowed.", "Join some of them with OR.")
    read: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        try:
            rule = _read_rule(entry, manifest)
            if rule["predicate"] in read:
                raise ValueError(f"`{rule['predicate']}` has a rule already")
            read[rule["predicate"]] = rule
        except ValueError as error:
            problems.append(f"rule {number}: {error}")
    if problems or not entries:
        what = (
            f"{len(problems)} of {len(entries)} rules cannot be used: {'; '.join(problems)}" if entries else "no rules"
        )
        raise BadInput(f"{path}: {what}.", "Correct or remove them; nothing was written.")
    return _write(store, dataset_id, clean_text(model or DEFAULT_MODEL, 200), list(read.values()))


def _write(store: Store, dataset_id: str, model: str, rules: Sequence[Mapping[str, Any]]) -> RuleImport:
    run_id = content_id("i_", [dataset_id, model, "rules", list(rules)])
    entered = 0
    with store.catalog.write() as con:
        if enter_imported_run(con, run_id, dataset_id, model):
            entered = insert_rules(con, store, [_rule(run_id, dataset_id, model, n, r) for n, r in enumerate(rules)])
    return RuleImport(run_id, dataset_id, len(rules), entered)


def _rule(run_id: str, dataset_id: str, model: str, position: int, fields: Mapping[str, Any]) -> Rule:
    return Rule(
        rule_id=content_id("u_", [run_id, None, fields["predicate"]]),
        run_id=run_id,
        request_id=None,
        dataset_id=dataset_id,
        position=position,
        model=model,
        prompt_version=None,
        **fields,
    )


def _read_rule(entry: object, manifest: Manifest) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("it is not an object with predicate and suggested_action")
    try:
        row = RuleRow.model_validate(entry)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ValueError("; ".join(describe_invalid(problem, levels=1) for problem in problems)) from None
    try:
        predicate = read_predicate(row.predicate, rule_columns(manifest)).text
    except BadInput as error:
        raise ValueError(str(error).rstrip(".")) from None
    action, label = _read_action(row.suggested_action, manifest)
    return {
        "predicate": predicate,
        "suggested_action": action,
        "suggested_label": label,
        "confidence": row.confidence,
        "rationale": None if row.rationale is None else clean_text(row.rationale, MAX_RATIONALE),
    }


def _read_action(
    action: float | list[float | None] | dict[str, float | None] | str, manifest: Manifest
) -> tuple[tuple[float | None, ...], str]:
    """An action of the dataset's space; a dimension that is left open is None."""
    names, space = manifest.action_names, manifest.action_space
    if isinstance(action, dict):
        if space.is_discrete or not set(action) <= set(names):
            raise ValueError(f"suggested_action names {', '.join(map(str, action))}; there is {', '.join(names)}")
        action = [action.get(name) for name in names]
    if not isinstance(action, list) or None not in action:
        whole, label = read_import_action(
            [x for x in action if x is not None] if isinstance(action, list) else action, manifest
        )
        return whole, label
    given = {name: x for name, x in zip(names, action, strict=False) if x is not None}
    if len(action) != len(names) or not given or space.is_discrete:
        raise ValueError(
            f"suggested_action has {len(given)} numbers in {len(action)} places; there is {', '.join(names)}"
        )
    lows = space.low or (0.0,) * len(names)
    filled = [low if x is None else x for x, low in zip(action, lows, strict=True)]
    read_import_action(filled, manifest)  # refuses what is out of range
    return tuple(action), label_vector(list(given), list(given.values()), [2] * len(given))


def _read_entries(path: Path) -> list[object]:
    text = read_text(path, limit=MAX_BYTES)
    readers = {".json": _json_entries, ".toml": _toml_entries, ".csv": _csv_entries}
    if path.suffix.lower() not in readers:
        raise BadInput(f"{path} does not end in .json, .toml or .csv.", "Name a file of rules.")
    try:
        return readers[path.suffix.lower()](text)
    except (ValueError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}.", "Correct the file.") from error


def _json_entries(text: str) -> list[object]:
    return _rules_of(decode_json(text))


def _rules_of(value: object) -> list[object]:
    rules = value.get("rules") if isinstance(value, dict) else value
    if not isinstance(rules, list):
        raise ValueError("it has no list of rules")
    return rules


def _toml_entries(text: str) -> list[object]:
    return _rules_of(decode_toml(text))


def _csv_entries(text: str) -> list[object]:
    """Cells are text; numbers and lists in them are read as JSON, and empty ones are left out."""
    rows = [{str(k): v for k, v in row.items() if v} for row in csv.DictReader(text.splitlines(), strict=True)]
    return [{k: _cell(v) if k in ("suggested_action", "confidence") else v for k, v in row.items()} for row in rows]


def _cell(text: str) -> object:
    try:
        return decode_json(text)
    except UnreadableError:
        return text
