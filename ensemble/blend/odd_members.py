"""Find members that hardly help: constant, copies of another, near chance, or right after a permutation of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

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
    # the assignment of the member's columns to the reference's classes with the most agreement
    columns = linear_sum_assignment(-counts)[1]
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
