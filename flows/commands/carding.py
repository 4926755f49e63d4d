"""`card` and `rules`: what an annotator reads about an environment, and the corrective rules that came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from annotate import cards, importing
from storage import annotations as annotated
from storage import datasets
from storage.errors import BadInput, Prerequisite

from .. import simulation
from .options import (
    DEFAULT_STORE,
    CardArgument,
    DatasetOption,
    EnvKwargsOption,
    JsonOption,
    RunsOption,
    StoreOption,
    open_dataset,
)
from .output import format_of, print_json, print_lines, print_result, print_rows, print_table

card_app = typer.Typer(name="card", help="Environment cards: what numbers and actions mean.", no_args_is_help=True)


@card_app.command("list")
def card_list(as_json: JsonOption = False) -> None:
    """List the packaged cards."""
    rows = [
        {
            "env_id": card.env_id,
            "env_kwargs": dict(card.env_kwargs),
            "title": card.title,
            "components": len(card.components),
            "actions": len(card.actions),
            "claims": len(card.claims),
        }
        for card in map(cards.load_card, cards.packaged_cards())
    ]
    print_rows(as_json, {"cards": rows}, f"{len(rows)} packaged cards", [_card_row(row) for row in rows])


def _card_row(card: Mapping[str, Any]) -> dict[str, object]:
    """A card's row with the arguments of its environment beside the id, for they are rare."""
    arguments = "".join(f" {name}={value}" for name, value in card["env_kwargs"].items())
    rest = {name: value for name, value in card.items() if name not in ("env_id", "env_kwargs")}
    return {"env_id": card["env_id"] + arguments, **rest}


@card_app.command("show")
def card_show(
    card: CardArgument,
    env_kwargs: EnvKwargsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a card: what an annotator reads about an environment."""
    found = cards.load_card(card, simulation.parse_env_kwargs(env_kwargs))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_lines(found.title, f"goal: {found.goal}", f"termination: {found.termination}", f"reward: {found.reward}")
    print_table("components", [{"name": c.name, "unit": c.unit, "meaning": c.meaning} for c in found.components])
    print_table("actions", [{"name": a.name, "unit": a.unit, "meaning": a.meaning} for a in found.actions])


@card_app.command("new")
def card_new(
    env_id: Annotated[str, typer.Argument(help="Gymnasium id, or module:EnvId.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: named after the id.")] = None,
    env_kwargs: EnvKwargsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draft a card from the environment's spaces and docstring; what only you can know is marked TODO."""
    from ..cards import card_path, write_draft

    format_of(output, {".toml": "TOML"}, default="TOML")
    path = output or card_path(env_id, Path())
    write_draft(simulation.Named(env_id), simulation.parse_env_kwargs(env_kwargs), path)
    named = f" --env {env_id}" if ":" in env_id else ""
    line = f"{path}: replace every TODO, then check it with `trajnote card check {path}{named}`"
    print_result(as_json, {"env_id": env_id, "path": str(path)}, line)


@card_app.command("check")
def card_check(
    card: CardArgument,
    env_kwargs: EnvKwargsOption = None,
    env: Annotated[
        str | None, typer.Option("--env", help="The environment, if the card names module:EnvId and you trust it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Test every claim of a card in its environment: signs, units, bounds, rewards, terminations."""
    from ..cards import probe_card

    loaded = cards.load_card(card, simulation.parse_env_kwargs(env_kwargs))
    findings = probe_card(loaded, env_id=simulation.Named.of(env))
    rows = [{"held": f.held, "claim": f.claim.text, "evidence": f.evidence} for f in findings]
    values = {"held": sum(f.held for f in findings), "claims": len(findings), "findings": rows}
    print_rows(as_json, values, f"claims of {card}", rows)
    if failed := [finding.claim.text for finding in findings if not finding.held]:
        raise BadInput(
            f"{len(failed)} of {len(findings)} claims do not hold: {'; '.join(failed)}.", "Correct the card."
        )


rules_app = typer.Typer(
    name="rules", help="Corrective rules: conditions on the state, each with an action.", no_args_is_help=True
)


@rules_app.command("import")
def rules_import(
    path: Annotated[Path, typer.Argument(help="JSON, TOML or CSV of predicate, suggested_action, confidence, ...")],
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    model: Annotated[str | None, typer.Option(help="Who wrote the rules.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Import rules from any source; every condition is checked first, and one bad rule rejects the file."""
    done = importing.import_rules(*open_dataset(store, dataset), path, model)
    already = "" if done.entered else "; they were imported before"
    line = f"{done.entered} new rules of {done.rules} for {done.dataset_id}{already}: {done.run_id}"
    print_result(as_json, vars(done), line)


@rules_app.command("list")
def rules_list(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show for each rule how many steps it matches and decides, how far it agrees, and which rules contradict it."""
    opened, dataset_id = open_dataset(store, dataset, ruled=True)
    known = annotated.list_rule_runs(opened, dataset_id)
    if not known:
        raise Prerequisite(
            f"The dataset {dataset_id} has no rules.",
            "Ask for some with `trajnote annotate run --kind rules`, or import some with `trajnote rules import`.",
        )
    wanted = [datasets.pick(name, known, "annotation run") for name in run] if run else known
    found = annotated.summarise_rules(opened, dataset_id, wanted)
    if as_json:
        print_json({"dataset_id": dataset_id, "run_ids": wanted, **vars(found)})
        return
    share = found.covered / max(found.steps, 1)
    print_table(
        f"{dataset_id}: {len(found.rules)} rules match {found.covered} of {found.steps} steps ({share:.1%})",
        _rule_rows(found.rules),
    )
    _print_conflicts(found.rules, found.conflicts)


def _rule_rows(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One row per rule; steps without a value are shown where a formula leaves some."""
    rows = [_rule_row(number, rule) for number, rule in enumerate(rules, 1)]
    if any(rule["without_value"] for rule in rules):
        return [row | {"no value": rule["without_value"]} for row, rule in zip(rows, rules, strict=True)]
    return rows


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
