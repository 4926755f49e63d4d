"""The order of the house: SQL in one room, small folders, doors between folders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import storage.queries.query
from benchmarks.ways import GOALS, ways
from storage.store import Store

ROOT = Path(__file__).parents[1]
ROOMS = ("storage", "annotate", "refine", "flows")
MOST_MODULES = 14
SQL = re.compile(
    r"^\s*(WITH\s+(RECURSIVE\s+)?\w+\s+AS\b|SELECT\s+[\s\S]+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|UPDATE\s+\w+\s+SET\s"
    r"|DELETE\s+FROM\s|CREATE\s+(OR\s+REPLACE\s+)?(TEMP\s+)?(TABLE|VIEW)\s|ALTER\s+TABLE\s)"
)


def modules(*rooms: str) -> Iterator[tuple[Path, ast.Module]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def folders() -> list[Path]:
    return sorted(path.parent for room in (*ROOMS, "benchmarks/board") for path in (ROOT / room).rglob("__init__.py"))


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Text constants; of an f-string the pieces one after the other, with a name in place of each value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.slow
def test_sql_is_written_in_storage_only():
    found = [
        f"{path}:{line}"
        for path, tree in modules("annotate", "refine", "flows")
        for line, text in strings(tree)
        if SQL.match(text)
    ]
    assert found == []


@pytest.mark.slow
def test_statements_are_executed_in_storage_only():
    found = [
        f"{path}:{node.lineno}"
        for path, tree in modules("annotate", "refine", "flows")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("execute", "executemany")
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["SELECT a FROM b", "\n  WITH a AS (SELECT 1)", "DELETE FROM a", "UPDATE a SET b = 1", "INSERT INTO a"]
)
def test_a_statement_is_recognised(text):
    assert SQL.match(text)


@pytest.mark.slow
def test_questions_ask_columns_not_paths_into_json():
    texts = {
        str(path): path.read_text() for path in (ROOT / "storage").rglob("*.sql") if path.parent.name != "migrations"
    }
    texts |= {f"{path}:{line}": text for path, tree in modules("storage") for line, text in strings(tree)}
    assert [place for place, text in texts.items() if "->>" in text or "json_extract" in text] == []


QUESTIONS = sorted(
    path.relative_to(path.parents[1]).with_suffix("").as_posix()
    for path in Path(storage.queries.query.__file__).parent.rglob("*.sql")
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return Store.create(tmp_path_factory.mktemp("empty") / "store")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_named_question_fits_the_catalog_and_is_asked_somewhere(name, empty):
    text = (ROOT / f"storage/queries/{name}.sql").read_text()
    assert text.startswith("-- "), "its first line says what it asks"
    values = {
        value: ["a"] if f"unnest(${value}" in text else 1 if value in ("limit", "minutes") else "a"
        for value in set(re.findall(r"\$(\w+)", text))
    }
    with empty.catalog.read() as con:
        assert isinstance(storage.queries.ask(con, name, **values), list)
    assert any(f'"{name}"' in path.read_text() for path in (ROOT / "flows").rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_folder_is_small_and_says_in_a_sentence_what_it_is_for(folder):
    assert len([path for path in folder.glob("*.py") if path.stem != "__init__"]) <= MOST_MODULES
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert said.split("\n")[0].endswith(".")


def doors() -> set[str]:
    """Inner rooms, as dotted names, that offer public names by a stub beside them."""
    return {".".join(path.parent.relative_to(ROOT).parts) for room in ROOMS for path in (ROOT / room).rglob("*.pyi")}


@pytest.mark.slow
@pytest.mark.parametrize("door", sorted(doors()))
def test_a_door_lists_its_public_names_in_order(door):
    tree = ast.parse((ROOT / door.replace(".", "/") / "__init__.pyi").read_text())
    offered = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(listed) == 1
    assert set(listed[0]) == offered
    assert len(listed[0]) == len(set(listed[0]))


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module that an import names, with its room first."""
    if not node.level:
        return node.module or ""
    base = path.parts[: len(path.parts) - node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.slow
def test_other_inner_rooms_are_entered_by_their_doors():
    known = doors() - set(ROOMS)  # `storage.schema` and its like are nobody's inner room
    found = []
    for path, tree in modules(*ROOMS):
        home = ".".join(path.parent.parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = absolute(path, node)
                door = next((name for name in known if module.startswith(f"{name}.") and module not in known), None)
                if (
                    door is not None
                    and home != door
                    and not home.startswith(f"{door}.")
                    and not door.startswith(f"{home}.")
                ):
                    found.append(f"{path}:{node.lineno} imports {module}")
    assert found == []


def test_no_modules_name_each_other_in_a_circle():
    """Not for types alone either; a circle raises `graphlib.CycleError` with its modules."""
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    named = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(named).static_order())) == len(graph.modules) > len(ROOMS)


@pytest.mark.slow
def test_the_ways_of_short_commands_stay_short(tmp_path: Path):
    """How many modules take part; a refinement and a night are measured by the benchmark."""
    for command, (ran, _) in ways(ROOT, tmp_path, 20, ["collect", "annotate run"]).items():
        assert len(ran) <= GOALS[command][0], f"{command} runs {', '.join(ran)}"
