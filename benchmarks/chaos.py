"""Commands of `trajnote annotate` killed with SIGKILL again and again, against a server where everything goes wrong.

    python benchmarks/chaos.py [--seed 7] [--kills 120] [--worlds 2] [--kind batches | late | single | all]

A loopback server (`tests/anthropic_server.py`) keeps its own books of what it created, answered and billed. Each life
is a forked process that runs one command, `run`, `submit`, `poll` or `ingest`, and is killed at a named point or at
any instant, while the server loses replies, fails after it created a batch, answers a creation without a name or with
HTML, says that it is busy, expires items, contradicts itself, names requests that nobody asked, hides results for a
while, lists batches late and breaks connections off, with a clock that is hours ahead and a Date that is an hour
ahead of that. Some lives use the key of another account, and some meet a reader that holds the catalog for longer
than they wait. Each named point ends at least one life. At the end nothing is killed any more, the run is finished,
and the server's books are compared with the ledger.

Kinds: `batches`, where nothing may be billed twice; `late`, where some batches are listed only after the grace
period, so that nobody could know of them when they were bought again; `single`, calls without batches, where a reply
that was under way when its command was killed is gone. In the last two a second purchase is inevitable, and what
counts is that the ledger counts it: no answer that was billed may be missing there, or the budget would not hold
(`dropped`, `unseen`).

Worlds, each with a store, a server and a seed of its own, run side by side. A lost batch is given up after 2.5 s
here, not after minutes; on a machine so busy that this server needs longer for a request whose sender has died, that
would show as billed twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from anthropic_server import KEY  # noqa: E402
from toy_datasets import make_draft, make_episode, write  # noqa: E402

from annotate import providers  # noqa: E402
from annotate.ledger import ledger  # noqa: E402
from annotate.ledger.ledger import BatchConfig  # noqa: E402
from annotate.prompting.requests import AnnotateConfig  # noqa: E402
from annotate.providers.batch import BatchServer  # noqa: E402
from flows.labelling import annotation as label  # noqa: E402
from flows.labelling.annotation import LabelConfig  # noqa: E402
from storage.catalog.connection import WAIT_VARIABLE, Catalog, Connection  # noqa: E402
from storage.errors import TrajnoteError, TrajnoteWarning  # noqa: E402
from storage.store import Store  # noqa: E402

EPISODES = 18
SKEW_S = 3 * 3600.0
BATCHES = BatchConfig(size=3, in_flight=2, grace_s=2.5, attempts=100)
POINTS = {
    "before a commit": 5,
    "after a commit": 5,
    "before the POST": 2,
    "after the POST": 2,
    "before raw replies land": 2,
    "after raw replies landed": 2,
    "between two results": 3,
}
"""Where a life may end, and at which visit at most."""
MEETS = {
    "run": ("",),
    "submit": ("POST", "commit"),
    "poll": ("commit",),
    "ingest": ("commit", "replies", "results"),
    "call": ("commit", "replies"),
}
"""Words of the points that a command comes by."""
COUNTED = """
SELECT request_id, count(*) FROM batch_items WHERE outcome IN ('lost', 'unknown', 'released', 'missing') GROUP BY ALL
"""
"""What may have been billed without an answer in the ledger, and counts there at its worst price."""
CARD = """
env_id = "Toy-v0"
title = "Toy"
goal = "go right"
termination = "after a while"
reward = "pays at random"
components = [
    {name = "x", meaning = "place along x"},
    {name = "y", meaning = "place along y"},
    {name = "z", meaning = "place along z"},
]
actions = [{name = "left", meaning = "go left"}, {name = "right", meaning = "go right"}]
"""
FINISHED, REFUSED, CRASHED = 0, 3, 9
KEYS = (KEY, "sk-test-another-account")
LATE_S = 6.0
WAIT_S = 0.5
KINDS = ("batches", "late", "single")


class Figures(NamedTuple):
    """What a trial came to."""

    seeds: list[int]
    kills: int
    kills_at: dict[str, int]
    lives: int
    requests: int  # asked
    created: int  # batches that the server made
    answered: int  # replies that the server billed
    lost: int  # billed replies that are not in the ledger, and requests without a reply
    billed_twice: int  # requests that the server answered more than once, though that could be known
    billed_again: int  # requests that it answered more than once because nobody could know of the first answer
    dropped: int  # answers that were billed and are neither in the ledger nor counted there at their worst price
    unseen_usd: float  # dollars billed beyond what the ledger counted against the budget, at the worst moment
    entered_twice: int  # requests with more than one response in the ledger
    token_gap: int  # tokens billed by the server and not in the ledger, or the other way round
    crashed: int  # lives that ended in an error that is nobody's business
    faults: int  # failures of the server
    seconds: float


class World(NamedTuple):
    """What a life needs."""

    root: Path
    url: str
    card: Path
    generation: int  # each one asks as many requests more
    kind: str = "batches"

    @property
    def config(self) -> LabelConfig:
        """What is asked."""
        asked = AnnotateConfig(model="claude-haiku-4-5", windows=1, rows=4, median_rows=4, samples=self.generation)
        provider = "anthropic" if self.kind == "single" else "batch"
        return LabelConfig(
            provider=provider, annotate=asked, card=str(self.card), base_url=self.url, batch=BATCHES, poll_s=0.05
        )


def run_command(world: World, name: str) -> None:
    """One command, as a process of its own would run it."""
    store = Store.open(world.root)
    if name == "submit":
        label.submit(store, "d1", world.config)
    elif name == "poll":
        label.poll(store, world.url, BATCHES)
    elif name in ("run", "call"):
        label.label(store, "d1", world.config)
    else:
        label.ingest(store, world.url, BATCHES)


def die_at(point: str, visit: int) -> None:
    """Have this process killed at the n-th visit of a point."""
    visits = Counter[str]()

    def reach(name: str) -> None:
        visits[name] += 1
        if name == point and visits[name] == visit:
            os.kill(os.getpid(), signal.SIGKILL)

    write_catalog, create, results, append = (
        Catalog.write,
        BatchServer.create,
        BatchServer.results,
        ledger.append_responses,
    )

    @contextmanager
    def change(catalog: Catalog) -> Generator[Connection]:
        with write_catalog(catalog) as con:
            yield con
            reach("before a commit")
        reach("after a commit")

    def post(server: BatchServer, requests: Any) -> Any:
        reach("before the POST")
        made = create(server, requests)
        reach("after the POST")
        return made

    def read(server: BatchServer, batch: Any) -> Iterator[str]:
        for line in results(server, batch):
            reach("between two results")
            yield line

    def land(*arguments: Any) -> Any:
        reach("before raw replies land")
        places = append(*arguments)
        reach("after raw replies landed")
        return places

    Catalog.write, BatchServer.create, BatchServer.results = change, post, read
    ledger.append_responses = land


def fork(work: Callable[[], None]) -> int:
    """Run something in a forked process; its id."""
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            work()
            status = FINISHED
        except TrajnoteError:
            status = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def in_child(work: Callable[[], None], kill_after_s: float | None = None) -> int:
    """Run something in a forked process; its exit status, negative when it was killed."""
    child = fork(work)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def reader(world: World, rng: random.Random) -> Generator[None]:
    """Now and then somebody reads the catalog for longer than a command waits for it."""
    if rng.random() > 0.15:
        yield
        return
    starts, lasts = rng.uniform(0.0, 0.5), rng.uniform(1.0, 2.5) * WAIT_S

    def read() -> None:
        time.sleep(starts)
        with Catalog(world.root / "catalog.duckdb", wait_s=5.0).read():
            time.sleep(lasts)

    child = fork(read)
    try:
        yield
    finally:
        os.waitpid(child, 0)


def live(world: World, rng: random.Random, wanted: str | None = None) -> tuple[str, int]:
    """One life and where it was to end: at a wanted point when it first comes by it, or anywhere."""
    os.environ["ANTHROPIC_API_KEY"] = rng.choices(KEYS, [3, 1])[0]
    with reader(world, rng):
        return _live(world, rng) if wanted is None else (wanted, _die_first(world, wanted))


def _die_first(world: World, point: str) -> int:
    def work() -> None:
        die_at(point, 1)
        run_command(world, "call" if world.kind == "single" else "run")

    return in_child(work)


def _live(world: World, rng: random.Random) -> tuple[str, int]:
    name = rng.choices(["run", "submit", "ingest", "poll"], [14, 3, 3, 1])[0] if world.kind != "single" else "call"
    if rng.random() < 0.3:
        return "any instant", in_child(partial(run_command, world, name), kill_after_s=rng.uniform(0.02, 0.4))
    point = rng.choice([point for point in POINTS if any(word in point for word in MEETS[name])])
    visit = rng.randint(1, POINTS[point])

    def work() -> None:
        die_at(point, visit)
        run_command(world, name)

    return point, in_child(work)


def read_ledger(root: Path, out: Path) -> None:
    """What the ledger says, into a file."""
    with Store.open(root).catalog.read() as con:
        replies = con.execute("SELECT request_id, count(*) FROM responses GROUP BY ALL").fetchall()
        counted = con.execute(COUNTED).fetchall()
        usd = con.execute("SELECT sum(cost_usd + under_way_usd + lost_usd) FROM spending").fetchone()
        bodies = con.execute("SELECT request_id, body FROM requests").fetchall()
        states = con.execute("SELECT state, count(*) FROM requests GROUP BY ALL").fetchall()
        tokens = con.execute("SELECT sum(input_tokens)::BIGINT, sum(output_tokens)::BIGINT FROM responses").fetchone()
        under_way = con.execute("SELECT count(*) FROM batches WHERE state IN ('intent', 'submitted')").fetchone()
    told = {
        "replies": dict(replies),
        "counted": dict(counted),
        "usd": (usd[0] if usd else 0.0) or 0.0,
        "asked": {json.dumps(json.loads(body)["messages"]): request_id for request_id, body in bodies},
        "states": dict(states),
        "tokens": tokens,
        "under_way": under_way,
    }
    out.write_text(json.dumps(told))


def run_trial(seed: int, kills: int, folder: Path, kind: str = "batches") -> Figures:
    """Kill commands, finish the run, compare the books."""
    started = time.monotonic()
    warnings.simplefilter("ignore", TrajnoteWarning)
    os.environ |= {"ANTHROPIC_API_KEY": KEY, WAIT_VARIABLE: str(WAIT_S)}
    providers.BatchServer = partial(BatchServer, sleep=lambda wait_s: time.sleep(min(wait_s, 0.02)))
    (folder / "card.toml").write_text(CARD)
    late = ("0.2", str(LATE_S)) if kind == "late" else ("0", "0")
    arguments = [sys.executable, str(TESTS / "anthropic_server.py"), str(seed), str(SKEW_S), *late]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int((server.stdout.readline() if server.stdout else "").strip())
            world = World(folder / "store", f"http://127.0.0.1:{port}", folder / "card.toml", 1, kind)
            in_child(partial(_make_store, world.root))
            return _run_lives(world, random.Random(seed), kills, folder / "ledger.json", seed)._replace(
                seconds=round(time.monotonic() - started, 1)
            )
        finally:
            server.kill()


def _make_store(root: Path) -> None:
    write(Store.create(root), make_draft("d1"), [make_episode(number, 4) for number in range(EPISODES)])


def _run_lives(world: World, rng: random.Random, kills: int, out: Path, seed: int) -> Figures:
    killed, ends, unseen = Counter[str](), Counter[int](), [0.0]
    while (wanted := _missing(world, killed, kills)) or killed.total() < kills:
        point, status = live(world, rng, wanted)
        ends[status] += 1
        killed.update([point] * (status == -signal.SIGKILL))
        if ends.total() % 12 == 0:
            unseen.append(_unseen_usd(world, out))
            if not _is_open(world, out):
                world = world._replace(generation=world.generation + 1)
    for key in itertools.cycle(KEYS):
        if not _is_open(world, out):
            break
        os.environ["ANTHROPIC_API_KEY"] = key
        ends[in_child(partial(run_command, world, "run"))] += 1
    if world.kind == "late":  # by now all batches are listed
        time.sleep(LATE_S)
        for key in KEYS:
            os.environ["ANTHROPIC_API_KEY"] = key
            while in_child(partial(run_command, world, "ingest")) != FINISHED or _is_open(world, out):
                pass
    unseen.append(_unseen_usd(world, out))
    books, ledger = _books(world), json.loads(out.read_text())
    billed = Counter[str]()
    for name, count in books["billed"].items():
        billed[ledger["asked"].get(name, name)] += count
    return _compare(billed, books, ledger)._replace(
        seeds=[seed],
        kills=killed.total(),
        kills_at=dict(killed),
        lives=ends.total(),
        crashed=ends[CRASHED],
        unseen_usd=round(max(unseen), 6),
    )


def _missing(world: World, killed: Counter[str], kills: int) -> str | None:
    """A named point at which nobody was killed, once there are no more kills left than such points."""
    left = [point for point in POINTS if not killed[point]]
    if world.kind == "single":
        left = [point for point in left if any(word in point for word in MEETS["call"])]
    return left[0] if left and killed.total() + len(left) >= kills else None


def _compare(billed: Counter[str], books: dict[str, Any], ledger: dict[str, Any]) -> Figures:
    """The server's books beside the ledger."""
    replies, counted = ledger["replies"], ledger["counted"]
    inevitable = {*books["late"], *(counted if not books["batches"] else ())}
    again = {name for name, count in billed.items() if count > 1}
    missing = {name: count - replies.get(name, 0) for name, count in billed.items()}
    return Figures(
        seeds=[],
        kills=0,
        kills_at={},
        lives=0,
        requests=sum(ledger["states"].values()),
        created=len(books["batches"]),
        answered=billed.total(),
        lost=len(billed.keys() - replies.keys()) + sum(ledger["states"].values()) - ledger["states"].get("done", 0),
        billed_twice=len(again - inevitable),
        billed_again=len(again & inevitable),
        dropped=sum(max(0, count - counted.get(name, 0)) for name, count in missing.items()),
        unseen_usd=0.0,
        entered_twice=sum(count > billed[name] for name, count in replies.items()),
        token_gap=abs(sum(ledger["tokens"]) - sum(books["billed_tokens"].values())),
        crashed=0,
        faults=sum(books["happened"].values()),
        seconds=0.0,
    )


def _books(world: World) -> dict[str, Any]:
    with urllib.request.urlopen(f"{world.url}/books") as reply:
        return json.load(reply)


def _unseen_usd(world: World, out: Path) -> float:
    """Dollars that the server has billed and the ledger does not count; below 0 the ledger is on the safe side."""
    tokens = _books(world)["billed_tokens"]
    in_child(partial(read_ledger, world.root, out))
    dollars = (tokens.get("input", 0) + 5 * tokens.get("output", 0)) / 1e6
    return dollars / (1 if world.kind == "single" else 2) - json.loads(out.read_text())["usd"]


def _is_open(world: World, out: Path) -> bool:
    """Whether a generation has requests that are not answered, or batches under way."""
    in_child(partial(read_ledger, world.root, out))
    ledger = json.loads(out.read_text())
    done = ledger["states"].get("done", 0)
    return done < EPISODES * world.generation or ledger["under_way"][0] > 0


def run_worlds(seed: int, kills: int, worlds: int, kind: str = "batches") -> Figures:
    """Several trials, each a process of its own, because what forks may have no threads."""
    each = -(-kills // worlds)
    options = ["--json", "--worlds", "1", "--kills", str(each), "--kind", kind]
    commands = [[sys.executable, __file__, *options, "--seed", str(seed + n)] for n in range(worlds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    found = [Figures(**json.loads(trial.communicate()[0].splitlines()[-1])) for trial in running]
    sums = {
        name: sum(getattr(figures, name) for figures in found)
        for name in Figures._fields
        if name not in ("seeds", "kills_at", "seconds", "unseen_usd")
    }
    return Figures(
        seeds=[seed for figures in found for seed in figures.seeds],
        kills_at=dict(sum((Counter(figures.kills_at) for figures in found), Counter[str]())),
        seconds=max(figures.seconds for figures in found),
        unseen_usd=max(figures.unseen_usd for figures in found),
        **sums,
    )


def tell(kind: str, figures: Figures) -> None:
    """The figures of one kind as lines of a table."""
    told = figures._asdict()
    print(f"{kind}: seeds {', '.join(map(str, figures.seeds))}, {figures.lives} lives, {figures.seconds:.0f} s")
    print("  kills: " + ", ".join(f"{count} {point}" for point, count in sorted(figures.kills_at.items())))
    for name in Figures._fields:
        if name not in ("seeds", "kills_at", "lives", "seconds"):
            print(f"  {name.replace('_', ' '):16}{told[name]:>12}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kills", type=int, default=120, help="of each kind")
    parser.add_argument("--worlds", type=int, default=2)
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="batches")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for kind in KINDS if options.kind == "all" else (options.kind,):
        if options.worlds > 1:
            figures = run_worlds(options.seed, options.kills, options.worlds, kind)
        else:
            with tempfile.TemporaryDirectory() as folder:
                figures = run_trial(options.seed, options.kills, Path(folder), kind)
        if options.json:
            print(json.dumps(figures._asdict()))
        else:
            tell(kind, figures)


if __name__ == "__main__":
    main()
