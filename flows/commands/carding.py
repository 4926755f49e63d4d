"""`card`: what an annotator reads about an environment, drafted, shown and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import CardArgument, EnvKwargsOption, JsonOption
from .output import print_json, print_lines, print_table

card_app = typer.Typer(name="card", help="Environment cards: what numbers and actions mean.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(card_app)


@card_app.command("list")
def card_list(as_json: JsonOption = False) -> None:
    """List the packaged cards."""
    from annotate.cards import load_card, packaged_cards

    cards = [load_card(path) for path in packaged_cards()]
    rows = [
        {
            "env_id": card.env_id,
            "env_kwargs": dict(card.env_kwargs),
            "title": card.title,
            "components": len(card.components),
            "actions": len(card.actions),
            "claims": len(card.claims),
        }
        for card in cards
    ]
    if as_json:
        print_json({"cards": rows})
    else:
        print_table(f"{len(rows)} packaged cards", [_told(row) for row in rows])


def _told(card: Mapping[str, Any]) -> dict[str, object]:
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
    from annotate.cards import load_card

    from ..simulation import parse_env_kwargs

    found = load_card(card, parse_env_kwargs(env_kwargs))
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
    """Draft a card from the environment's spaces and docstring; what only a person can know is marked TODO."""
    from ..cards import card_path, write_draft
    from ..simulation import Named, parse_env_kwargs

    path = output or card_path(env_id, Path())
    write_draft(Named(env_id), parse_env_kwargs(env_kwargs), path)
    if as_json:
        print_json({"env_id": env_id, "path": str(path)})
    else:
        named = f" --env {env_id}" if ":" in env_id else ""
        print_lines(f"{path}: fill in what says TODO, then check it with `trajnote card check {path}{named}`")


@card_app.command("check")
def card_check(
    card: CardArgument,
    env_kwargs: EnvKwargsOption = None,
    env: Annotated[
        str | None, typer.Option("--env", help="The environment, where a card names module:EnvId and you trust it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Test every claim of a card in its environment: signs, units, bounds, rewards, terminations."""
    from annotate.cards import load_card
    from storage.errors import BadInput

    from ..cards import probe_card
    from ..simulation import Named, parse_env_kwargs

    findings = probe_card(load_card(card, parse_env_kwargs(env_kwargs)), env_id=Named.of(env))
    rows = [{"held": f.held, "claim": f.claim.text, "evidence": f.evidence} for f in findings]
    if as_json:
        print_json({"held": sum(f.held for f in findings), "claims": len(findings), "findings": rows})
    else:
        print_table(f"claims of {card}", rows)
    if failed := [finding.claim.text for finding in findings if not finding.held]:
        raise BadInput(
            f"{len(failed)} of {len(findings)} claims do not hold: {'; '.join(failed)}.", "Correct the card."
        )
