"""The matrices of a report: counts where they belong, lines where the first axes change, labels that stay in sight."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ensemble.analysis.html import STYLE
from ensemble.analysis.matrix import confusion_table, group_levels, together_table
from ensemble.analysis.report_sections import render_gains
from ensemble.labels import MASK18, Axis, LabelSpace
from ensemble.learn.view_gains import ViewGain


def test_lines_separate_the_values_of_all_axes_but_the_last() -> None:
    """Eighteen classes have a strong line before each mask, a thin one before each gender, and none between ages."""
    assert group_levels(MASK18) == [0, 0, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0]
    assert group_levels(LabelSpace.flat(5)) == [0] * 5
    assert group_levels(LabelSpace((Axis("a", ("x", "y")), Axis("b", ("u", "v"))))) == [0, 0, 2, 0]


def test_every_count_is_in_its_cell_and_the_diagonal_is_marked() -> None:
    """Row i, column j of the table is the count of true class i predicted as j, under names that are escaped."""
    counts = np.array([[5.0, 0, 1200], [2, 7, 0], [0, 0, 0]])
    page = confusion_table(counts, ["a<b", "c", "d"], [0, 2, 0], label="x")
    rows = re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>(.*?)</tr>', page)
    assert [name for name, _ in rows] == ["a&lt;b", "c", "d"]
    cells = [re.findall(r"<td([^>]*)>(.*?)</td>", row) for _, row in rows]
    assert [[text for _, text in row] for row in cells] == [["5", "", "1,200"], ["2", "7", ""], ["", "", ""]]
    assert [["own" in marks for marks, _ in row] for row in cells] == np.eye(3, dtype=bool).tolist()
    assert "--s:78%" in cells[1][1][0]  # 7 of the 9 images of its true class
    assert all("line2" in row[1][0] for row in cells)
    assert "position: sticky" in STYLE[STYLE.index("table.matrix th {") :][:60]
    assert page.startswith('<div class="scroll window" tabindex="0"')


def test_labels_that_never_occur_are_no_division_by_zero() -> None:
    """A label without images has an empty row."""
    page = together_table(np.array([[4.0, 1, 0], [1, 2, 0], [0, 0, 0]]), ["x", "y", "z"], label="together")
    assert "nan" not in page


@pytest.mark.parametrize(
    ("gain", "verdict", "advice"),
    [
        (-0.02, "drop this view", "Drop this view: vflip"),
        (0.02, "keep", "more than one standard error: vflip"),
        (0.001, "no clear gain", "No view"),
    ],
)
def test_a_view_that_harms_is_to_be_dropped(gain: float, verdict: str, advice: str) -> None:
    """A view whose loss exceeds one standard error is named in the summary."""
    page = render_gains([ViewGain("vflip", gain, 0.005, 3, 9, 2.0)], "macro F1")
    assert f"<td>{verdict}</td>" in page
    assert advice in page
