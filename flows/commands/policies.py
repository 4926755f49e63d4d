"""`policy`: which policy is in force, and taking one out of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption
from .output import print_json, print_lines, print_table


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    policies = typer.Typer(no_args_is_help=True, help="Policies of the store.")
    policies.command()(current)
    policies.command()(export)
    app.add_typer(policies, name="policy")


def current(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show which policy each deployment has in force, since when and why, and the folder where it always is."""
    from storage.policies import CURRENT, list_in_force
    from storage.store import Store

    opened = Store.open(store)
    rows = [
        {**vars(known), "path": str(opened.deployment_dir(known.deployment) / CURRENT)}
        for known in list_in_force(opened)
    ]
    if as_json:
        print_json({"in_force": rows})
    else:
        print_table(f"{len(rows)} deployments of {store} have decided", rows)


def export(
    policy: Annotated[
        str | None, typer.Argument(help="Policy id of the store, or a unique beginning; default: the newest.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[Path | None, typer.Option("--out", help="File; default: ID.onnx here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a policy as ONNX, checked against the original on 10,000 observations before it is written.

    Needs the extra `onnx`. The input `observation` is (N, n) float32; `action` is the greedy action.
    """
    from storage.store import Store

    from ..policies import hand_over

    written = hand_over(Store.open(store), policy, out)
    if as_json:
        print_json({"path": str(written.path), "policy_id": written.policy_id, **vars(written.agreement)})
    else:
        found = written.agreement
        print_lines(
            f"{found.observations} observations: outputs differ by {found.largest_difference:.1g} at most, "
            f"{found.actions_equal:.2%} of the actions are equal",
            str(written.path),
        )
