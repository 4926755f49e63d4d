"""The review in a real browser, with the keyboard alone: what is answered there is what is imported."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visitor, needs_chromium, open_browser
from report_world import HOSTILE, make_labelled_store
from soak import every
from store_state import ask
from toy_environment import REACH, gather_toys, write_labels

from annotate.importing.labels import import_annotations
from annotate.importing.reviews import ReviewSummary, import_labels
from annotate.importing.rules import import_rules
from flows.labelling.queues import Order, prepare_queue
from flows.reporting.review import write_review
from storage.store import Store

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twelve episodes in which every step has a label; all rationales are hostile; and two rules."""
    folder = tmp_path_factory.mktemp("review")
    store, dataset_id = make_labelled_store(folder / "labelled")
    rules = [{"predicate": "x > 0", "suggested_action": "east", "rationale": HOSTILE[:300]}]
    (folder / "rules.json").write_text(json.dumps([*rules, {"predicate": "y > 0.5", "suggested_action": "north"}]))
    import_rules(store, dataset_id, folder / "rules.json")
    return store


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as chromium:
        yield chromium


def write_page(store: Store, order: Order, limit: int = 6, pictures: int = 12) -> Path:
    return write_review(store, prepare_queue(store, order=order, limit=limit), pictures=pictures).path


class Desk(Visitor):
    """A page of a review."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, scheme: str = "light") -> None:
        super().__init__(browser, width, scheme)
        self.open(path)

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#review[data-ready]")

    def press(self, *keys: str) -> None:
        """Press keys one after the other; each is waited for where it opens another item."""
        for key in keys:
            self.page.keyboard.press(key)
            self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def get(self, name: str) -> str:
        return self.page.locator("#review").get_attribute(f"data-{name}")

    def wait(self, item: int) -> None:
        """Wait until an item is on the screen: the page takes no answer before."""
        self.page.wait_for_selector(f"#review[data-item='{item}']")

    def save(self, folder: Path, name: str = "ann") -> Path:
        self.press("s")
        self.page.keyboard.insert_text(name)
        with self.page.expect_download() as waiting:
            self.page.keyboard.press("Enter")
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path


@pytest.fixture(scope="module")
def labels_page(labelled: Store) -> Path:
    return write_page(labelled, "disagreements")


@pytest.fixture
def desk(browser: Any, labels_page: Path) -> Iterator[Desk]:
    made = Desk(browser, labels_page)
    yield made
    made.context.close()


def take(store: Store, path: Path) -> ReviewSummary:
    summary = import_labels(store, path)
    assert isinstance(summary, ReviewSummary)
    return summary


def test_the_keyboard_alone_answers_undoes_and_saves_what_the_import_takes(
    desk: Desk, labelled: Store, tmp_path: Path
) -> None:
    for item, keys in enumerate((("y", "a"), ("n", "x"), ("u",)), 1):
        desk.wait(item)
        desk.press(*keys)
    desk.wait(4)
    desk.press("x")
    desk.wait(5)
    desk.press("z")
    desk.wait(4)
    assert (desk.get("answer"), desk.get("answered")) == ("", "3")
    desk.press("c", "Enter")  # the first action's button has the focus
    desk.wait(5)
    assert desk.page.locator("#count").inner_text() == "4 of 6"
    path = desk.save(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["verdict"], line.get("critical"), line.get("suggested_action")) for line in lines] == [
        ("accept", True, None),
        ("reject", False, None),
        ("unsure", None, None),
        ("correct", None, "east"),
    ]
    assert {line["model"] for line in lines} == {"human:ann"}
    summary = take(labelled, path)
    assert (summary.answers, summary.labels) == (4, 3)
    assert desk.complaints == []
    assert [url for url in desk.requests if not url.startswith(("data:", "blob:"))] == [desk.page.url]


def test_a_reload_restores_and_what_was_taken_back_after_saving_is_withdrawn(
    desk: Desk, labels_page: Path, tmp_path: Path
) -> None:
    desk.press("a")
    desk.wait(2)
    desk.press("x")
    desk.wait(3)
    desk.save(tmp_path)
    desk.press("k")
    desk.wait(2)
    desk.press("Backspace")
    desk.open(labels_page)
    assert (desk.get("item"), desk.get("answered")) == ("2", "1")
    assert "1 answers of an earlier visit" in desk.page.locator("#said").inner_text()
    desk.press("s")
    assert desk.page.locator("#name").input_value() == "ann"
    with desk.page.expect_download() as waiting:
        desk.page.keyboard.press("Enter")
    lines = [json.loads(line) for line in Path(waiting.value.path()).read_text().splitlines()]
    assert [(line["item"], line["verdict"]) for line in lines] == [(1, "accept"), (2, "withdrawn")]


KEY = "(target, key) => target.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }))"


def test_a_key_counts_though_the_closed_dialog_still_has_the_focus(desk: Desk) -> None:
    desk.press("j", "a")
    desk.wait(3)
    desk.press("s")
    desk.page.keyboard.insert_text("ann")
    desk.page.evaluate(
        f"""() => {{  // in one task, so before the browser moves the focus
            document.getElementById("saving-form").requestSubmit();
            ({KEY})(document.getElementById("name"), "k");
        }}"""
    )
    desk.wait(2)


def test_an_item_that_is_not_on_the_screen_yet_cannot_be_answered(desk: Desk) -> None:
    desk.page.evaluate(
        f"""() => {{  // in one task, so before the second item is unpacked
            for (const key of "jaxuync1rl") ({KEY})(document.body, key);
            document.querySelector("[data-do=accept]").click();
        }}"""
    )
    desk.wait(2)
    assert (desk.get("answer"), desk.get("answered")) == ("", "0")
    desk.press("a")
    desk.wait(3)
    assert desk.get("answered") == "1"


def test_the_reason_is_hidden_until_asked_for_and_the_answer_says_so(desk: Desk, tmp_path: Path) -> None:
    assert "rationale" not in desk.page.locator("#claim").inner_text()
    assert desk.page.locator("#claim .reason").count() == 0
    desk.press("r")
    assert desk.page.locator("#claim .said").inner_text().startswith(HOSTILE[:40])
    desk.press("a")
    desk.wait(2)
    assert desk.page.locator("#claim .reason").count() == 0
    desk.press("a")
    desk.wait(3)
    lines = [json.loads(line) for line in desk.save(tmp_path).read_text().splitlines()]
    assert [line["blind"] for line in lines] == [False, True]


def test_time_can_be_stepped_through_and_the_picture_and_numbers_follow(desk: Desk) -> None:
    asked = int(desk.get("step"))
    before = desk.page.locator("#state tbody").inner_text()
    desk.press("ArrowLeft" if asked else "ArrowRight")
    assert abs(int(desk.get("step")) - asked) == 1
    assert desk.page.locator("#state tbody").inner_text() != before
    desk.press("Home")
    assert desk.get("step") == str(asked)
    assert desk.page.locator("#frame img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 400


def test_nothing_that_a_model_wrote_runs_or_becomes_markup(desk: Desk) -> None:
    for _ in range(6):
        desk.press("r", "j")
    assert desk.page.evaluate("window.pwned") is None
    assert desk.page.locator("#review script, #review a, img[src=x], #claim svg").count() == 0
    assert "\u202e" not in desk.page.locator("body").inner_text()
    assert desk.page.evaluate("fetch('https://example.invalid/').then(() => 'sent', () => 'stopped')") == "stopped"


def test_what_the_browser_has_kept_is_checked_before_it_is_used(desk: Desk, labels_page: Path) -> None:
    name = f"trajnote review {json.loads(desk.page.locator('#review-data').text_content())['queue']}"
    odd = {
        "1": {"verdict": "hack", "action": 7},
        "2": {"verdict": "accept", "note": "x" * 5_000},
        "99": {"verdict": "accept"},
    }
    for kept, answered in (("{", "0"), (json.dumps({"version": 1, "answers": odd, "history": 3, "at": "x"}), "1")):
        desk.page.evaluate("([name, kept]) => localStorage.setItem(name, kept)", [name, kept])
        desk.open(labels_page)
        assert desk.get("answered") == answered
    assert desk.complaints == []


def test_a_name_that_is_none_is_refused(desk: Desk) -> None:
    desk.press("a", "s")
    desk.page.keyboard.insert_text("<script>")
    desk.page.keyboard.press("Enter")
    assert "spaces and . _ - only" in desk.page.locator("#name-problem").inner_text()
    assert desk.page.locator("#saving").evaluate("dialog => dialog.open")


def test_a_gold_page_holds_no_label_and_asks_for_action_and_criticality(
    browser: Any, labelled: Store, tmp_path: Path
) -> None:
    path = write_page(labelled, "gold")
    source = path.read_text()
    packs = re.findall(r'<script type="text/plain" id="pack-\d+">([^<]+)</script>', source)
    everything = source + "".join(zlib.decompress(base64.b64decode(pack)).decode() for pack in packs)
    assert len(packs) == 6
    assert all(json.loads(zlib.decompress(base64.b64decode(pack)))["claim"] is None for pack in packs)
    assert [
        word for word in ("pwned", "&lt;b&gt;toy", "<b>toy", '"confidence":', '"critical":') if word in everything
    ] == []
    desk = Desk(browser, path)
    desk.press("2", "y")
    desk.wait(2)
    desk.press("l", "n")
    desk.wait(3)
    desk.press("u")
    desk.wait(4)
    desk.press("y")
    assert desk.page.locator("#count").inner_text() == "3 of 6"
    saved = desk.save(tmp_path, "Änn B.")
    assert desk.complaints == []
    desk.context.close()
    summary = take(labelled, saved)
    assert (summary.models, summary.answers, summary.labels) == (("human:Änn B.",), 4, 3)
    rows = ask(
        labelled,
        "SELECT item, verdict, critical, suggested_label FROM current_reviews WHERE model LIKE '%B.' ORDER BY item",
    )
    assert rows[0] == (1, "answer", True, "north")
    assert rows[1][:3] == (2, "answer", False)
    assert rows[2:] == [(3, "unsure", None, None), (4, "answer", True, None)]


def test_a_rule_is_judged_beside_its_matched_steps(browser: Any, labelled: Store, tmp_path: Path) -> None:
    desk = Desk(browser, write_page(labelled, "rules", pictures=0))
    assert desk.page.locator("#claim code").first.inner_text() == "x > 0"
    assert desk.page.locator("#scenes button").count() == 10
    first = desk.get("step"), desk.page.locator("#origin").inner_text()
    desk.press("]")
    assert (desk.get("step"), desk.page.locator("#origin").inner_text()) != first
    desk.press("a")
    desk.wait(2)
    desk.press("x")
    path = desk.save(tmp_path)
    desk.context.close()
    assert take(labelled, path).answers == 2
    assert ask(labelled, "SELECT predicate FROM refused_opinions JOIN rules USING (rule_id)") == [("y > 0.5",)]


def test_numbers_of_a_continuous_action_are_typed_in(browser: Any, store: Store, tmp_path: Path) -> None:
    dataset_id = gather_toys(store, tmp_path, REACH).dataset_id
    import_annotations(store, write_labels(store, dataset_id, tmp_path / "labels.jsonl", env_id=REACH))
    desk = Desk(browser, write_page(store, "stratified", pictures=0))
    desk.press("c")
    desk.page.keyboard.insert_text("9")
    desk.press("Enter")
    assert desk.get("item") == "1"  # out of bounds: the browser refuses it
    desk.page.locator("#numbers input").fill("1.25")
    desk.press("Enter")
    desk.wait(2)
    desk.press("a")
    desk.wait(3)
    path = desk.save(tmp_path)
    assert desk.complaints == []
    desk.context.close()
    take(store, path)
    rows = ask(store, "SELECT verdict, suggested_action FROM current_reviews ORDER BY item")
    assert rows == [("correct", [1.25]), ("accept", None)]


@pytest.mark.parametrize(("width", "scheme"), every([(390, "light"), (390, "dark"), (1440, "dark")], 3))
def test_nothing_has_to_be_scrolled_sideways_and_every_control_has_a_name(
    browser: Any, labels_page: Path, width: int, scheme: str
) -> None:
    desk = Desk(browser, labels_page, width, scheme)
    desk.press("r", "c")
    assert desk.page.evaluate("document.documentElement.scrollWidth") == width
    small = desk.page.evaluate(
        "Math.min(...[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert small >= 11
    unnamed = desk.page.evaluate(
        """[...document.querySelectorAll("button, select, input, textarea, img")].filter(element =>
            !(element.getAttribute("aria-label") || element.getAttribute("alt") || element.closest("label")
              || element.textContent.trim())).map(element => element.outerHTML)"""
    )
    assert unnamed == []
    desk.context.close()
