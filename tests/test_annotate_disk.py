"""A disk that fills while a model is being paid: what was paid for is kept, and nobody is asked twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import ScriptedProvider
from small_disk import SmallDisk, mounted
from test_annotate_run import answer, dump, plan
from toy_datasets import make_draft, make_episode, write

from annotate.prompting.requests import Request
from annotate.runs.run import annotate_run
from storage.errors import DiskFailed
from storage.store import Store


class Paid(ScriptedProvider):
    paid = True


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk", "32m") as made:
        yield made


@pytest.fixture
def toys(disk: SmallDisk) -> Store:
    store = Store.create(disk.root / "store")
    write(store, make_draft("d1"), [make_episode(i, 4 + i) for i in range(5)])
    return store


@pytest.mark.slow
@pytest.mark.parametrize("filled_at", [1, 3, 5])
def test_a_reply_that_came_when_the_disk_was_full_is_kept_and_never_asked_again(
    filled_at: int, toys: Store, disk: SmallDisk
) -> None:
    asked: list[str] = []

    def fill_and_answer(request: Request) -> str:
        asked.append(request.request_id)
        if len(asked) == filled_at:
            disk.fill()
        return answer(request)

    with pytest.raises(DiskFailed, match="the disk is full"):
        annotate_run(toys, plan(toys), Paid(fill_and_answer))
    assert len(asked) == filled_at  # no further call is paid for once there is no room for its reply
    disk.empty()
    summary = annotate_run(toys, plan(toys), Paid(fill_and_answer))
    assert (summary.done, summary.pending, set(Counter(asked).values()), len(asked)) == (True, 0, {1}, 5)
    assert not list(disk.root.rglob("*.tmp"))


@pytest.mark.slow
def test_nobody_is_asked_where_there_is_no_room_for_a_reply(toys: Store, disk: SmallDisk, tmp_path: Path) -> None:
    provider = Paid(answer)
    disk.fill(500_000)
    with pytest.raises(DiskFailed, match=r"room\.tmp cannot be written: the disk is full"):
        annotate_run(toys, plan(toys), provider)
    assert provider.asked == []
    disk.empty()
    annotate_run(toys, plan(toys), provider)
    other = Store.create(tmp_path / "other")
    write(other, make_draft("d1"), [make_episode(i, 4 + i) for i in range(5)])
    annotate_run(other, plan(other), Paid(answer))
    assert dump(toys) == dump(other)
