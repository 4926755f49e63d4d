"""`store push`, `store pull` and `store export-annotations`: a store that other machines can read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .keeping import store_app
from .options import DEFAULT_STORE, JsonOption, StoreOption
from .output import print_json, print_lines, progress_bars

UrlArgument = Annotated[str, typer.Argument(help="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or file:///FOLDER.")]


def register(app: typer.Typer) -> None:
    """The commands are in the group `store`, which is in the app already."""


@store_app.command("push")
def store_push(
    url: UrlArgument,
    store: StoreOption = DEFAULT_STORE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Push above a snapshot that this store has not seen.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Also look whether everything is still there, and send what is missing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a folder elsewhere to the state of the store: only what is new travels, and it counts all at once.

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
        bool, typer.Option("--replace", help="Put aside what was done here and not pushed, in `replaced/`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a new folder, or an older store, to a pushed snapshot; every file is compared with its hash.

    Work that was done here and not pushed is never replaced unless you say so, and then it is put aside.
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
        *([f"what was here alone is in {pulled.replaced}"] if pulled.replaced else []),
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
