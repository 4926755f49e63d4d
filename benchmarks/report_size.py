"""The report of a large dataset: its size, how long it takes to write and to open, and to answer a click in a browser.

    python benchmarks/report_size.py

Real LunarLander episodes of the shipped baseline, cut at 300 steps, with synthetic labels of real shape: ten for each
episode, a raw reply behind them, a comparison above them. Clicks are made in Chromium (`apt-get install chromium`) and
last from the event to the frame after the page has changed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from flows.datasets.collection import CollectConfig, gather
from flows.policies import record_baseline
from flows.reporting.page import write_report
from refine.policies.mlp import MlpPolicy
from storage.annotations.annotations import insert_annotations
from storage.catalog import insert_rows
from storage.datasets.reader import iterate_episodes
from storage.ledger.runs import append_responses
from storage.schema import Annotation, Manifest
from storage.store import Store

BASELINE = Path(__file__).resolve().parent.parent / "examples" / "lunarlander" / "baseline"
RATIONALE = "Falling at 0.31 with a lean to the left of 0.2 rad: turn upright first, so that the main engine can brake."
CHROMIUM = Path("/usr/bin/chromium")
RUN = "a_benchmark"
CLICK = """async ([action, key]) => {
    const viewer = document.getElementById("viewer");
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const before = viewer.dataset[key];
    const start = performance.now();
    new Function(action)();
    const painted = () => new Promise((done) => requestAnimationFrame(done));
    do await painted(); while (viewer.dataset[key] === before && performance.now() - start < 9000);
    const answered = performance.now() - start;
    await frame();
    return [answered, performance.now() - start];
}"""
KEYS = 'document.getElementById("viewer").dispatchEvent(new KeyboardEvent("keydown", {key: "%s", shiftKey: %s}))'
CLICKS = {
    "one step on": ('document.querySelector("[data-go=on]").click()', "step"),
    "next note": (KEYS % ("ArrowRight", "true"), "step"),
    "another episode": (KEYS % ("ArrowDown", "false"), "episode"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1_000)
    parser.add_argument("--labels", type=int, default=10, help="for each episode")
    parser.add_argument("--pictures", type=int, default=1_600)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        with timed("made the store"):
            fill(store, given.episodes, given.labels)
        with timed("wrote the report"):
            written = write_report(store, pictures=given.pictures)
        print(f"{written.labels} labels, {written.episodes} episodes, {written.pictures} pictures")
        print(f"size {written.bytes / 1e6:.1f} MB")
        if CHROMIUM.exists():
            visit(written.path)
        else:
            print(f"no {CHROMIUM}: clicks are not measured")


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{what} in {time.perf_counter() - started:.1f} s")


def fill(store: Store, episodes: int, labels: int) -> None:
    """Collect, label and judge, the last two in appearance only."""
    config = CollectConfig(
        env_id="LunarLander-v3", policy=f"policy:{BASELINE}", mode="sampled", episodes=episodes, max_steps=300
    )
    manifest = gather(store, config)
    network = MlpPolicy.from_files({path.name: path.read_bytes() for path in BASELINE.iterdir()})
    policy_id = record_baseline(
        store, network, env_id="LunarLander-v3", dataset_id=manifest.dataset_id, origin="shipped"
    )
    rng = np.random.default_rng(0)
    notes = [
        note
        for episode in iterate_episodes(store, manifest.dataset_id)
        for note in annotate(manifest, episode, labels, rng)
    ]
    with store.catalog.write() as con:
        insert_rows(
            con,
            "annotation_runs",
            [{"run_id": RUN, "dataset_id": manifest.dataset_id, "provider": "file", "model": "m", "state": "done"}],
        )
        insert_annotations(con, notes)
    reply(store, manifest, notes)
    judge(store, manifest, policy_id)


def annotate(manifest: Manifest, episode: Any, labels: int, rng: np.random.Generator) -> Iterator[Annotation]:
    for step in np.sort(rng.choice(len(episode), labels, replace=False)).tolist():
        action = int(rng.integers(4))
        yield Annotation(
            annotation_id=f"n_{episode.episode_id}_{step}",
            run_id=RUN,
            request_id=f"r_{episode.episode_id}",
            dataset_id=manifest.dataset_id,
            episode_id=episode.episode_id,
            step=step,
            critical=bool(rng.random() < 0.5),
            suggested_action=(float(action),),
            suggested_label=manifest.action_names[action],
            implicit_reward=round(float(rng.uniform(-1, 1)), 2),
            confidence=round(float(rng.uniform(0.5, 1)), 2),
            rationale=f"{RATIONALE} ({rng.integers(10**6)})",
            model="m",
            prompt_version="p",
        )


def reply(store: Store, manifest: Manifest, notes: list[Annotation]) -> None:
    """One raw reply for each episode, as a model sends it."""
    rows: list[dict[str, object]] = []
    for episode_id in range(manifest.episodes):
        said = [
            {"step": n.step, "suggested_action": n.suggested_label, "rationale": n.rationale}
            for n in notes
            if n.episode_id == episode_id
        ]
        text = json.dumps({"assessment": RATIONALE, "labels": said})
        record = {"request_id": f"r_{episode_id}", "raw": json.dumps({"content": [{"type": "text", "text": text}]})}
        ((file, line),) = append_responses(store, RUN, [record])
        rows.append({"response_id": f"x_{episode_id}", "request_id": f"r_{episode_id}", "file": file, "line": line})
    with store.catalog.write() as con:
        insert_rows(con, "responses", rows)


def judge(store: Store, manifest: Manifest, policy_id: str) -> None:
    """A comparison that accepts the baseline's own weights, so that somebody plays beside the logged episodes."""
    common = {"comparison_id": "c_benchmark", "dataset_id": manifest.dataset_id, "baseline_id": policy_id}
    claims = {"accepted": True, "reason": "a benchmark", "policy_id": policy_id}
    verdicts = {
        "env_id": "LunarLander-v3",
        "recipe": "A",
        "better": True,
        "better_reason": "",
        "credit": True,
        "credit_reason": "",
    }
    arm = {"comparison_id": "c_benchmark", "mode": "greedy", "labels": 1, "draws": 1, "accepted": 1, "episodes": 100}
    arms = [
        {"arm": name, "return_": mean, "low": mean - 9, "high": mean + 9}
        for name, mean in (("baseline", 10.0), ("labels", 90.0))
    ]
    with store.catalog.write() as con:
        insert_rows(con, "comparisons", [common | claims | verdicts])
        insert_rows(
            con,
            "refinements",
            [
                common
                | claims
                | {
                    "refinement_id": "f_benchmark",
                    "arm": "labels",
                    "run_ids": [RUN],
                    "config": "{}",
                    "finished_at": datetime.now(UTC),
                }
            ],
        )
        insert_rows(con, "arms", [arm | each for each in arms])


def visit(path: Path) -> None:
    """Open the page and click through it."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900}, bypass_csp=True)
        started = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("#viewer[data-ready]")
        print(f"opened in {time.perf_counter() - started:.2f} s")
        for name in CLICKS:
            measure(page, name)
        browser.close()


def measure(page: Page, name: str) -> None:
    action, key = CLICKS[name]
    back = (
        action.replace("data-go=on", "data-go=back").replace("ArrowRight", "ArrowLeft").replace("ArrowDown", "ArrowUp")
    )
    taken = [page.evaluate(CLICK, [action if turn % 10 < 5 else back, key]) for turn in range(30)]
    for what, times in zip(("words and pictures", "all lanes drawn"), zip(*taken, strict=True), strict=True):
        print(f"{name}, {what}: median {median(times):.0f} ms, slowest of {len(times)} {max(times):.0f} ms")


if __name__ == "__main__":
    main()
