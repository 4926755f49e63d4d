"""What a store costs before anything is in it: making one, opening it, reading, writing, one more small dataset.

    python benchmarks/fixed_costs.py [--repeats 9] [--root OTHER_CHECKOUT]

Core milliseconds (user and system) of one process, the median of some repeats. Datasets have one episode of 12 steps.
`--root` measures another checkout; its `storage` is used in place of this one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

LENGTH = 12


def measure(repeats: int, folder: Path) -> dict[str, list[float]]:
    """Core seconds of each thing, (repeats,) each, without the first."""
    from storage.datasets import StepsWriter  # of the checkout that `--root` names
    from storage.schema import Episode, ManifestDraft, Space
    from storage.store import Store

    observations, actions = (
        Space(kind="box", dtype="float32", size=4),
        Space(kind="discrete", size=1, n=2, dtype="int64"),
    )
    zeros, counts = np.zeros((LENGTH + 1, 4), np.float32), np.zeros(LENGTH, np.int64)
    episode = Episode(0, 0, zeros, counts, np.ones(LENGTH), terminated=True, truncated=False)

    def add(store: Store, name: str) -> None:
        draft = ManifestDraft(
            dataset_id=name,
            source="collect",
            env_id="CartPole-v1",
            observation_space=observations,
            action_space=actions,
            component_names=tuple("abcd"),
            action_names=("left", "right"),
        )
        with StepsWriter(store, draft) as writer:
            writer.write(episode)
            writer.finish()

    def read(store: Store) -> None:
        with store.catalog.read() as con:
            con.execute("SELECT count(*) FROM datasets").fetchall()

    def write(store: Store) -> None:
        with store.catalog.write() as con:
            con.execute("UPDATE datasets SET policy = 'random'")

    found: dict[str, list[float]] = {}

    def clock(what: str, work: Callable[[], object]) -> None:
        start = time.process_time()
        work()
        found.setdefault(what, []).append(time.process_time() - start)

    clock("the first new store of a process", lambda: Store.create(folder / "first"))
    for number in range(repeats + 1):
        root = folder / str(number)
        clock("a further new store", lambda root=root: Store.create(root))
        store = Store.open(root)
        for place in range(3):
            name = ("first", "second", "third")[place]
            clock(f"its {name} dataset of a kind", lambda at=store, place=place: add(at, f"made-{place}"))
        clock("open it", lambda root=root: Store.open(root))
        clock("read in it", lambda at=store: read(at))
        clock("write in it", lambda at=store: write(at))
    return {what: seconds[1:] or seconds for what, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="another checkout")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.root.resolve()))
    with tempfile.TemporaryDirectory() as folder:
        for what, seconds in measure(arguments.repeats, Path(folder)).items():
            print(f"{what:36} {1000 * median(seconds):7.1f} core ms")


if __name__ == "__main__":
    main()
