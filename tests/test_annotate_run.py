"""A run: labels land as rows, every reply is paid for once, and an interrupted run ends like an uninterrupted one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import ScriptedProvider
from soak import every
from store_state import ask, raw_reply
from toy_cards import CARD
from toy_datasets import make_draft, make_episode, write

from annotate.ledger import ledger
from annotate.ledger.ledger import MOST_ATTEMPTS, add_questions, open_run
from annotate.prompting.requests import AnnotateConfig, Request
from annotate.providers.answers import FileProvider, RecordedProvider, export_requests, text_message
from annotate.providers.protocol import Reply
from annotate.runs.plan import RunPlan, RunSummary, all_questions, estimate_run, plan_run, unanswered_requests
from annotate.runs.run import annotate_run
from storage.annotations.annotations import load_annotations
from storage.catalog.connection import Catalog, Connection
from storage.disk.atomic import exclusive_lock
from storage.errors import BadInput, DamagedStore, ProviderFailed
from storage.schema import Space
from storage.store import Store

CONFIG = AnnotateConfig(model="toy-model", windows=2, rows=12)


def answer(request: Request) -> str:
    """Two labels in each episode, the second of a step that does not exist."""
    label = {
        "rationale": "because",
        "suggested_action": "right",
        "implicit_reward": -0.5,
        "confidence": 0.75,
        "critical": True,
    }
    return text_message(json.dumps({"assessment": "fine", "labels": [{"step": 1, **label}, {"step": 99, **label}]}))


LENGTHS = (4, 5, 6, 7, 8)


@pytest.fixture(scope="session")
def template(toy_template: Callable[[Sequence[int]], Path]) -> Path:
    """The folder of a store with a dataset `d1` of five episodes, to be copied."""
    return toy_template(LENGTHS)


@pytest.fixture
def toys(toy_store: Callable[[Sequence[int]], Store]) -> Store:
    """A copy of that store."""
    return toy_store(LENGTHS)


def plan(store: Store, **changes: Any) -> RunPlan:
    limit = changes.pop("limit", None)
    return plan_run(store, "d1", CARD, CONFIG.model_copy(update=changes), limit=limit)


def run(store: Store, provider: ScriptedProvider | None = None, **changes: Any) -> RunSummary:
    return annotate_run(store, plan(store, **changes), provider or ScriptedProvider(answer))


DUMPED = (
    "SELECT run_id, dataset_id, state FROM annotation_runs ORDER BY ALL",
    "SELECT request_id, kind, state, error FROM requests ORDER BY ALL",
    "SELECT * FROM run_requests ORDER BY ALL",
    "SELECT request_id, count(*) FROM responses GROUP BY ALL ORDER BY ALL",
    "SELECT * EXCLUDE (created_at) FROM annotations ORDER BY ALL",
    "SELECT * EXCLUDE (created_at) FROM rejections ORDER BY ALL",
)


def dump(store: Store) -> list[list[tuple[Any, ...]]]:
    """Everything that a run leaves in the catalog, without times."""
    with store.catalog.read() as con:
        return [con.execute(sql).fetchall() for sql in DUMPED]


def test_replies_become_annotations_and_rejections(toys: Store) -> None:
    summary = run(toys)
    assert (summary.episodes, summary.asked, summary.answered, summary.pending, summary.done) == (5, 5, 5, 0, True)
    assert (summary.totals.labels, summary.totals.rejections) == (5, 5)
    labels = load_annotations(toys, "d1", [summary.run_id])
    assert [(label.episode_id, label.step) for label in labels] == [(i, 1) for i in range(5)]
    assert labels[0].suggested_action == (1.0,)
    assert (labels[0].suggested_label, labels[0].implicit_reward, labels[0].confidence) == ("right", -0.5, 0.75)
    assert (labels[0].model, labels[0].prompt_version) == ("scripted", plan(toys).run.prompt_version)
    reasons = ask(toys, "SELECT reason, step, model, raw FROM rejections")
    assert [(reason, step, model) for reason, step, model, _ in reasons] == [("unknown_step", 99, "scripted")] * 5
    assert json.loads(reasons[0][3])["step"] == 99


@pytest.mark.slow
def test_however_many_questions_are_entered_at_once_the_catalog_holds_the_same(
    toys: Store, template: Path, tmp_path: Path
) -> None:
    run(toys)
    others = Store.open(shutil.copytree(template, tmp_path / "others"))
    asked = plan(others)
    with others.catalog.write() as con:
        open_run(con, asked.run, asked.card, "scripted", recorded=False)
        add_questions(con, asked.run, asked.questions, at_once=2)
    run(others)
    assert dump(others) == dump(toys)
    assert ask(others, "SELECT count(*) FROM requests") == [(5,)]


@pytest.mark.slow
def test_every_annotation_leads_back_to_its_raw_reply(toys: Store) -> None:
    label = load_annotations(toys, "d1", [run(toys).run_id])[0]
    assert label.request_id is not None
    raw = raw_reply(toys, label.request_id)
    assert json.loads(json.loads(raw["raw"])["content"][0]["text"])["labels"][0]["step"] == label.step


@pytest.mark.slow
def test_the_same_command_again_says_that_it_is_done_and_asks_nobody(toys: Store) -> None:
    first = run(toys)
    before = dump(toys)
    provider = ScriptedProvider(answer)
    again = run(toys, provider)
    assert (again.was_done, again.done, again.asked, again.reused, again.run_id) == (True, True, 0, 5, first.run_id)
    assert provider.asked == []
    assert dump(toys) == before


@pytest.mark.slow
def test_a_limited_run_goes_on_where_it_stopped(toys: Store) -> None:
    few, rest = ScriptedProvider(answer), ScriptedProvider(answer)
    assert run(toys, few, limit=2).done
    summary = run(toys, rest)
    assert (len(few.asked), len(rest.asked), summary.reused, summary.totals.labels) == (2, 3, 2, 5)
    assert ask(toys, "SELECT count(*) FROM annotation_runs") == [(1,)]


@pytest.mark.slow
def test_equal_requests_are_asked_once_over_all_runs(toys: Store) -> None:
    first = run(toys)
    provider = ScriptedProvider(answer)
    second = run(toys, provider, samples=2)  # another run; its first sample asks what the first run asked
    assert second.run_id != first.run_id
    assert (len(provider.asked), second.reused) == (5, 5)
    assert second.totals.labels == 10
    assert len(load_annotations(toys, "d1")) == 15


class KilledError(BaseException):
    """Stands for the end of the process."""


class Fuse:
    """Ends the process at the n-th point where something is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
        self.left = fatal
        append, write_catalog = ledger.append_responses, Catalog.write

        def land(*args: Any) -> tuple[str, int]:
            self.burn()
            place = append(*args)
            self.burn()
            return place

        @contextmanager
        def change(catalog: Catalog) -> Generator[Connection]:
            with write_catalog(catalog) as con:
                yield con
                self.burn()  # before the commit
            self.burn()  # after it

        monkeypatch.setattr(ledger, "append_responses", land)
        monkeypatch.setattr(Catalog, "write", change)

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


def find_steps_then_judge(request: Request) -> str:
    if request.kind != "identify":
        return answer(request)
    return text_message(json.dumps({"assessment": "", "steps": [{"step": 1, "rationale": "here"}]}))


@pytest.fixture(scope="module")
def uninterrupted(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """What an uninterrupted run about one episode leaves, in one stage and in two."""
    left: dict[bool, Any] = {}
    for two_stage in (False, True):
        store = Store.open(shutil.copytree(template, tmp_path_factory.mktemp("whole") / "store"))
        run(store, ScriptedProvider(find_steps_then_judge), two_stage=two_stage, limit=1)
        left[two_stage] = dump(store)
    return left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("two_stage", "fatal"), every([*((False, n) for n in range(1, 9)), *((True, n) for n in (9, 13))], 3)
)
def test_killed_at_any_point_and_run_again_it_ends_the_same_and_asks_nothing_twice(
    toys: Store, uninterrupted: dict[bool, Any], two_stage: bool, fatal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = ScriptedProvider(find_steps_then_judge)
    with monkeypatch.context() as patch:
        Fuse(patch, fatal)
        with pytest.raises(KilledError):
            run(toys, provider, two_stage=two_stage, limit=1)
    before = set(provider.asked)
    runs = ask(toys, "SELECT run_id FROM annotation_runs")
    landed = {reply.request_id for (run_id,) in runs for reply in ledger.read_landed(toys, run_id)}
    run(toys, provider, two_stage=two_stage, limit=1)
    assert dump(toys) == uninterrupted[two_stage]
    assert {key for key, count in Counter(provider.asked).items() if count > 1} == before - landed


def test_the_points_at_which_it_is_killed_are_all_there_are(toys: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = Fuse(monkeypatch, 100)
    run(toys, limit=1)
    assert 100 - fuse.left == 8


@pytest.mark.slow
def test_replies_that_come_slowly_are_entered_one_by_one(toys: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotate.runs.run.FLUSH_S", 0.0)
    counts: list[int] = []

    def script(request: Request) -> str:
        counts.append(ask(toys, "SELECT count(*) FROM annotations")[0][0])
        return answer(request)

    run(toys, ScriptedProvider(script))
    assert counts == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_requests_without_a_reply_stay_open_and_are_asked_again(toys: Store) -> None:
    class Moody(ScriptedProvider):
        def answer(self, requests: Any) -> Generator[Reply]:
            for place, request in enumerate(requests):
                if place == 0:
                    yield Reply(request.request_id, None, "busy (529) 6 times: later")
                elif place == 1:
                    yield Reply(request.request_id, None, "refused (400): never", final=True)
                elif place < 4:
                    yield Reply(request.request_id, answer(request))

    summary = run(toys, Moody(answer))
    assert (summary.done, summary.asked, summary.answered, summary.pending, summary.failed) == (False, 5, 2, 3, 1)
    assert summary.errors == {"busy (529) 6 times: later": 1, "refused (400): never": 1}
    states = ask(toys, "SELECT state, count(*) FROM requests GROUP BY state ORDER BY state")
    assert states == [("done", 2), ("failed", 1), ("pending", 2)]
    again = run(toys)
    assert (again.done, again.asked, again.errors) == (True, 3, {})


def test_what_was_answered_before_a_server_failed_is_kept(toys: Store) -> None:
    class Failing(ScriptedProvider):
        def answer(self, requests: Any) -> Generator[Reply]:
            yield Reply(requests[0].request_id, answer(requests[0]))
            raise ProviderFailed("The server refused.")

        def late(self) -> list[Reply]:
            return [Reply(plan(toys).questions[3].request.request_id, answer(plan(toys).questions[3].request))]

    with pytest.raises(ProviderFailed):
        run(toys, Failing(answer))
    assert [label.episode_id for label in load_annotations(toys, "d1")] == [0, 3]


@pytest.mark.slow
def test_in_two_stages_steps_are_found_first_and_judged_then(toys: Store) -> None:
    def script(request: Request) -> str:
        if request.kind == "identify":
            found = (
                [] if "Episode 4\n" in request.params["messages"][0]["content"] else [{"step": 1, "rationale": "here"}]
            )
            return text_message(json.dumps({"assessment": "", "steps": [*found, {"step": 77, "rationale": "gone"}]}))
        assert "- step 1: here" in request.params["messages"][0]["content"]
        return answer(request)

    provider = ScriptedProvider(script)
    summary = run(toys, provider, two_stage=True)
    assert (len(provider.asked), summary.done) == (9, True)
    assert [label.episode_id for label in load_annotations(toys, "d1")] == [0, 1, 2, 3]
    kinds = ask(
        toys, "SELECT kind, count(*) FROM rejections JOIN requests USING (request_id) GROUP BY kind ORDER BY kind"
    )
    assert kinds == [("identify", 5), ("suggest", 4)]


@pytest.mark.slow
def test_the_second_stage_can_be_exported_once_the_first_is_answered(toys: Store, tmp_path: Path) -> None:
    asked = plan(toys, two_stage=True, limit=2)
    first = unanswered_requests(toys, asked)
    assert [request.kind for request in first] == ["identify", "identify"]
    path = tmp_path / "answers.jsonl"
    found = {"assessment": "", "steps": [{"step": 1, "rationale": "here"}]}
    path.write_text("".join(json.dumps({"request_id": r.request_id, "reply": found}) + "\n" for r in first))
    assert annotate_run(toys, asked, FileProvider(path)).done is False
    second = unanswered_requests(toys, asked)
    assert [request.kind for request in second] == ["suggest", "suggest"]
    assert (estimate_run(toys, asked).requests, estimate_run(toys, asked).answered) == (2, 2)
    with path.open("a") as file:
        file.writelines(
            json.dumps({"request_id": r.request_id, "message": json.loads(answer(r))}) + "\n" for r in second
        )
    summary = annotate_run(toys, asked, FileProvider(path))
    assert (summary.done, summary.totals.labels) == (True, 2)


@pytest.mark.slow
def test_corrections_of_both_stages_are_heard_and_leave_no_label_of_an_earlier_first_stage(
    toys: Store, tmp_path: Path
) -> None:
    asked = plan(toys, two_stage=True, limit=1)
    path = tmp_path / "answers.jsonl"
    told: dict[str, object] = {}

    def take(kind: str, reply: object) -> list[tuple[int, str | None]]:
        told.update({q.request.request_id: reply for q in all_questions(toys, asked) if q.request.kind == kind})
        path.write_text("".join(json.dumps({"request_id": key, "reply": said}) + "\n" for key, said in told.items()))
        annotate_run(toys, asked, FileProvider(path))
        return [(label.step, label.suggested_label) for label in load_annotations(toys, "d1")]

    def find(step: int) -> object:
        return {"assessment": "", "steps": [{"step": step, "rationale": "here"}]}

    def judge(step: int, action: str) -> object:
        label = {"rationale": "so", "implicit_reward": -0.5, "confidence": 0.75, "critical": True}
        labels = [{"step": at, "suggested_action": action, **label} for at in (step, 99)]
        return {"assessment": "", "labels": labels}

    assert take("identify", find(1)) == []
    assert take("suggest", judge(1, "left")) == [(1, "left")]
    assert take("suggest", judge(1, "right")) == [(1, "right")]
    assert take("identify", find(2)) == []
    assert take("suggest", judge(2, "left")) == [(2, "left")]
    kinds = ask(toys, "SELECT kind FROM run_requests JOIN requests USING (request_id) ORDER BY kind")
    assert kinds == [("identify",), ("suggest",)]
    assert take("identify", find(1)) == [(1, "right")]


@pytest.mark.slow
def test_a_first_stage_that_finds_nothing_ends_the_run(toys: Store) -> None:
    nothing = text_message(json.dumps({"assessment": "", "steps": []}))
    summary = run(toys, ScriptedProvider(lambda _: nothing), two_stage=True)
    assert (summary.done, summary.asked, summary.totals.labels) == (True, 5, 0)


@pytest.mark.slow
def test_a_lost_file_of_replies_is_noticed(toys: Store) -> None:
    shutil.rmtree(toys.responses_dir(run(toys).run_id))
    with pytest.raises(DamagedStore, match="The raw replies to 5 requests are missing"):
        run(toys, samples=2)


@pytest.mark.slow
def test_a_run_through_files_asks_on_paper_and_can_be_replayed_as_a_recording(toys: Store, tmp_path: Path) -> None:
    asked = unanswered_requests(toys, plan(toys))
    export_requests(tmp_path / "requests.jsonl", asked)
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    said = json.loads(json.loads(answer(asked[0]))["content"][0]["text"])
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "".join(json.dumps({"request_id": x["custom_id"], "reply": said, "model": "human"}) + "\n" for x in lines[:3])
    )
    part = annotate_run(toys, plan(toys), FileProvider(path))
    assert (part.answered, part.pending, part.done) == (3, 2, False)
    again = annotate_run(toys, plan(toys), FileProvider(path))
    assert (again.answered, again.pending) == (0, 2)
    with pytest.raises(BadInput, match="has no answer to 2 of 2 requests"):
        annotate_run(toys, plan(toys), RecordedProvider(path))
    path.write_text(
        "".join(json.dumps({"request_id": x["custom_id"], "reply": said, "model": "human"}) + "\n" for x in lines)
    )
    assert annotate_run(toys, plan(toys), RecordedProvider(path)).done
    assert {label.model for label in load_annotations(toys, "d1")} == {"human"}
    assert ask(toys, "SELECT recorded, count(*) FROM responses GROUP BY ALL ORDER BY ALL") == [(False, 3), (True, 2)]


def test_a_missing_recording_writes_nothing(toys: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    before = dump(toys)
    with pytest.raises(BadInput, match=plan(toys).questions[0].request.request_id):
        annotate_run(toys, plan(toys), RecordedProvider(path))
    assert dump(toys) == before
    assert list((toys.root / "responses").iterdir()) == []


def test_an_estimate_asks_nothing_and_writes_nothing(toys: Store) -> None:
    before = dump(toys)
    estimate = estimate_run(toys, plan(toys, model="claude-haiku-4-5"))
    assert (estimate.requests, estimate.answered) == (5, 0)
    assert estimate.tokens.input > 5000
    assert estimate.cost_usd == pytest.approx((estimate.tokens.input + 5 * estimate.tokens.output) / 1e6)
    assert dump(toys) == before


@pytest.mark.slow
def test_tokens_and_dollars_are_entered_with_each_reply(toys: Store) -> None:
    def paid(request: Request) -> str:
        usage = {"input_tokens": 100, "output_tokens": 50, "cache_read_input_tokens": 1000}
        return json.dumps(json.loads(answer(request)) | {"usage": usage, "model": "claude-haiku-4-5"})

    totals = run(toys, ScriptedProvider(paid)).totals
    assert (totals.tokens.input, totals.tokens.cache_read, totals.tokens.output) == (500, 5000, 250)
    assert totals.cost_usd == pytest.approx(5 * (100 + 100 + 250) / 1e6)


@pytest.mark.slow
def test_a_reply_that_holds_no_answer_is_kept_with_its_reason_and_its_request_stays_open(toys: Store) -> None:
    summary = run(toys, ScriptedProvider(lambda _: "<html>bad gateway \ud800</html>"))
    assert (summary.done, summary.totals.labels, summary.totals.rejections, summary.pending) == (False, 0, 5, 5)
    assert ask(toys, "SELECT DISTINCT reason FROM rejections") == [("not_a_message",)]
    assert ask(toys, "SELECT DISTINCT problem FROM responses") == [("not_a_message: the reply is not a JSON object",)]
    assert ask(toys, "SELECT DISTINCT state, attempts FROM requests") == [("pending", 1)]
    again = run(toys)
    assert (again.done, again.totals.labels, again.reused, again.asked) == (True, 5, 0, 5)
    assert ask(toys, "SELECT count(*) FROM responses") == [(10,)]
    assert run(toys).was_done


@pytest.mark.slow
def test_a_request_that_was_asked_in_vain_too_often_fails_with_its_reason(toys: Store) -> None:
    broken = ScriptedProvider(lambda _: text_message("I would rather not."))
    for _ in range(MOST_ATTEMPTS + 2):
        summary = run(toys, broken, limit=1)
    assert (summary.failed, dict(summary.errors)) == (
        1,
        {"no_json: the text holds no JSON object with labels": 1},
    )
    assert len(broken.asked) == MOST_ATTEMPTS


@pytest.mark.slow
def test_actions_that_start_elsewhere_keep_the_values_of_the_environment(store: Store) -> None:
    space = Space(kind="discrete", dtype="int64", size=1, n=2, start=5)
    episodes = [make_episode(i, 6, actions=np.array([5, 6, 5, 6, 5, 6])) for i in range(2)]
    write(store, make_draft("d1", action_space=space), episodes)
    asked = plan(store)
    assert "\n1 " in asked.requests[0].params["messages"][0]["content"]
    assert " right " in asked.requests[0].params["messages"][0]["content"]
    annotate_run(store, asked, ScriptedProvider(answer))
    assert load_annotations(store, "d1")[0].suggested_action == (6.0,)


def test_a_card_for_something_else_is_refused(toys: Store) -> None:
    with pytest.raises(BadInput, match="The card is for Other-v0, the dataset d1 is of Toy-v0"):
        plan_run(toys, "d1", CARD.model_copy(update={"env_id": "Other-v0"}))
    with pytest.raises(BadInput, match="2 components"):
        plan_run(toys, "d1", CARD.model_copy(update={"components": CARD.components[:2]}))


def test_a_changed_claim_on_the_card_is_the_same_run(toys: Store) -> None:
    changed = plan_run(toys, "d1", CARD.model_copy(update={"claims": ("something",)}), CONFIG)
    assert changed.run.run_id == plan(toys).run.run_id
    assert plan(toys, windows=3).run.run_id != plan(toys).run.run_id


def test_two_processes_do_not_work_on_one_run(toys: Store) -> None:
    folder = toys.responses_dir(plan(toys).run.run_id)
    folder.mkdir()
    with (
        exclusive_lock(folder, "the same run"),
        pytest.raises(Exception, match="Another process is writing the answers of"),
    ):
        run(toys)
