"""`store` and `policy`: looking after a store's files, sharing them, and the policies in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from storage import datasets, policies, queries, remote, upkeep
from storage.errors import DamagedStore

from .. import policies as playing
from .options import DEFAULT_STORE, JsonOption, StoreOption, open_store
from .output import format_of, print_lines, print_result, print_rows, progress_bars

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


@store_app.command("verify")
def store_verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Hash every file again, compare it with the catalog, and name damaged files."""
    from storage.store import Store

    damages = [str(damage) for damage in upkeep.verify_store(Store.locate(store))]
    print_result(as_json, {"damaged": len(damages), "damages": damages}, *damages)
    if damages:
        raise DamagedStore(f"{len(damages)} files in {store} are damaged or missing.", "See the list above.")
    if not as_json:
        print_lines(f"{store}: every file is what was written.")


@store_app.command("gc")
def store_gc(
    store: StoreOption = DEFAULT_STORE,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Keep so many of the newest of each kind.")] = 10,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", help="Policy, dataset or report to keep; repeatable.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is shown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the store no longer needs, and delete it only with --delete.

    That is old refined policies, datasets without annotations, reports, and leftovers of killed commands. Whatever a
    policy in force, an annotation or anything kept was made from stays. Annotations and raw replies are never deleted.
    """
    opened = open_store(store)
    found = upkeep.find_garbage(opened, keep, pin or ())
    freed = upkeep.delete_garbage(opened, found) if delete else 0
    rows = [{"kind": g.kind, "name": g.name, "bytes": g.bytes, "why": g.why} for g in found]
    print_rows(
        as_json,
        {"deleted": delete, "bytes": sum(g.bytes for g in found), "garbage": rows},
        f"{len(rows)} items that {store} no longer needs",
        rows,
        f"deleted, {freed} bytes" if delete else "nothing was deleted; --delete does it",
    )


@store_app.command("list")
def store_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's datasets."""
    rows = [asdict(summary) for summary in datasets.list_datasets(open_store(store))]
    print_rows(as_json, {"store": str(store), "datasets": rows}, f"datasets of {store}", rows)


@store_app.command("runs")
def store_runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's annotation runs, unfinished ones first: who answered, progress, cost."""
    with open_store(store).catalog.read() as con:
        rows = queries.ask(con, "status/runs", minutes=1, limit=_EVERYTHING)
    shown = ("run_id", "dataset_id", "model", "state", "requests", "labels", "rejections", "cost_usd", "created_at")
    print_rows(
        as_json,
        {"store": str(store), "runs": rows},
        f"annotation runs of {store}",
        [{name: row[name] for name in shown} for row in rows],
        *(f"{row['run_id']} failed: {row['error']}" for row in rows if row["error"]),
    )


@store_app.command("push")
def store_push(
    url: UrlArgument,
    store: StoreOption = DEFAULT_STORE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Push even if there is a newer snapshot that this store has not seen.")
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
    with progress_bars() as report:
        pushed = remote.push_store(open_store(store), url, replace=replace, check=check, progress=report)
    line = f"{url}: nothing new since snapshot {pushed.number}"
    if pushed.is_new:
        line = f"{url}: snapshot {pushed.number}, {pushed.files} files; {pushed.sent} sent, {pushed.sent_bytes} bytes"
    print_result(as_json, asdict(pushed), line)


@store_app.command("pull")
def store_pull(
    url: UrlArgument,
    store: StoreOption = DEFAULT_STORE,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", min=1, help="Number of the snapshot; default: the newest.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move local work that was not pushed to `replaced/`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a pushed snapshot into a new folder or an older store; every file is checked against its hash.

    Local work that was not pushed is replaced only with --replace, which keeps it in `replaced/`.
    """
    with progress_bars() as report:
        pulled = remote.pull_store(store, url, number=snapshot, replace=replace, progress=report)
    print_result(
        as_json,
        asdict(pulled),
        f"{store}: snapshot {pulled.number}, {pulled.files} files; {pulled.fetched} fetched, "
        f"{pulled.fetched_bytes} bytes",
        *([f"local work that was not pushed is in {pulled.replaced}"] if pulled.replaced else []),
    )


@store_app.command("export-annotations")
def store_export_annotations(
    folder: Annotated[Path | None, typer.Argument(help="Folder to write to; default: `tables` in the store.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write annotations, rejections, runs and spending as Parquet, to be read without the catalog and its lock."""
    files = [str(file) for file in remote.export_tables(open_store(store), folder)]
    print_result(as_json, {"files": files}, *files)


@policy_app.command("list")
def policy_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's policies, the newest first: origin, return, and where each is in force."""
    with open_store(store).catalog.read() as con:
        rows = queries.ask(con, "status/policies")
    shown = ("policy_id", "kind", "env_id", "dataset_id", "return_", "mode", "episodes", "in_force", "created_at")
    table = [{name: row[name] for name in shown} for row in rows]
    print_rows(as_json, {"store": str(store), "policies": rows}, f"policies of {store}", table)


@policy_app.command("current")
def policy_current(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show which policy each deployment has in force, since when and why, and the path that always leads to it."""
    opened = open_store(store)
    rows = [
        {**vars(known), "path": str(opened.deployment_dir(known.deployment) / policies.CURRENT)}
        for known in policies.list_in_force(opened)
    ]
    print_rows(as_json, {"in_force": rows}, f"{len(rows)} deployments of {store} with a decision", rows)


@policy_app.command("export")
def policy_export(
    policy: Annotated[
        str | None, typer.Argument(help="Policy id of the store, or a unique prefix; default: the newest.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File; default: ID.onnx, .zip, .pt or .json in the current folder."),
    ] = None,
    format_: Annotated[
        _PolicyFormat | None,
        typer.Option(
            "--format",
            help="ONNX; a zip of Stable-Baselines3; a state_dict of torch with its JSON; one JSON that policy:FILE "
            "plays; default: by the file's name, else onnx, or json for rules.",
        ),
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", help="sb3: the zip that the policy was refined from, to write a copy of.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a policy for other programs, as ONNX, for Stable-Baselines3 or torch, or as JSON, and check what it does.

    ONNX needs the extra `onnx`: the input `observation` is (N, n) float32; `action` is the greedy action. The zip of
    Stable-Baselines3 is a copy of the original with new weights; statistics of a normalised agent come with it.
    """
    if output and output.suffix:
        named: _PolicyFormat = format_of(output, _POLICY_ENDINGS, format_)
        format_ = named
    written = playing.export_policy(open_store(store), policy, output, format=format_, like=like)
    found, files = written.agreement, [str(file) for file in (written.path, written.beside) if file]
    paths = {"path": files[0], "policy_id": written.policy_id} | ({"beside": files[1]} if files[1:] else {})
    agreement = (
        ()
        if found is None
        else (
            f"{found.observations} observations: outputs differ by {found.largest_difference:.1g} at most, "
            f"{found.actions_equal:.2%} of the actions are equal",
        )
    )
    print_result(as_json, paths | (vars(found) if found else {}), *agreement, *files)
