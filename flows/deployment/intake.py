"""What is new for a deployment, and what it has already seen.

New are files dropped into its inbox, datasets of its store, and episodes that are due. Each is taken in once: a file by
its content, a dataset by its name, a collection once in a period. Nothing is asked about them here.

A file in the deployment's folder remembers files of the inbox, by name, size and time, and datasets that were asked
about; it may be thrown away, then everything is looked at once more. A dataset is settled once all that the settings
ask about it is answered; it is open again when the settings, the card, the prompts, its answers' file or the state of
one of its requests change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from annotate import cards, prompting
from storage.datasets import list_datasets
from storage.disk import write_whole
from storage.errors import BadInput, DamagedStore, Prerequisite
from storage.importing import SIDECAR, ImportReport
from storage.ledger import find_answered
from storage.policies import Decision, list_collections, list_decisions, list_intakes, record_intakes
from storage.schema import canonical_json, sha256_bytes, sha256_file
from storage.store import MANIFEST, Store

from ..datasets import CollectConfig, gather, take_in
from ..runtime import Report, silent
from ..simulation import Named
from .settings import CollectPlan, DeploymentConfig

_PERIODS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_NOT_TAKEN = (".tmp", ".part", ".partial", ".crdownload", SIDECAR)  # unfinished, or beside the file it speaks of
MEMORY = "memory.json"
_FRESH_NS = 2_000_000_000
"""A file that was written so shortly before it was read may change again without another time."""
_PROMPTS = (Path(prompting.__file__).parent, Path(cards.__file__).parent)


@dataclass
class Intake:
    """What a night has taken in."""

    datasets: list[str] = field(default_factory=list[str])  # new ones
    refused: dict[str, str] = field(default_factory=dict[str, str])  # name of a file -> what is wrong with it
    notes: list[str] = field(default_factory=list[str])  # what was decided, given up and left out of files
    unmatched: list[str] = field(default_factory=list[str])  # beginnings of names that no dataset has


def take_in_new(
    store: Store, deployment: str, config: DeploymentConfig, report: Report = silent, *, memory: Memory | None = None
) -> Intake:
    """Take in everything new; a file that cannot be used stays where it is and keeps nobody else out.

    Args:
        store: the store.
        deployment: its name.
        config: where its rollouts come from.
        report: shown the progress.
        memory: which files of the inbox were read before; that of the deployment when None.

    Raises:
        Prerequisite: if the inbox is no folder.
        BadInput: if episodes cannot be collected.
    """
    found = Intake()
    if config.inbox is not None:
        memory = memory or Memory(store, deployment, config)
        _empty_inbox(store, deployment, config, memory=memory, inbox=config.inbox, found=found)
    if config.datasets:
        _match_datasets(store, deployment, config.datasets, found)
    if config.collect is not None:
        _collect_due(store, deployment, config, config.collect, found=found, report=report)
    return found


def _match_datasets(store: Store, deployment: str, starts: Sequence[str], found: Intake) -> None:
    with store.catalog.read():
        known = list_intakes(store, deployment)
        names = [dataset.dataset_id for dataset in list_datasets(store)]
    wanted = {f"dataset:{name}": name for name in names if name.startswith(tuple(starts))}
    if wanted.keys() - known.keys():
        found.datasets += record_intakes(store, deployment, wanted)
    found.unmatched = [start for start in starts if not any(name.startswith(start) for name in names)]


def _empty_inbox(
    store: Store, deployment: str, config: DeploymentConfig, *, memory: Memory, inbox: Path, found: Intake
) -> None:
    known = list_intakes(store, deployment)
    for path in _drops(inbox):
        origin = f"file:{memory.hash_drop(path)}"
        if origin in known:
            continue
        report = ImportReport()
        env_id, env_kwargs, card = config.env_id, config.env_kwargs, config.label.card
        try:
            manifest = take_in(store, path, env_id=env_id, env_kwargs=env_kwargs, card=card, report=report)
        except (BadInput, DamagedStore) as error:
            found.refused[path.name] = str(error)
        else:
            found.datasets += record_intakes(store, deployment, {origin: manifest.dataset_id})
            found.notes += [f"{path.name}: {sentence}" for sentence in report.sentences()]


def _drops(inbox: Path) -> Iterator[Path]:
    """Finished files, and folders of datasets, in the order of their names."""
    if not inbox.is_dir():
        raise Prerequisite(f"There is no folder {inbox}.", "Make it, or correct `inbox` in trajnote.toml.")
    for path in sorted(inbox.iterdir()):
        is_whole = not path.name.startswith(".") and not path.name.endswith(_NOT_TAKEN)
        if is_whole and (path.is_file() or (path / MANIFEST).is_file()):
            yield path


def _collect_due(
    store: Store, deployment: str, config: DeploymentConfig, plan: CollectPlan, *, found: Intake, report: Report
) -> None:
    """Play the next episodes, unless this period has its own already."""
    with store.catalog.read():
        made = list_collections(store, deployment)
        acting = acting_policy(list_decisions(store, deployment))
    origin, dataset_id = f"collect:{len(made):05d}", f"{deployment}-{len(made):05d}"
    if not is_due(made, datetime.now(UTC), plan, config.timezone):
        return
    manifest = gather(
        store,
        CollectConfig(
            env_id=config.env_id or Named(),
            env_kwargs=config.env_kwargs,
            policy=acting or plan.policy,
            mode=plan.mode,
            episodes=plan.episodes,
            seed=plan.seed + len(made) * plan.episodes,
            max_steps=plan.max_steps,
            workers=None,
            dataset=dataset_id,
            rename=True,
        ),
        card=config.label.card,
        report=report,
    )
    found.datasets += record_intakes(store, deployment, {origin: manifest.dataset_id})


def acting_policy(decisions: Sequence[Decision]) -> Named | None:
    """The policy in force after a deployment's decisions, as `policy:ID`; None before the first one."""
    return Named(f"policy:{decisions[-1].policy_id}") if decisions else None


def period_start(now: datetime, plan: CollectPlan, timezone: str) -> datetime:
    """When the current hour, day or week began in a time zone; weeks begin on Monday."""
    local = now.astimezone(ZoneInfo(timezone)).replace(minute=0, second=0, microsecond=0)
    if plan.per == "hour":
        return local
    day = local.replace(hour=0)
    return day if plan.per == "day" else day - timedelta(days=day.weekday())


def is_due(made_at: Sequence[datetime], now: datetime, plan: CollectPlan, timezone: str) -> bool:
    """Whether this period has no collection yet, also on a clock that was wrong once.

    A collection of the next period counts for this one: the clock was set back a little. One farther in the future was
    made on a wrong clock and counts for none.

    Args:
        made_at: when each collection was entered.
        now: the time.
        plan: how often to collect.
        timezone: where periods begin.
    """
    start = period_start(now, plan, timezone)
    return not any(start <= made < start + 2 * _PERIODS[plan.per] for made in made_at)


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
