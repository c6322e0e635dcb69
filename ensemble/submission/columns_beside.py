"""Columns of a sample that are not one per class: indices and groups beside the classes, scores, ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ensemble.submission.class_names import USUAL_ANSWERS, Mismatch, are_numbers, fold_name, match_columns
from ensemble.submission.number_scale import parse_number
from ensemble.text.csv_table import Table

_CONTEXT = re.compile(
    r"(?:.*\b|.*[a-z])?(?:id|uid|index|row|usage|split|fold|patient|subject|study|series|site)|unnamed:? ?\d*|"
)
_SCORES = re.compile(r"(?:.* )?(?:confidence|conf|score|prob|proba|probability)(?: .*)?")


def without_context(table: Table, places: Sequence[int], names: Sequence[str]) -> list[int]:
    """Return the places of the columns of classes ``names``, without those beside them that only tell rows apart.

    Such columns are called so (an index, a patient), or have a cell that is not a number. Where the others are not the
    classes, all places are returned: what is wrong is then said of all of them.
    """
    if not isinstance(match_columns([table.header[i] for i in places], names), Mismatch):
        return list(places)
    cells_of = {place: [row[place].strip() for row in table.rows] for place in places}
    rest = [
        place
        for place in places
        if not _CONTEXT.fullmatch(fold_name(table.header[place])) and all(map(_is_answer, cells_of[place]))
    ]
    found = match_columns([table.header[i] for i in rest], names)
    return list(places) if isinstance(found, Mismatch) else rest


def _is_answer(cell: str) -> bool:
    return not cell or parse_number(cell) is not None


def is_answer_column(table: Table, place: int) -> bool:
    """Return True if a column is called one of answers, or one of scores and has numbers."""
    cells = [row[place].strip() for row in table.rows]
    name = fold_name(table.header[place])
    if name in USUAL_ANSWERS:
        return any(cells)
    return _SCORES.fullmatch(name) is not None and all(parse_number(cell) is not None for cell in cells)


def find_ranks(columns: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[str, ...] | None:
    """Return how classes are spelled in columns ``prediction1`` to ``prediction5`` that have a class each.

    None where the columns are not numbered one after the other, or a cell is not a class. Class numbers give an empty
    spelling.
    """
    numbers = [re.search(r"([0-9]+)\D*$", column) for column in columns]
    counted = [int(found.group(1)) for found in numbers if found is not None]
    if not 2 <= len(columns) <= len(names) or counted not in (
        list(range(len(columns))),
        list(range(1, len(columns) + 1)),
    ):
        return None
    cells = {cell.strip() for row in rows for cell in row}
    if cells <= set(names):
        return tuple(names)
    return () if not are_numbers(names) and cells <= set(map(str, range(len(names)))) else None
