from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from soak import every, full_or

PROGRAM = Path(__file__).with_name("crash_points.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "every"),
    every(
        [
            ("create", full_or(1, 11)),
            ("collect", full_or(2, 17)),
            ("keep_policy", full_or(2, 17)),
            ("reply", full_or(2, 17)),
        ],
        2,
    ),
)
def test_a_run_killed_anywhere_and_run_again_ends_like_an_uninterrupted_one(
    tmp_path: Path, scenario: str, every: int
) -> None:
    command = [sys.executable, str(PROGRAM), scenario, str(tmp_path), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROGRAM.parents[1], check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finished"], done.stderr
    assert found["wrong"] == []
    assert found["places"] >= 9
