"""The report in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visitor, needs_chromium, open_browser
from report_world import HOSTILE, make_judged_store
from soak import every
from toy_environment import gather_toys

from flows.reporting.page import write_report
from storage.store import Store

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    store, _ = make_judged_store(tmp_path_factory)
    return write_report(store, pictures=40).path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as chromium:
        yield chromium


class Visit(Visitor):
    """The report, drawn."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str) -> None:
        super().__init__(browser, width, scheme)
        self.page.goto(address)
        self.page.wait_for_selector("html[data-charts=drawn]", state="attached")
        self.page.wait_for_selector("#viewer[data-ready]")

    def at(self) -> tuple[str, str]:
        viewer = self.page.locator("#viewer")
        return viewer.get_attribute("data-episode"), viewer.get_attribute("data-step")


@pytest.fixture(scope="module")
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """One page for the tests that only look and walk around in it."""
    made = Visit(browser, address, 1440, "light")
    yield made
    made.context.close()


@pytest.fixture
def own_visit(browser: Any, address: str) -> Iterator[Visit]:
    """A page that a test may change."""
    made = Visit(browser, address, 1440, "light")
    yield made
    made.context.close()


@pytest.mark.slow
def test_it_opens_from_the_disk_without_a_complaint_and_asks_no_network(visit: Visit, address: str) -> None:
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [address]


@pytest.mark.slow
def test_every_chart_is_drawn(visit: Visit) -> None:
    for name in ("arms", "candidates", "positions", "confidence", "states"):
        assert visit.page.locator(f'[data-chart="{name}"] svg').bounding_box()["width"] > 200
    assert visit.page.locator("#lanes canvas").bounding_box()["height"] > 150


@pytest.mark.slow
def test_a_click_on_a_note_shows_its_step_its_reason_and_both_pictures(visit: Visit) -> None:
    visit.page.locator("#episode").select_option("2")
    visit.page.locator("#chips button", has_text="5").click()
    assert visit.at() == ("2", "5")
    assert visit.page.locator("#margin .said").inner_text().startswith(HOSTILE[:40])
    assert "0.90" in visit.page.locator("#margin dl").inner_text()
    for side in ("logged", "rematch"):
        image = visit.page.locator(f"#frame-{side} img")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 240
        assert "step" in image.get_attribute("alt")
    visit.page.locator("#margin summary").first.click()
    assert '"assessment"' in visit.page.locator("#margin pre").first.inner_text()


@pytest.mark.slow
def test_the_keyboard_walks_through_steps_notes_and_episodes(visit: Visit) -> None:
    visit.page.locator("#episode").select_option("0")
    visit.page.locator("#viewer").focus()
    walked: list[tuple[str, str]] = []
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft", "Shift+ArrowRight", "End", "Shift+ArrowLeft"):
        visit.page.keyboard.press(key)
        walked.append(visit.at())
    assert [step for _, step in walked] == ["0", "1", "2", "1", "2", "8", "7"]
    visit.page.keyboard.press("ArrowDown")
    visit.page.wait_for_selector("#viewer[data-episode='1']")
    assert visit.page.locator("#where").inner_text() == f"step {visit.at()[1]} of 8"
    assert visit.complaints == []


@pytest.mark.slow
def test_a_click_on_the_timeline_goes_to_its_step_and_the_slider_follows(visit: Visit) -> None:
    box = visit.page.locator("#lanes canvas").bounding_box()
    visit.page.locator("#lanes canvas").click(position={"x": box["width"] - 16, "y": 30})
    assert visit.at()[1] == "8"
    assert visit.page.locator("#slider").input_value() == "8"
    assert visit.page.locator("#facts-logged dd").first.inner_text() == "terminated"


@pytest.mark.slow
def test_nothing_that_the_model_wrote_runs_or_becomes_markup(visit: Visit) -> None:
    for place in range(3):
        visit.page.locator("#episode").select_option(str(place))
        visit.page.locator("#chips button").first.click()
        for summary in visit.page.locator("summary").all():
            if summary.is_visible():
                summary.click()
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.locator("#viewer svg, #viewer script, #viewer a, img[src=x]").count() == 0
    assert "\u202e" not in visit.page.locator("body").inner_text()
    assert visit.complaints == []


@pytest.mark.slow
def test_a_script_that_is_injected_is_stopped_by_the_pages_policy(own_visit: Visit) -> None:
    visit = own_visit
    visit.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 1\">')")
    visit.page.evaluate("document.head.append(Object.assign(document.createElement('script'), {text: 'pwned = 2'}))")
    assert visit.page.evaluate("fetch('https://example.invalid/').then(() => 'sent', () => 'stopped')") == "stopped"
    assert visit.page.evaluate("window.pwned") is None


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), every([(390, "light"), (390, "dark")], 2))
def test_a_phone_shows_everything_without_scrolling_sideways(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    phone = Visit(browser, address, width, scheme)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == width
    assert phone.complaints == []
    sizes = phone.page.evaluate(
        "[...document.querySelectorAll('main p, main td')].map(e => getComputedStyle(e).fontSize)"
    )
    assert min(float(size.removesuffix("px")) for size in sizes) >= 12
    cut = phone.page.evaluate(
        """width => [...document.querySelectorAll(".top nav a, #arms td, #again pre, .told dd")].filter(element =>
            element.getBoundingClientRect().right > width || element.scrollWidth > element.clientWidth + 1
            && getComputedStyle(element).display !== "inline").map(element => element.textContent)""",
        width,
    )
    assert cut == []
    phone.context.close()


@pytest.mark.slow
def test_the_commands_can_be_copied(own_visit: Visit) -> None:
    own_visit.page.locator("[data-copy]").click()
    own_visit.page.wait_for_selector("#copied:not(:empty)")
    said = own_visit.page.locator("#copied").inner_text()
    assert said in ("Copied.", "Selected; press Ctrl+C, or ⌘C on a Mac.")
    if said == "Copied.":
        return
    assert "trajnote collect" in own_visit.page.evaluate("getSelection().toString()")


@pytest.mark.slow
def test_no_legend_reaches_past_its_chart(visit: Visit) -> None:
    past = visit.page.evaluate(
        """[...document.querySelectorAll("[data-chart]")].filter(chart => {
            const edge = chart.getBoundingClientRect().right + 1;
            return [...chart.querySelectorAll("svg text, svg path")].some(
                part => part.getBoundingClientRect().right > edge);
        }).map(chart => chart.dataset.chart)"""
    )
    assert past == []


@pytest.mark.slow
def test_rollouts_without_pictures_have_no_empty_boxes(browser: Any, store: Store, tmp_path: Path) -> None:
    gather_toys(store, tmp_path)
    plain = Visit(browser, write_report(store, pictures=5).path.as_uri(), 1440, "light")
    assert plain.page.locator(".frame:visible").count() == 0
    assert "There are no pictures: the environment renders no pictures" in plain.page.locator("#episodes").inner_text()
    assert plain.page.locator("#facts-logged dd").first.is_visible()
    plain.context.close()


@pytest.mark.slow
def test_rollouts_without_labels_open_without_a_complaint_too(browser: Any, store: Store, tmp_path: Path) -> None:
    gather_toys(store, tmp_path)
    plain = Visit(browser, write_report(store, pictures=0).path.as_uri(), 1440, "light")
    assert plain.complaints == []
    assert plain.at() == ("0", "0")
    assert plain.page.locator("#margin").inner_text() == "No labels in this episode."
    plain.context.close()


@pytest.mark.slow
def test_every_control_and_picture_has_a_name_for_screen_readers(visit: Visit) -> None:
    unnamed = visit.page.evaluate(
        """[...document.querySelectorAll("button, select, input, img, [role=img]")].filter(element =>
            !(element.getAttribute("aria-label") || element.getAttribute("alt") || element.closest("label")
              || element.textContent.trim())).map(element => element.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.slow
def test_the_theme_button_turns_the_page_dark_and_redraws(own_visit: Visit) -> None:
    visit = own_visit
    before = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    visit.page.locator("#theme").click()
    after = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (before, after) == ("rgb(251, 250, 246)", "rgb(21, 23, 27)")
    visit.page.wait_for_function("document.querySelector('[data-chart=arms] svg text').getAttribute('fill') != null")
    assert visit.complaints == []
