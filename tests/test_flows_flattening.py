"""Observations of several parts: flattened as Gymnasium does, named after their keys, replayed to the bit, imported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from flows.datasets.collection import CollectConfig, collect
from flows.datasets.recordings import take_in
from flows.simulation.environments import make_environment, spaces_of
from flows.simulation.flattening import can_flatten, flatten_rows, name_components
from flows.simulation.replay import replay_episode
from flows.simulation.trust import Named
from storage.datasets import iterate_episodes
from storage.errors import BadInput
from storage.store import Store

ROOM = spaces.Dict(
    {
        "pos": spaces.Box(-9, 9, (2,), np.float64),
        "Facing Door": spaces.Discrete(3, start=-1),
        "bag": spaces.Dict({"keys": spaces.MultiBinary(2), "coins": spaces.MultiDiscrete([2, 3])}),
        "pair": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, ()))),
    }
)
ROOM_NAMES = (
    *("facing_door_is_minus_1", "facing_door_is_0", "facing_door_is_1"),
    *("bag_coins_0_is_0", "bag_coins_0_is_1", "bag_coins_1_is_0", "bag_coins_1_is_1", "bag_coins_1_is_2"),
    *("bag_keys_0", "bag_keys_1", "pair_0_is_0", "pair_0_is_1", "pair_1", "pos_0", "pos_1"),
)
PLAIN: dict[str, tuple[spaces.Space[Any], tuple[str, ...]]] = {
    "room": (ROOM, ROOM_NAMES),
    "tuple": (spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,)))), ("o0_is_0", "o0_is_1", "o1")),
    "binary": (spaces.MultiBinary((1, 2)), ("o0_0", "o0_1")),
    "multi": (spaces.MultiDiscrete([1, 2], start=[3, -1]), ("o0_is_3", "o1_is_minus_1", "o1_is_0")),
    "scalar": (spaces.Box(-1, 1, ()), ("o0",)),
    "matrix": (spaces.Box(-1, 1, (1, 2)), ("o0_0", "o0_1")),
    "alike": (
        spaces.Dict({"a b": spaces.MultiBinary(1), "A-B": spaces.MultiBinary(1)}),
        ("a_b", "a_b_2"),
    ),
}


def stacked(space: spaces.Space[Any], values: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: stacked(inner, [value[key] for value in values]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(inner, [value[n] for value in values]) for n, inner in enumerate(space.spaces))
    return np.stack([np.asarray(value) for value in values])


@pytest.mark.parametrize("name", PLAIN)
def test_rows_and_names_are_in_the_order_and_the_numbers_of_gymnasium(name: str) -> None:
    space, names = PLAIN[name]
    space.seed(0)
    values = [space.sample() for _ in range(20)]
    expected = np.stack([spaces.flatten(space, value) for value in values])
    made = flatten_rows(space, stacked(space, values))
    assert made.dtype == expected.dtype == spaces.flatten_space(space).dtype
    np.testing.assert_array_equal(made, expected)
    assert name_components(space) == names


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Dict({"seen": spaces.Box(0, 255, (8, 8), np.uint8), "a": spaces.Discrete(2)}),
        spaces.Text(4),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Tuple(()),
    ],
)
def test_images_texts_and_sequences_are_not_flattened(space: spaces.Space[Any]) -> None:
    assert not can_flatten(space)


class Room(gymnasium.Env[Any, Any]):
    action_space: Any = spaces.Discrete(2)

    def __init__(self) -> None:
        self.observation_space = copy.deepcopy(ROOM)  # it draws

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observation_space.sample(), float(action), self.time == 4, False, {}


class Switches(Room):
    action_space: Any = spaces.MultiDiscrete([2, 3])


def gather(store: Store) -> Any:
    named = Named(f"{__name__}:Room")
    return collect(store, CollectConfig(env_id=named, policy=Named("random"), mode="sampled", episodes=3))


def test_a_collected_dataset_keeps_what_was_flattened_and_replays_to_the_bit(store: Store) -> None:
    manifest = gather(store)
    assert manifest.component_names == ROOM_NAMES
    assert manifest.flattened_from is not None
    assert manifest.flattened_from.startswith("Dict('Facing Door': Discrete(3, start=-1), 'bag': Dict(")
    assert (manifest.observation_space.kind, manifest.observation_space.dtype) == ("box", "float64")
    shown = next(iterate_episodes(store, manifest.dataset_id)).observations
    np.testing.assert_array_equal(shown[0], FlattenObservation(Room()).reset(seed=0)[0])
    assert [replay_episode(store, manifest.dataset_id, n, Named(f"{__name__}:Room")).exact for n in range(3)] == [
        True
    ] * 3


def test_a_flat_space_has_no_such_entry_in_its_manifest(store: Store) -> None:
    manifest = collect(
        store, CollectConfig(env_id=Named("CartPole-v1"), policy=Named("random"), mode="sampled", episodes=1)
    )
    assert manifest.flattened_from is None
    assert b"flattened_from" not in store.manifest_path(manifest.dataset_id).read_bytes()


def test_actions_of_several_parts_are_refused_with_the_wrapper_to_use() -> None:
    with pytest.raises(BadInput, match=r"unravel_index\(i, \(2, 3\)\)\), gymnasium.spaces.Discrete\(6\)\)"):
        spaces_of(make_environment(Named(f"{__name__}:Switches")))
    wrapped = gymnasium.wrappers.TransformAction(
        FlattenObservation(Switches()), lambda i: np.array(np.unravel_index(i, (2, 3))), spaces.Discrete(6)
    )
    assert [tuple(wrapped.action(i)) for i in (0, 3, 5)] == [(0, 0), (1, 0), (1, 2)]  # type: ignore[attr-defined]
    assert spaces_of(wrapped).action.n == 6


def write_minari(folder: Path, space: spaces.Space[Any], episodes: list[list[Any]]) -> Path:
    storage_of = pytest.importorskip("minari.dataset.minari_storage").MinariStorage
    buffer = pytest.importorskip("minari.data_collector.episode_buffer").EpisodeBuffer
    (folder / "data").mkdir(parents=True)
    made = storage_of.new(folder / "data", space, spaces.Discrete(2), None, data_format="hdf5")
    lengths = [len(shown) - 1 for shown in episodes]
    made.update_episodes(
        buffer(
            observations=stacked(space, shown),
            actions=np.zeros(length, np.int64),
            rewards=np.ones(length),
            terminations=np.arange(length) == length - 1,
            truncations=np.zeros(length, bool),
        )
        for shown, length in zip(episodes, lengths, strict=True)
    )
    return folder


@pytest.mark.parametrize("name", ["room", "multi", "matrix"])
def test_a_minari_set_of_parts_is_imported_flat(store: Store, tmp_path: Path, name: str) -> None:
    space, names = PLAIN[name]
    space.seed(1)
    episodes = [[space.sample() for _ in range(length + 1)] for length in (3, 5)]
    manifest = take_in(store, write_minari(tmp_path / "set", space, episodes))
    assert manifest.component_names == names
    assert manifest.flattened_from == " ".join(str(space).split())
    for shown, kept in zip(episodes, iterate_episodes(store, manifest.dataset_id), strict=True):
        np.testing.assert_array_equal(kept.observations, [spaces.flatten(space, value) for value in shown])


def test_a_minari_set_with_images_or_of_too_many_values_is_refused(store: Store, tmp_path: Path) -> None:
    pictures = spaces.Dict({"seen": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    with pytest.raises(BadInput, match="without images and texts"):
        take_in(store, write_minari(tmp_path / "pictures", pictures, [[pictures.sample() for _ in range(3)]]))
    many = write_minari(tmp_path / "many", PLAIN["tuple"][0], [[PLAIN["tuple"][0].sample() for _ in range(3)]])
    metadata = many / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('\\"n\\": 2', '\\"n\\": 2000000000'))
    with pytest.raises(BadInput, match=r"has shape 2000000001; allowed: .*with up to 131,072 numbers"):
        take_in(store, many)


def test_what_a_set_of_parts_lacks_is_named() -> None:
    with pytest.raises(BadInput, match="no part 'pos'"):
        flatten_rows(spaces.Dict({"pos": spaces.MultiBinary(1)}), {"position": np.zeros((2, 1))})
    with pytest.raises(BadInput, match=r"number in 'way' outside 0 .. 1"):
        flatten_rows(spaces.Dict({"way": spaces.Discrete(2)}), {"way": np.array([0, 2])})
    with pytest.raises(BadInput, match="different lengths"):
        flatten_rows(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (np.array([0, 1]), np.array([0])))
