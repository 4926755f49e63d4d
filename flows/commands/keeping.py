"""`store verify`, `store gc` and `store list`: looking after a store's files."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption
from .output import print_json, print_lines, print_table

store_app = typer.Typer(name="store", help="Look after the store's files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(store_app)


@store_app.command("verify")
def store_verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Hash every file again and compare it with the catalog; what is damaged is named."""
    from storage.errors import DamagedStore
    from storage.store import Store
    from storage.upkeep import verify_store

    damages = verify_store(Store.locate(store))
    if as_json:
        print_json({"damaged": len(damages), "damages": [str(damage) for damage in damages]})
    else:
        print_lines(*(str(damage) for damage in damages))
    if damages:
        raise DamagedStore(f"{len(damages)} things in {store} are damaged.", "See the list above.")
    if not as_json:
        print_lines(f"{store}: every file is what was written.")


@store_app.command("gc")
def store_gc(
    store: StoreOption = DEFAULT_STORE,
    keep: Annotated[int, typer.Option("--keep", min=0, help="So many of the newest of each kind stay.")] = 10,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", help="Policy, dataset or report that stays, too; repeatable.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is shown; without it nothing is.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the store could do without, and delete it only with --delete.

    That is refined policies, datasets without annotations, reports, and leftovers of killed commands. What a policy in
    force, an annotation or anything kept leads back to stays. Annotations and raw replies always stay.
    """
    from storage.store import Store
    from storage.upkeep import delete_garbage, find_garbage

    opened = Store.open(store)
    found = find_garbage(opened, keep, pin or ())
    freed = delete_garbage(opened, found) if delete else 0
    rows = [{"kind": g.kind, "name": g.name, "bytes": g.bytes, "why": g.why} for g in found]
    if as_json:
        print_json({"deleted": delete, "bytes": sum(g.bytes for g in found), "garbage": rows})
        return
    print_table(f"{len(rows)} things that {store} could do without", rows)
    print_lines(f"deleted, {freed} bytes" if delete else "nothing was deleted; --delete does it")


@store_app.command("list")
def store_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's datasets."""
    from dataclasses import asdict

    from storage.datasets import list_datasets
    from storage.store import Store

    rows = [asdict(summary) for summary in list_datasets(Store.open(store))]
    if as_json:
        print_json({"store": str(store), "datasets": rows})
    else:
        print_table(f"datasets of {store}", rows)
