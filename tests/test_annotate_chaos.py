"""In a soak, kills at each named point and at any instant: nothing is lost, nothing is billed twice.

test_annotate_run.py has the same kills without processes, test_annotate_batches.py the same faults of a server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from soak import in_soak

CHAOS = Path(__file__).parent.parent / "benchmarks" / "chaos.py"
POINTS = 7
KILLS, WORLDS = 50, 2
pytestmark = [pytest.mark.slow, in_soak, pytest.mark.timeout(1800)]  # a machine that is shared may need many minutes


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    command = [sys.executable, str(CHAOS), "--json", "--seed", "11", "--kills", str(KILLS), "--worlds", str(WORLDS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_commands_are_killed_at_each_named_point(figures: dict[str, Any]) -> None:
    assert figures["kills"] >= KILLS
    assert len(figures["kills_at"].keys() - {"any instant"}) == POINTS
    assert all(figures["kills_at"].values())


def test_nothing_is_lost_and_nothing_is_billed_twice(figures: dict[str, Any]) -> None:
    assert (figures["lost"], figures["billed_twice"], figures["entered_twice"]) == (0, 0, 0)
    assert figures["answered"] == figures["requests"]
    assert (figures["token_gap"], figures["dropped"]) == (0, 0)


def test_the_ledger_never_counts_less_than_was_billed(figures: dict[str, Any]) -> None:
    assert figures["unseen_usd"] <= 1e-9


def test_no_command_crashes(figures: dict[str, Any]) -> None:
    assert figures["crashed"] == 0
    assert figures["faults"] > KILLS / 3
