"""`rules`: taking in corrective rules, and looking at what they cover before anything is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import DEFAULT_STORE, DatasetOption, JsonOption, RunsOption, StoreOption
from .output import print_json, print_lines, print_table

rules_app = typer.Typer(
    name="rules", help="Corrective rules: conditions on the state, each with an action.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(rules_app)


@rules_app.command("import")
def rules_import(
    path: Annotated[Path, typer.Argument(help="JSON, TOML or CSV of predicate, suggested_action, confidence, ...")],
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    model: Annotated[str | None, typer.Option(help="Who wrote the rules.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Import rules from any source; every condition is checked first, and one bad rule rejects the file."""
    from annotate.importing import import_rules
    from storage.datasets import resolve_dataset
    from storage.store import Store

    opened = Store.open(store)
    done = import_rules(opened, resolve_dataset(opened, dataset), path, model)
    if as_json:
        print_json(vars(done))
    else:
        already = "" if done.entered else "; they were imported before"
        print_lines(f"{done.entered} new rules of {done.rules} for {done.dataset_id}{already}: {done.run_id}")


@rules_app.command("list")
def rules_list(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show for each rule how many steps it matches and decides, how far it agrees, and which rules contradict it."""
    from storage.annotations import list_rule_runs, summarise_rules
    from storage.datasets import pick, resolve_dataset
    from storage.errors import Prerequisite
    from storage.store import Store

    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    known = list_rule_runs(opened, dataset_id)
    if not known:
        raise Prerequisite(
            f"The dataset {dataset_id} has no rules.",
            "Ask for some with `trajnote annotate run --kind rules`, or import some with `trajnote rules import`.",
        )
    wanted = [pick(name, known, "annotation run") for name in run] if run else known
    found = summarise_rules(opened, dataset_id, wanted)
    if as_json:
        print_json({"dataset_id": dataset_id, "run_ids": wanted, **vars(found)})
        return
    share = found.covered / max(found.steps, 1)
    print_table(
        f"{dataset_id}: {len(found.rules)} rules match {found.covered} of {found.steps} steps ({share:.1%})",
        [_rule_row(number, rule) for number, rule in enumerate(found.rules, 1)],
    )
    _print_conflicts(found.rules, found.conflicts)


def _rule_row(number: int, rule: Mapping[str, Any]) -> dict[str, object]:
    return {
        "rule": number,
        "if": rule["predicate"],
        "then": rule["suggested_label"],
        "conf": rule["confidence"],
        "steps": rule["steps"],
        "decides": rule["decides"],
        "logged": _percent(rule["agrees_with_logged"]),
        "labels": _percent(rule["agrees_with_labels"], rule["labels"]),
    }


def _percent(share: float | None, count: int | None = None) -> str:
    if share is None:
        return ""
    return f"{share:.0%}" if count is None else f"{share:.0%} of {count}"


def _print_conflicts(rules: Sequence[Mapping[str, Any]], conflicts: Sequence[Mapping[str, Any]]) -> None:
    numbers = {rule["rule_id"]: number for number, rule in enumerate(rules, 1)}
    if not conflicts:
        print_lines("no two rules say different things of one step")
        return
    rows = [
        {
            "rule": numbers[pair["rule_id"]],
            "says": pair["suggested_label"],
            "other": numbers[pair["other_rule_id"]],
            "says instead": pair["other_label"],
            "steps": pair["steps"],
            "decides": numbers.get(pair["decides"], "both: two lists"),
        }
        for pair in conflicts
    ]
    print_table("conflicts: steps that two rules match with different actions", rows)
