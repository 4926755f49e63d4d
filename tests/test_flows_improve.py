"""`refine` as a whole: its refusals come first, a second run changes nothing, and processes are never the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from soak import in_soak
from store_state import ask, lend, state_of
from toy_environment import REACH, TOY, gather_toys, make_baseline, save_folder, small_config, write_labels

from annotate.importing.labels import import_annotations
from flows.datasets.recordings import take_in
from flows.refinement import comparison
from flows.refinement import evaluator as judging
from flows.refinement.present import show_comparison
from flows.refinement.refinement import Outcome, improve
from storage.datasets.reader import read_episode
from storage.errors import BadInput, Prerequisite
from storage.store import Store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one dataset and two annotation runs: right labels, and labels of chance."""
    folder = tmp_path_factory.mktemp("improve")
    made = Store.create(folder / "store")
    manifest = gather_toys(made, folder)
    for answer in ("right", "chance"):
        import_annotations(made, write_labels(made, manifest.dataset_id, folder / answer, answer))
    return made.root


@pytest.fixture
def toys(template: Path) -> Store:
    """A copy of that store."""
    return Store.open(lend(template))


def one(store: Store, sql: str) -> str:
    return ask(store, sql)[0][0]


def dataset(store: Store) -> str:
    return one(store, "SELECT dataset_id FROM datasets")


def right_run(store: Store) -> str:
    """The run of the right labels: those that agree with the world's reward."""
    return one(
        store,
        "SELECT run_id FROM annotated_steps WHERE agrees GROUP BY run_id ORDER BY sum(reward) / count(*) DESC, run_id",
    )


def run(store: Store, workers: int = 1, **changes: Any) -> Outcome:
    return improve(store, dataset(store), small_config(workers, **changes), run_ids=[right_run(store)])


@pytest.mark.slow
def test_a_second_run_plays_nothing_says_the_same_and_changes_nothing(
    toys: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(toys)
    before = state_of(toys.root)
    monkeypatch.setattr(judging, "play_policies", None)  # playing anything would fail
    second = run(toys)
    assert show_comparison(second) == show_comparison(first)
    assert state_of(toys.root) == before


@pytest.mark.slow
@in_soak
def test_processes_change_nothing_but_the_time(toys: Store, tmp_path: Path) -> None:
    other = Store.open(shutil.copytree(toys.root, tmp_path / "other"))
    alone, shared = run(toys, workers=1), run(other, workers=2)
    assert show_comparison(alone) == show_comparison(shared)
    assert state_of(toys.root) == state_of(other.root)
    assert alone.comparison.decision.accepted


@pytest.mark.slow
def test_only_the_labels_of_the_runs_that_were_named_count(toys: Store) -> None:
    assert run(toys).n_labels == 96
    both = improve(toys, dataset(toys), small_config())
    assert both.n_labels == 192
    with toys.catalog.read() as con:
        used = con.execute("SELECT DISTINCT comparison_id, run_ids FROM refinements").fetchall()
    assert sorted(len(runs) for _, runs in used) == [1, 2]
    with pytest.raises(BadInput, match="no annotation run 'i_none'"):
        improve(toys, dataset(toys), small_config(), run_ids=["i_none"])


@pytest.mark.slow
def test_a_flood_of_implicit_rewards_is_told_and_kept(toys: Store) -> None:
    outcome = run(toys, mode="R", reward_weight=20.0, critic_steps=5, snapshots=(5,))

    assert show_comparison(outcome).values["warnings"] == list(outcome.warnings)
    assert outcome.warnings[0].startswith("reward flooding: in the median annotated episode 9")
    assert show_comparison(outcome).sentences[-1] == f"warning: {outcome.warnings[0]}"
    kept = one(toys, "SELECT config ->> '$.warnings[0]' FROM refinements WHERE arm = 'labels'")
    assert kept == outcome.warnings[0]
    assert one(toys, "SELECT count(*) FROM refinements WHERE config ->> '$.warnings[0]' IS NOT NULL") == 1


def refuse(store: Store, problem: str, dataset_id: str | None = None, **options: Any) -> None:
    """Check that a refinement is refused before anything is trained or written."""
    before = state_of(store.root)
    config = options.pop("config", small_config())
    with pytest.raises((BadInput, Prerequisite), match=problem):
        improve(store, dataset_id or dataset(store), config, **options)
    assert state_of(store.root) == before


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training anything fails."""
    monkeypatch.setattr(comparison, "train_draws", None)


@pytest.mark.usefixtures("untrained")
def test_a_seed_of_the_dataset_is_no_seed_of_the_gate(toys: Store) -> None:
    config = small_config(gate={"first_seed": 11})
    refuse(toys, "Seed 11 is among the dataset seeds and the select seeds", config=config)


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
def test_an_algorithm_for_other_actions_is_refused(toys: Store) -> None:
    refuse(toys, "iql is not for discrete actions; allowed are recipe, bc, dqn", config=small_config(algorithm="iql"))


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
def test_a_dataset_without_annotations_is_refused(store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    refuse(store, f"{manifest.dataset_id} has no annotations. Run `trajnote annotate` first", manifest.dataset_id)


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
def test_a_dataset_without_an_environment_is_refused(toys: Store, tmp_path: Path) -> None:
    imported = import_rows_of(toys, tmp_path, env_id=None)
    refuse(toys, "has no environment, so nothing can judge a refinement. Import it with --env", imported)


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
def test_an_environment_that_is_not_what_it_was_is_refused(
    toys: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = import_rows_of(toys, tmp_path, env_id=TOY)
    import_annotations(toys, write_labels(toys, imported, tmp_path / "labels.jsonl"))
    monkeypatch.setattr("toy_environment.Toy.action_space", gymnasium.spaces.Discrete(5))
    refuse(toys, "was made for an action space with n 4; the environment has 5", imported)


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
def test_a_baseline_for_other_spaces_or_without_weights_or_steps_is_refused(toys: Store, tmp_path: Path) -> None:
    reach = save_folder(make_baseline(REACH), tmp_path / "reach")
    refuse(toys, "was made for an action space with kind box; the environment has discrete", baseline=f"policy:{reach}")
    refuse(toys, "random has no weights.*toy-environment.* was not collected with it", baseline="random")


@pytest.mark.slow
def test_a_baseline_that_was_named_is_the_one_that_is_refined(toys: Store, tmp_path: Path) -> None:
    given = make_baseline(head="q_values")
    folder = save_folder(given, tmp_path / "given")
    outcome = improve(toys, dataset(toys), small_config(), run_ids=[right_run(toys)], baseline=f"policy:{folder}")
    assert outcome.baseline.policy.sha256 == given.sha256
    assert outcome.comparison.improvement.holds
    sql = f"SELECT config ->> 'origin' FROM policies WHERE sha256 != '' AND policy_id LIKE '%{given.sha256[:12]}'"
    assert one(toys, sql) == f"policy:{folder}, its own weights"


def import_rows_of(store: Store, folder: Path, env_id: str | None) -> str:
    """Two of the dataset's episodes again, as rows that were recorded elsewhere."""
    rows = []
    for episode_id in (0, 1):
        episode = read_episode(store, dataset(store), episode_id)
        for step in range(len(episode) + 1):
            ended, last = step == len(episode), step == len(episode) - 1
            row = {
                "episode_id": episode_id,
                "step": step,
                "observation": episode.observations[step].tolist(),
                "action": None if ended else int(episode.actions[step]),
                "reward": None if ended else float(episode.rewards[step]),
                "terminated": last,
                "truncated": False,
            }
            rows.append(row)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return take_in(store, path, dataset_id="imported", env_id=env_id).dataset_id
