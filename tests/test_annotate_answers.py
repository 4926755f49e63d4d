"""Answers from files: every form is read, every bad line is named, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from annotate.parsing.replies import read_message
from annotate.prompting.requests import Request, request_id_of
from annotate.providers.answers import FileProvider, RecordedProvider, export_requests, parse_answer, read_answers
from storage.errors import BadInput, LeftOutWarning

MESSAGE = {"type": "message", "model": "m", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"}


def request(text: str) -> Request:
    params = {"model": "m", "max_tokens": 10, "system": "s", "messages": [{"role": "user", "content": text}]}
    return Request(request_id_of(params), "mark", params)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": "r_1", "result": {"type": "succeeded", "message": MESSAGE}},
        {"request_id": "r_1", "message": MESSAGE},
        {"request_id": "r_1", "text": "hello", "model": "m"},
        {"custom_id": "r_1", "text": "hello", "model": "m"},
    ],
)
def test_every_form_of_an_answer_gives_the_same_text(line: dict[str, object]) -> None:
    reply = parse_answer(json.dumps(line))
    assert reply.request_id == "r_1"
    assert reply.raw is not None
    message = read_message(reply.raw)
    assert (message.text, message.model) == ("hello", "m")


def test_an_answer_object_becomes_the_text_of_a_message_and_the_rest_provenance() -> None:
    reply = parse_answer('{"request_id": "r_1", "reply": {"labels": []}, "model": "m", "date": "2026-11-22"}')
    assert reply.raw is not None
    assert read_message(reply.raw).text == '{"labels": []}'
    assert reply.provenance == {"model": "m", "date": "2026-11-22"}


@pytest.mark.parametrize(("kind", "final"), [("errored", True), ("expired", False), ("canceled", False)])
def test_a_batch_item_without_a_message_is_an_error(kind: str, final: bool) -> None:
    result = {"type": kind} | ({"error": {"type": "invalid_request_error"}} if final else {})
    reply = parse_answer(json.dumps({"custom_id": "r_1", "result": result}))
    assert reply.raw is None
    assert reply.error is not None
    assert reply.error.startswith(kind)
    assert reply.final is final


def test_all_bad_lines_are_listed_with_their_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"request_id": "r_1", "text": "fine"},
        "not json",
        "",
        "[1]",
        {"text": "whose?"},
        {"request_id": "r_2"},
        {"request_id": "r_3", "text": 5},
        {"request_id": "r_4", "result": {"type": "lost"}},
        {"request_id": "r_1", "text": "other"},
        {"request_id": "r_5", "text": "a", "reply": {}},
    )
    with pytest.raises(BadInput) as caught:
        read_answers([path])
    said = caught.value.problem
    assert said.startswith(
        "8 lines cannot be used: a.jsonl line 2: it is not JSON: Expecting value (column 1); "
        "a.jsonl line 4: it is not a JSON object"
    )
    assert "a.jsonl line 9: r_1 is answered differently in a.jsonl line 1" in said
    assert "it has text, reply" in said


def test_equal_lines_count_once(tmp_path: Path) -> None:
    line = {"request_id": "r_1", "text": "same"}
    assert list(read_answers([write(tmp_path / "a.jsonl", line, line)])) == ["r_1"]


def test_packed_files_of_several_frames_are_read(tmp_path: Path) -> None:
    frames = [zstandard.compress(json.dumps({"request_id": f"r_{i}", "text": "x"}).encode() + b"\n") for i in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert sorted(read_answers([tmp_path / "a.jsonl.zst"])) == ["r_0", "r_1", "r_2"]


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"no zstd"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("a.jsonl" if content[0] == 255 else "a.jsonl.zst")
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.jsonl"):
        read_answers([path])


def test_exported_requests_are_batch_lines_that_keep_their_ids(tmp_path: Path) -> None:
    asked = [request("one"), request("zwei äöü")]
    assert export_requests(tmp_path / "out" / "requests.jsonl", asked) == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [r.request_id for r in asked]
    assert [request_id_of(line["params"]) for line in lines] == [r.request_id for r in asked]


def test_a_file_answers_what_it_has_and_leaves_the_rest_open(tmp_path: Path) -> None:
    one, two = request("one"), request("two")
    provider = FileProvider(write(tmp_path / "a.jsonl", {"request_id": one.request_id, "text": "x"}))
    provider.prepare([one.request_id, two.request_id], [two.request_id], complete=True)
    assert [reply.request_id for reply in provider.answer([one, two])] == [one.request_id]


def test_answers_to_unknown_requests_are_refused_with_their_lines(tmp_path: Path) -> None:
    provider = FileProvider(write(tmp_path / "a.jsonl", {"request_id": "r_nobody", "text": "x"}))
    with pytest.raises(BadInput, match=r"answers 1 requests that this run does not ask: a.jsonl line 1: r_nobody"):
        provider.prepare([request("one").request_id], [], complete=True)


def test_a_missing_recording_names_the_request_and_the_export_command(tmp_path: Path) -> None:
    one, two = request("one"), request("two")
    write(tmp_path / "a.jsonl", {"request_id": one.request_id, "text": "x"})
    provider = RecordedProvider(tmp_path, export_command="trajnote annotate --provider file --export r.jsonl")
    with pytest.raises(BadInput) as caught:
        provider.prepare([one.request_id, two.request_id], [one.request_id, two.request_id], complete=True)
    assert two.request_id in caught.value.problem
    assert "trajnote annotate --provider file --export r.jsonl" in caught.value.hint


def test_a_recording_is_marked_as_recorded(tmp_path: Path) -> None:
    one = request("one")
    line = {"request_id": one.request_id, "text": "x", "model": "m", "date": "2026-11-22"}
    (reply,) = RecordedProvider(write(tmp_path / "a.jsonl", line)).answer([one])
    assert reply.provenance == {"recorded": True, "model": "m", "date": "2026-11-22"}


def test_an_empty_folder_of_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no .jsonl"):
        RecordedProvider(tmp_path)


def test_requests_without_a_line_are_named(tmp_path: Path) -> None:
    provider = FileProvider(write(tmp_path / "a.jsonl", {"request_id": "r_1", "text": "x"}))
    with pytest.warns(LeftOutWarning, match=r"a\.jsonl has no line for 2 requests: r_2; r_3\. .*--export"):
        provider.prepare({"r_1", "r_2", "r_3"}, {"r_1", "r_3", "r_2"}, complete=True)
