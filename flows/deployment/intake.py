"""What is new for a deployment: files dropped into its inbox, datasets of its store, and episodes that are due.

Each is taken in once: a file by its content, a dataset by its name, a collection once in a period. Nothing is asked
about them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from storage.datasets import list_datasets
from storage.errors import BadInput, DamagedStore, Prerequisite
from storage.importing import SIDECAR, ImportReport
from storage.policies import Decision, list_collections, list_decisions, list_intakes, record_intakes
from storage.store import MANIFEST, Store

from ..datasets import CollectConfig, gather, take_in
from ..runtime import Report, silent
from ..simulation import Named
from .memory import Memory
from .settings import CollectPlan, DeploymentConfig

_PERIODS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_NOT_TAKEN = (".tmp", ".part", ".partial", ".crdownload", SIDECAR)  # unfinished, or beside the file it speaks of


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
        said = ImportReport()
        env_id, env_kwargs, card = config.env_id, config.env_kwargs, config.label.card
        try:
            manifest = take_in(store, path, env_id=env_id, env_kwargs=env_kwargs, card=card, report=said)
        except (BadInput, DamagedStore) as error:
            found.refused[path.name] = str(error)
        else:
            found.datasets += record_intakes(store, deployment, {origin: manifest.dataset_id})
            found.notes += [f"{path.name}: {sentence}" for sentence in said.sentences()]


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
