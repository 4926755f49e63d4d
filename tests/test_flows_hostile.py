"""Files of strangers at every command that reads one: one sentence with the name of the file, and nothing entered."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import SOAK, every, full_or
from toy_datasets import import_rows, make_draft, make_episode, write

from annotate.cards.cards import load_card
from annotate.importing.labels import import_annotations
from annotate.importing.rules import import_rules
from annotate.providers.answers import read_answers
from flows import cli
from flows.deployment.settings import read_settings
from refine.policies.mlp import MlpPolicy
from storage.errors import TrajnoteError
from storage.schema import Space
from storage.store import Store

DEEP = "[" * 100_000
LEVELS = "[" * 900 + "]" * 900
UTF16 = '{"a": 1}'.encode("utf-16")
LATIN = '{"a": "é"}'.encode("latin-1")
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "deep": DEEP.encode(),
    "levels": LEVELS.encode(),
    "objects": b'{"a":' * 100_000,
    "a list": b"[]",
    "a number": b"1",
    "too many digits": b'{"a": 1' + b"0" * 5_000 + b"}",
    "many digits": b'{"a": 1' + b"0" * 3_000 + b"}",
    "infinite": b'{"a": 1e400}',
    "cut": b'{"a": [1, 2',
    "UTF-16": UTF16,
    "Latin-1": LATIN,
    "NUL": b"\0\0\0\0",
    "half a character": b'{"a": "\\ud800"}',
    "dots": b"a." * 100_000 + b"a = 1",
    "random": bytes(range(256)) * 4,
}


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command line in this process: it has to refuse, in one line; what it said."""

    def call(*words: str | Path) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["trajnote", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr().err
        assert leaving.value.code in (2, 3, 4), said
        lines = [line for line in said.splitlines() if not line.startswith("warning")]
        assert len(lines) == 1, said
        assert lines[0].startswith("error: "), said
        assert len(lines[0]) < 3_000
        return lines[0]

    return call


@pytest.fixture
def toys(store: Store) -> Store:
    write(store, make_draft("d1"), [make_episode(0, 4)])
    return store


def entered(store: Store) -> int:
    with store.catalog.read() as con:
        found = con.execute(
            "SELECT (SELECT count(*) FROM annotations) + (SELECT count(*) FROM rules) + (SELECT count(*) FROM datasets)"
        ).fetchone()
    return found[0] if found else -1


def special(folder: Path, suffix: str) -> dict[str, Path]:
    """What is no file with content, under names that a command takes for one."""
    made = {kind: folder / f"{kind}{suffix}" for kind in ("folder", "pipe", "device", "dangling", "loop")}
    made["folder"].mkdir()
    os.mkfifo(made["pipe"])
    made["device"].symlink_to("/dev/zero")
    made["dangling"].symlink_to("nowhere")
    made["loop"].symlink_to(made["loop"])
    return made


def commands(store: Store, path: Path) -> dict[str, list[str | Path]]:
    """How each kind of file is given, by its ending."""
    at: list[str | Path] = ["--store", store.root]
    return {
        "card.toml": ["card", "check", path],
        "rules.json": ["rules", "import", path, "--dataset", "d1", *at],
        "rules.toml": ["rules", "import", path, "--dataset", "d1", *at],
        "rules.csv": ["rules", "import", path, "--dataset", "d1", *at],
        "labels.jsonl": ["annotations", "import", path, *at],
        "settings.toml": ["nightly", "--settings", path],
        "rows.csv": ["import", path, *at],
        "rows.jsonl": ["import", path, *at],
        "rows.parquet": ["import", path, *at],
        "rows.h5": ["import", path, *at],
        "rows.csv.gz": ["import", path, *at],
    }


KINDS = list(commands(Store(Path()), Path()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", every(KINDS, 2))
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(
    toys: Store, tmp_path: Path, refuse: Callable[..., str], kind: str
) -> None:
    for what, path in special(tmp_path, f"-{kind}").items():
        said = refuse(*commands(toys, path)[kind])
        assert path.name in said, (what, said)
    assert entered(toys) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_are_no_documents_are_refused_with_the_name_of_the_file(
    toys: Store, tmp_path: Path, refuse: Callable[..., str], kind: str
) -> None:
    texts = list(TEXTS.items())
    for name, content in texts if SOAK else texts[KINDS.index(kind) % 3 :: 3]:
        path = tmp_path / f"{name}-{kind}"
        path.write_bytes(content)
        said = refuse(*commands(toys, path)[kind])
        assert "error: " in said, name
    assert entered(toys) == 1


ROWS: dict[str, Any] = {"o": [1.5, 2.5], "a": [0, 1], "r": [1.0, 1.0], "done": [False, True]}
MEANINGS = {"observation": ["o"], "action": ["a"], "reward": ["r"], "terminated": ["done"]}
COLUMNS: dict[str, tuple[Any, str]] = {
    "an action of 100,000": ({"a": [0, 100_000]}, "100,001 discrete actions; 10,000 are allowed"),
    "an action of 3 million": ({"a": [0, 3_000_000]}, "3,000,001 discrete actions"),
    "an action of 2^63 - 1": ({"a": [0, (1 << 63) - 1]}, "discrete actions; 10,000 are allowed|not"),
    "too many numbers of an action": ({"a": [[0.5] * 257] * 2}, "Each action has 257 numbers; 256 are allowed"),
    "too many components": ({"o": [[0.5] * 131_073] * 2}, "Each observation has 131,073 numbers; 131,072 are allowed"),
    "lists of lists": ({"o": [[[0.5]], [[0.5]]]}, "column 'o'|numbers"),
    "records": ({"o": [{"x": 1}, {"x": 2}]}, "column 'o'|numbers"),
    "times": ({"r": pl.Series([0, 1]).cast(pl.Datetime)}, "column 'r'|numbers"),
    "categories": ({"r": pl.Series(["p", "q"], dtype=pl.Categorical)}, "column 'r'|numbers"),
    "bytes": ({"o": [b"1", b"2"]}, "column 'o'|numbers"),
    "infinite rewards": ({"r": [1.0, float("inf")]}, "not finite|finite"),
    "empty lists": ({"o": [[], []]}, "empty|number"),
    "lists of unequal lengths": ({"o": [[1.0], [1.0, 2.0]]}, "as many numbers as the first one"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", every(list(COLUMNS), 2))
def test_columns_that_cannot_be_a_dataset_are_refused(toys: Store, tmp_path: Path, name: str) -> None:
    changes, message = COLUMNS[name]
    pl.DataFrame(ROWS | changes).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(TrajnoteError, match=message):
        import_rows(toys, tmp_path / "rows.parquet", columns=MEANINGS)
    assert entered(toys) == 1


class _Keys(encryption.KmsClient):
    """Wraps keys by not wrapping them."""

    def __init__(self, config: encryption.KmsConnectionConfig) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plain_footer", [True, False])
def test_encrypted_columns_are_refused_before_arrow_looks_at_them(
    toys: Store, tmp_path: Path, plain_footer: bool
) -> None:
    path = tmp_path / "[rows].parquet"
    factory = encryption.CryptoFactory(_Keys)
    properties = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            footer_key="f" * 16, column_keys={"c" * 16: ["r"]}, plaintext_footer=plain_footer
        ),
    )
    table = pl.DataFrame(ROWS).to_arrow()
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(TrajnoteError, match="encrypted"):
        import_rows(toys, path, columns=MEANINGS)
    assert entered(toys) == 1


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["o", "a", "r"])
@pytest.mark.parametrize("names", [MEANINGS, None])
def test_a_table_without_a_column_that_is_needed_is_refused(
    toys: Store, tmp_path: Path, missing: str, names: dict[str, list[str]] | None
) -> None:
    plain = dict(zip(ROWS, ("observation.x", "action", "reward", "terminated"), strict=True))
    frame = pl.DataFrame(ROWS).drop(missing)
    (frame if names else frame.rename({k: v for k, v in plain.items() if k != missing})).write_csv(
        tmp_path / "rows.csv"
    )
    with pytest.raises(TrajnoteError, match=r"column '(o|a|r|observation|action|reward)' is missing"):
        import_rows(toys, tmp_path / "rows.csv", columns=names)


def test_steps_beyond_32_bits_do_not_come_back_as_small_ones(toys: Store, tmp_path: Path) -> None:
    frame = pl.DataFrame(ROWS | {"n": [1 << 32, (1 << 32) + 1], "e": [0, 0], "x": [1.5, 2.5]})
    frame.write_parquet(tmp_path / "rows.parquet")
    names = MEANINGS | {"episode_id": ["e"], "step": ["n"], "next_observation": ["x"]}
    with pytest.raises(TrajnoteError):
        import_rows(toys, tmp_path / "rows.parquet", columns=names)


@pytest.mark.slow
def test_thousands_of_columns_come_in(toys: Store, tmp_path: Path) -> None:
    names = [f"o{number}" for number in range(2_000)]
    pl.DataFrame({name: [1.5, 2.5] for name in names} | ROWS).write_parquet(tmp_path / "rows.parquet")
    manifest = import_rows(toys, tmp_path / "rows.parquet", columns=MEANINGS | {"observation": names})
    assert manifest.observation_space.size == 2_000


SPACE = Space(kind="box", dtype="float32", size=2)
POLICY = MlpPolicy(
    observation_space=SPACE,
    action_space=Space(kind="discrete", dtype="int64", size=1, n=2),
    weights=(np.ones((2, 2)),),
    biases=(np.zeros(2),),
    activation="tanh",
    head="logits",
).to_files()


def claiming(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Weights whose header says more than follows it."""
    header, packed = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weight_0.npy", header.getvalue() + bytes(16))
    return packed.getvalue()


@pytest.mark.parametrize(
    "weights",
    [claiming((10**6, 10**6)), claiming((2,), "|O"), claiming((-2, -2)), b"", b"junk", b"PK\3\4"],
)
def test_weights_that_claim_more_than_they_hold_are_refused(weights: bytes) -> None:
    spec = json.loads(POLICY["policy.json"])
    spec["weights_sha256"] = sha256(weights).hexdigest()
    with pytest.raises(TrajnoteError, match=r"weights.npz cannot be read"):
        MlpPolicy.from_files({"policy.json": json.dumps(spec).encode(), "weights.npz": weights})


@pytest.mark.parametrize("name", TEXTS)
def test_a_description_of_a_policy_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(TrajnoteError, match=r"policy.json"):
        MlpPolicy.from_files({**POLICY, "policy.json": TEXTS[name]})


def seeds(folder: Path) -> dict[str, tuple[bytes, Callable[[Store, Path], object]]]:
    """A sound file for each reader, and the reader."""
    frame = pl.DataFrame(
        {"observation.x": [1.5, 2.5], "action": [0, 1], "reward": [1.0, 1.0], "terminated": [False, True]}
    )
    frame.write_parquet(folder / "seed.parquet")
    with h5py.File(folder / "seed.h5", "w") as file:
        for name, values in {"observations": [1.5, 2.5], "actions": [0, 1], "rewards": [1.0, 1.0]}.items():
            file[name] = np.array(values)
        file["terminals"] = np.array([False, True])
    rule = {"predicate": "x < 0", "suggested_action": 0, "confidence": 0.5}
    label = {"dataset_id": "d1", "episode_id": 0, "step": 0, "suggested_action": 1}
    answer = {"request_id": "r_1", "message": {"content": [{"type": "text", "text": "[]"}]}}
    card = (Path(cli.__file__).parent.parent / "annotate" / "cards" / "cartpole-v1.toml").read_bytes()
    return {
        "rows.csv": (frame.write_csv().encode(), import_rows),
        "rows.jsonl": (frame.write_ndjson().encode(), import_rows),
        "rows.parquet": ((folder / "seed.parquet").read_bytes(), import_rows),
        "rows.h5": ((folder / "seed.h5").read_bytes(), import_rows),
        "rules.json": (json.dumps([rule]).encode(), lambda store, path: import_rules(store, "d1", path)),
        "rules.toml": (b'[[rules]]\npredicate = "x < 0"\n', lambda store, path: import_rules(store, "d1", path)),
        "rules.csv": (b"predicate,suggested_action\nx < 0,0\n", lambda store, path: import_rules(store, "d1", path)),
        "labels.jsonl": (json.dumps(label).encode(), import_annotations),
        "answers.jsonl": (json.dumps(answer).encode(), lambda store, path: read_answers([path])),
        "card.toml": (card, lambda store, path: load_card(path)),
        "trajnote.toml": (b'[deployments.a]\ninbox = "in"\n', lambda store, path: read_settings(path)),
        "weights.npz": (
            POLICY["weights.npz"],
            lambda store, path: MlpPolicy.from_files({**POLICY, "weights.npz": path.read_bytes()}),
        ),
        "policy.json": (
            POLICY["policy.json"],
            lambda store, path: MlpPolicy.from_files({**POLICY, "policy.json": path.read_bytes()}),
        ),
    }


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8)), min_size=1, max_size=6)
CUTS = st.one_of(st.just(1.0), st.floats(0, 1))
READERS = ["rows.csv", "rows.jsonl", "rows.parquet", "rows.h5", "rules.json", "rules.toml", "rules.csv", "labels.jsonl"]
READERS += ["answers.jsonl", "card.toml", "trajnote.toml", "weights.npz", "policy.json"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_whatever_is_done_to_a_sound_file_it_is_read_or_refused(store: Store, tmp_path: Path, kind: str) -> None:
    write(store, make_draft("d1"), [make_episode(0, 4)])
    sound, read = seeds(tmp_path)[kind]
    path = tmp_path / kind

    @settings(max_examples=full_or(12, 6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(EDITS, CUTS)
    def attack(edits: list[tuple[float, int, bytes]], cut: float) -> None:
        content = sound
        for place, length, new in edits:
            at = int(place * len(content))
            content = content[:at] + new + content[at + length :]
        path.write_bytes(content[: int(cut * len(content))])
        before = entered(store)
        try:
            read(store, path)
        except TrajnoteError:
            assert entered(store) == before

    attack()


BOX = json.dumps({"type": "Box", "dtype": "float32", "shape": [1], "low": [0.0], "high": [1.0]})
LARGE = json.dumps({"type": "Box", "dtype": "float32", "shape": [10**6, 10**6], "low": 0.0, "high": 1.0})
NESTED = '{"type": "Tuple", "subspaces": ' + "[" * 900 + "]" * 900 + "}"
EMPTY = '{"type": "Tuple", "subspaces": []}'
MINARI: dict[str, tuple[dict[str, Any], str]] = {
    "a space of 10^12 numbers": ({"observation_space": LARGE}, "observation_space .* has shape"),
    "a space nested deeply": ({"action_space": NESTED}, "action_space .* nested more than 64 levels"),
    "a tuple of nothing": ({"observation_space": EMPTY}, "observation_space .* has shape"),
    "10^12 episodes": ({"total_episodes": 10**12}, "total_episodes = 1000000000000"),
    "no space": ({"observation_space": None}, "has no observation_space"),
    "a link inside": ({}, r"'episode_0/observations' is a link \(ExternalLink\)"),
}


@pytest.mark.parametrize("name", MINARI)
def test_a_folder_of_minari_is_looked_at_before_minari_reads_it(
    store: Store, tmp_path: Path, refuse: Callable[..., str], name: str
) -> None:
    changes, message = MINARI[name]
    sound = {
        "total_episodes": 1,
        "total_steps": 1,
        "data_format": "hdf5",
        "action_space": BOX,
        "observation_space": BOX,
    }
    data = tmp_path / "folder" / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text(json.dumps(sound | changes))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        file["episode_0/observations"] = h5py.ExternalLink("/somewhere/else.h5", "x")
    assert re.search(message, refuse("import", tmp_path / "folder", "--store", store.root))


@pytest.mark.slow
def test_a_folder_with_a_link_out_of_it_is_refused(store: Store, tmp_path: Path, refuse: Callable[..., str]) -> None:
    data = tmp_path / "folder" / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text("{}")
    (data / "main_data.hdf5").symlink_to("/etc/hostname")
    assert "main_data.hdf5 is a link out of" in refuse("import", tmp_path / "folder", "--store", store.root)
