"""Find members that hardly help: constant, copies of another, near chance, or right after a permutation of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.metrics import confusion_matrix

_NEAR_CHANCE = 0.05
_MIN_IMAGES = 50
_CLEARLY_BETTER = 0.3
"""By how much a permutation of the columns must raise kappa before it is named."""


@dataclass(frozen=True, slots=True)
class Odd:
    """One member's problem: its agreement ``kappa`` with the reference, and the permutation that would raise it.

    ``permutation[c]`` is the member's column that holds class c; None if no permutation helps.
    """

    kappa: float
    permutation: tuple[int, ...] | None = None
    permuted_kappa: float = 0.0

    def describe(self, names: Sequence[str], *, reference: str) -> str:
        """Say what is wrong, and with which columns; ``reference`` is what the member was compared with."""
        if self.permutation is None:
            return f"agrees with {reference} no more than chance does (kappa {self.kappa:.2f})"
        moved = [(c, source) for c, source in enumerate(self.permutation) if c != source]
        shown = ", ".join(f"{names[c]!r} is in the column of {names[source]!r}" for c, source in moved[:3])
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        return (
            f"seems to have its classes in another order: agreement with {reference} (kappa) is {self.kappa:.2f}, and "
            f"{self.permuted_kappa:.2f} where {shown}{more}"
        )


def find_odd(reference: Classes, answers: Classes, *, classes: int) -> Odd | None:
    """Compare a member's classes ``(N,)`` with a reference ``(N,)``: the truth, or the other members' answers.

    Cohen's kappa ("A coefficient of agreement for nominal scales", 1960) is 0 for chance and 1 for equality. Fewer than
    50 images, and references of a single class, are not judged.
    """
    if len(reference) < _MIN_IMAGES or len(np.unique(reference)) < 2:
        return None
    counts = confusion_matrix(reference, answers, classes=classes)
    found = cohen_kappa(counts)
    if found + _CLEARLY_BETTER >= 1:  # no permutation can be that much better
        return None
    columns = most_agreement(counts)
    permuted = cohen_kappa(counts[:, columns])
    if permuted > found + _CLEARLY_BETTER:
        return Odd(found, tuple(columns.tolist()), permuted)
    return Odd(found) if found < _NEAR_CHANCE else None


def cohen_kappa(counts: Floats) -> float:
    """Return Cohen's kappa of a confusion matrix ``(C, C)``; 0 where chance agreement is already complete."""
    total = counts.sum()
    agreed = np.trace(counts) / total
    chance = float((counts.sum(axis=0) * counts.sum(axis=1)).sum() / total**2)
    return float((agreed - chance) / (1 - chance)) if chance < 1 else 0.0


def most_agreement(counts: Floats) -> NDArray[np.intp]:
    """Return the permutation of the columns of ``(C, C)`` with the largest sum on the diagonal.

    By shortest augmenting paths, with the ties of ``scipy.optimize.linear_sum_assignment``, which a run of a saved
    recipe does not load: Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace
    and Electronic Systems 52 (2016).
    """
    cost = -np.asarray(counts, dtype=np.float64)
    size = len(cost)
    row_price, column_price = np.zeros(size), np.zeros(size)
    column_of, row_of = np.full(size, -1, dtype=np.intp), np.full(size, -1, dtype=np.intp)
    for first in range(size):
        lengths, came_from = np.full(size, np.inf), np.full(size, -1, dtype=np.intp)
        left = np.arange(size)[::-1].copy()
        rows, row, least, end = [first], first, 0.0, -1
        while end < 0:
            reached = least + cost[row, left] - row_price[row] - column_price[left]
            shorter = reached < lengths[left]
            came_from[left[shorter]], lengths[left[shorter]] = row, reached[shorter]
            least = float(lengths[left].min())
            nearest = np.flatnonzero(lengths[left] == least)
            free = nearest[row_of[left[nearest]] < 0]  # a column without a row ends the path
            place = int(free[-1] if len(free) else nearest[0])
            column = int(left[place])
            left[place] = left[-1]
            left = left[:-1]
            if row_of[column] < 0:
                end = column
            else:
                row = int(row_of[column])
                rows.append(row)
        row_price[first] += least
        for other in rows[1:]:
            row_price[other] += least - lengths[column_of[other]]
        seen = np.setdiff1d(np.arange(size), left)
        column_price[seen] -= least - lengths[seen]
        while True:
            row = int(came_from[end])
            row_of[end] = row
            column_of[row], end = end, int(column_of[row])
            if row == first:
                break
    return column_of
