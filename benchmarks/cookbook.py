"""The cookbook's questions over a large store: seconds of each, and as parts of a whole scan by hand in the same run.

    python benchmarks/cookbook.py --steps 10000000 --annotations 1000000

The store has CartPole-v1's shape, so that the questions of `docs/cookbook.md` can be asked as they stand; its numbers
are chance, seed 0. Half of the annotations are one annotator's, half another's at the same steps, who contradicts every
fifth. The yardstick is what a user without the views would write: a join of the annotations with the Parquet files that
carries all columns. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from storage_scan import measure

from storage.datasets import StepsWriter
from storage.queries.query import run_query
from storage.schema import Episode, ManifestDraft, Space
from storage.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "cookbook.md"
LENGTH, PER_REQUEST = 500, 8
NAMES = ("cart_position", "cart_velocity", "pole_angle", "pole_angular_velocity")
DRAFT = ManifestDraft(
    dataset_id="made",
    source="collect",
    env_id="CartPole-v1",
    observation_space=Space(kind="box", dtype="float32", size=4),
    action_space=Space(kind="discrete", dtype="int64", size=1, n=2),
    component_names=NAMES,
    action_names=("push_left", "push_right"),
    policy_mode="greedy",
    policy_output="logits",
)
_ANNOTATIONS = """
INSERT INTO annotations SELECT format('n_{}_{}', who, i), format('a_{}', who), format('r_{}_{}', who, i // $size),
    'made', place // $length, place % $length, i % 3 > 0, [said], ['push_left', 'push_right'][said + 1],
    (hash(i) % 200) / 100 - 1, 0.5 + (hash(i + who) % 50) / 100,
    format('the pole leans, so pushing number {} is {}', i, ['right', 'wrong'][1 + i % 2]),
    ['claude', 'claude-haiku-4-5'][who + 1], 'p_made', now()
FROM range($pairs) AS t(i), range(2) AS u(who),
    LATERAL (SELECT (i + (who = 1 AND i % 5 = 0)::INT) % 2 AS said, i * $apart + i % $apart AS place)
"""
_REQUESTS = """
INSERT INTO annotation_runs BY NAME SELECT format('a_{}', who) AS run_id, 'made' AS dataset_id, 'file' AS provider,
    ['claude', 'claude-haiku-4-5'][who + 1] AS model, now() AS finished_at FROM range(2) AS u(who);
INSERT INTO requests BY NAME SELECT DISTINCT request_id, 'mark' AS kind, model, 'done' AS state, 1 AS attempts
    FROM annotations;
INSERT INTO run_requests BY NAME SELECT DISTINCT run_id, request_id, dataset_id FROM annotations;
INSERT INTO responses BY NAME SELECT request_id AS response_id, request_id, any_value(model) AS model,
    format('responses/{}/00000.jsonl.zst', any_value(run_id)) AS file, 1 AS line, 900 AS input_tokens,
    2100 AS cache_read_tokens, 300 AS output_tokens, 0.004 AS cost_usd FROM annotations GROUP BY request_id;
INSERT INTO rejections BY NAME SELECT annotation_id AS rejection_id, run_id, request_id, dataset_id, episode_id, step,
    'illegal_action' AS reason, '"jump" is none of them' AS detail, to_json({rationale: rationale}) AS raw, model
    FROM annotations WHERE hash(annotation_id) % 20 = 0;
INSERT INTO label_replays BY NAME SELECT annotation_id AS label_replay_id, annotation_id, dataset_id, episode_id, step,
    'none' AS policy_sha256, 'greedy' AS mode, 1 AS continuations, true AS exact, 1.0 AS advantage,
    100 AS environment_steps FROM annotations WHERE hash(annotation_id) % 100 = 0;
"""
_BY_HAND = """
SELECT count(*), sum(reward), sum(list_sum(observation::DOUBLE[])), sum(length(rationale))
FROM annotations JOIN read_parquet({files}) USING (episode_id, step)
"""


def write_steps(store: Store, steps: int) -> None:
    """Ten different episodes again and again: what is measured is the reading."""
    rng = np.random.default_rng(0)
    pool = [
        Episode(
            episode_id=number,
            seed=number,
            observations=rng.normal(size=(LENGTH + 1, len(NAMES))).astype(np.float32) / 10,
            actions=rng.integers(0, 2, LENGTH),
            rewards=np.ones(LENGTH),
            terminated=True,
            truncated=False,
            policy_outputs=rng.normal(size=(LENGTH, 2)).astype(np.float32),
        )
        for number in range(10)
    ]
    with StepsWriter(store, DRAFT) as writer:
        for number in range(steps // LENGTH):
            writer.write(Episode(**{**vars(pool[number % 10]), "episode_id": number}))
        writer.finish()


def annotate(store: Store, steps: int, annotations: int) -> None:
    """Two annotators at the same steps, spread evenly, with requests, replies, rejections and replays."""
    pairs = annotations // 2
    sizes = {"pairs": pairs, "apart": max(1, steps // pairs), "length": LENGTH, "size": PER_REQUEST}
    with store.catalog.write() as con:
        con.execute(_ANNOTATIONS, sizes)
        con.execute(_REQUESTS)


def questions() -> Iterator[tuple[str, str]]:
    """What each question of the cookbook asks, in its own words, and its SQL."""
    for words, sql in re.findall(r"\n\n([^\n]+)\n\n```sql\n(.*?)\n```", PAGE.read_text(), re.DOTALL):
        yield re.split(r"[?:*.]", words)[0], sql


def main() -> None:
    """Fill the store, ask everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3, help="each question is asked so often; the fastest turn counts")
    parser.add_argument("--store", type=Path, help="keep the store in this folder, and use it again")
    options = parser.parse_args()
    console, started = Console(width=110), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as folder:
        root = options.store or Path(folder) / "store"
        if not root.exists():
            store = Store.create(root)
            write_steps(store, options.steps)
            annotate(store, options.steps, options.annotations)
        store = Store.open(root)
        filled = time.perf_counter() - started
        files = str([str(path) for path in sorted(store.dataset_dir("made").glob("*.parquet"))])
        yardstick = measure(lambda: run_query(store, _BY_HAND.format(files=files)), options.turns)
        table = Table("question", "seconds", "of the join by hand")
        table.add_row("annotations joined to the files by hand, all columns", f"{yardstick:.2f}", "1")
        for words, sql in questions():
            seconds = measure(lambda sql=sql: run_query(store, sql), options.turns)
            table.add_row(words, f"{seconds:.2f}", f"{seconds / yardstick:.2f}")
    console.print(table)
    console.print(
        f"{options.steps:,} steps, {options.annotations:,} annotations, fastest of {options.turns} turns, seed 0; "
        f"filling took {filled:.0f} s, all of it {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
