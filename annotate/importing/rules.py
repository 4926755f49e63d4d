"""Rules from any source: a person, another program. All of them are checked before the first one is entered.

The file is JSON (a list of rules, or an object with `rules` and perhaps `terms`, `assessment` and `potential`, as a
reply gives them), TOML (tables `[[rules]]` and `[[terms]]`) or CSV with a header. A rule has `predicate` and
`suggested_action`: the name of an action, a number, or for each dimension (in a list, or by its name) a number, a
formula, or null for one that stays as it was logged. `confidence`, `critical` and `rationale` may be left out. A term
has `name` and `expression`, and perhaps `meaning`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, Field

from storage.annotations import Rule, RuleList, count_decisions, formula_reader, insert_rule_lists, varies
from storage.catalog import Connection
from storage.datasets import read_manifest
from storage.disk import UnreadableError, decode_json, decode_toml, read_text
from storage.errors import BadInput
from storage.formulas import FormulaReader, Term
from storage.ledger import enter_imported_run
from storage.schema import Frozen, Manifest, content_id
from storage.store import Store

from ..parsing import MAX_LABEL, MAX_RATIONALE, clean_text
from ..prompting import label_vector
from .labels import DEFAULT_MODEL, read_import_action, validated

MAX_BYTES = 1_000_000
"""Of a file of rules; an honest one has a few thousand."""
MAX_ASSESSMENT = 4_000
"""Characters of an assessment that are kept."""
MAX_RULES = 1_000
"""In one file: each step is compared with all of them."""


class RuleRow(Frozen):
    """One rule, as its author wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    predicate: str
    suggested_action: float | list[float | str | None] | dict[str, float | str | None] | str = Field(
        description="the name of an action, a number, or for each dimension a number, an expression or null"
    )
    confidence: float | None = Field(default=None, ge=0, le=1)
    critical: bool | None = None
    rationale: str | None = None


class TermRow(Frozen):
    """One term, as its author wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    expression: str
    meaning: str | None = None


R = TypeVar("R", bound=Frozen)


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
    written = _read_file(path)
    entries = written["rules"]
    if len(entries) > MAX_RULES:
        raise BadInput(f"{path} has {len(entries):,} rules; {MAX_RULES:,} are allowed.", "Join some of them with OR.")
    if not entries:
        raise BadInput(f"{path}: no rules.", "Correct the file; nothing was written.")
    problems = _Problems()
    terms, reader = _read_terms(written.get("terms"), formula_reader(manifest), problems)
    rules = _read_rules(entries, manifest, reader, problems)
    potential = _read_potential(written.get("potential"), reader, problems)
    assessment = written.get("assessment")
    if not isinstance(assessment, str | None):
        problems.add("assessment", ValueError(f"it is {assessment!r}, and not a text"))
    problems.refuse(path, len(entries))
    assessment = None if assessment is None else clean_text(assessment, MAX_ASSESSMENT)
    return _write(store, manifest, clean_text(model or DEFAULT_MODEL, 200), _Read(rules, terms, assessment, potential))


@dataclass
class _Problems:
    """What cannot be used of a file, and what is allowed in place of the first such expression."""

    problems: list[str] = field(default_factory=list[str])
    allowed: str = ""

    def add(self, place: str, error: ValueError | BadInput) -> None:
        """Note what is wrong in a place."""
        is_refused = isinstance(error, BadInput)
        self.problems.append(f"{place}: {(error.problem if is_refused else str(error)).rstrip('.')}")
        self.allowed = self.allowed or (error.hint if is_refused else "")

    def refuse(self, path: Path, rules: int) -> None:
        """Refuse the whole file if there is anything.

        Raises:
            BadInput: listing all of it.
        """
        if not self.problems:
            return
        count = len(self.problems)
        all_rules = all(problem.startswith("rule ") for problem in self.problems)
        what = f"{count} of {rules} rules" if all_rules else f"{count} part{'s' * (count > 1)}"
        raise BadInput(
            f"{path}: {what} cannot be used: {'; '.join(self.problems)}.",
            f"{self.allowed} Correct or remove them; nothing was written.".strip(),
        )


class _Read(NamedTuple):
    """What a file says."""

    rules: Sequence[Mapping[str, Any]]
    terms: Sequence[Term]
    assessment: str | None
    potential: str | None


def _write(store: Store, manifest: Manifest, model: str, read: _Read) -> RuleImport:
    dataset_id = manifest.dataset_id
    more = [read.terms, read.potential] if read.terms or read.potential else []
    run_id = content_id("i_", [dataset_id, model, "rules", list(read.rules), *more])
    listed = RuleList(
        list_id=run_id,
        run_id=run_id,
        request_id=None,
        dataset_id=dataset_id,
        model=model,
        prompt_version=None,
        rules=tuple(_rule(run_id, dataset_id, model, n, r) for n, r in enumerate(read.rules)),
        terms=tuple(read.terms),
        assessment=read.assessment,
        potential=read.potential,
    )
    entered = 0
    with store.catalog.write() as con:
        if enter_imported_run(con, run_id, dataset_id, model):
            entered = insert_rule_lists(con, store, [listed])
            _refuse_idle(con, listed, manifest)
    return RuleImport(run_id, dataset_id, len(read.rules), entered)


def _refuse_idle(con: Connection, listed: RuleList, manifest: Manifest) -> None:
    """Refuse what says nothing of the dataset; what was entered is taken back."""
    decided = count_decisions(con, listed, manifest)
    if not any(each.steps for each in decided):
        raise BadInput(
            "The rules decide in none of the dataset's steps.", "Check names, units and signs; nothing was written."
        )
    for rule, each in zip(listed.rules, decided, strict=True):
        if each.steps and not each.valued:
            raise BadInput(
                f"The formula of the rule `{rule.predicate}` has no value in any step where it decides.",
                "Check its divisions and the arguments of its functions; nothing was written.",
            )
    if listed.potential and not varies(con, listed, manifest):
        raise BadInput(
            f"The potential `{listed.potential}` is the same in all of the dataset's steps, or has no value in any.",
            "Give one that differs between states, or leave it out; nothing was written.",
        )


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


def _read_terms(entries: object, reader: FormulaReader, problems: _Problems) -> tuple[list[Term], FormulaReader]:
    terms: list[Term] = []
    if not isinstance(entries, list | dict | None):
        problems.add("terms", ValueError(f"it is {entries!r}, and not a list"))
        return terms, reader
    for number, entry in enumerate([entries] if isinstance(entries, dict) else entries or (), 1):
        try:
            row = _validated(TermRow, entry, "name and expression")
            reader = reader.with_term(Term(row.name, row.expression))
            meaning = None if row.meaning is None else clean_text(row.meaning, MAX_RATIONALE)
            terms.append(Term(row.name, reader.terms[row.name].text, meaning))
        except (ValueError, BadInput) as error:
            problems.add(f"term {number}", error)
    return terms, reader


def _read_rules(
    entries: Sequence[object], manifest: Manifest, reader: FormulaReader, problems: _Problems
) -> list[dict[str, Any]]:
    read: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            rule = _read_rule(entry, manifest, reader)
            if rule["predicate"] in read:
                raise ValueError(f"`{rule['predicate']}` has a rule already")
            read[rule["predicate"]] = rule
        except (ValueError, BadInput) as error:
            problems.add(f"rule {number}", error)
    return list(read.values())


def _read_potential(text: object, reader: FormulaReader, problems: _Problems) -> str | None:
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise ValueError("it is not an expression")
        read = reader.formula(text)
        if reader.is_constant(read):
            raise ValueError(f"`{read.text}` is the same in every state")
        return read.text
    except (ValueError, BadInput) as error:
        problems.add("potential", error)
        return None


def _validated(kind: type[R], entry: object, fields: str) -> R:
    if not isinstance(entry, dict):
        raise ValueError(f"it is not an object with {fields}")
    return validated(kind, entry)


def _read_rule(entry: object, manifest: Manifest, reader: FormulaReader) -> dict[str, Any]:
    row = _validated(RuleRow, entry, "predicate and suggested_action")
    predicate = reader.predicate(row.predicate).text
    action, formulas, label = _read_action(row.suggested_action, manifest, reader)
    later = {"formulas": formulas} if formulas else {}
    later |= {} if row.critical is None else {"critical": row.critical}
    return {
        "predicate": predicate,
        "suggested_action": action,
        "suggested_label": label,
        "confidence": row.confidence,
        "rationale": None if row.rationale is None else clean_text(row.rationale, MAX_RATIONALE),
        **later,
    }


def _read_action(
    action: float | list[float | str | None] | dict[str, float | str | None] | str,
    manifest: Manifest,
    reader: FormulaReader,
) -> tuple[tuple[float | None, ...], tuple[str | None, ...] | None, str]:
    """An action of the dataset's space: numbers, formulas, and its name; a dimension that is left open is None."""
    names, space = manifest.action_names, manifest.action_space
    if isinstance(action, dict):
        if space.is_discrete or not set(action) <= set(names):
            raise ValueError(f"suggested_action names {', '.join(map(str, action))}; known: {', '.join(names)}")
        action = [action.get(name) for name in names]
    if isinstance(action, str) and not space.is_discrete and len(names) == 1:
        action = [action]
    if not isinstance(action, list):
        whole, label = read_import_action(action, manifest)
        return whole, None, label
    computed = [reader.formula(part).text if isinstance(part, str) else None for part in action]
    numbers = [None if isinstance(part, str) else part for part in action]
    if not any(computed):
        return _partial_action(numbers, manifest)
    if len(action) != len(names) or space.is_discrete:
        raise ValueError(f"suggested_action has {len(action)} places; known: {', '.join(names)}")
    _check_numbers(numbers, manifest)
    parts = zip(names, computed, numbers, strict=True)
    given = {name: part for name, text, x in parts if (part := text or x) is not None}
    label = label_vector(list(given), list(given.values()), [2] * len(given))
    return tuple(numbers), tuple(computed), clean_text(label, MAX_LABEL)


def _partial_action(action: Sequence[float | None], manifest: Manifest) -> tuple[tuple[float | None, ...], None, str]:
    """Numbers for some dimensions."""
    names, space = manifest.action_names, manifest.action_space
    if None not in action:
        whole, label = read_import_action([x for x in action if x is not None], manifest)
        return whole, None, label
    given = {name: x for name, x in zip(names, action, strict=False) if x is not None}
    if len(action) != len(names) or not given or space.is_discrete:
        raise ValueError(
            f"suggested_action has {len(given)} numbers in {len(action)} places; known: {', '.join(names)}"
        )
    _check_numbers(action, manifest)
    return tuple(action), None, label_vector(list(given), list(given.values()), [2] * len(given))


def _check_numbers(action: Sequence[float | None], manifest: Manifest) -> None:
    """Refuse numbers that are out of range."""
    lows = manifest.action_space.low or (0.0,) * len(action)
    read_import_action([low if x is None else x for x, low in zip(action, lows, strict=True)], manifest)


def _read_file(path: Path) -> Mapping[str, Any]:
    """The object that a file holds, with its list of rules."""
    text = read_text(path, limit=MAX_BYTES)
    readers = {
        ".json": lambda: _rules_of(decode_json(text)),
        ".toml": lambda: _rules_of(decode_toml(text)),
        ".csv": lambda: {"rules": _csv_entries(text)},
    }
    if path.suffix.lower() not in readers:
        raise BadInput(f"{path} does not end in .json, .toml or .csv.", "Name a file of rules.")
    try:
        return readers[path.suffix.lower()]()
    except (ValueError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}.", "Correct the file.") from error


def _rules_of(value: object) -> Mapping[str, Any]:
    whole = value if isinstance(value, dict) else {"rules": value}
    if not isinstance(whole.get("rules"), list):
        raise ValueError("it has no list of rules")
    if unknown := sorted(set(whole) - {"rules", "terms", "assessment", "potential"}):
        raise ValueError(f"it has {', '.join(map(str, unknown))}; known: rules, terms, assessment, potential")
    return whole


def _csv_entries(text: str) -> list[dict[str, object]]:
    """Cells are text; numbers and lists in them are read as JSON, and empty ones are left out."""
    read = ("suggested_action", "confidence", "critical")
    rows = csv.DictReader(text.splitlines(), strict=True)
    found: list[dict[str, object]] = []
    for row in rows:
        if None in row:
            raise ValueError(f"line {rows.line_num} has more cells than the first line")
        found.append({k: _cell(v) if k in read else v for k, v in row.items() if v})
    return found


def _cell(text: str) -> object:
    try:
        return decode_json(text)
    except UnreadableError:
        return text
