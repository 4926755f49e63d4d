from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_datasets import BOX3, PUSH, import_rows, make_draft, make_episode, same, write

from storage.datasets import files
from storage.datasets.reader import iterate_episodes, read_episode
from storage.errors import BadInput
from storage.schema import Space
from storage.store import Store

Rows = list[dict[str, Any]]


def make_rows(episodes: int = 2, length: int = 3) -> Rows:
    """Rows of the steps schema, whole numbers and fractions that every float type can say."""
    found: Rows = []
    for episode_id in range(episodes):
        for step in range(length + 1):
            final = step == length
            found.append(
                {
                    "episode_id": episode_id,
                    "step": step,
                    "observation": [step + 0.5, -0.25, float(episode_id)],
                    "action": None if final else step % 2,
                    "reward": None if final else 0.5 * step,
                    "terminated": step == length - 1,
                    "truncated": False,
                    "seed": 40 + episode_id,
                }
            )
    return found


def parquet(tmp_path: Path, rows: Rows, kinds: dict[str, pa.DataType] | None = None) -> Path:
    table = pa.Table.from_pylist(rows)
    for name, kind in (kinds or {}).items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    return path


def jsonl(tmp_path: Path, rows: Rows) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store into which nothing may ever be written."""
    return Store.create(tmp_path_factory.mktemp("empty") / "store")


def nothing_written(store: Store) -> bool:
    with store.catalog.read() as con:
        registered = con.execute("SELECT count(*) FROM datasets").fetchall()
    return registered == [(0,)] and list(store.rollouts_dir.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.list_(pa.float64()), "float64"),
        (pa.large_list(pa.float32()), "float32"),
        (pa.list_(pa.float32(), 3), "float32"),
    ],
)
def test_lists_of_every_kind_become_a_box_of_their_own_type(
    store: Store, tmp_path: Path, kind: pa.DataType, dtype: str
) -> None:
    manifest = import_rows(store, parquet(tmp_path, make_rows(), {"observation": kind}))
    assert manifest.observation_space == Space(kind="box", dtype=dtype, size=3)
    assert manifest.action_space == PUSH
    assert (manifest.component_names, manifest.action_names) == (("o0", "o1", "o2"), ("a0", "a1"))
    episode = read_episode(store, manifest.dataset_id, 1)
    assert episode.observations.tolist() == [[step + 0.5, -0.25, 1.0] for step in range(4)]
    assert (episode.actions.tolist(), episode.rewards.tolist()) == ([0, 1, 0], [0, 0.5, 1.0])
    assert (episode.seed, episode.terminated, episode.truncated) == (41, True, False)


@pytest.mark.slow
def test_json_lines_are_the_same_as_parquet(store: Store, tmp_path: Path) -> None:
    first = import_rows(store, parquet(tmp_path, make_rows()))
    assert import_rows(store, jsonl(tmp_path, make_rows())) == first


@pytest.mark.slow
def test_a_dataset_of_this_store_can_be_imported_into_another(store: Store, tmp_path: Path) -> None:
    draft = make_draft(policy_output="logits")
    outputs = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    episodes = [make_episode(i, policy_outputs=outputs + i) for i in range(3)]
    manifest = write(store, draft, episodes)
    other = Store.create(tmp_path / "other")
    import_rows(
        other,
        store.dataset_dir("d1") / manifest.shards[0].name,
        dataset_id="copy",
        observation_space=BOX3,
        action_space=PUSH,
        policy_output="q_values",
    )
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(other, "copy"), strict=True))


@pytest.mark.slow
def test_continuous_actions_and_policy_outputs_are_inferred(store: Store, tmp_path: Path) -> None:
    rows = [
        row | {"action": row["action"] and [0.5, -1.0], "policy_output": None if row["action"] is None else [1.0, 2.0]}
        for row in make_rows(1)
    ]
    for row in rows[:3]:
        row["action"] = [0.5, -1.0]
    manifest = import_rows(store, parquet(tmp_path, rows))
    assert manifest.action_space == Space(kind="box", dtype="float64", size=2)
    assert manifest.policy_output == "mean"
    episode = read_episode(store, manifest.dataset_id, 0)
    assert episode.actions.tolist() == [[0.5, -1.0]] * 3
    assert episode.policy_outputs is not None
    assert episode.policy_outputs.tolist() == [[1.0, 2.0]] * 3


@pytest.mark.slow
def test_zeros_and_flags_on_the_final_row_mean_the_same(store: Store, tmp_path: Path) -> None:
    plain = import_rows(store, parquet(tmp_path, make_rows()))
    rows = make_rows()
    for row in rows:
        if row["action"] is None:
            row |= {"action": 0, "reward": 0.0, "terminated": True}
    assert import_rows(store, parquet(tmp_path, rows)) == plain
    rows = make_rows()
    for row in rows:
        row["terminated"] = row["action"] is None
    assert import_rows(store, parquet(tmp_path, rows)) == plain


@pytest.mark.slow
def test_the_order_of_rows_and_the_width_of_numbers_do_not_matter(store: Store, tmp_path: Path) -> None:
    plain = import_rows(store, parquet(tmp_path, make_rows()))
    widths = {"episode_id": pa.uint8(), "step": pa.int64(), "seed": pa.int32(), "reward": pa.float32()}
    path = parquet(tmp_path, list(reversed(make_rows())), widths)
    assert import_rows(store, path).dataset_id == plain.dataset_id


@pytest.mark.slow
def test_a_second_import_finds_the_first_and_another_content_is_refused(store: Store, tmp_path: Path) -> None:
    path = parquet(tmp_path, make_rows())
    first = import_rows(store, path, dataset_id="mine")
    assert import_rows(store, path, dataset_id="mine") == first
    with store.catalog.read() as con:
        assert con.execute("SELECT count(*), (SELECT count(*) FROM episodes) FROM datasets").fetchone() == (1, 2)
    with pytest.raises(BadInput, match=r"dataset mine exists and was made differently \(source_sha256 differ\)"):
        import_rows(store, parquet(tmp_path, make_rows(1)), dataset_id="mine")


@pytest.mark.slow
def test_an_import_killed_before_the_catalog_knew_is_finished_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path, make_rows())
    with monkeypatch.context() as patched:
        patched.setattr(files, "register_new", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_rows(store, path, dataset_id="mine")
    manifest = import_rows(store, path, dataset_id="mine")
    with store.catalog.read() as con:
        assert con.execute("SELECT count(*) FROM steps").fetchone() == (manifest.steps + manifest.episodes,)
    assert sorted(item.name for item in store.dataset_dir("mine").iterdir()) == ["manifest.json", "steps-00000.parquet"]


def test_an_environments_spaces_give_type_bounds_and_first_action(store: Store, tmp_path: Path) -> None:
    shifted = Space(kind="discrete", dtype="int64", size=1, n=3, start=-1)
    manifest = import_rows(
        store,
        jsonl(tmp_path, [row | {"observation": [0.1, 0.2, 0.3]} for row in make_rows()]),
        observation_space=BOX3,
        action_space=shifted,
        component_names=("x", "y", "z"),
        action_names=("left", "none", "right"),
    )
    assert (manifest.observation_space, manifest.action_space) == (BOX3, shifted)
    episode = read_episode(store, manifest.dataset_id, 0)
    assert episode.observations.tolist()[0] == np.array([0.1, 0.2, 0.3], np.float32).tolist()


def changed(place: int, **changes: Any) -> Rows:
    rows = make_rows()
    rows[place] = {**rows[place], **changes}
    return rows


def without(place: int) -> Rows:
    return [row for number, row in enumerate(make_rows()) if number != place]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (without(5), "Episode 1, step 2: a step before it is missing"),
        (without(0), "Episode 0, step 1: a step before it is missing"),
        (without(7), "Episode 1, step 2: it has an action and the flags; add the final row"),
        ([*make_rows(), make_rows()[4]], "Episode 1, step 0: it has two rows"),
        (make_rows()[:1], "Episode 0, step 0: it is the only row"),
        (changed(0, episode_id=-1), "Episode -1, step 0: a negative episode_id"),
        (changed(5, action=None), "Episode 1, step 1: the action is null"),
        (changed(7, action=1), "Episode 1, step 3: the last row of its episode has an action"),
        (changed(7, reward=1.0), "Episode 1, step 3: the final row has a reward"),
        (changed(1, reward=None), "Episode 0, step 1: the reward is null"),
        (changed(1, reward=float("nan")), "Episode 0, step 1: the reward is not finite"),
        (changed(1, observation=[0.0, float("inf"), 0.0]), "Episode 0, step 1: the observation is null or not finite"),
        (changed(1, observation=[0.0, None, 0.0]), "Episode 0, step 1: the observation is null or not finite"),
        (
            changed(1, observation=[0.0]),
            r"row 1 .*'observation': '\[0\.0\]' does not have as many numbers as the first one, 3",
        ),
        (changed(3, observation=None), "Episode 0, step 3: the observation is null"),
        (changed(1, terminated=True), "Episode 0, step 1: terminated or truncated before the end"),
        (changed(2, terminated=False), "Episode 0, step 2: it ends its episode, but is neither"),
        (changed(2, terminated=None), "Episode 0, step 2: terminated is null"),
        (changed(5, seed=9), "Episode 1, step 1: the seed is not that of its episode's first row"),
        (changed(4, step=None), r"row 4 .*'step': 'None' is missing"),
        (changed(4, action=-1), "The smallest action is -1"),
        ([row | {"reward": "much"} for row in make_rows()], "row 0 .*'reward': 'much' is not a number"),
        ([row | {"action": [row["action"] or 0] * 2} for row in make_rows()], "lists of 2 whole numbers"),
        ([{**row, "episode_id": 0.5} for row in make_rows()], "row 0 .*'episode_id': '0.5' is not a whole number"),
        ([{name: row[name] for name in row if name != "reward"} for row in make_rows()], "column 'reward' is missing"),
    ],
)
def test_the_first_broken_rule_is_named_and_nothing_is_written(
    empty: Store, tmp_path: Path, rows: Rows, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        import_rows(empty, parquet(tmp_path, rows))
    assert nothing_written(empty)


def test_a_final_row_that_may_be_a_step_is_refused(empty: Store, tmp_path: Path) -> None:
    rows = make_rows(1)
    rows[2] |= {"terminated": False}
    rows[3] |= {"terminated": True, "action": 0, "reward": 0.0}
    with pytest.raises(
        BadInput, match=r"Episode 0, step 3: it has an action and the flags; .* or make its action null"
    ):
        import_rows(empty, parquet(tmp_path, rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"action_space": Space(kind="discrete", dtype="int64", size=1, n=1)},
            "Episode 0.*step 1 has 1; allowed: 0 to 0",
        ),
        (
            {"observation_space": Space(kind="box", dtype="float32", size=2)},
            "observation has 3 numbers; its space has 2",
        ),
        (
            {"observation_space": Space(kind="box", dtype="uint8", size=3)},
            "Episode 0, step 0: the observation .* as uint8",
        ),
        ({"component_names": ("x",)}, "component_names has 1 names for 3 values"),
        ({"dataset_id": "a/b"}, "cannot be the name of a dataset"),
    ],
)
def test_rows_that_do_not_fit_their_environment_are_refused(
    empty: Store, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        import_rows(empty, parquet(tmp_path, make_rows()), **options)
    assert nothing_written(empty)


def test_parquet_is_not_rounded(empty: Store, tmp_path: Path) -> None:
    rows = changed(5, observation=[0.1, 0.0, 0.0])
    with pytest.raises(BadInput, match=r"Episode 1, step 1: the observation \[0\.1.* not representable as float32"):
        import_rows(empty, parquet(tmp_path, rows), observation_space=BOX3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "There is no file"),
        ("rows.parquet", b"no parquet", "cannot be read"),
        ("rows.jsonl", b"{broken", r"rows.jsonl, line 1, column 2: not JSON"),
        ("rows.jsonl", b"", "cannot be read|missing"),
        ("rows.txt", b"", r"ending '\.txt'"),
    ],
)
def test_files_that_are_not_rows_are_refused(
    empty: Store, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        import_rows(empty, tmp_path / name)


@pytest.mark.slow
def test_rows_exported_from_the_view_come_back(store: Store, tmp_path: Path) -> None:
    write(store, make_draft(), [make_episode(0)])
    path = tmp_path / "exported.parquet"
    with store.catalog.read() as con:
        pl.DataFrame(con.sql("FROM steps").to_arrow_table()).write_parquet(path)
    import_rows(store, path, dataset_id="copy", observation_space=BOX3)
    assert same(read_episode(store, "copy", 0), make_episode(0))
