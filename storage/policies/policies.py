"""Policies as hashed folders of files, with their parents, the returns of their episodes, and the cache of trainings.

A row of the catalog without an environment was made before environments were kept. A training is named by all that
decides it; its file may be deleted, since it saves time and is not evidence.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..catalog import Connection, insert_rows, rows_of
from ..datasets import pick
from ..disk import TEMPORARY, exclusive_lock, publish_folder, write_whole, writing
from ..errors import BadInput, DamagedStore, Prerequisite
from ..schema import KnownEnvironment, canonical_json, sha256_bytes
from ..store import Store

RECORD = "record.json"


def save_policy(store: Store, policy_id: str, files: Mapping[str, bytes], record: Mapping[str, object]) -> str:
    """Keep a policy; saving the same one again changes nothing.

    Args:
        store: the store.
        policy_id: its name.
        files: file name -> content, for example `policy.json` and `weights.npz`.
        record: columns of the table `policies`: kind, env_id, dataset_id, baseline_id, run_ids, config. It is also
            written beside the files, so the folder explains itself.

    Returns:
        The sha256 of the files.

    Raises:
        BadInput: if another policy has this name, or a file name is not a plain one.
        DiskFailed: if the disk refuses it.
    """
    if not files or any("/" in name or name.startswith(".") or name == RECORD for name in files):
        raise BadInput(f"A policy needs files with plain names other than {RECORD}; received {sorted(files)}.")
    final, sha256 = store.policy_dir(policy_id), files_sha256(files)
    if not final.exists():
        _publish(store, policy_id, {**files, RECORD: canonical_json(record).encode()})
    if files_sha256(read_folder(final)) != sha256:
        raise BadInput(f"Another policy is named {policy_id!r}.", "Give the new one another name.")
    config = record.get("config")
    known = cast(Mapping[str, object], config) if isinstance(config, Mapping) else {}
    lineage = {name: known.get(name) for name in ("policy_sha256", "also")}  # columns that questions ask for
    with store.catalog.write() as con:
        insert_rows(con, "policies", [{**record, **lineage, "policy_id": policy_id, "sha256": sha256}])
    return sha256


def policy_files(store: Store, policy_id: str) -> dict[str, bytes]:
    """The files of a policy: name -> content.

    Raises:
        BadInput: if there is no such policy.
        DamagedStore: if a file is missing or differs from what was saved.
    """
    expected = str(policy_record(store, policy_id)["sha256"])
    files = read_folder(store.policy_dir(policy_id))
    if files_sha256(files) != expected:
        raise DamagedStore(
            f"The files in {store.policy_dir(policy_id)} differ from those that were saved.",
            "Restore them from a backup, or make the policy again.",
        )
    return files


def policy_record(store: Store, policy_id: str) -> dict[str, Any]:
    """The row of a policy in the catalog: its kind, hash, parents and configuration.

    Raises:
        BadInput: if there is no such policy.
    """
    with store.catalog.read() as con:
        rows = rows_of(con.execute("SELECT * FROM policies WHERE policy_id = ?", [policy_id]))
    if not rows:
        raise BadInput(f"There is no policy {policy_id!r} in {store.root}.")
    return rows[0]


def find_policy(store: Store, policy_sha256: str) -> str | None:
    """The id of the policy with this hash, if one was kept; the oldest, should there be two.

    Args:
        store: the store.
        policy_sha256: of the network itself, as the manifest of a dataset names it; not of the files it is kept in.
    """
    question = "SELECT policy_id FROM policies WHERE policy_sha256 = ? ORDER BY created_at, policy_id LIMIT 1"
    return next((policy_id for (policy_id,) in store.select(question, [policy_sha256])), None)


def resolve_policy(store: Store, name: str | None = None) -> str:
    """The id of the policy that a user means: its id or the unique beginning of it; the latest one when None.

    Raises:
        Prerequisite: if the store has no policy.
        BadInput: if the name fits no policy, or several.
    """
    rows = store.select("SELECT policy_id FROM policies ORDER BY created_at, policy_id")
    known = [policy_id for (policy_id,) in rows]
    if not known:
        named = f" {name!r}" if name else ""
        raise Prerequisite(
            f"There is no policy{named} in {store.root}: it has none.", "Make one with `trajnote refine`."
        )
    return known[-1] if name is None else pick(name, known, "policy")


def files_sha256(files: Mapping[str, bytes]) -> str:
    """One hash of files' names and contents, in any order; the record beside them does not count."""
    return sha256_bytes(
        canonical_json({name: sha256_bytes(content) for name, content in files.items() if name != RECORD}).encode()
    )


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a policy's folder, without the record beside them; empty without a folder."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}


def is_record(store: Store, policy_id: str, *, is_registered: bool) -> bool:
    """Whether the record in a policy's folder is whole, and says what the catalog says."""
    try:
        record = json.loads((store.policy_dir(policy_id) / RECORD).read_bytes())
        row = policy_record(store, policy_id) if is_registered else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    pairs = [(value, (row or {}).get(name)) for name, value in cast(dict[str, Any], record).items()]
    return row is None or all(kept in (value, canonical_json(value)) for value, kept in pairs)  # JSON is text there


def _publish(store: Store, policy_id: str, files: Mapping[str, bytes]) -> None:
    partial = store.policies_dir / f".partial-{policy_id}"
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(partial, f"the policy {policy_id}"):
        for leftover in partial.iterdir():
            leftover.unlink()
        for name, content in files.items():
            write_whole(partial / name, content)
        try:
            publish_folder(partial, store.policy_dir(policy_id))
        except FileExistsError:
            shutil.rmtree(partial)


def insert_environment(con: Connection, known: KnownEnvironment, env_id: str, env_kwargs: Mapping[str, Any]) -> None:
    """Keep an environment; one that is there already stays unchanged."""
    insert_rows(con, "environments", [{**known._asdict(), "env_id": env_id, "env_kwargs": dict(env_kwargs)}])


def list_environments(con: Connection, env_id: str, env_kwargs: Mapping[str, Any]) -> list[KnownEnvironment]:
    """What an environment was when it was played in, the newest first."""
    rows = con.execute(
        """SELECT environment_sha256, versions, code FROM environments WHERE env_id = ? AND env_kwargs::VARCHAR = ?
           ORDER BY created_at DESC, environment_sha256""",
        [env_id, canonical_json(dict(env_kwargs))],
    ).fetchall()
    return [KnownEnvironment(sha256, json.loads(versions), json.loads(code)) for sha256, versions, code in rows]


def load_returns(
    con: Connection, environment_sha256: str, evaluation_ids: Sequence[str] = (), seeds: range = range(0)
) -> dict[str, list[float]]:
    """Evaluation -> returns of its episodes.

    Args:
        con: a connection to the catalog.
        environment_sha256: the environment as it is now.
        evaluation_ids: these, under whatever name their policy was played.
        seeds: also all evaluations on some of these alone.
    """
    rows = con.execute(
        """SELECT evaluation_id, returns FROM evaluations
           WHERE environment_sha256 = $1
             AND (evaluation_id IN (SELECT unnest($2)) OR (first_seed >= $3 AND first_seed + episodes <= $4))""",
        [environment_sha256, list(evaluation_ids), seeds.start, seeds.stop],
    ).fetchall()
    return dict(rows)


def count_played_steps(
    con: Connection, mode: str, seeds: range, baseline_id: str, policies: Sequence[str]
) -> int | None:
    """Environment steps of some policies' evaluations; None if those of one are not known.

    Args:
        con: a connection to the catalog.
        mode: in which they were played.
        seeds: with which they begin.
        baseline_id: one of the policies, by its id.
        policies: the others, by the twelve characters of a hash that end their ids.
    """
    is_whole, steps = con.execute(
        """SELECT count(*) = count(steps), coalesce(sum(steps), 0) FROM evaluations
           WHERE mode = $mode AND first_seed >= $start AND first_seed < $stop
               AND (policy_id = $baseline OR list_contains($policies, right(policy_id, 12)))""",
        {
            "mode": mode,
            "start": seeds.start,
            "stop": seeds.stop,
            "baseline": baseline_id,
            "policies": list(policies),
        },
    ).fetchall()[0]
    return int(steps) if is_whole else None


LIMIT_BYTES = 500_000_000
"""The most that is kept; the least recently used trainings go first."""


def save_training(store: Store, training_id: str, files: Mapping[str, bytes], *, limit: int = LIMIT_BYTES) -> None:
    """Keep the files of a training; equal files give equal bytes.

    Args:
        store: the store.
        training_id: made from all that decides it.
        files: file name -> content.
        limit: bytes of all trainings together.
    """
    folder = store.trainings_dir
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with exclusive_lock(folder, "a training", wait=True):
        for leftover in folder.glob(f"*{TEMPORARY}"):  # of a killed command: this process has the lock
            leftover.unlink()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        write_whole(store.training_path(training_id), packed.getvalue())
        _drop_oldest(folder, limit)


def load_training(store: Store, training_id: str) -> dict[str, bytes] | None:
    """The files of a training; None if it is not cached, or damaged."""
    path = store.training_path(training_id)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LIMIT_BYTES:
                return None
            files = {name: archive.read(name) for name in archive.namelist()}
        os.utime(path)  # marks it as used
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError):
        return None
    return files


_PROGRESS = "under-way.json"


def note_training(store: Store, done: int, total: int) -> None:
    """Note how many arms of a refinement this process has trained, for those who watch the store."""
    folder = store.trainings_dir
    with writing(folder):
        folder.mkdir(exist_ok=True)
    note = {"done": done, "total": total, "process": os.getpid(), "machine": platform.node()}
    write_whole(folder / _PROGRESS, canonical_json(note).encode())


def find_training(store: Store) -> dict[str, float] | None:
    """What `note_training` noted last, and how many seconds ago; None if that training is over, or was killed here."""
    path = store.trainings_dir / _PROGRESS
    try:
        note, age = json.loads(path.read_bytes()), time.time() - path.stat().st_mtime
        is_over = note["done"] >= note["total"]
        if is_over or (note["machine"] == platform.node() and not Path(f"/proc/{note['process']}").exists()):
            return None
        return {"done": note["done"], "total": note["total"], "seconds": age}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _drop_oldest(folder: Path, limit: int) -> None:
    found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.iterdir())
    kept = 0
    for _, size, path in reversed(found):
        kept += size
        if kept > limit:
            path.unlink(missing_ok=True)
