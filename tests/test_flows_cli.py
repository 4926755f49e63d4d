"""Bad input through the command line: one line that says what to do, an exit code, and a store that is as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import typer
from soak import every
from store_state import lend
from typer.main import get_command

from flows import cli, refinement
from flows.refinement import ImproveConfig
from storage.catalog.connection import WAIT_VARIABLE
from storage.datasets import adopt_dataset
from storage.errors import BadInput
from storage.store import Store

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CARTPOLE = "cartpole-v1-f83dbaf4abde"
RECORDED = ["--provider", "recorded", "--answers", str(EXAMPLES / "cartpole" / "answers.jsonl"), "--model", "claude"]
_HOLD = """
import sys, time
from pathlib import Path
from storage.catalog.connection import Catalog
with Catalog(Path(sys.argv[1])).write():
    print("held", flush=True)
    time.sleep(60)
"""


class Said(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("TRAJNOTE_STORE", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["trajnote", *words])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        return Said(int(leaving.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.create(tmp_path_factory.mktemp("template") / "store")
    adopt_dataset(store, EXAMPLES / "cartpole" / "rollouts")
    return store.root


@pytest.fixture(scope="module")
def untouched(template: Path) -> dict[str, object]:
    """What each copy of that store holds."""
    return contents(lend(template))


@pytest.fixture
def known(template: Path, tmp_path: Path) -> Path:
    """A store with the shipped CartPole rollouts."""
    (tmp_path / "trajnote-store").symlink_to(lend(template))
    return tmp_path / "trajnote-store"


def contents(root: Path) -> dict[str, object]:
    """Every file of a store, and every row of its catalog, but not the times at which rows were made."""
    if not root.is_dir():
        return {}
    files = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith("catalog.duckdb")
    }
    with Store.open(root).catalog.read() as con:
        tables = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        rows = {name: sorted(map(str, con.execute(f"FROM {name}").fetchall())) for name in tables}
    return files | rows


def refused(said: Said, code: int, *words: str) -> None:
    """One line on standard error with these words, nothing on standard output, and this exit code."""
    assert said.code == code, said.err
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said.err
    for word in words:
        assert word in line


BAD_COMMANDS: dict[str, tuple[list[str], int, list[str]]] = {
    "an unknown environment": (
        ["collect", "--env", "CartPool-v1", "--policy", "random"],
        2,
        ["CartPool-v1", "CartPole-v1"],
    ),
    "an environment with pictures": (
        ["collect", "--env", "CarRacing-v3", "--policy", "random"],
        2,
        ["(96, 96, 3)", "without images"],
    ),
    "an unknown policy specification": (
        ["collect", "--env", "CartPole-v1", "--policy", "best"],
        2,
        ["'best'", "random, policy:PATH_OR_ID"],
    ),
    "a policy folder that is not there": (
        ["collect", "--env", "CartPole-v1", "--policy", "policy:nowhere"],
        3,
        ["nowhere", "trajnote refine"],
    ),
    "a policy for other spaces": (
        ["collect", "--env", "Acrobot-v1", "--policy", f"policy:{EXAMPLES / 'cartpole' / 'baseline'}"],
        2,
        ["observation", "size 4", "6"],
    ),
    "arguments of an environment that are no JSON": (
        ["collect", "--env", "CartPole-v1", "--policy", "random", "--env-kwargs", "{render"],
        2,
        ["{render", "JSON"],
    ),
    "arguments that an environment does not know": (
        ["collect", "--env", "CartPole-v1", "--policy", "random", "--env-kwargs", '{"gravity": 1}'],
        2,
        ["gravity"],
    ),
    "a card whose components do not match": (
        ["collect", "--env", "CartPole-v1", "--policy", "random", "--card", "Acrobot-v1"],
        2,
        ["6", "4"],
    ),
    "a card that is not there": (
        ["collect", "--env", "CartPole-v1", "--policy", "random", "--card", "mine.toml"],
        2,
        ["mine.toml"],
    ),
    "a file that is not there": (["import", "rows.parquet"], 2, ["rows.parquet"]),
    "an unknown dataset": (["annotate", "plan", "--dataset", "lunar"], 2, ["lunar", CARTPOLE]),
    "a key that is missing": (["annotate"], 3, ["ANTHROPIC_API_KEY", "--provider recorded"]),
    "answers that are not named": (["annotate", "--provider", "file"], 3, ["--answers"]),
    "answers that are not there": (
        ["annotate", "--provider", "recorded", "--answers", "gone.jsonl"],
        2,
        ["gone.jsonl"],
    ),
    "a card for another environment": (
        ["annotate", "plan", "--card", "Acrobot-v1"],
        2,
        ["Acrobot-v1"],
    ),
    "labels in a file that is not there": (["annotations", "import", "labels.jsonl"], 2, ["labels.jsonl"]),
    "a refinement without labels": (["refine"], 3, ["no annotations", "trajnote annotate"]),
    "a beta that is no number": (["refine", "--betas", "0.1,small"], 2, ["betas[1]", "number", "'small'"]),
    "a beta below 0": (["refine", "--betas", "-0.1"], 2, ["-0.1", "none may be negative"]),
    "snapshots that do not rise": (["refine", "--snapshots", "300,100"], 2, ["(300, 100)", "ascending"]),
    "a snapshot too late": (["refine", "--snapshots", "20000"], 2, ["20000", "at most 10000"]),
    "a policy without an environment": (["evaluate", "random"], 2, ["--env ENV_ID"]),
    "a policy that the store does not know": (["evaluate", "refined-0"], 3, ["refined-0"]),
    "an episode that does not exist": (["replay", "--episode", "99"], 2, ["99"]),
    "a query that writes": (["sql", "DROP TABLE annotations"], 2, ["only reads"]),
    "a query with a slip": (["sql", "SELECT stepp FROM steps"], 2, ["stepp"]),
    "a comparison that is not there": (["figures"], 3, ["trajnote refine"]),
    "a store that is a file": (["store", "list", "--store", "file"], 3, ["no store"]),
    "a store that would be a file": (
        ["collect", "--env", "CartPole-v1", "--policy", "random", "--store", "file"],
        2,
        ["is a file"],
    ),
    "a card of nothing": (["card", "show", "Nothing-v0"], 2, ["Nothing-v0"]),
    "a card with a slip": (["card", "show", "CartPol-v1"], 2, ["Did you mean CartPole-v1"]),
    "a command with a slip": (["colect"], 2, ["Did you mean 'collect'? See `trajnote --help`"]),
    "a command of a group with a slip": (["store", "lst"], 2, ["Did you mean 'list'? See `trajnote store --help`"]),
    "an option with a slip": (["refine", "--algoritm", "bc"], 2, ["Did you mean --algorithm?"]),
    "a choice with a slip": (
        ["refine", "--algorithm", "dqm"],
        2,
        ["'dqm' is not one of 'recipe'", "Did you mean dqn?"],
    ),
    "a choice that is none": (
        ["refine", "--use", "X"],
        2,
        ["'--use': 'X' is not one of 'A', 'R', 'RA'. See `trajnote"],
    ),
    "a value that an option of a list does not take": (["ablate", "--use", "A,Q"], 2, ["'A', 'R' or 'RA'", "'Q'"]),
    "a dataset with a slip": (["export", "x.csv", "--dataset", "cartpol-v1"], 2, [f"Did you mean {CARTPOLE}?"]),
    "a name of another format": (["export", "lab.csv", "--format", "parquet"], 2, ["lab.csv", "csv", ".parquet"]),
    "a name of no format": (["export", "lab.txt"], 2, ["lab.txt", ".parquet, .csv"]),
    "rows in a file of another format": (["sql", "SELECT 1", "--output", "a.csv", "--format", "json"], 2, ["a.csv"]),
    "a table in a file": (["sql", "SELECT 1", "--output", "rows"], 2, ["--format table", ".csv"]),
    "one object in a file": (["sql", "SELECT 1", "--output", "a.csv", "--json"], 2, ["does not go with --json"]),
    "a policy of another format": (["policy", "export", "--output", "p.zip", "--format", "onnx"], 2, [".onnx"]),
    "a report that is no page": (["report", "--output", "report.pdf"], 2, ["report.pdf", ".html"]),
    "a card that is no TOML": (["card", "new", "Taxi-v4", "--output", "card.json"], 2, ["card.json", ".toml"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_bad_input_is_one_line_and_leaves_the_store_as_it_was(
    name: str, call: Call, known: Path, untouched: dict[str, object]
) -> None:
    words, code, expected = BAD_COMMANDS[name]
    Path("file").write_text("not a store")
    refused(call(*words), code, *expected)
    assert contents(known) == untouched
    assert Path("file").read_text() == "not a store"


def test_betas_and_snapshots_are_those_of_the_refinement(
    call: Call, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ImproveConfig] = []

    def improve(_store: Store, _dataset: str, config: ImproveConfig, **_: object) -> None:
        asked.append(config)
        raise BadInput("That is enough.")

    monkeypatch.setattr(refinement, "improve_and_relabel", improve)
    refused(call("refine", "--betas", "0.2,0.05", "--snapshots", "10,500"), 2, "enough")

    assert (asked[0].refine.betas, asked[0].refine.snapshots) == ((0.2, 0.05), (10, 500))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["collect", "--env", "CartPool-v1", "--policy", "random"],
        ["collect", "--env", "CartPole-v1", "--policy", "best"],
        ["collect", "--env", "CartPole-v1", "--policy", "policy:nowhere"],
        ["import", "rows.parquet"],
        ["annotate"],
        ["sql", "SELECT 1"],
        ["store", "verify"],
    ],
)
def test_a_refused_command_makes_no_store(call: Call, words: list[str]) -> None:
    said = call(*words)
    refused(said, said.code)
    assert said.code in (2, 3)
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_a_wrong_claim_of_a_card_is_shown_with_its_evidence(call: Call) -> None:
    card = (EXAMPLES.parent / "annotate" / "cards" / "mountaincar-v0.toml").read_text()
    Path("wrong.toml").write_text(card.replace('effect = "increases"', 'effect = "decreases"', 1))
    said = call("card", "check", "wrong.toml")
    assert said.code == 2
    assert "0 of 40 trials" in said.out
    assert said.err.startswith("error: 1 of 9 claims do not hold")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    every(
        [
            ({"dataset_id": "lunar"}, ["line 2", "lunar", CARTPOLE]),
            ({"episode_id": 20}, ["line 2", "no episode 20", "0 to 19"]),
            ({"step": 66}, ["line 2", "no step 66", "0 to 65"]),
            ({"suggested_action": 2}, ["line 2", "2"]),
            ({"suggested_action": "jump"}, ["line 2", "jump", "push_left"]),
            ({"suggested_action": [0.5, 1.0]}, ["line 2"]),
            ({"implicit_reward": 1.5}, ["line 2", "1.5"]),
            ({"confidence": "high"}, ["line 2", "high"]),
            ({"colour": "red"}, ["line 2", "colour"]),
        ],
        2,
    ),
)
def test_one_bad_label_keeps_all_of_a_file_out(
    call: Call, known: Path, untouched: dict[str, object], change: dict[str, object], expected: list[str]
) -> None:
    good = {"dataset_id": CARTPOLE, "episode_id": 0, "step": 65, "suggested_action": "push_left"}
    Path("labels.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'step': 3, **change})}\n")
    refused(call("annotations", "import", "labels.jsonl"), 2, *expected)
    assert contents(known) == untouched


@pytest.mark.slow
def test_a_missing_answer_names_its_request_and_how_to_export_it(call: Call, known: Path) -> None:
    lines = (EXAMPLES / "cartpole" / "answers.jsonl").read_text().splitlines()
    missing = json.loads(lines[7])["request_id"]
    Path("answers.jsonl").write_text("\n".join(lines[:7] + lines[8:]))
    before = contents(known)
    said = call("annotate", "--provider", "recorded", "--answers", "answers.jsonl", "--model", "claude")
    refused(said, 2, missing, "trajnote annotate --provider file --export requests.jsonl")
    assert contents(known) == before
    assert call("annotate", "--provider", "file", "--export", "requests.jsonl", "--model", "claude").code == 0
    assert missing in Path("requests.jsonl").read_text()


@pytest.mark.slow
def test_rows_with_a_fault_are_refused_by_episode_and_step(call: Call, known: Path) -> None:
    shard = next((known / "rollouts" / CARTPOLE).glob("*.parquet"))
    rows = pl.read_parquet(shard)
    rows.filter((pl.col("episode_id") != 3) | (pl.col("step") != 7)).write_parquet("hole.parquet")
    before = contents(known)
    refused(call("import", "hole.parquet", "--dataset", "hole"), 2, "Episode 3, step 8")
    rows.with_columns(action=pl.col("action") * 3).write_parquet("wild.parquet")
    refused(call("import", "wild.parquet", "--dataset", "wild", "--env", "CartPole-v1"), 2, "action", "3")
    Path("noise.parquet").write_bytes(b"PAR1 no table PAR1")
    refused(call("import", "noise.parquet", "--dataset", "noise"), 2, "noise.parquet")
    assert contents(known) == before


@pytest.mark.slow
def test_a_damaged_shard_is_named_by_every_command_that_meets_it(call: Call, known: Path) -> None:
    shard = next((known / "rollouts" / CARTPOLE).glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    before = contents(known)
    refused(call("annotate", *RECORDED), 4, shard.name)
    refused(call("replay", "--episode", "0"), 4, shard.name)
    said = call("store", "verify")
    assert said.code == 4
    assert f"rollouts/{CARTPOLE}/{shard.name}" in said.out
    assert contents(known) == before
    copied = Path("copied")
    shutil.copytree(known / "rollouts" / CARTPOLE, copied)
    refused(call("import", str(copied), "--store", "other"), 4, shard.name)
    assert not list(Path("other/rollouts").iterdir())


@pytest.fixture
def held(known: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the catalog."""
    command = [sys.executable, "-c", _HOLD, str(known / "catalog.duckdb")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=EXAMPLES.parent) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_locked_catalog_names_the_process_that_holds_it(
    call: Call, held: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "0.2")
    refused(call("sql", "SELECT 1"), 5, str(held.pid))
    refused(call("annotate", *RECORDED), 5, str(held.pid))


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["soon", "-1"])
def test_a_wait_that_is_no_time_is_refused(call: Call, known: Path, monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, wait)
    refused(call("store", "list"), 2, WAIT_VARIABLE, wait)


@pytest.mark.slow
def test_the_same_commands_again_find_everything_done(call: Call, known: Path) -> None:
    labels = {"dataset_id": CARTPOLE, "episode_id": 0, "step": 3, "suggested_action": 1, "model": "me"}
    Path("labels.jsonl").write_text(json.dumps(labels))
    commands = [
        ["import", str(EXAMPLES / "cartpole" / "rollouts")],
        ["collect", "--env", "CartPole-v1", "--policy", "random", "--episodes", "3"],
        ["annotate", "--dataset", "cartpole-v1-f83", *RECORDED],
        ["annotations", "import", "labels.jsonl"],
        ["evaluate", "random", "--env", "CartPole-v1", "--episodes", "5", "--workers", "1"],
    ]
    first = [call(*words) for words in commands]
    assert [said.code for said in first] == [0] * len(commands)
    before = contents(known)
    again = [call(*words) for words in commands]
    assert [said.code for said in again] == [0] * len(commands)
    assert contents(known) == before
    assert "is done" in first[2].out
    assert "was done before" in again[2].out
    assert "0 new labels" in again[3].out
    assert "imported before" in again[3].out
    assert first[4].out == again[4].out


@pytest.mark.slow
def test_a_dataset_name_that_is_taken_by_other_rows_is_refused(call: Call, known: Path) -> None:
    words = ["collect", "--env", "CartPole-v1", "--policy", "random", "--dataset", "mine", "--episodes"]
    assert call(*words, "2").code == 0
    before = contents(known)
    refused(call(*words, "3"), 2, "mine", "2", "3")
    refused(call(*words, "2", "--seed", "5"), 2, "mine", "seed")
    assert contents(known) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", "annotate run", "refine", "store list"])
def test_help_comes_without_the_libraries_that_take_seconds_to_load(command: str) -> None:
    script = (
        "import contextlib, sys\nfrom flows.cli import main\n"
        f"sys.argv = ['trajnote', *{command.split()}, '--help']\n"
        "with contextlib.suppress(SystemExit):\n    main()\n"
        "heavy = {'torch', 'd3rlpy', 'prefect', 'anthropic', 'gymnasium', 'duckdb', 'polars', 'altair'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert "Usage: trajnote" in found.stdout
    assert found.stderr == "[]\n"


MODULE_OF = {word: module for words in cli.COMMANDS.values() for word, module in words.items()}


def words_of(app: typer.Typer) -> set[str]:
    """The first words of an app's commands."""
    group: Any = get_command(app)  # Typer brings a click of its own
    return set(group.commands)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(set(MODULE_OF.values())))
def test_a_word_brings_the_commands_of_its_module_and_no_others(module: str) -> None:
    own = {word for word, name in MODULE_OF.items() if name == module}
    for word in own:
        assert words_of(cli.make_app(word)) == own < words_of(cli.make_app())


@pytest.mark.parametrize("word", [None, "--help", "sqll"])
def test_without_a_known_word_every_command_is_there(word: str | None) -> None:
    assert words_of(cli.make_app(word)) == set(MODULE_OF)


def test_a_plan_shows_the_first_request_in_full(call: Call, known: Path) -> None:
    told = json.loads(call("annotate", "plan", "--model", "m", "--show", "--json").out)["prompt"]
    assert told["model"] == "m"
    assert list(told) == ["model", "max_tokens", "system", "messages", "output_config"]
    said = call("annotate", "plan", "--model", "m", "--show").out
    assert said.index("--- system") < said.index("--- user") < said.index("--- parameters") < said.index("nothing was")
    for line in told["messages"][0]["content"].splitlines() if isinstance(told["messages"][0]["content"], str) else []:
        assert line in said


@pytest.mark.slow
def test_runs_and_policies_of_a_store_are_listed(call: Call, known: Path) -> None:
    assert call("annotate", *RECORDED).code == 0
    (run,) = json.loads(call("store", "runs", "--json").out)["runs"]
    assert (run["dataset_id"], run["state"], run["labels"]) == (CARTPOLE, "done", 159)
    assert run["run_id"] in call("store", "runs").out
    baseline = f"policy:{EXAMPLES / 'cartpole' / 'baseline'}"
    assert call("collect", "--env", "CartPole-v1", "--policy", baseline, "--episodes", "1").code == 0
    (policy,) = json.loads(call("policy", "list", "--json").out)["policies"]
    assert (policy["kind"], policy["return_"], policy["in_force"]) == ("baseline", None, None)
    assert call("evaluate", policy["policy_id"], "--episodes", "2", "--workers", "1").code == 0
    (policy,) = json.loads(call("policy", "list", "--json").out)["policies"]
    assert (policy["mode"], policy["episodes"], policy["return_"] > 0) == ("greedy", 2, True)
    assert policy["policy_id"] in call("policy", "list").out
