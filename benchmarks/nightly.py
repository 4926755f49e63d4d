"""Three nights of a served deployment over a growing dataset, one of them killed with SIGKILL in the middle.

    python benchmarks/nightly.py [--episodes 8] [--seed 0] [--keep FOLDER]

CartPole-v1 from the shipped baseline. The answers are scripted: a rule of one line, `angle + 0.25 * angular velocity
> 0`, is written down as recorded answers with made-up token counts, so that tokens double if anything is asked twice;
recorded answers cost no dollars. No key, no network but the loopback. A second store goes through the same nights
without Prefect and without a kill; afterwards both must hold the same requests, replies, labels, tokens, comparisons
and promotions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from annotate.cards.cards import load_card
from annotate.prompting.requests import AnnotateConfig
from annotate.runs.plan import plan_run
from flows.datasets.collection import CollectConfig, gather
from flows.deployment.night import Night, describe_night, run_night
from flows.deployment.settings import read_deployment
from flows.runtime.prefect_server import quieten_prefect
from storage.datasets.reader import iterate_episodes
from storage.store import Store

ROOT = Path(__file__).parent.parent
NAME, ENV, MODEL = "cartpole", "CartPole-v1", "claude-haiku-4-5"
SETTINGS = f"""
[deployments.{NAME}]
inbox = "inbox"
env_id = "{ENV}"
baseline = "policy:{ROOT}/examples/cartpole/baseline"
refine_after = 40
pictures = 0
interval_s = 86400
[deployments.{NAME}.label]
provider = "recorded"
answers = "answers"
[deployments.{NAME}.label.annotate]
model = "{MODEL}"
[deployments.{NAME}.improve]
workers = 1
[deployments.{NAME}.improve.refine]
betas = [0.1]
snapshots = [30, 60]
[deployments.{NAME}.improve.gate]
select = 6
accept = 20
report = 20
placebo_draws = 2
mode = "sampled"
"""
COUNTS = {
    "datasets": "SELECT count(*) FROM datasets",
    "requests": "SELECT count(*) FROM requests",
    "replies": "SELECT count(*) FROM responses",
    "labels": "SELECT count(*) FROM annotations",
    "tokens": "SELECT coalesce(sum(input_tokens + output_tokens), 0)::BIGINT FROM responses",
    "dollars": "SELECT round(coalesce(sum(cost_usd), 0), 9) FROM responses",
    "refinements": "SELECT count(*) FROM comparisons",
    "decisions": "SELECT count(*) FROM promotions",
    "promotions": "SELECT count(*) FILTER (promoted) FROM promotions",
    "in force": "SELECT arg_max(policy_id, number) FROM promotions",
    "comparisons": "SELECT list(comparison_id ORDER BY number) FROM promotions",
}


def make_drops(folder: Path, nights: int, episodes: int, seed: int) -> list[Path]:
    """What arrives on each evening: folders of datasets, and once a bare Parquet file; with answers to all of it."""
    elsewhere = Store.create(folder / "elsewhere")
    drops = folder / "drops"
    for name in ("drops", "answers", "inbox", "calm-inbox"):
        (folder / name).mkdir()
    for night in range(nights):
        config = CollectConfig(
            env_id=ENV,
            policy=f"policy:{ROOT}/examples/cartpole/baseline",
            mode="sampled",
            episodes=episodes,
            seed=seed + night * episodes,
            dataset=f"evening-{night + 1}",
        )
        dataset_id = gather(elsewhere, config).dataset_id
        write_answers(elsewhere, dataset_id, folder / "answers" / f"{dataset_id}.jsonl")
        source = elsewhere.dataset_dir(dataset_id)
        if night == 1:
            shutil.copyfile(source / "steps-00000.parquet", drops / "evening-2.parquet")
        else:
            shutil.copytree(source, drops / dataset_id)
    return sorted(drops.iterdir())


def write_answers(store: Store, dataset_id: str, path: Path) -> None:
    """The script's reply to every request about a dataset, as a model's message with its bill."""
    plan = plan_run(store, dataset_id, load_card(ENV), AnnotateConfig(model=MODEL))
    episodes = {episode.episode_id: episode for episode in iterate_episodes(store, dataset_id)}
    lines: list[dict[str, Any]] = []
    for question in plan.questions:
        states = episodes[question.episode_id].observations[:-1]
        chosen = range(0, len(states), max(1, len(states) // 8))
        labels = [
            {
                "step": step,
                "suggested_action": "push_right" if states[step, 2] + 0.25 * states[step, 3] > 0 else "push_left",
                "implicit_reward": 0.0,
                "confidence": 0.9,
                "critical": True,
                "rationale": "the rule says so",
            }
            for step in list(chosen)[:8]
        ]
        text = json.dumps({"assessment": "scripted", "labels": labels})
        message = {
            "type": "message",
            "model": MODEL,
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3000, "output_tokens": 900},
        }
        lines.append({"request_id": question.request.request_id, "message": message})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def drop(source: Path, inbox: Path) -> None:
    """Put something into an inbox as one should: under another name, then renamed."""
    hidden = inbox / f".{source.name}"
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, hidden)
    hidden.rename(inbox / source.name)


@contextmanager
def serving(folder: Path, settings: Path) -> Generator[str]:
    """`trajnote serve` in a process of its own; yields the address of its Prefect server."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows.cli", "serve", "--settings", str(settings), "--json"]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            line = process.stdout.readline() if process.stdout else ""
            address = json.loads(line)["server"]
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


class Served:
    """The deployment behind Prefect's API: started now instead of at two in the morning."""

    def __init__(self, address: str) -> None:
        os.environ["PREFECT_API_URL"] = address
        from prefect.client.orchestration import get_client

        self._client = get_client(sync_client=True)
        self._deployment = self._find()

    def _find(self) -> Any:
        for _ in range(240):
            with suppress(Exception):
                return self._client.read_deployment_by_name(f"nightly/{NAME}")
            time.sleep(0.5)
        raise SystemExit("the deployment is not served")

    def start(self) -> Any:
        """A flow run that begins as soon as the runner sees it."""
        return self._client.create_flow_run_from_deployment(self._deployment.id)

    def wait(self, run: Any, seconds: float = 420.0) -> Any:
        """The state in which a run ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self._client.read_flow_run(run.id).state
            if state is not None and state.is_final():
                return state
            time.sleep(0.5)
        raise SystemExit(f"the flow run {run.name} does not end")

    def free(self, seconds: float = 420.0) -> None:
        """Wait until a killed run has given its place back."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            deployment = self._client.read_deployment(self._deployment.id)
            limit = deployment.global_concurrency_limit
            if limit is None or not limit.active_slots:
                return
            time.sleep(1)

    def artifact(self) -> str:
        """The newest markdown that the flow has left."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
        from prefect.client.schemas.sorting import ArtifactSort

        found = self._client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[f"nightly-{NAME}"])),
            sort=ArtifactSort.CREATED_DESC,
        )
        return str(found[0].data) if found else ""


def kill_in_the_middle(store: Path, comparisons: int) -> str:
    """SIGKILL to the process of the flow, as soon as its refinement has played a candidate; returns what was there."""
    marker = store / "deployments" / NAME / "running.json"
    while True:
        time.sleep(0.05)
        if not marker.exists():
            continue
        with suppress(Exception):
            found = count(store)
            played = ask(store, "SELECT count(*) FROM evaluations WHERE purpose = 'select'")
            if found["refinements"] == comparisons and played > finished_games(store, comparisons):
                os.kill(json.loads(marker.read_text())["pid"], signal.SIGKILL)
                return f"{found['labels']} labels, {played} evaluations, {found['decisions']} decisions"


def finished_games(store: Path, comparisons: int) -> int:
    """Selection games of refinements that are finished: one for each candidate."""
    return ask(store, "SELECT count(DISTINCT policy_id) FROM candidates") if comparisons else 0


def count(store: Path) -> dict[str, Any]:
    """What must not double."""
    return {name: ask(store, question) for name, question in COUNTS.items()}


def ask(store: Path, question: str) -> Any:
    """The one value that answers a question."""
    with Store.open(store).catalog.read() as con:
        return (con.execute(question).fetchone() or (None,))[0]


def calm_nights(folder: Path, drops: list[Path]) -> tuple[dict[str, Any], list[Night]]:
    """The same nights in another store, in this process, undisturbed."""
    name, config = read_deployment(NAME, folder / "trajnote.toml")
    config = config.model_copy(update={"inbox": folder / "calm-inbox", "store": folder / "calm"})
    nights: list[Night] = []
    for source in drops:
        drop(source, folder / "calm-inbox")
        nights.append(run_night(Store.create(config.store), name, config))
    return count(folder / "calm"), nights


def restless_nights(folder: Path, drops: list[Path]) -> dict[str, Any]:
    """The nights of the served deployment."""
    settings, store = folder / "trajnote.toml", folder / "trajnote-store"
    with serving(folder, settings) as address:
        served = Served(address)
        for number, source in enumerate(drops, 1):
            drop(source, folder / "inbox")
            print(f"\nevening {number}: {source.name} is dropped into the inbox")
            run = served.start()
            if number == 2:
                print(f"  killed with SIGKILL in the middle of its refinement, with {kill_in_the_middle(store, 1)}")
                began = time.monotonic()
                print(f"  Prefect says: {served.wait(run).name}")
                served.free()
                print(f"  its place was free again after {time.monotonic() - began:.0f} s; the next run:")
                run = served.start()
            if number == 3:
                overlap(served, settings, store)
            state = served.wait(run)
            told(served, state)
        print("\nthe same evening again, twice:")
        for _ in range(2):
            told(served, served.wait(served.start()))
    return count(store)


def overlap(served: Served, settings: Path, store: Path) -> None:
    """A second run while one is under way: of the deployment, and from the command line."""
    marker = store / "deployments" / NAME / "running.json"
    while not marker.exists():
        time.sleep(0.05)
    pid = json.loads(marker.read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that it is still under way, however long the others take to start
    other = served.start()
    command = [sys.executable, "-m", "flows.cli", "nightly", "--settings", str(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(f"  `trajnote nightly` beside it: exit code {done.returncode}, {done.stderr.strip()}")
    state = served.wait(other)
    os.kill(pid, signal.SIGCONT)
    print(f"  a second run of the deployment: {state.name}, {state.message}")


def told(served: Served, state: Any) -> None:
    """What a run says of itself in its artifact."""
    print(f"  Prefect says: {state.name}{': ' + state.message if state.message else ''}")
    for line in served.artifact().splitlines():
        if line.startswith("- "):
            print("  " + line.replace("\\", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=8, help="episodes that arrive on an evening")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode")
    parser.add_argument("--keep", type=Path, help="folder to work in and to keep")
    options = parser.parse_args()
    began = time.monotonic()
    quieten_prefect()
    folder = (options.keep or Path(tempfile.mkdtemp(prefix="nightly-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trajnote.toml").write_text(SETTINGS)
    drops = make_drops(folder, 3, options.episodes, options.seed)
    print(f"{ENV}, scripted answers, {options.episodes} episodes an evening, first seed {options.seed}")
    calm, nights = calm_nights(folder, drops)
    restless = restless_nights(folder, drops)
    print("\nundisturbed, for comparison:")
    for number, night in enumerate(nights, 1):
        print(f"  night {number}: " + "; ".join(describe_night(night)[:2]))
    print(f"\n{'':14} {'served, killed, repeated':>28} {'undisturbed':>28}")
    for name, value in restless.items():
        if name != "comparisons":
            print(f"{name:14} {value!s:>28} {calm[name]!s:>28}")
    print(f"the same comparisons in the same order: {restless['comparisons'] == calm['comparisons']}")
    print(f"nothing doubled, nothing lost: {restless == calm}")
    print(f"seeds: episodes {options.seed} to {options.seed + 3 * options.episodes - 1}; training 0; gate from 1000000")
    print(f"{time.monotonic() - began:.0f} seconds")
    if options.keep is None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
