"""`refine` without a simulator, on a world whose best policies are known: everything it says is called an estimate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from store_state import ask, state_of
from toy_environment import gather_toys, small_config, write_labels

from annotate.importing.labels import import_annotations
from flows.datasets.recordings import take_in
from flows.refinement import evaluator as judging
from flows.refinement.estimation import EstimateConfig, EstimatedRefinement, estimate_refinement
from flows.refinement.present import show_estimate
from flows.reporting.figures import draw_figures
from flows.reporting.page import write_report
from flows.simulation import workers
from refine.evaluation.ope import OpeConfig
from storage.errors import BadInput, Prerequisite
from storage.store import Store

pytestmark = pytest.mark.usefixtures("brief_distillation")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with steps that came without an environment, and right labels for them."""
    folder = tmp_path_factory.mktemp("estimate_refinement")
    elsewhere = Store.create(folder / "elsewhere")
    manifest = gather_toys(elsewhere, folder)
    shards = pl.read_parquet(elsewhere.dataset_dir(manifest.dataset_id) / "*.parquet")
    shards.drop("seed").write_parquet(folder / "rows.parquet")
    store = Store.create(folder / "store")
    imported = take_in(store, folder / "rows.parquet", dataset_id="logs")
    import_annotations(store, write_labels(store, imported.dataset_id, folder / "labels.jsonl"))
    return store.root


@pytest.fixture
def logs(template: Path, tmp_path: Path) -> Store:
    """A copy of that store."""
    return Store.open(shutil.copytree(template, tmp_path / "copy" / "store"))


def config(**changes: Any) -> EstimateConfig:
    fields: dict[str, Any] = {
        "refine": small_config().refine,
        "ope": OpeConfig(resamples=6, features=16, gamma=0.9),
        "folds": 2,
        "placebo_draws": 2,
        "workers": 1,
    }
    return EstimateConfig(**fields | changes)


@pytest.fixture(scope="module")
def estimated_store(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, EstimatedRefinement]:
    """The estimated of right labels; nothing can be played."""
    store = Store.open(shutil.copytree(template, tmp_path_factory.mktemp("estimated_store") / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "play_policies", None)
        patch.setattr(workers, "EnvironmentMaker", None)
        return store, estimate_refinement(store, "logs", config())


@pytest.mark.slow
def test_right_labels_are_estimated_better_and_nothing_is_put_in_force(
    estimated_store: tuple[Store, EstimatedRefinement],
) -> None:
    store, estimated = estimated_store
    arms = {arm.arm: arm for arm in estimated.arms}
    assert list(arms) == ["baseline", "labels", "no_labels", "shuffled", "random"]
    assert arms["labels"].return_.mean == pytest.approx(5.7, abs=1)  # 8 pushes that pay 1, discounted by 0.9
    assert arms["baseline"].return_.mean == pytest.approx(1.4, abs=0.5)
    assert estimated.improvement.holds
    assert not estimated.accepted
    assert estimated.policy_id.startswith("baseline-")
    assert ask(store, "SELECT basis, env_id, accepted, policy_id FROM comparisons") == [
        ("estimated", None, False, estimated.policy_id)
    ]
    kept = ask(store, "SELECT config ->> 'basis' FROM policies WHERE kind = 'refined'")
    assert kept == [("estimated",)]


@pytest.mark.slow
def test_an_estimate_is_never_an_evaluation(estimated_store: tuple[Store, EstimatedRefinement]) -> None:
    store, estimated = estimated_store
    assert ask(store, "SELECT count(*) FROM evaluations") == [(0,)]
    assert ask(store, "SELECT count(*), min(method), min(mode) FROM estimates") == [(7, "fqe", "greedy")]
    chosen = ask(store, "SELECT return_, consistency FROM candidates WHERE chosen")
    assert len(chosen) == 6
    assert all(return_ is None and consistency < 0 for return_, consistency in chosen)
    assert {basis for (basis,) in ask(store, "SELECT basis FROM leaderboard")} == {"estimated"}
    assert estimated.trials[0].consistency.labels == 96


@pytest.mark.slow
def test_every_form_of_the_result_says_that_it_is_an_estimate(
    estimated_store: tuple[Store, EstimatedRefinement],
) -> None:
    _, estimated = estimated_store
    shown = show_estimate(estimated)
    told = shown.values
    assert told["basis"] == "estimated"
    assert "not played" in told["caveat"]
    assert not {"accepted_policy", "better_than_baseline", "refined"} & told.keys()
    assert all("estimated return [95%]" in row for row in shown.rows)
    lines = shown.sentences
    assert lines[0].startswith("ESTIMATE: an estimate from logged steps, not played")
    assert not any("accepted:" in line for line in lines)
    assert "nothing was played" in "\n".join(lines)


@pytest.mark.slow
def test_a_second_appraisal_says_the_same_and_changes_nothing(
    estimated_store: tuple[Store, EstimatedRefinement],
) -> None:
    store, first = estimated_store
    before = state_of(store.root)
    assert show_estimate(estimate_refinement(store, "logs", config())) == show_estimate(first)
    assert state_of(store.root) == before


@pytest.mark.slow
def test_only_who_asks_for_it_gets_a_policy_in_force_on_an_estimate(logs: Store) -> None:
    estimated = estimate_refinement(logs, "logs", config(accept=True))
    assert estimated.accepted
    assert estimated.policy_id == estimated.candidate.policy_id
    ((reason, policy_id),) = ask(logs, "SELECT reason, policy_id FROM comparisons")
    assert reason == "put in force on an estimate alone, as was asked for; nothing was played"
    assert policy_id == estimated.candidate.policy_id


@pytest.mark.slow
def test_pictures_and_the_report_call_it_an_estimate(
    estimated_store: tuple[Store, EstimatedRefinement], tmp_path: Path
) -> None:
    store, _ = estimated_store
    pictures = {path.stem: path.read_text() for path in draw_figures(store, tmp_path)}
    assert "Estimated" in pictures["arms"]
    assert "not played" in pictures["arms"]
    assert "held-out" in pictures["candidates"]
    assert "board" not in pictures
    page = write_report(store, pictures=0).path.read_text()
    assert "Estimated from the log, not played" in page
    assert "that neither training nor the gate has seen" not in page


@pytest.mark.slow
def test_without_annotations_or_with_too_few_episodes_there_is_nothing_to_estimate(
    logs: Store, template: Path, tmp_path: Path
) -> None:
    few = pl.read_parquet(template.parent / "rows.parquet").filter(pl.col("episode_id") < 3)
    few.write_parquet(tmp_path / "few.parquet")
    take_in(logs, tmp_path / "few.parquet", dataset_id="few")
    with pytest.raises(Prerequisite, match="few has no annotations"):
        estimate_refinement(logs, "few", config())
    import_annotations(logs, write_labels(logs, "few", tmp_path / "labels.jsonl"))
    with pytest.raises(BadInput, match="3 episodes are too few to estimate from; at least 5"):
        estimate_refinement(logs, "few", config())


@pytest.mark.slow
def test_intervals_come_from_the_same_episodes_for_every_policy(
    estimated_store: tuple[Store, EstimatedRefinement],
) -> None:
    _, estimated = estimated_store
    labels = estimated.trials[0]
    gain = estimated.improvement.differences["baseline"]
    difference = labels.estimate.refits - estimated.baseline.refits
    assert len(difference) == 6
    assert gain.mean == pytest.approx(labels.estimate.value - estimated.baseline.value)
    assert np.ptp(difference) > 0
