"""Regular expressions from users and recipes take no time without end."""

from __future__ import annotations

import re

import pytest

from ensemble.text import patterns
from ensemble.text.patterns import match_all, may_be_slow

IDS = ["soundscape_5", "soundscape_10", "x", "a_b_12.ogg"]


@pytest.mark.parametrize(
    "pattern",
    [r"(.*)_(\d+)", r"((?:[a-z]+_)*[a-z]+)_(\d+)", r"(.*.*.*.*.*)_(\d+)", r"(?:(a)|(b))|.*"],
)
def test_groups_are_those_of_fullmatch_in_whatever_process(pattern: str) -> None:
    """A pattern that may be slow is tried elsewhere, and finds the same."""
    expected = [None if found is None else found.groups() for found in map(re.compile(pattern).fullmatch, IDS)]
    assert match_all(pattern, IDS) == expected


@pytest.mark.parametrize(
    ("pattern", "slow"),
    [
        (r"(.*)_(\d+)", False),
        (r"(.{3}){2}(\d+)", False),
        (r"(?:(a+)|b)(c)", False),
        (r"((a+)+)(b)", True),
        (r"((?:a|b*)*)(c)", True),
        (r"((?=(?:a*)*)b)(c)", True),
        (r"(a{1,60000}){1,60000}(b)", True),
        (r"(.*.*.*.*.*)(x)", True),
    ],
)
def test_a_repetition_within_a_repetition_may_be_slow(pattern: str, slow: bool) -> None:
    """So may many of them one after the other."""
    assert may_be_slow(pattern) == slow


@pytest.mark.parametrize(("pattern", "text"), [(r"((a+)+)(b)", "a" * 60), (r"(.*?)(\d+)", "1" * 200_000 + "!")])
def test_a_pattern_without_end_is_ended(pattern: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of a pattern and of a text that are made for it."""
    monkeypatch.setattr(patterns, "LIMIT", 0.5)
    with pytest.raises(TimeoutError, match=r"0\.5 seconds"):
        match_all(pattern, [text])
