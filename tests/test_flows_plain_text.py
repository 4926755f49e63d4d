from __future__ import annotations

import json

import pytest

from flows.reporting.facts import all_visible, script_json
from storage.disk import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("left\u202eright", "left⟨U+202E⟩right"),
        ("\u2066isolated\u2069", "⟨U+2066⟩isolated⟨U+2069⟩"),
        ("a\u200bb\ufeffc", "a⟨U+200B⟩b⟨U+FEFF⟩c"),
        ("bell\x07, null\x00", "bell⟨U+0007⟩, null⟨U+0000⟩"),
        ("\U000e0041\ud800", "⟨U+E0041⟩⟨U+D800⟩"),
        ("two\nlines\tand ünïcödé, שלום", "two\nlines\tand ünïcödé, שלום"),
    ],
)
def test_characters_that_hide_or_reorder_others_show_their_number(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.slow
@pytest.mark.parametrize("text", ["</script>", "<!--", "<script>", "]]>", "&lt;", "\u2028\u2029"])
def test_json_in_a_script_element_cannot_end_it_and_says_the_same(text: str) -> None:
    embedded = script_json({"said": [text]})
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(embedded)
    assert json.loads(embedded) == {"said": [visible(text)]}


def test_keys_are_made_visible_too_and_numbers_that_json_lacks_become_null() -> None:
    assert all_visible({"\u202ek": (1, float("nan"), float("inf"), True)}) == {"⟨U+202E⟩k": [1, None, None, True]}


def test_a_long_column_is_treated_as_its_parts_are() -> None:
    columns = {"numbers": (1.5, None, float("nan"), 10**400, True), "texts": ("a\u200b", "b", "a\u200b")}
    shown = "a⟨U+200B⟩"
    assert all_visible(columns) == {"numbers": [1.5, None, None, 10**400, True], "texts": [shown, "b", shown]}
