"""A clock that jumps between two commands: nothing is lost, asked again, collected again or thrown away for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from soak import every
from store_state import counts_of, state_of
from test_annotate_batches import Bench
from test_annotate_batches import bench as bench
from test_flows_night import World
from test_flows_night import template as template
from test_flows_night import world as world

from flows.deployment.intake import is_due
from flows.deployment.settings import CollectPlan
from storage.store import Store
from storage.upkeep.garbage import delete_garbage, find_garbage

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
DAY = timedelta(days=1)


def set_back(store: Store, jump: timedelta) -> None:
    """Have everything in the catalog look as if the clock had stood otherwise when it was written."""
    with store.catalog.write() as con:
        columns = con.execute(
            "SELECT table_name, column_name FROM duckdb_columns() JOIN duckdb_tables() USING (table_name) "
            "WHERE data_type LIKE 'TIMESTAMP%'"
        ).fetchall()
        for table, column in columns:
            con.execute(f"UPDATE {table} SET {column} = {column} + to_seconds(?)", [jump.total_seconds()])
    assert len(columns) > 15


@pytest.mark.parametrize(
    ("made_at", "due"),
    [
        ([], True),
        ([NOON], False),
        ([NOON - DAY], True),
        ([NOON + timedelta(hours=13)], False),  # the clock was set back over midnight
        ([NOON + 400 * DAY], True),  # made on a wrong clock
        ([NOON + 400 * DAY, NOON], False),  # and again since
        ([NOON - 20_000 * DAY], True),
    ],
)
def test_a_collection_is_due_once_in_a_period_whatever_the_clock_said(made_at: list[datetime], due: bool) -> None:
    plan = CollectPlan(policy="random", episodes=1, per="day")
    assert is_due(made_at, NOON, plan, "UTC") is due


@pytest.mark.slow
def test_a_night_after_a_jump_doubles_nothing_and_keeps_what_is_in_force(world: World) -> None:
    world.drop(0)
    first = world.run()
    before = state_of(world.folder / "store")
    for jump in (-18_000 * DAY, 36_000 * DAY):  # the clock had stood in 1976, then half a century ahead
        set_back(world.store, jump)
        again = world.run()
        assert (again.took_in, again.asked, again.new_labels, again.comparison_id) == ([], 0, 0, None)
        assert (first.policy_id, first.labels) == (again.policy_id, again.labels)
        assert state_of(world.folder / "store") == before
    delete_garbage(world.store, find_garbage(world.store, keep=0))
    kept = counts_of(world.store)
    assert (kept["annotations"], kept["responses"], kept["datasets"], kept["promotions"]) == (96, 12, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("jump", every([-18_000 * DAY, 18_000 * DAY], 2))
def test_batches_are_found_and_paid_once_whichever_clock_is_wrong(jump: timedelta, bench: Bench) -> None:
    bench.server.plan_fault("create", "lost_reply")
    bench.server.skew_s = jump.total_seconds()
    bench.submit()
    set_back_local(bench, jump)
    bench.submit()
    bench.ingest()
    bench.ingest()
    assert set(bench.server.billed.values()) == {1}
    assert bench.states() == {"done": 6}


def set_back_local(bench: Bench, jump: timedelta) -> None:
    """Only what our own clock wrote; the server's marks are the server's."""
    with bench.store.catalog.write() as con:
        for table in ("batches", "requests", "annotation_runs"):
            con.execute(f"UPDATE {table} SET created_at = created_at + to_seconds(?)", [jump.total_seconds()])
