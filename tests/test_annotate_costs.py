"""Tokens and dollars, offline."""

from __future__ import annotations

import pytest

from annotate.costs import Tokens, estimate_calls, estimate_tokens, price, tokens_of
from annotate.prompting.requests import Request


def test_text_is_counted_at_three_and_a_half_characters_a_token() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("x" * 36) == 11


def test_calls_add_up() -> None:
    requests = [Request("r_1", "mark", {"a": "x" * 100}), Request("r_2", "mark", {"a": "y" * 100})]
    body = estimate_tokens(requests[0].body)
    assert estimate_calls(requests, labels=8) == Tokens(input=2 * body, output=2 * (150 + 8 * 110))


def test_cached_tokens_are_counted_apart_from_input() -> None:
    usage = {"input_tokens": 10, "output_tokens": 3, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 5}
    assert tokens_of(usage) == Tokens(10, 4, 5, 3)
    assert tokens_of({"input_tokens": 10}) is None
    assert tokens_of(None) is None


def test_cached_input_is_a_tenth_of_the_price_and_writing_it_a_quarter_more() -> None:
    million = 1_000_000
    plain = price("claude-haiku-4-5", Tokens(input=million))
    assert plain is not None
    assert price("claude-haiku-4-5", Tokens(cache_read=million)) == pytest.approx(plain / 10)
    assert price("claude-haiku-4-5", Tokens(cache_write=million)) == pytest.approx(plain * 1.25)
    assert price("claude-haiku-4-5", Tokens(output=million)) == pytest.approx(plain * 5)


def test_a_local_model_has_no_price() -> None:
    assert price("qwen3:8b-local", Tokens(input=1000)) is None
