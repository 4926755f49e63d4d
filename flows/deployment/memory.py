"""What a deployment need not look at again: files of its inbox that it has read, and datasets that it has asked about.

It is a file in the deployment's folder that may be thrown away; then everything is looked at once more. A file of the
inbox is known by its name, size and time. A dataset is settled once all that the settings ask about it is answered; it
is open again when the settings, the card, the prompts, its answers' file or the state of one of its requests change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from annotate import cards, prompting
from storage.content_hash import canonical_json, sha256_bytes, sha256_file
from storage.disk import write_whole
from storage.ledger import find_answered
from storage.store import MANIFEST, Store

from .settings import DeploymentConfig

MEMORY = "memory.json"
_FRESH_NS = 2_000_000_000
"""A file that was written so shortly before it was read may change again without another time."""
_PROMPTS = (Path(prompting.__file__).parent, Path(cards.__file__).parent)


class _Settled(NamedTuple):
    """A dataset whose questions are answered."""

    manifest_sha256: str
    run_id: str
    stamp: str  # of its file of answers; empty where there is none


class Memory:
    """What is known of the inbox and of the datasets; `save` keeps it for the next night.

    Args:
        store: of the deployment.
        deployment: its name.
        config: what it asks now.
    """

    def __init__(self, store: Store, deployment: str, config: DeploymentConfig) -> None:
        self._store = store
        self._path = store.deployment_dir(deployment) / MEMORY
        self._config = config
        self._question = _describe_question(config)
        self._files: dict[str, tuple[str, str]] = {}  # name -> stamp and hash
        self._settled: dict[str, _Settled] = {}
        self._new: dict[str, tuple[str, str]] = {}  # dataset -> run, and stamp of its file of answers
        with suppress(OSError, ValueError, KeyError, TypeError):
            self._read(json.loads(self._path.read_bytes()))

    def _read(self, kept: Mapping[str, Any]) -> None:
        self._files = {name: (str(stamp), str(sha256)) for name, (stamp, sha256) in kept["files"].items()}
        if kept["question"] == self._question:
            self._settled = {name: _Settled(*map(str, row)) for name, row in kept["settled"].items()}

    def hash_drop(self, path: Path) -> str:
        """The hash of a file of the inbox, or of the manifest of a dataset's folder, read only if it is not known."""
        read = path / MANIFEST if path.is_dir() else path
        stamp = _stamp(read)
        known = self._files.get(path.name)
        if known is None or known[0] != stamp:
            known = stamp, sha256_file(read)
            if time.time_ns() - read.stat().st_mtime_ns > _FRESH_NS:
                self._files[path.name] = known
        return known[1]

    def find_settled(self) -> frozenset[str]:
        """The datasets about which nothing is left to ask, found in one question to the catalog."""
        same = {
            name: (row.manifest_sha256, row.run_id)
            for name, row in self._settled.items()
            if row.stamp == self.stamp_answers(name)
        }
        if not same:
            return frozenset()
        with self._store.catalog.read() as con:
            return find_answered(con, same)

    def stamp_answers(self, dataset_id: str) -> str:
        """What tells whether the file of answers about a dataset has changed."""
        return _stamp(answers_of(self._config, dataset_id))

    def settle(self, dataset_id: str, run_id: str, stamp: str) -> None:
        """Note that a run over a dataset has an answer to everything that it asks.

        Args:
            dataset_id: the dataset.
            run_id: the run.
            stamp: of its answers, taken before they were read.
        """
        self._new[dataset_id] = run_id, stamp

    def save(self) -> None:
        """Write it down, without the datasets that are open again."""
        for name, (run_id, stamp) in self._new.items():
            self._settled[name] = _Settled(sha256_file(self._store.manifest_path(name)), run_id, stamp)
        kept = {"files": self._files, "question": self._question, "settled": self._settled}
        write_whole(self._path, canonical_json(kept).encode())


def answers_of(config: DeploymentConfig, dataset_id: str) -> Path | None:
    """The file where the provider `file` finds the answers about a dataset; None for another provider."""
    folder = config.label.answers
    if config.label.provider != "file" or folder is None:
        return None
    return folder / f"{dataset_id}.jsonl" if folder.suffix != ".jsonl" else folder


def _describe_question(config: DeploymentConfig) -> str:
    """A hash of everything that decides what is asked, who answers, and which environments may be made."""
    label = config.label
    given = [Path(label.card)] if label.card is not None and Path(label.card).is_file() else []
    code = [path for folder in _PROMPTS for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".md", ".toml")]
    recorded = label.answers if label.provider == "recorded" else None
    within = sorted(recorded.iterdir()) if recorded is not None and recorded.is_dir() else []
    asked = [
        label.model_dump(mode="json"),
        [config.env_id, canonical_json(config.env_kwargs)],
        [sha256_file(path) for path in [*given, *code]],
        [_stamp(recorded), *((path.name, _stamp(path)) for path in within)],
    ]
    return sha256_bytes(canonical_json(asked).encode())


def _stamp(path: Path | None) -> str:
    """Size and time of a file; empty if there is none."""
    if path is None:
        return ""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
