"""Episodes shared out to processes: the same bits, files and words as in one, and one goes on where others cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from odd_environments import Odd
from test_flows_collect import episodes_of, files_of, network
from typer.testing import CliRunner

import flows.simulation.workers
from flows.cli import make_app
from flows.datasets.collection import CollectConfig, collect
from flows.runtime.processes import shutdown_workers, working
from flows.simulation.actors import RandomActor
from flows.simulation.environments import EnvironmentMaker, look_up_spaces
from flows.simulation.rollouts import Playing, Progress, rollout
from flows.simulation.trust import Named
from flows.simulation.workers import play_episodes
from storage.errors import BadInput, TrajnoteWarning
from storage.schema import Episode
from storage.store import Store

CRASH, MORTAL = Named("odd_environments:Crash-v0"), Named("odd_environments:Mortal-v0")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Generator[list[int]]:
    """Whatever can be shared out is, as soon as an episode has ended; gives the episodes of each task."""
    tasks: list[int] = []

    def spy(work: Callable[[Any], Any], items: Sequence[Any], *rest: Any, **options: Any) -> Any:
        tasks.extend(len(item.playing.seeds) for item in items)
        return working(work, items, *rest, **options)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    monkeypatch.setattr(flows.simulation.workers, "working", spy)
    monkeypatch.setattr(flows.simulation.workers, "TRIAL_S", 0.0)
    monkeypatch.setattr(flows.simulation.workers, "WORTH_S", 0.0)
    yield tasks
    shutdown_workers()


def bits_of(episode: Episode) -> tuple[Any, ...]:
    arrays = (episode.observations, episode.actions, episode.rewards)
    plain = (episode.episode_id, episode.seed, episode.terminated, episode.truncated)
    return (*plain, *(array.tobytes() for array in arrays))


def chance(env_id: Named) -> RandomActor:
    return RandomActor(look_up_spaces(env_id).action)


def test_no_further_episode_begins_once_there_are_enough() -> None:
    make, policy, seeds = EnvironmentMaker(Named("CartPole-v1")), chance(Named("CartPole-v1")), range(40)
    asked: list[Progress] = []

    def enough(so_far: Progress) -> bool:
        asked.append(so_far)
        return so_far.ended >= 5

    some = list(rollout(make, policy, seeds, envs=4, enough=enough))
    assert [so_far[:2] for so_far in asked] == [(ended, 3) for ended in range(1, 6)]
    assert asked[-1].episodes == 6.5
    assert asked[-1].nbytes % (4 * (4 * 4 + 8 + 8)) == 0  # of four observations, actions and rewards
    assert len(some) == 8
    rest = rollout(make, policy, seeds[8:], envs=4, first_id=8)
    assert list(map(bits_of, [*some, *rest])) == list(map(bits_of, rollout(make, policy, seeds)))


@pytest.mark.slow
def test_a_dataset_of_several_processes_has_the_name_and_the_files_of_one_of_a_single_process(
    tmp_path: Path, shared: list[int]
) -> None:
    policy = network(tmp_path / "policy")
    config = CollectConfig(env_id="CartPole-v1", policy=f"policy:{policy}", mode="sampled", episodes=90, envs=7)
    alone, beside = Store.create(tmp_path / "alone"), Store.create(tmp_path / "beside")
    expected = collect(alone, config, shard_bytes=20_000)
    assert not shared
    told: list[int] = []
    several = config.model_copy(update={"workers": 2})
    manifest = collect(beside, several, lambda _, done, total: told.append(done), shard_bytes=20_000)
    assert len(shared) > 3
    assert 90 - 7 <= sum(shared) < 90  # a slow machine makes fewer environments for those that are played here
    assert len(manifest.shards) > 3
    assert told == list(range(91))
    assert files_of(beside, manifest) == files_of(alone, expected)
    assert episodes_of(beside) == episodes_of(alone)


@pytest.mark.slow
def test_a_collection_interrupted_while_others_play_goes_on_to_the_same_files(
    tmp_path: Path, shared: list[int]
) -> None:
    def stop(_: str, done: int, total: int | None) -> None:
        if done == 30:
            raise KeyboardInterrupt

    config = CollectConfig(env_id="CartPole-v1", policy="random", episodes=50, envs=3)
    several = config.model_copy(update={"workers": 2})
    alone, beside = Store.create(tmp_path / "alone"), Store.create(tmp_path / "beside")
    with pytest.raises(KeyboardInterrupt):
        collect(beside, several, stop, shard_bytes=1)
    told: list[int] = []
    manifest = collect(beside, several, lambda _, done, total: told.append(done), shard_bytes=1)
    assert told == list(range(30, 51))
    assert files_of(beside, manifest) == files_of(alone, collect(alone, config, shard_bytes=1))


@pytest.mark.slow
def test_an_episode_that_fails_elsewhere_is_told_in_the_same_words_after_all_before_it(shared: list[int]) -> None:
    def play(workers: int) -> tuple[list[Any], str]:
        played: list[Any] = []
        seeds = [0, 4, 8, 12, 16, 20, 24, 28, 2, 32]
        playing = Playing(CRASH, {}, chance(CRASH), seeds, first_id=70, envs=2)
        episodes = play_episodes(playing, workers=workers)
        with pytest.raises(BadInput) as error:
            played.extend(map(bits_of, episodes))
        return played, str(error.value)

    alone, beside = play(1), play(2)
    assert shared
    assert alone == beside
    assert [episode[:2] for episode in alone[0]] == [(70 + number, 4 * number) for number in range(8)]
    assert "Episode 78, step 2: its environment raised RuntimeError: sensor lost" in alone[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("OnlyHere-v0", "Unknown environment 'OnlyHere-v0'"),
        ("CartPole-v1", "Other processes find another CartPole-v1"),
        (MORTAL, "A worker process died"),
    ],
)
def test_where_other_processes_cannot_play_this_one_does(
    tmp_path: Path, shared: list[int], monkeypatch: pytest.MonkeyPatch, env_id: str, words: str
) -> None:
    for name, limit in (("OnlyHere-v0", 9), ("CartPole-v1", 30)):
        made = gymnasium.envs.registration.EnvSpec(name, entry_point=Odd, max_episode_steps=limit)
        monkeypatch.setitem(gymnasium.registry, name, made)
    config = CollectConfig(env_id=Named(env_id), policy="random", episodes=20, envs=3, workers=2)
    store, alone = Store.create(tmp_path / "store"), Store.create(tmp_path / "alone")
    with pytest.warns(TrajnoteWarning, match=f"{words}.* The other episodes are played in this process."):
        manifest = collect(store, config)
    assert shared
    expected = collect(alone, config.model_copy(update={"workers": 1}))
    assert files_of(store, manifest) == files_of(alone, expected)


@pytest.mark.parametrize("changes", [{"envs": 1}, {"workers": 1}, {"policy": "py:{folder}/mine.py:act"}])
def test_one_environment_one_worker_and_external_code_stay_in_one_process(
    store: Store, tmp_path: Path, shared: list[int], changes: dict[str, Any]
) -> None:
    (tmp_path / "mine.py").write_text("def act(observation):\n    return 0\n")
    named = {name: value.format(folder=tmp_path) if name == "policy" else value for name, value in changes.items()}
    config = CollectConfig(**{"env_id": "CartPole-v1", "policy": "random", "episodes": 12, "envs": 3, **named})
    collect(store, config if "workers" in changes else config.model_copy(update={"workers": 2}))
    assert not shared


def test_few_episodes_are_over_before_others_would_have_started(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.simulation.workers, "working", lambda *_, **__: pytest.fail("others start"))
    monkeypatch.setattr(flows.simulation.workers, "TRIAL_S", 1e9)
    config = CollectConfig(env_id="CartPole-v1", policy="random", episodes=12, envs=3, workers=2)
    assert collect(store, config).episodes == 12


@pytest.mark.slow
def test_what_an_environment_prints_elsewhere_is_not_among_the_results(
    tmp_path: Path, shared: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["collect", "--env", "odd_environments:Loud-v0", "--policy", "random", "--episodes", "9", "--envs", "2"]
    done = CliRunner().invoke(make_app(), [*words, "--workers", "2", "--json", "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert shared
    shutdown_workers()
    captured = capfd.readouterr()
    assert "a step" not in captured.out
    assert "a step" in captured.err
