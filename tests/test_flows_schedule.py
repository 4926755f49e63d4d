"""The nightly flow in Prefect: artifacts, states in words, notices through blocks, deployments and a work pool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from soak import SOAK
from toy_environment import CARD, TOY, gather_toys, write_answers

from flows.runtime.prefect_server import quieten_prefect
from storage.errors import BadInput, Prerequisite
from storage.policies.deployments import deployment_lock
from storage.store import Store

quieten_prefect()

from prefect.blocks.abstract import NotificationBlock  # noqa: E402
from prefect.blocks.webhook import Webhook  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.flows import load_flow_from_entrypoint  # noqa: E402

from flows.deployment import prefect_flows as schedule  # noqa: E402
from flows.deployment.night import Night  # noqa: E402
from flows.deployment.prefect_flows import Summary, as_markdown, make_deployments, nightly_flow  # noqa: E402
from flows.runtime.prefect_server import start_server  # noqa: E402

ROOT = Path(__file__).parent.parent
SETTINGS = f"""
[deployments.nightly]
inbox = "inbox"
env_id = "{TOY}"
refine_after = 1000
cron = "0 2 * * *"
timezone = "Europe/Paris"
[deployments.nightly.label]
provider = "recorded"
answers = "answers.jsonl"
card = "card.toml"
[deployments.nightly.label.annotate]
model = "toy"
"""


class Memo(NotificationBlock):
    """A block of one's own that remembers."""

    _block_type_name = "Memo"
    said: ClassVar[list[tuple[str | None, str]]] = []

    async def notify(self, body: str, subject: str | None = None) -> None:
        self.said.append((subject, body))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedule")
    (folder / "card.toml").write_text(CARD)
    (folder / "trajnote.toml").write_text(SETTINGS)
    (folder / "inbox").mkdir()
    elsewhere = Store.create(folder / "elsewhere")
    made = gather_toys(elsewhere, folder, card=str(folder / "card.toml"), episodes=4)
    write_answers(elsewhere, made.dataset_id, folder / "card.toml", folder / "answers.jsonl")
    shutil.copytree(elsewhere.dataset_dir(made.dataset_id), folder / "inbox" / "drop")
    return folder


@pytest.fixture
def settings(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "here") / "trajnote.toml"


def latest_run() -> Any:
    with get_client(sync_client=True) as client:
        runs: list[Any] = client.read_flow_runs()
    return max(runs, key=lambda run: run.created)


@pytest.mark.slow
@pytest.mark.usefixtures("api")
def test_a_night_leaves_a_markdown_and_a_table_and_its_refusal_is_a_state_in_words(settings: Path) -> None:
    done = nightly_flow(settings=settings)
    assert (done["answered"], done["labels"], done["policy_id"]) == (4, 32, None)
    with get_client(sync_client=True) as client:
        left = {artifact.key: artifact for artifact in client.read_artifacts()}
    assert {"nightly-nightly", "nightly-nightly-table"} <= left.keys()
    assert "4 answered, 0 waiting; 32 new labels" in str(left["nightly-nightly"].data)
    (row,) = json.loads(str(left["nightly-nightly-table"].data))
    assert (row["labels"], row["dollars"], row["in force"]) == (32, 0.0, None)

    with pytest.raises(BadInput, match="There is no deployment 'other'"):
        nightly_flow("other", settings)
    state = latest_run().state
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    assert state.message == f"There is no deployment 'other' in {settings}. Known: nightly."


@pytest.mark.slow
@pytest.mark.usefixtures("api")
def test_a_beginning_that_fits_no_dataset_is_a_warning_of_every_night(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text(SETTINGS.replace('inbox = "inbox"', 'datasets = ["toy", "tyo-"]'))
    logged: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "flows.deployment.prefect_flows.get_run_logger",
        lambda: SimpleNamespace(warning=lambda *said: logged.append(said)),
    )
    warning = f"no dataset of {settings.parent / 'elsewhere'} has a name with the prefix 'tyo-', which `datasets` lists"
    for _ in range(2):
        night = nightly_flow(settings=settings, store=settings.parent / "elsewhere")
        assert night["warnings"] == [warning]
        assert night["labels"] == 32
        with get_client(sync_client=True) as client:
            found = [artifact for artifact in client.read_artifacts() if artifact.key == "nightly-nightly"]
        assert "- warning: no dataset of" in str(max(found, key=lambda artifact: str(artifact.created)).data)
    assert logged == [("%s", warning)] * 2
    assert not (settings.parent / "trajnote-store").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("api")
def test_a_run_beside_another_one_ends_as_skipped_and_says_so(settings: Path) -> None:
    with deployment_lock(Store.create(settings.parent / "trajnote-store"), "nightly"):
        assert nightly_flow(settings=settings) is None
    state = latest_run().state
    assert (state.type.value, state.name) == ("COMPLETED", "Skipped")
    assert "The deployment nightly is already running" in (state.message or "")


@pytest.mark.slow
@pytest.mark.usefixtures("api")
def test_failures_and_promotions_are_told_to_a_block_and_its_address_to_nobody(settings: Path) -> None:
    Memo().save("me")
    settings.write_text('notify = "memo/me"\n' + SETTINGS.replace("recorded", "file").replace("answers = ", "# "))
    with pytest.raises(Prerequisite, match="needs a folder of answers"):
        nightly_flow(settings=settings)
    assert Memo.said[-1][0] == "trajnote nightly failed"
    assert "Name it with `answers`" in Memo.said[-1][1]

    promoted = Night("nightly", promoted=True, policy_id="refined-1", verdicts=["gate: accepted"])
    assert schedule.notify_promotion("memo/me", promoted) is None
    assert Memo.said[-1] == ("trajnote nightly: refined-1 is in force", "gate: accepted")
    assert schedule.notify_promotion("memo/me", Night("nightly")) is None
    assert schedule.notify_warnings("memo/me", Night("nightly")) is None
    assert len(Memo.said) == 2
    assert schedule.notify_warnings("memo/me", Night("nightly", warnings=["no dataset"])) is None
    assert Memo.said[-1] == ("trajnote nightly warns", "no dataset")

    received: list[Any] = []
    with loopback(received, status=200) as address:
        Webhook(url=f"{address}/secret-path").save("hook")  # pyright: ignore[reportArgumentType]
        assert schedule.notify("webhook/hook", "subject", "body") is None
    assert received == [{"subject": "subject", "text": "subject\nbody"}]
    with loopback(received, status=500) as address:
        Webhook(url=f"{address}/secret-path").save("bad")  # pyright: ignore[reportArgumentType]
        said = schedule.notify("webhook/bad", "subject", "body")
    assert said == "the notice was not delivered: webhook/bad was answered with 500"
    gone = schedule.notify("webhook/bad", "subject", "body") or ""
    assert "failed with ConnectError" in gone
    assert "secret-path" not in gone
    assert schedule.notify("webhook/none", "subject", "body") == (
        "the notice was not delivered: the block webhook/none failed with ValueError"
    )


class loopback:  # noqa: N801 -- used like a function
    """A web server for as long as a block lasts, which keeps what it is sent."""

    def __init__(self, received: list[Any], status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_what_comes_from_elsewhere_is_text_in_an_artifact_and_never_markup() -> None:
    told = Summary("night of <b>", ["refused [x](http://y): `a` | *b*\n# c"], [])
    assert as_markdown(told) == "## night of \\<b\\>\n\n- refused \\[x\\](http://y): \\`a\\` \\| \\*b\\* \\# c"


def test_deployments_are_module_paths_with_their_schedule_and_run_once_at_a_time(settings: Path) -> None:
    (made,) = make_deployments(settings)
    assert made.entrypoint == "flows.deployment.prefect_flows.nightly_flow"
    assert load_flow_from_entrypoint(made.entrypoint).name == "nightly"
    assert made.parameters == {"deployment": "nightly", "settings": str(settings)}
    (elsewhere,) = make_deployments(settings, settings.parent / "elsewhere")
    assert (elsewhere.parameters or {})["store"] == str(settings.parent / "elsewhere")
    assert made.concurrency_limit == 1
    assert str(made.concurrency_options.collision_strategy.value) == "CANCEL_NEW"  # pyright: ignore
    (planned,) = made.schedules or []
    assert (planned.schedule.cron, planned.schedule.timezone) == ("0 2 * * *", "Europe/Paris")  # pyright: ignore
    settings.write_text(SETTINGS.replace("0 2 * * *", "every night"))
    with pytest.raises(BadInput, match="cron is 'every night'"):
        make_deployments(settings)


def test_a_promotion_that_cannot_be_told_is_a_note_of_the_night(
    monkeypatch: pytest.MonkeyPatch, settings: Path
) -> None:
    promoted = Night("nightly", promoted=True)
    monkeypatch.setattr(schedule, "run_night", lambda *arguments: promoted)
    monkeypatch.setattr(schedule, "notify_promotion", lambda block, night: "the notice was not delivered: why")
    _, config = schedule.read_deployment(None, settings)
    assert schedule.run_and_notify("nightly", config, lambda *told: None).notes == (
        "the notice was not delivered: why",
    )


@pytest.mark.slow
def test_prefect_yaml_deploys_to_a_process_pool_and_a_worker_runs_it(
    settings: Path, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.testing.cli import invoke_and_assert

    monkeypatch.setenv("TRAJNOTE_SETTINGS", str(settings))
    monkeypatch.chdir(ROOT)
    assert start_server() is None  # the one that the settings name answers
    invoke_and_assert(["work-pool", "create", "trajnote", "--type", "process"], expected_code=0)
    invoke_and_assert(["--no-prompt", "deploy", "--all"], expected_code=0)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("nightly/nightly")
        assert deployment.entrypoint == "flows.deployment.prefect_flows.nightly_flow"
        run = client.create_flow_run_from_deployment(deployment.id)
    if not SOAK:  # a worker and its run are three processes that import Prefect
        return
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "trajnote", "--run-once"]
    environment = os.environ | {"PYTHONPATH": path, "PREFECT_API_URL": api}
    done = subprocess.run(worker, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert state is not None
    assert (state.name, state.message) == ("Completed", None)
    store = Store.open(settings.parent / "trajnote-store")
    with store.catalog.read() as con:
        assert con.execute("SELECT count(*) FROM annotations").fetchall() == [(32,)]
