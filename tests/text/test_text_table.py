"""Plain-text tables."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.text.text_table import render_columns, terminal_width, text_width, wrap_text


def test_text_stands_left_and_numbers_right() -> None:
    """Columns are as wide as their widest cell; counts have separators, fractions four digits, None is a dash."""
    rows = [("a", 1234567, 0.5, "x"), ("long name", 1, None, "longer")]
    assert render_columns(("name", "n", "score", "note"), rows) == (
        "name               n   score  note\na          1,234,567  0.5000  x\nlong name          1       -  longer\n"
    )


def test_a_table_without_rows_is_its_header() -> None:
    """No rows leave the header alone."""
    assert render_columns(("name", "n"), []) == "name  n\n"


def test_text_is_wrapped_to_the_width_and_stays_whole() -> None:
    """The column of text gives way to the others, between words only, and every word is still there."""
    weights = "efficientnet_b3 0.33, resnet18 0.22, convnext_tiny 0.21, vit_small 0.11 and 3 more"
    text = render_columns(("member", "score", "weights"), [("mean", 0.5, "equal"), ("greedy", 0.5, weights)], width=50)
    assert max(map(len, text.splitlines())) <= 50
    assert text.splitlines()[2:4] == [
        "greedy  0.5000  efficientnet_b3 0.33, resnet18",
        "                0.22, convnext_tiny 0.21,",
    ]
    assert " ".join(text.split()).endswith(weights)


def test_a_table_without_room_is_split_by_columns() -> None:
    """Columns that do not fit follow below, beside the first one; intervals are never broken."""
    score = "0.8123 [0.780, 0.843]"
    axes = ("mask", "gender", "age")
    text = render_columns(("answers", *axes), [("r18", *[score] * 3), ("blend", *[score] * 3)], width=60)
    assert text == (
        "answers  mask                   gender\n"
        f"r18      {score}  {score}\n"
        f"blend    {score}  {score}\n"
        "\n"
        "answers  age\n"
        f"r18      {score}\n"
        f"blend    {score}\n"
    )


def test_a_word_wider_than_the_line_is_not_cut() -> None:
    """A path stands in one piece whatever the width, so that it can be copied."""
    path = "/a" * 60
    assert path in render_columns(("member", "seconds", "folder"), [("r18", 1.5, path)], width=40)
    assert path in wrap_text(f"see {path} for more", width=40)


def test_korean_text_is_aligned() -> None:
    """A Hangul syllable takes two columns of a terminal, composed or not."""
    text = render_columns(("member", "n"), [("가나다", 1), (unicodedata.normalize("NFD", "가"), 2)])
    assert text.splitlines()[1] == "가나다  1"
    assert text_width(unicodedata.normalize("NFD", "가나다")) == text_width("member") == 6
    assert text.splitlines()[2].endswith("      2")


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS states the width, and without a terminal it is 80."""
    row = [("x " * 60, "y")]
    for columns, width in (("100", 100), ("", 80)):
        monkeypatch.setenv("COLUMNS", columns)
        assert terminal_width() == width
        assert width - 5 < max(map(len, render_columns(("long", "short"), row).splitlines())) <= width


@given(
    st.lists(st.lists(st.text(alphabet="ab [],가 ", max_size=60), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(30, 120),
)
def test_every_word_of_every_cell_is_printed(rows: list[list[str]], width: int) -> None:
    """Whatever the cells and the width, no character that is not a space is lost or added, but for repeated keys."""
    text = render_columns(("a", "b", "c"), rows, width=width)
    blocks = text.split("\n\na ") if "\n\na " in text else [text]
    printed = sorted("".join(text.split()))
    keys = sorted("".join("".join(row[0] for row in rows).split()) + "a") * (len(blocks) - 1)
    cells = sorted("".join("".join(map("".join, rows)).split()) + "abc")
    assert printed == sorted(cells + keys)
