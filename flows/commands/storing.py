"""`store` and `policy`: looking after a store's files, sharing them, and the policies in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption
from .output import format_of, print_json, print_lines, print_table, progress_bars

UrlArgument = Annotated[str, typer.Argument(help="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or file:///FOLDER.")]
_PolicyFormat = Literal["onnx", "sb3", "torch", "json"]
_POLICY_ENDINGS: Mapping[str, _PolicyFormat] = {
    ".onnx": "onnx",
    ".zip": "sb3",
    ".pt": "torch",
    ".pth": "torch",
    ".json": "json",
}
_EVERYTHING = 1 << 40  # rows
policy_app = typer.Typer(name="policy", help="Policies of the store.", no_args_is_help=True)
store_app = typer.Typer(name="store", help="Look after the store's files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(store_app)
    app.add_typer(policy_app)


@store_app.command("verify")
def store_verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Hash every file again and compare it with the catalog; damaged files are named."""
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
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many of the newest of each kind to keep.")] = 10,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", help="Policy, dataset or report to keep; repeatable.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is shown, not only show it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the store no longer needs, and delete it only with --delete.

    That is refined policies, datasets without annotations, reports, and leftovers of killed commands. What a policy in
    force, an annotation or anything kept was made from is kept. Annotations and raw replies are never deleted.
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
    print_table(f"{len(rows)} things that {store} no longer needs", rows)
    print_lines(f"deleted, {freed} bytes" if delete else "nothing was deleted; --delete does it")


@store_app.command("list")
def store_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's datasets."""
    from storage.datasets import list_datasets
    from storage.store import Store

    rows = [asdict(summary) for summary in list_datasets(Store.open(store))]
    if as_json:
        print_json({"store": str(store), "datasets": rows})
    else:
        print_table(f"datasets of {store}", rows)


@store_app.command("runs")
def store_runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's annotation runs, those under way first: who answered, how far each is, what it cost."""
    from storage.queries import ask
    from storage.store import Store

    with Store.open(store).catalog.read() as con:
        rows = ask(con, "status/runs", minutes=1, limit=_EVERYTHING)
    if as_json:
        print_json({"store": str(store), "runs": rows})
        return
    shown = ("run_id", "dataset_id", "model", "state", "requests", "labels", "rejections", "cost_usd", "created_at")
    print_table(f"annotation runs of {store}", [{name: row[name] for name in shown} for row in rows])
    print_lines(*(f"{row['run_id']} failed: {row['error']}" for row in rows if row["error"]))


@store_app.command("push")
def store_push(
    url: UrlArgument,
    store: StoreOption = DEFAULT_STORE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Push even above a snapshot that this store has not seen.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Also check that every file is still there, and send what is missing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push the store to a remote folder: only new files are sent, and the snapshot appears all at once.

    The annotations also land there as Parquet (`tables/`), for readers without the catalog. Credentials come from the
    usual environment variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...).
    """
    from storage.remote import push_store
    from storage.store import Store

    with progress_bars() as report:
        pushed = push_store(Store.open(store), url, replace=replace, check=check, progress=report)
    if as_json:
        print_json(asdict(pushed))
    elif pushed.is_new:
        print_lines(
            f"{url}: snapshot {pushed.number}, {pushed.files} files; {pushed.sent} sent, {pushed.sent_bytes} bytes"
        )
    else:
        print_lines(f"{url}: nothing new since snapshot {pushed.number}")


@store_app.command("pull")
def store_pull(
    url: UrlArgument,
    store: StoreOption = DEFAULT_STORE,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", min=1, help="Number of the snapshot; default: the newest one.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move local work that was not pushed to `replaced/`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a new folder, or an older store, to a pushed snapshot; every file is checked against its hash.

    Local work that was not pushed is replaced only with --replace, which keeps it in `replaced/`.
    """
    from storage.remote import pull_store

    with progress_bars() as report:
        pulled = pull_store(store, url, number=snapshot, replace=replace, progress=report)
    if as_json:
        print_json(asdict(pulled))
        return
    print_lines(
        f"{store}: snapshot {pulled.number}, {pulled.files} files; {pulled.fetched} fetched, "
        f"{pulled.fetched_bytes} bytes",
        *([f"local work that was not pushed is in {pulled.replaced}"] if pulled.replaced else []),
    )


@store_app.command("export-annotations")
def store_export_annotations(
    folder: Annotated[Path | None, typer.Argument(help="Where to; default: `tables` in the store.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write annotations, rejections, runs and spending as Parquet, to be read without the catalog and its lock."""
    from storage.remote import export_tables
    from storage.store import Store

    files = export_tables(Store.open(store), folder)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        print_lines(*map(str, files))


@policy_app.command("list")
def policy_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's policies, the newest first: where each comes from, what it returned, where it is in force."""
    from storage.queries import ask
    from storage.store import Store

    with Store.open(store).catalog.read() as con:
        rows = ask(con, "status/policies")
    if as_json:
        print_json({"store": str(store), "policies": rows})
        return
    shown = ("policy_id", "kind", "env_id", "dataset_id", "return_", "mode", "episodes", "in_force", "created_at")
    print_table(f"policies of {store}", [{name: row[name] for name in shown} for row in rows])


@policy_app.command("current")
def policy_current(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
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


@policy_app.command("export")
def policy_export(
    policy: Annotated[
        str | None, typer.Argument(help="Policy id of the store, or a unique beginning; default: the newest.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; default: ID.onnx, .zip, .pt or .json here.")
    ] = None,
    format_: Annotated[
        _PolicyFormat | None,
        typer.Option(
            "--format",
            help="ONNX; a zip of Stable-Baselines3; a state_dict of torch with its JSON; one JSON that policy:FILE "
            "plays; default: by the file's name, or else onnx, and json for rules.",
        ),
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", help="sb3: the zip that it was refined from; a copy of it is written.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a policy for other programs, as ONNX, for Stable-Baselines3 or torch, or as JSON; what is new is checked.

    ONNX needs the extra `onnx`: the input `observation` is (N, n) float32; `action` is the greedy action. The zip of
    Stable-Baselines3 is a copy of the original with other weights; statistics of a normalised agent come with it.
    """
    from storage.store import Store

    from ..policies import export_policy

    wanted: _PolicyFormat | None = format_
    if output and output.suffix:
        named: _PolicyFormat = format_of(output, _POLICY_ENDINGS, format_)
        wanted = named
    written = export_policy(Store.open(store), policy, output, format=wanted, like=like)
    found, files = written.agreement, [str(file) for file in (written.path, written.beside) if file]
    if as_json:
        paths = {"path": files[0], "policy_id": written.policy_id} | ({"beside": files[1]} if files[1:] else {})
        print_json(paths | (vars(found) if found else {}))
        return
    if found:
        print_lines(
            f"{found.observations} observations: outputs differ by {found.largest_difference:.1g} at most, "
            f"{found.actions_equal:.2%} of the actions are equal"
        )
    print_lines(*files)
