from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter

from storage.schema import Space, canonical_json, content_id, sha256_bytes


def test_canonical_json_does_not_depend_on_order_or_type_of_container() -> None:
    assert canonical_json({"b": (1, 2.5), "a": "é"}) == '{"a":"é","b":[1,2.5]}'
    assert content_id("r_", {"a": 1, "b": 2}) == content_id("r_", {"b": 2, "a": 1})


def test_content_id_is_a_shortened_sha256() -> None:
    assert content_id("r_", [], 48) == "r_" + sha256_bytes(b"[]")[:48]
    assert content_id("r_", {"a": 1}) != content_id("r_", {"a": 2})


def test_infinite_bounds_are_valid_json_and_come_back() -> None:
    space = Space(kind="box", dtype="float32", size=2, low=(-math.inf, 0.0), high=(math.inf, 1.0))
    text = canonical_json(space)
    assert "-Infinity" in text
    assert TypeAdapter(Space).validate_json(text) == space


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no canonical JSON"):
        canonical_json({"a": object()})
    for unordered in ({1, 2}, b"bytes", {1: 2}.keys()):
        with pytest.raises(TypeError, match="has no canonical JSON"):
            canonical_json(unordered)
