"""The same client against a stand-in for Anthropic that others wrote: `llmock` from PyPI, in an environment of its own.

    python benchmarks/stand_in.py [--keep FOLDER]

It installs the package into a temporary folder, starts it with failures by chance, and prints what held. The stand-in's
list of batches ignores `after_id`, and its results have a relative address; its replies are no labels, so that each has
to end as one rejection.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from test_annotate_batches import CARD
from toy_datasets import make_draft, make_episode, write

from annotate.ledger.ledger import BatchConfig
from annotate.prompting.requests import AnnotateConfig
from annotate.providers import batch as batch_provider
from annotate.providers.anthropic import AnthropicProvider
from annotate.providers.batch import BatchServer, OutcomeUnknownError
from annotate.runs.batch_runs import run_batches
from annotate.runs.plan import RunPlan, plan_run
from annotate.runs.run import annotate_run
from storage.store import Store

PACKAGE = "llmock==0.2.2"
EPISODES = 12
MODEL = "claude-haiku-4-5"
CONFIG = BatchConfig(size=3, in_flight=4, grace_s=3.0, attempts=20)
FAILURES = ("429=0.15", "500=0.08", "503=0.08")


def install(folder: Path) -> Path | None:
    """The stand-in's program; None if it cannot be installed."""
    home = folder / "stand-in"
    program = home / "bin" / "llmock"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        done = subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", PACKAGE], check=False)
        if done.returncode != 0:
            return None
    return program


@contextmanager
def started(program: Path) -> Generator[str]:
    """The stand-in's address, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rates = [argument for rate in FAILURES for argument in ("--error-rate", rate)]
    command = [str(program), "serve", "--port", str(port), "--log-level", "error", *rates]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}/anthropic"
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    for _ in range(150):
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the stand-in did not start")


class ForgetfulServer(BatchServer):
    """Loses the first reply to a creation, after the stand-in has created the batch."""

    lost = False

    def create(self, requests: Any) -> Any:
        """Create, and forget it once."""
        made = super().create(requests)
        if not self.lost:
            self.lost = True
            raise OutcomeUnknownError("the reply was lost")
        return made


def check_batches(store: Store, url: str) -> list[tuple[str, bool, str]]:
    """A whole run by batches, with a lost reply and whatever fails by chance."""
    client = ForgetfulServer(url, sleep=_short_sleep)
    summary = run_batches(store, _plan(store), client, CONFIG, poll_s=0.3)
    made = _custom_ids(url, client)
    with store.catalog.read() as con:
        replies = con.execute("SELECT count(*), count(DISTINCT request_id) FROM responses").fetchall()[0]
        reasons = con.execute("SELECT reason, count(*) FROM rejections GROUP BY reason").fetchall()
    return [
        ("every request has its reply", summary.done and summary.answered == EPISODES, f"{summary.answered}"),
        ("each reply is in the ledger once", replies == (EPISODES, EPISODES), f"{replies}"),
        (
            "a batch whose reply was lost was adopted",
            client.lost and len(made) == EPISODES // CONFIG.size,
            f"{len(made)}",
        ),
        ("what is no label is one rejection each", sum(n for _, n in reasons) == EPISODES, f"{reasons}"),
    ]


def check_paging(url: str) -> list[tuple[str, bool, str]]:
    """A list that ignores its cursor must not be read for ever."""
    pages: list[object] = []
    client = BatchServer(url, sleep=_short_sleep)
    batch_provider.PAGE = 2
    ask = client.ask_list

    def counted(page: Callable[[], Any]) -> Any:
        pages.append(page)
        return ask(page)

    client.ask_list = counted
    found = client.newer_than(datetime.fromtimestamp(0, UTC))
    return [("reading the list ends", len(pages) <= 3, f"{len(pages)} pages, {len(found)} batches")]


def check_single_calls(store: Store, url: str) -> list[tuple[str, bool, str]]:
    """The same requests of another sample, one call each."""
    provider = AnthropicProvider(url, attempts=20, sleep=_short_sleep)
    for _ in range(10):
        summary = annotate_run(store, _plan(store, samples=2), provider)
        if summary.done:
            break
    return [("single calls end too, and use the batches' replies again", summary.done, f"{summary.totals.rejections}")]


def _plan(store: Store, samples: int = 1) -> RunPlan:
    asked = AnnotateConfig(model=MODEL, windows=1, rows=4, median_rows=4, samples=samples)
    return plan_run(store, "d1", CARD, asked)


def _custom_ids(url: str, client: BatchServer) -> list[str]:
    batch_provider.PAGE = 100
    return [batch.remote_id for batch in client.newer_than(datetime.fromtimestamp(0, UTC))]


def _short_sleep(wait_s: float) -> None:
    time.sleep(min(wait_s, 0.3))


def main() -> None:
    """Print what held; the exit code is 1 if something did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="install here, and use what is installed here")
    options = parser.parse_args()
    os.environ["ANTHROPIC_API_KEY"] = "sk-stand-in-0123456789"
    with tempfile.TemporaryDirectory() as folder:
        program = install(options.keep or Path(folder))
        if program is None:
            print(f"{PACKAGE} cannot be installed here, so nothing was checked")
            return
        store = Store.create(Path(folder) / "store")
        write(store, make_draft("d1"), [make_episode(number, 4) for number in range(EPISODES)])
        with started(program) as url:
            held = [*check_batches(store, url), *check_paging(url), *check_single_calls(store, url)]
    print(f"{PACKAGE}, failing by chance: {', '.join(FAILURES)}")
    for claim, is_so, seen in held:
        print(f"  {'held  ' if is_so else 'FAILED'} {claim} ({seen})")
    sys.exit(not all(is_so for _, is_so, _ in held))


if __name__ == "__main__":
    main()
