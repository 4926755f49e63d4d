"""Every command, stopped anywhere and run again, ends like an uninterrupted one, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from soak import SOAK, full_or, in_soak

TESTS = Path(__file__).parent
PROGRAM = TESTS / "interrupted_commands.py"
LINE = "interrupted: run the same command again to resume"
KILLS, INTERRUPTS = full_or(6, 1), full_or(3, 1)
COMMANDS = ["collect", "import", "annotate", "annotations", "evaluate", "refine"]
TRIED = COMMANDS if SOAK else ["annotate"]
"""The one that pays; test_flows_collect.py kills one that plays, test_flows_night.py one that trains."""

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.slow
def test_a_command_that_was_stopped_and_run_again_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(KILLS), str(INTERRUPTS), *TRIED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == TRIED
    for name, result in found.items():
        assert result["problems"] == [], name
        assert result["stops"] == KILLS + INTERRUPTS
        assert result["touches"] >= 7, name


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    """All processes that this one started, and those that they started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, fresh = set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def wait_until(condition: Callable[[], bool]) -> bool:
    return any(condition() or time.sleep(0.05) for _ in range(4800))


def stop_when(
    ready: Callable[[int], bool], arguments: Sequence[str], sent: signal.Signals
) -> tuple[int, str, set[int]]:
    """Start a command as a terminal does, stop it; its exit code, what it said, its processes that still live."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    process = subprocess.Popen(
        command, cwd=TESTS, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    children: set[int] = set()
    try:
        assert wait_until(lambda: ready(process.pid) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        children = descendants(process.pid)
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # a terminal sends it to the workers too
        else:
            process.send_signal(sent)
        _, said = process.communicate(timeout=60)
        wait_until(lambda: not any(map(is_alive, children)))
        return process.returncode, said, {pid for pid in children if is_alive(pid)}
    finally:
        process.kill()
        for pid in children:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@in_soak  # those of a rollout do, in test_flows_rollout.py
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_the_processes_that_play_end_with_their_command(tmp_path: Path, sent: signal.Signals) -> None:
    arguments = ["evaluate", "random", "--env", "toy_environment:Toy-v0", "--episodes", "400000", "--workers", "2"]
    code, said, left = stop_when(
        lambda pid: len(descendants(pid)) == 3,  # two workers and multiprocessing's tracker
        [*arguments, "--store", str(tmp_path / "store")],
        sent,
    )
    assert left == set()
    if sent == signal.SIGINT:
        assert code == 130
        assert said.strip().splitlines()[-1] == LINE
        assert "Traceback" not in said
    else:
        assert code == -signal.SIGKILL


@pytest.mark.slow
def test_prefects_server_ends_with_its_command(tmp_path: Path) -> None:
    arguments = ["pipeline", "--env", "LunarLander-v3", "--policy", "random", "--provider", "recorded"]
    code, _, left = stop_when(
        lambda pid: len(descendants(pid)) >= 1, [*arguments, "--store", str(tmp_path / "store")], signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    assert left == set()
