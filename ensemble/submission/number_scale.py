"""Find whether a sample's probabilities are fractions or percentages, and refuse numbers that are neither."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from ensemble.errors import PredictionError
from ensemble.text.plain_numbers import to_float

PERCENT = 100.0
_NAMED = re.compile(r"%|\bper[\s_-]?cent\b|\bpct\b", re.IGNORECASE)
_TOLERANCE = 1.0
"""Percentages in a sample are rounded: 33, 33, 33."""
_SUM_TOLERANCE = 1e-3


def parse_number(cell: str) -> float | None:
    """Return the finite number in a cell, with a point or comma as decimal mark; None if there is none."""
    try:
        value = to_float(cell.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def are_whole(cells: Sequence[str]) -> bool:
    """Return True if all filled cells, at least one, are whole numbers of up to nine digits."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", cell) for cell in filled)


def sums_to_one(cells: Sequence[str], *, scale: float = 1.0) -> bool:
    """Return True if the numbers in a row of a sample, divided by ``scale``, are probabilities that sum to one."""
    values = [parse_number(cell) for cell in cells]
    numbers = [value / scale for value in values if value is not None]
    return len(numbers) == len(values) and abs(sum(numbers) - 1) < _SUM_TOLERANCE * max(1, len(numbers) / 10)


def find_scale(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]], *, asked: bool) -> float:
    """Return what a probability of one is written as: 1, or 100 where the sample has percentages.

    They are percentages if all rows of several columns sum to 100, or where all columns are named so (``cat (%)``) and
    the numbers do not say otherwise. With ``asked`` the kind of answers was named, and other numbers are no error.

    Raises:
        PredictionError: E564 when a number is neither a probability nor a percentage.
    """
    values = [[parse_number(cell) for cell in row] for row in rows]
    known = [value for row in values for value in row if value is not None]
    named = bool(columns) and all(map(is_percent, columns))
    most = max(known, default=0.0)
    if min(known, default=0.0) >= 0 and most <= PERCENT:
        sums = [sum(value or 0.0 for value in row) for row in values]
        if most > 1 and len(columns) > 1 and all(abs(total - PERCENT) <= _TOLERANCE for total in sums):
            return PERCENT
        if named and (most > 1 or most == 0):
            return PERCENT
    outside = next((cell for row in rows for cell in row if not 0 <= (parse_number(cell) or 0.0) <= 1), None)
    if outside is not None and not asked:
        seen = f"its answers are numbers such as {outside.strip()}, which is neither a class nor a probability"
        raise PredictionError("E564", f"{path.name}: {seen}", path=path)
    return 1.0


def is_percent(column: str) -> bool:
    """Return True if a column is named one of percentages."""
    return _NAMED.search(column) is not None
