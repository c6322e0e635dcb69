"""Plain-text tables."""

from __future__ import annotations

from ensemble.text_table import render_columns


def test_text_stands_left_and_numbers_right() -> None:
    """Columns are as wide as their widest cell; counts have separators, fractions four digits, None is a dash."""
    rows = [("a", 1234567, 0.5, "x"), ("long name", 1, None, "longer")]
    assert render_columns(("name", "n", "score", "note"), rows) == (
        "name               n   score  note\na          1,234,567  0.5000  x\nlong name          1       -  longer\n"
    )


def test_a_table_without_rows_is_its_header() -> None:
    """No rows leave the header alone."""
    assert render_columns(("name", "n"), []) == "name  n\n"
