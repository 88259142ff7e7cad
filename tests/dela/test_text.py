"""Text of others: nothing of it steers a terminal, and none of it breaks a parser."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.text import brief, cut, parse_json, parse_toml, visible


@given(st.text())
def test_no_character_steers_a_terminal(text):
    shown = visible(text)
    steering = {c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    assert steering <= {"\n", "\t"}
    assert not {c for c in shown if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLI", "LRI")}


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_ordinary_text_stays_as_it_is(text):
    assert visible(text) == text


def test_what_is_hidden_is_written_out():
    assert visible("\x1b[31mred\x07 \u202eback\tand\non") == (
        "\\x1b[31mred\\x07 \\u202eback\tand\non"
    )


def test_bytes_of_a_file_name_stay_and_half_characters_do_not():
    assert visible("scan\udcff") == "scan\udcff"
    assert visible("scan\ud800") == "scan\\ud800"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "{"])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a", "a = 1\na = 2"])
def test_toml_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_toml(text)


@given(st.one_of(st.text(), st.integers(), st.lists(st.integers(), max_size=200)))
def test_a_value_in_an_error_is_short(value):
    shown = brief(value)
    assert len(shown) <= 63
    assert len(repr(value)) > 60 or shown == repr(value)


def test_a_number_without_end_is_told_by_its_size():
    assert brief(10**5000) == "a number of 16610 bits"


def test_long_lines_are_cut():
    assert cut("short\nlines") == "short\nlines"
    assert len(cut("a" * 10_000)) < 2100
