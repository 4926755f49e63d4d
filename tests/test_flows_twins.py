"""The same command twice in the same instant: one result, nothing doubled, and whoever is too late says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from soak import SOAK

TESTS = Path(__file__).parent
COMMANDS = ["collect", "annotate", "refine"] if SOAK else ["annotate"]


@pytest.mark.slow
def test_twins_leave_what_one_command_leaves(tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, str(TESTS / "twin_commands.py"), str(tmp_path), *COMMANDS]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert list(results) == COMMANDS
    for name, result in results.items():
        codes = sorted(twin["code"] for twin in result["twins"])
        assert codes in ([0, 0], [0, 5]), (name, result)
        for twin in result["twins"]:
            errors = [line for line in twin["said"].splitlines() if line.startswith("error:")]
            assert len(errors) == (twin["code"] == 5), (name, twin)
            assert "Traceback" not in twin["said"]
            assert not errors or "Another process" in errors[0]
        assert (result["last"], result["different"]) == (0, []), (name, result)
        assert result["files"] > 0
