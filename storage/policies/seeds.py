"""Seeds of episodes: what an environment's datasets and evaluations have used, and which plan has which reserved.

A plan is what decides a gate. Its seeds are reserved before anything is played, so an interrupted gate has the same
ones again, and gates that run at the same time have different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..catalog import Connection, insert_rows, select_column
from ..errors import BadInput
from ..store import Store

FIRST_SEED = 1_000_000
"""Where the search for free seeds begins, far from the seeds that datasets begin with."""
_KEPT_FREE = range(5_000_000, 8_000_000)
"""Never reserved: `evaluate` and rounds of feedback play there, all policies on the same seeds."""
_LAST_SEED = 1 << 31
"""Some simulators take seeds below this only."""


class Plan(NamedTuple):
    """What wants seeds."""

    plan_id: str  # made from all that decides it, but the seeds
    env_id: str
    episodes: int
    datasets: Sequence[str]  # whose seeds must not be used, whatever their environment is called
    comparison_id: str  # as it is with the first seed that is named, or with FIRST_SEED


class Reservation(NamedTuple):
    """The seeds of a plan begin here."""

    first_seed: int
    used_before: str | None  # what had used one of them, where they were named


def reserve_seeds(store: Store, plan: Plan, *, named: int | None = None, start: int = FIRST_SEED) -> Reservation:
    """Reserve the first seeds that nothing in the catalog has used; an equal plan has its own again.

    Args:
        store: the store.
        plan: what wants seeds.
        named: the first seed that a person wants, used before or not.
        start: where the search begins, if none is named.

    Raises:
        BadInput: if no seeds are left.
    """
    with store.catalog.write() as con:
        own = _own(con, plan, named)
        if own is not None:
            return own
        if named is not None:
            found = Reservation(named, _describe_use(con, plan, named))
        elif _is_recorded(con, plan):  # by a trajnote without reservations
            found = Reservation(FIRST_SEED, None)
        else:
            found = Reservation(_first_free(con, plan, start), None)
        row = {"plan_id": plan.plan_id, "env_id": plan.env_id, "episodes": plan.episodes, **found._asdict()}
        insert_rows(con, "reserved_seeds", [row])
    return found


def _own(con: Connection, plan: Plan, named: int | None) -> Reservation | None:
    """The plan's reservation of the seeds that are named; if none are, its oldest one of seeds that were fresh."""
    row = con.execute(
        """SELECT first_seed, used_before FROM reserved_seeds
           WHERE plan_id = $plan AND CASE WHEN $named IS NULL THEN used_before IS NULL ELSE first_seed = $named END
           ORDER BY created_at, first_seed LIMIT 1""",
        {"plan": plan.plan_id, "named": named},
    ).fetchone()
    return None if row is None else Reservation(*row)


def _is_recorded(con: Connection, plan: Plan) -> bool:
    return bool(select_column(con, "SELECT 1 FROM comparisons WHERE comparison_id = ?", [plan.comparison_id]))


_USES = """
SELECT seed AS first, seed + 1 AS stop, 'a dataset' AS who FROM episodes JOIN datasets USING (dataset_id)
WHERE seed IS NOT NULL AND (regexp_replace(env_id, '.*:', '') = $env OR list_contains($datasets, dataset_id))
UNION ALL SELECT DISTINCT first_seed, first_seed + episodes, 'an evaluation' FROM evaluations
WHERE regexp_replace(env_id, '.*:', '') = $env
UNION ALL SELECT first_seed, first_seed + episodes, 'another gate' FROM reserved_seeds
WHERE regexp_replace(env_id, '.*:', '') = $env
"""
"""Ranges of seeds in an environment, whichever module registers it and whatever arguments it has."""


def _first_free(con: Connection, plan: Plan, start: int) -> int:
    """The first of so many seeds in a row that nothing has used."""
    used = con.execute(
        f"SELECT first, stop FROM ({_USES}) WHERE stop > $start ORDER BY first, stop",
        {**_place(plan), "start": start},
    ).fetchall()
    first = start
    for begin, stop in sorted([*used, (_KEPT_FREE.start, _KEPT_FREE.stop)]):
        if begin < first + plan.episodes:
            first = max(first, stop)
    if first + plan.episodes > _LAST_SEED:
        raise BadInput(f"No {plan.episodes} seeds in a row are free from {start} on.", "Name a smaller first seed.")
    return first


def _describe_use(con: Connection, plan: Plan, first: int) -> str | None:
    """What has used one of the seeds from the first on; a gate before an evaluation, which is mostly a gate's own."""
    if _is_recorded(con, plan):
        return None
    values = {**_place(plan), "first": first, "end": first + plan.episodes}
    return select_column(con, f"SELECT max(who) FROM ({_USES}) WHERE first < $end AND stop > $first", values)[0]


def _place(plan: Plan) -> dict[str, object]:
    return {"env": plan.env_id.rpartition(":")[2], "datasets": list(plan.datasets)}


def end_of_used_seeds(con: Connection, seeds: range, *, except_by: str) -> int | None:
    """The seed after the last one of a range that anything has used or reserved; None if all are free.

    Args:
        con: a connection to the catalog.
        seeds: the range.
        except_by: hash of a policy whose dataset may begin with the first of these seeds.
    """
    ends = select_column(
        con,
        """SELECT max(stop) FROM (
               SELECT seed + 1 AS stop FROM episodes JOIN datasets USING (dataset_id)
               WHERE seed BETWEEN $start AND $last AND NOT (policy_sha256 = $policy AND $start = (
                   SELECT min(own.seed) FROM episodes AS own WHERE own.dataset_id = datasets.dataset_id))
               UNION ALL SELECT first_seed + episodes FROM evaluations
               WHERE first_seed <= $last AND first_seed + episodes > $start
               UNION ALL SELECT first_seed + episodes FROM reserved_seeds
               WHERE first_seed <= $last AND first_seed + episodes > $start)""",
        {"start": seeds.start, "last": seeds.stop - 1, "policy": except_by},
    )
    return ends[0]


def is_reserved(con: Connection, env_id: str, seeds: range) -> bool:
    """Whether a gate of the environment has reserved one of the seeds, to choose, accept or report."""
    question = """SELECT 1 FROM reserved_seeds WHERE regexp_replace(env_id, '.*:', '') = $env
                  AND first_seed < $stop AND first_seed + episodes > $start"""
    values = {"env": env_id.rpartition(":")[2], "start": seeds.start, "stop": seeds.stop}
    return bool(select_column(con, question, values))
