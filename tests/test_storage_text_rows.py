"""Text files as people have them: what can be read is the right data, what cannot is named with its line."""

from __future__ import annotations

import decimal
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from soak import every

from storage.datasets.reader import iterate_episodes
from storage.errors import BadInput
from storage.importing import text_rows
from storage.importing.cells import parse_columns
from storage.importing.import_dataset import Choices, import_recording, open_recording
from storage.importing.row_validation import ImportReport
from storage.schema import Manifest
from storage.store import Store

PLAIN = """episode_id,step,x,v,a,r,done
0,0,0.5,-0.736,2,-0.125,false
0,1,0.25,-0.163,0,2.118,false
0,2,0.33,-0.482,1,-1.112,true
1,0,-0.537,-0.75,0,0.663,false
1,1,0.547,1.007,2,-1.25,true
"""
COLUMNS = ("observation=x,v", "action=a", "reward=r", "terminated=done", "episode_id=episode_id")


def take_in(
    store: Store, path: Path, content: str | bytes, *columns: str, **choices: Any
) -> tuple[Manifest, ImportReport]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    report = ImportReport()
    with open_recording(path, parse_columns(columns or COLUMNS)) as recording:
        manifest = import_recording(store, recording, recording.about, choices=Choices(**choices), report=report)
    return manifest, report


def replaced(*pairs: tuple[str, str]) -> str:
    text = PLAIN
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def spaced(text: str) -> str:
    return text.replace(",", " , ")


def quoted(text: str) -> str:
    return "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines())


def european(text: str) -> str:
    return text.replace(",", ";").replace(".", ",")


def named(text: str) -> str:
    rows = [line.split(",", 1) for line in text.splitlines()]
    return "\n".join(",".join([{"0": "run-b", "1": "run-a"}.get(first, first), rest]) for first, rest in rows)


SIBLINGS: dict[str, tuple[str, str | bytes]] = {
    "semicolons and decimal commas": ("f.csv", european(PLAIN)),
    "semicolons and decimal points": ("f.csv", PLAIN.replace(",", ";")),
    "tabs": ("f.csv", PLAIN.replace(",", "\t")),
    "tabs under their own name": ("f.tsv", PLAIN.replace(",", "\t")),
    "bars": ("f.csv", PLAIN.replace(",", "|")),
    "gzip": ("f.csv.gz", gzip.compress(PLAIN.encode())),
    "zstd": ("f.csv.zst", pa.compress(PLAIN.encode(), codec="zstd", asbytes=True)),
    "a byte order mark": ("f.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
    "quotes": ("f.csv", quoted(PLAIN)),
    "blanks": ("f.csv", spaced(PLAIN)),
    "carriage returns": ("f.csv", PLAIN.replace("\n", "\r\n")),
    "empty lines": ("f.csv", PLAIN.replace("\n", "\n\n")),
    "a comma at every end": ("f.csv", PLAIN.replace("\n", ",\n")),
    "yes and no": ("f.csv", replaced(("false", "no"), ("true", "yes"))),
    "Y and N": ("f.csv", replaced(("false", "N"), ("true", "Y"))),
    "True and False": ("f.csv", replaced(("false", "False"), ("true", "True"))),
    "t and f": ("f.csv", replaced(("false", "f"), ("true", "t"))),
    "1 and 0": ("f.csv", replaced(("false", "0"), ("true", "1"))),
    "1.0 and 0.0": ("f.csv", replaced(("false", "0.0"), ("true", "1.0"))),
    "names of episodes": ("f.csv", named(PLAIN)),
    "episodes as floats": ("f.csv", replaced(("\n0,", "\n0.0,"), ("\n1,", "\n1.0,"))),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", every(list(SIBLINGS), 2))
def test_the_same_rows_written_otherwise_are_the_same_dataset(store: Store, tmp_path: Path, kind: str) -> None:
    plain, report = take_in(store, tmp_path / "plain.csv", PLAIN)
    assert (plain.episodes, plain.steps, report.left_out) == (2, 5, {"columns": ["step"]})
    name, content = SIBLINGS[kind]
    assert take_in(store, tmp_path / name, content)[0] == plain


def test_what_was_found_out_about_a_file_is_said(store: Store, tmp_path: Path) -> None:
    _, report = take_in(store, tmp_path / "f.csv", european(PLAIN))
    assert "numbers are read with decimal commas: 0,5 is one half" in report.sentences()
    assert "columns are separated by ';'" in report.sentences()
    _, report = take_in(store, tmp_path / "f.csv", named(PLAIN))
    assert "episodes are numbered as their names appear: 'run-b' is 0, 'run-a' is 1" in report.sentences()


@pytest.mark.slow
def test_rows_of_named_episodes_need_not_lie_together(store: Store, tmp_path: Path) -> None:
    plain, _ = take_in(store, tmp_path / "plain.csv", PLAIN)
    header, *rows = named(PLAIN).splitlines()
    scattered = "\n".join([header, *(rows[place] for place in (1, 4, 0, 2, 3))])
    manifest, _ = take_in(store, tmp_path / "f.csv", scattered, *COLUMNS, "step=step")
    assert manifest == plain


@pytest.mark.slow
def test_lists_may_be_written_into_a_cell(store: Store, tmp_path: Path) -> None:
    plain, _ = take_in(store, tmp_path / "plain.csv", PLAIN)
    rows = [line.split(",") for line in PLAIN.splitlines()[1:]]
    for form in ('"[{}, {}]"', "[{} {}]", '"({},{})"'):
        cells = [",".join([row[0], form.format(*row[2:4]), *row[4:]]) for row in rows]
        text = "\n".join(["episode_id,o,a,r,done", *cells])
        manifest, _ = take_in(store, tmp_path / "f.csv", text, "observation=o", *COLUMNS[1:])
        assert manifest.source_sha256 == plain.source_sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (replaced(("2.118", "abc")), r"f.csv, line 3, column 'r': 'abc' is not a number"),
        (replaced(("\n1,0", "\n\n1,0"), ("-1.25", "1.2.3")), r"line 7, column 'r': '1.2.3' is not a number"),
        (replaced(("true", "maybe")), r"line 2?4, column 'done': 'maybe' is neither true nor false"),
        (replaced(("2.118", "")), r"Episode 0, step 1: the reward is null"),
        (replaced(("2.118", "nan")), r"Episode 0, step 1: the reward is not finite"),
        (replaced(("2.118,false", "2.118")), r"line 3: 6 values; the header has 7 columns"),
        (replaced(("2.118,false", "2.118,false,")), r"line 3: 8 values; the header has 7 columns"),
        (replaced(("step", "x")), "line 1: the column 'x' occurs twice"),
        (replaced(("0,1,0.25", "0,1,[0.25]")), r"line 3, column 'x': '\[0.25\]' is not a number"),
        (PLAIN.splitlines()[0], "There are no rows"),
        ("", "f.csv cannot be read: empty"),
        (PLAIN.encode().replace(b"false", b"caf\xe9", 1), "line 2, byte 28: not UTF-8"),
        (PLAIN.encode("utf-16"), "is written in UTF-16"),
        (european(PLAIN).replace("2,118", "2.118"), "line 3, column 'r': '2.118' has a point"),
        (replaced(("done", "over")), r"The column 'done' is missing\. Known: episode_id, step, x"),
        (replaced(("false", "2")), r"line 2, column 'done': '2' is neither true nor false"),
        (replaced(("\n0,", "\n0.5,")), r"line 2, column 'episode_id': '0.5' is not a whole number"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    store: Store, tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        take_in(store, tmp_path / "f.csv", content)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"o": [0.5], "a": 1', ""], r"line 3, column 20: not JSON .*ends too early"),
        (['{"o": [0.5], "a": 1, "r": NaN, "d": true}'], r"line 3, column 27: NaN is not a JSON number"),
        (['{"o": [0.5], "a": 1, "r": -Infinity, "d": true}'], r"line 3, column 27: -Infinity is not a JSON number"),
        (["[1, 2]"], "line 3: a list; each line has to be a JSON object"),
        (['{"o": 0.5, "a": 1, "r": 1, "d": true}'], "line 3, column 'o': a number; the lines before have a list"),
        (
            ['{"o": [0.5, 1], "a": 1, "r": 1, "d": true}'],
            r"line 3, column 'o': '\[0.5, 1.0\]' does not have as many numbers as the first one, 1",
        ),
        (['{"o": [0.5], "a": 1, "r": "x", "d": true}'], "line 3, column 'r': 'x' is not a number"),
        (["[" * 100_000], "line 3"),
    ],
)
def test_a_line_of_json_that_cannot_be_read_is_named(
    store: Store, tmp_path: Path, lines: list[str], message: str
) -> None:
    good = ['{"o": [0.25], "a": 0, "r": 0.5, "d": false}', ""]
    with pytest.raises(BadInput, match=message):
        take_in(
            store,
            tmp_path / "f.jsonl",
            "\n".join([*good, *lines]),
            *("observation=o", "action=a", "reward=r", "terminated=d"),
        )


def test_a_packed_file_that_is_damaged_or_grows_without_end_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(PLAIN.encode())
    for content in (packed[:-9], packed[:20] + b"xxxx" + packed[24:], b"no gzip"):
        with pytest.raises(BadInput, match=r"cannot be decompressed|cannot be read"):
            take_in(store, tmp_path / "f.csv.gz", content)
    monkeypatch.setattr(text_rows, "ALWAYS_UNPACKED", 10_000)
    monkeypatch.setattr(text_rows, "CHUNK", 10_000)
    with pytest.raises(BadInput, match="decompresses to more than"):
        take_in(store, tmp_path / "f.csv.gz", gzip.compress(b"0" * 5_000_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.float16(), "float32"),
        (pa.float32(), "float32"),
        (pa.bool_(), "uint8"),
        (pa.int8(), "int8"),
        (pa.uint64(), "uint64"),
        (pa.decimal128(10, 2), "float64"),
        (pa.string(), "float64"),
        (pa.dictionary(pa.int8(), pa.string()), "float64"),
        (pa.list_(pa.float16()), "float32"),
        (pa.list_(pa.bool_()), "uint8"),
        (pa.list_(pa.int16(), 1), "int16"),
    ],
)
def test_columns_of_every_type_of_numbers_come_in(store: Store, tmp_path: Path, kind: pa.DataType, dtype: str) -> None:
    values: list[Any] = [0, 1, 1, 0]
    if pa.types.is_nested(kind):
        values = [[value] for value in values]
    if pa.types.is_decimal(kind):
        values = [decimal.Decimal(value) for value in values]
    if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        values = [str(value) for value in values]
    table = pa.table({"x": pa.array(values).cast(kind), "a": [0, 1, 0, 1], "r": [0.5] * 4, "done": [0, 0, 0, 1]})
    pq.write_table(table, tmp_path / "f.parquet")
    columns = ("observation=x", "action=a", "reward=r", "terminated=done")
    with open_recording(tmp_path / "f.parquet", parse_columns(columns)) as recording:
        manifest = import_recording(store, recording, recording.about)
    assert manifest.observation_space.dtype == dtype
    with store.catalog.read() as con:
        rows = con.execute("SELECT observation FROM steps WHERE dataset_id = ?", [manifest.dataset_id]).fetchall()
    assert [row[0][0] for row in rows] == [0, 1, 1, 0, 0]


@pytest.mark.slow
def test_a_list_column_with_a_dot_in_its_name_is_that_list(store: Store, tmp_path: Path) -> None:
    states = np.arange(8, dtype=np.float32).reshape(4, 2)
    frame = pl.DataFrame(
        {
            "observation.state": states.tolist(),
            "action": [[0.5, 1.5]] * 4,
            "next.reward": [1.0] * 4,
            "next.done": [False, True] * 2,
            "episode_index": [0, 0, 1, 1],
            "timestamp": [0.0] * 4,
        },
        schema_overrides={"observation.state": pl.List(pl.Float32)},
    )
    frame.write_parquet(tmp_path / "f.parquet")
    columns = ["action=action", "reward=next.reward", "terminated=next.done", "episode_id=episode_index"]
    report = ImportReport()
    with open_recording(
        tmp_path / "f.parquet", parse_columns(["observation=observation.state", *columns])
    ) as recording:
        manifest = import_recording(store, recording, recording.about, report=report)
    assert (manifest.observation_space.size, manifest.episodes) == (2, 2)
    assert report.left_out == {"columns": ["timestamp"]}
    frame.rename({"observation.state": "state"}).write_parquet(tmp_path / "g.parquet")
    with open_recording(tmp_path / "g.parquet", parse_columns(["observation=state", *columns])) as recording:
        assert import_recording(store, recording, recording.about) == manifest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "v", "dtype"),
    [
        ((2**64 - 1, 5), (2**63, 0), "uint64"),
        ((2**64 - 1, 5), (2**53 + 1, 0), "uint64"),
        ((2**63 - 1, -5), (2**53 + 1, 0), "int64"),
    ],
)
def test_whole_numbers_of_many_digits_are_not_rounded(
    store: Store, tmp_path: Path, x: tuple[int, int], v: tuple[int, int], dtype: str
) -> None:
    lines = [f"{a},{b},0,0.5,{end}" for a, b, end in zip(x, v, (0, 1), strict=True)]
    manifest, _ = take_in(store, tmp_path / "f.csv", "\n".join(["x,v,a,r,done", *lines]), *COLUMNS[:4])
    assert manifest.observation_space.dtype == dtype
    (episode,) = iterate_episodes(store, manifest.dataset_id)
    assert episode.observations.tolist()[:2] == [[x[0], v[0]], [x[1], v[1]]]


@pytest.mark.parametrize(
    ("x", "v", "message"),
    [
        ("18446744073709551615", "-1", "The column 'x' has 18446744073709551615, which does not fit exactly into int"),
        ("9007199254740993", "0.5", "The column 'x' has 9007199254740993, which does not fit exactly into float64"),
        ("[9007199254740993]", "0.5", r"line 2, column 'x': '\[9007199254740993\]' is not a list of numbers"),
    ],
)
def test_whole_numbers_that_would_be_rounded_are_refused(
    store: Store, tmp_path: Path, x: str, v: str, message: str
) -> None:
    columns = ("observation=x" if x.startswith("[") else COLUMNS[0], *COLUMNS[1:4])
    with pytest.raises(BadInput, match=message):
        take_in(store, tmp_path / "f.csv", f"x,v,a,r,done\n{x},{v},0,0.5,1\n", *columns)


def test_flags_that_are_empty_count_as_false_with_a_word(store: Store, tmp_path: Path) -> None:
    plain, _ = take_in(store, tmp_path / "plain.csv", PLAIN)
    manifest, report = take_in(store, tmp_path / "f.csv", replaced(("false", "")))
    assert manifest == plain
    assert "rows without terminated, which counts as false there: 3" in report.sentences()
    assert report.as_json()["flags_empty"] == {"terminated": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "choices", "message"),
    [
        ([1, 2, 1], {"first_action": 2}, r"The smallest action is 1\. Add --first-action 1"),
        ([0.5, 1.0, 0.0], {"actions": "discrete"}, r"Episode 0, step 0: the action \[0.5\] is not whole, so"),
        ([0.5, 1.0, 0.0], {"first_action": 1}, r"--first-action 1: these actions are continuous \(float64\)\. Add"),
        ([1, 2, 1], {"actions": "continuous", "first_action": 1}, r"these actions are continuous .* --actions discr"),
        ([0, 2**40, 1], {}, r"has 1,099,511,627,777 discrete actions; .* If they are amounts"),
    ],
)
def test_choices_that_contradict_the_actions_are_refused(
    store: Store, tmp_path: Path, actions: list[float], choices: dict[str, Any], message: str
) -> None:
    text = "x,v,a,r,done\n" + "".join(f"0.5,1.5,{action},1.0,0\n" for action in actions)
    with pytest.raises(BadInput, match=message):
        take_in(store, tmp_path / "f.csv", text, *COLUMNS[:4], **choices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "choices", "space", "said"),
    [
        ([1, 2, 1], {}, (0, 3), "actions are discrete, 0 to 2, because they are int64; --actions continuous reads"),
        ([1, 2, 1], {}, (0, 3), "are part of the space: 0; --first-action 1 starts them at 1"),
        ([1, 3, 1], {"first_action": 1}, (1, 3), "actions that never occur, but are part of the space: 2"),
        ([0, 5, 0], {}, (0, 6), "actions that never occur, but are part of the space: 1, 2, 3, 4"),
        (
            [1.0, 2.0, -0.0],
            {},
            None,
            "although all are whole numbers from 0 to 2; --actions discrete reads",
        ),
        ([1.0, 2.0, -0.0], {"actions": "discrete"}, (0, 3), "dropped"),
        ([1, 2, 0], {"actions": "continuous"}, None, "dropped"),
    ],
)
def test_what_was_decided_about_actions_is_said(
    store: Store, tmp_path: Path, actions: list[float], choices: dict[str, Any], space: Any, said: str
) -> None:
    text = "x,v,a,r,done\n" + "".join(f"0.5,1.5,{action},1.0,0\n" for action in [*actions, actions[0]])
    manifest, report = take_in(store, tmp_path / "f.csv", text, *COLUMNS[:4], **choices)
    found = manifest.action_space
    assert ((found.start, found.n) if found.is_discrete else None) == space
    assert any(said in sentence for sentence in report.sentences())
    if "actions" in choices:
        assert not any("--actions" in sentence for sentence in report.sentences())
