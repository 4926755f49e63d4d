from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from store_state import append_response, raw_reply

from storage.catalog import insert_rows
from storage.errors import DamagedStore
from storage.ledger import runs
from storage.ledger.runs import iterate_responses, read_frames
from storage.store import Store


def records(store: Store) -> list[tuple[int, dict[str, Any]]]:
    return [(stored.line, stored.record) for stored in iterate_responses(store, "run")]


def append(store: Store, *numbers: int) -> Path:
    for number in numbers:
        file, _ = append_response(store, "run", {"request_id": f"r_{number}", "text": "Überlegung\n" * number})
    return store.root / file


def register(store: Store, request_id: str, line: int) -> None:
    row = {"response_id": request_id, "request_id": request_id, "file": "responses/run/00000.jsonl.zst", "line": line}
    with store.catalog.write() as con:
        insert_rows(con, "responses", [row])


def forget() -> None:
    """What a new process knows of the files: nothing."""
    runs.known_lines.clear()


def test_replies_come_back_in_their_order_with_their_place(store: Store) -> None:
    record = {"b": [1.5, None], "a": {"text": "é\n"}}
    assert append_response(store, "run", record) == ("responses/run/00000.jsonl.zst", 1)
    assert append_response(store, "run", {"x": 2}) == ("responses/run/00000.jsonl.zst", 2)
    assert records(store) == [(1, record), (2, {"x": 2})]
    assert list(iterate_responses(store, "other")) == []


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_an_unfinished_line_is_moved_aside_and_shadows_nothing(store: Store, kept: int) -> None:
    path = append(store, 1, 2)
    whole = path.read_bytes()
    third = append(store, 3).read_bytes()[len(whole) :]
    torn = third[: min(kept, len(third) - 1)]
    path.write_bytes(whole + torn)
    assert [line for line, _ in records(store)] == [1, 2]
    forget()
    assert append_response(store, "run", {"again": 3})[1] == 3
    assert [line for line, _ in records(store)] == [1, 2, 3]
    assert records(store)[2] == (3, {"again": 3})
    aside = [item for item in path.parent.iterdir() if ".torn-" in item.name]
    assert [item.read_bytes() for item in aside] == [torn]


def test_a_line_damaged_in_the_middle_does_not_take_the_others_with_it(store: Store) -> None:
    path = append(store, 1, 2, 3)
    first = read_frames(path)
    content = bytearray(path.read_bytes())
    middle = content.find(b"\x28\xb5\x2f\xfd", 5)
    content[middle + 12] ^= 0xFF
    path.write_bytes(content)
    assert read_frames(path).damaged == [2]
    forget()
    assert append_response(store, "run", {"request_id": "r_4"})[1] == 4
    given: list[int] = []
    with pytest.raises(DamagedStore, match=r"damaged: responses/run/00000\.jsonl\.zst:2"):
        given.extend(stored.line for stored in iterate_responses(store, "run"))
    assert given == [1, 3, 4]
    assert read_frames(path).lines[2] == first.lines[2]


def test_every_byte_that_a_line_loses_is_noticed(store: Store) -> None:
    path = append(store, 5)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert read_frames(path).lines == []
        assert read_frames(path).end == 0


def test_a_file_that_has_grown_large_is_followed_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROLL_BYTES", 10)
    assert append(store, 1).name == "00000.jsonl.zst"
    assert append(store, 2).name == "00001.jsonl.zst"
    assert [record["request_id"] for _, record in records(store)] == ["r_1", "r_2"]


def _append_many(root: Path, first: int) -> None:
    store = Store.open(root)
    append(store, *range(first, first + 20))


@pytest.mark.slow
def test_processes_that_append_together_lose_nothing(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(store.root, first)) for first in (0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [line for line, _ in records(store)] == list(range(1, 61))
    assert {record["request_id"] for _, record in records(store)} == {f"r_{number}" for number in range(60)}


@pytest.mark.slow
def test_a_process_killed_while_appending_leaves_whole_lines(store: Store) -> None:
    child = os.fork()
    if child == 0:
        for number in range(10_000):
            append(store, number)
        os._exit(0)
    path = store.responses_dir("run") / "00000.jsonl.zst"
    while not path.exists() or path.stat().st_size < 2000:
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    before = [record["request_id"] for _, record in records(store)]
    assert before == [f"r_{number}" for number in range(len(before))]
    forget()
    assert append_response(store, "run", {"request_id": "last"})[1] == len(before) + 1
    assert records(store)[-1][1] == {"request_id": "last"}


def test_a_request_leads_to_its_raw_reply(store: Store) -> None:
    append(store, 1, 2)
    register(store, "r_2", 2)
    assert raw_reply(store, "r_2") == {"request_id": "r_2", "text": "Überlegung\n" * 2}
