"""The Prefect flows: thin, addressable by module, with parameters that are values; a killed one is finished later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from soak import SOAK
from store_state import state_of
from toy_environment import CARD, TOY, gather_toys, small_config, write_answers

from annotate.prompting.requests import AnnotateConfig
from flows.datasets.collection import CollectConfig
from flows.labelling.annotation import LabelConfig
from flows.runtime.prefect_server import quieten_prefect
from storage.errors import BadInput
from storage.store import Store

quieten_prefect()

from prefect.flows import load_flow_from_entrypoint  # noqa: E402

from flows.deployment import prefect_flows as pipeline  # noqa: E402
from flows.deployment.prefect_flows import PipelineConfig, pipeline_flow  # noqa: E402

TESTS = Path(__file__).parent
PROGRAM = """
import sys
from flows.runtime.prefect_server import quieten_prefect
quieten_prefect()
from flows.deployment.prefect_flows import PipelineConfig, pipeline_flow
pipeline_flow(PipelineConfig.model_validate_json(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy's policy and card, and recorded answers about its episodes."""
    made = tmp_path_factory.mktemp("pipeline")
    (made / "card.toml").write_text(CARD)
    store = Store.create(made / "other")
    manifest = gather_toys(store, made, card=str(made / "card.toml"))
    write_answers(store, manifest.dataset_id, made / "card.toml", made / "answers.jsonl")
    return made


def configure(folder: Path, store: str) -> PipelineConfig:
    return PipelineConfig(
        store=folder / store,
        collect=CollectConfig(env_id=TOY, policy=f"policy:{folder / 'baseline'}", episodes=12, mode="sampled"),
        label=LabelConfig(
            provider="recorded",
            answers=folder / "answers.jsonl",
            card=str(folder / "card.toml"),
            annotate=AnnotateConfig(model="toy"),
        ),
        improve=small_config(gate={"placebo_draws": 19}),
    )


def test_every_flow_is_found_by_its_module_and_takes_values_only() -> None:
    for name in ("collect", "label", "improve", "pipeline"):
        found = load_flow_from_entrypoint(f"flows.deployment.prefect_flows.{name}_flow")
        assert found.name == name
        assert found.description
        assert found.parameters.model_dump()["properties"].keys() <= {
            "config", "store", "card", "dataset_id", "run_ids"
        }  # fmt: skip


@pytest.mark.slow
def test_a_configuration_survives_the_way_through_json(folder: Path) -> None:
    config = configure(folder, "store")
    assert PipelineConfig.model_validate(json.loads(config.model_dump_json())) == config
    validated = pipeline_flow.validate_parameters({"config": json.loads(config.model_dump_json())})
    assert validated["config"] == config
    with pytest.raises(BadInput, match="either collects a dataset or names one"):
        config.model_copy(update={"dataset_id": "d1"}).model_validate(config.model_dump() | {"dataset_id": "d1"})


@pytest.mark.slow
def test_one_flow_collects_labels_refines_and_judges_and_a_killed_one_is_finished_by_the_next(
    folder: Path, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = pipeline_flow(configure(folder, "smooth"))
    assert outcome.n_labels == 96
    assert outcome.comparison.decision.accepted
    assert outcome.comparison.credit.holds
    expected = state_of(folder / "smooth")

    rough = configure(folder, "rough" if SOAK else "smooth")  # nights and commands are always killed, flows in a soak
    if SOAK:
        kill_when(rough, folder / "rough" / "responses", api)
    again = pipeline_flow(rough)
    assert again.comparison_id == outcome.comparison_id
    assert state_of(rough.store) == expected

    monkeypatch.setattr(pipeline, "gather", None)
    with pytest.raises(TypeError):
        pipeline_flow(rough)  # the flow goes through the plain function


def kill_when(config: PipelineConfig, responses: Path, api: str) -> None:
    """Run the flow in another process, and kill it as soon as answers have landed."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path, "PREFECT_API_URL": api, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, config.model_dump_json()], env=environment)
    try:
        while process.poll() is None and not any(responses.glob("*/*")):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.usefixtures("api")
def test_a_failing_step_surfaces_its_reason_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = configure(folder, "failing")
    asked = config.label.model_copy(update={"annotate": AnnotateConfig(model="another")})
    with pytest.raises(BadInput, match=r"has no answer to 12 of 12 requests, the first being r_") as refused:
        pipeline_flow(config.model_copy(update={"label": asked}))
    assert "\n" not in str(refused.value)
    assert "Traceback" not in capfd.readouterr().err
