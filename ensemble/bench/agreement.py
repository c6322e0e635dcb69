"""Check that two contenders of a benchmark give the same predictions, before their speed is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ensemble.arrays import Logits
from ensemble.errors import DeviceError
from ensemble.runtime.parity import relative_error

# by member and view
MemberLogits: TypeAlias = Mapping[str, Mapping[str, Logits]]


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest relative error of a logit, and the largest share of images whose class may change."""

    error: float
    changed: float


# By precision, the strictest first. For int8 the largest error means little: its export has passed a gate on a metric,
# and here it only has to be the same model.
LIMITS: Mapping[str, Limit] = {
    "fp32": Limit(1e-4, 0.0),
    "fp16": Limit(2e-2, 0.005),
    "int8": Limit(float("inf"), 0.2),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of the predictions of ``contender`` with those of ``reference``.

    ``error`` is the largest difference of a logit, relative to the largest of its row. The class of ``changed`` of
    ``answers`` predictions differs.
    """

    contender: str
    reference: str
    answers: int
    changed: int
    error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "arm": self.contender,
            "reference": self.reference,
            "answers": self.answers,
            "changed": self.changed,
            "error": self.error,
        }

    def render(self) -> str:
        """Return one line for the terminal."""
        error = "" if self.error is None else f"relative error of logits {self.error:.1e}, "
        return f"{self.contender} vs. {self.reference}: {error}{self.changed} of {self.answers} predictions differ"


def loosest(precisions: Iterable[str]) -> Limit:
    """Return the limit of the coarsest of some precisions."""
    return LIMITS[max(precisions, key=list(LIMITS).index)]


def compare(
    contender: str, logits: MemberLogits, reference: str, expected: MemberLogits, *, limits: Mapping[str, Limit]
) -> Agreement:
    """Compare logits by member and view, each member within its limit.

    In a precision below float32 at least one prediction may change its class, however few there are.

    Raises:
        DeviceError: E620 when they differ by more.
    """
    worst, changed, count = 0.0, 0, 0
    faults = []
    for member, views in expected.items():
        limit = limits[member]
        for view, wanted in views.items():
            found = logits[member][view]
            error = relative_error(wanted, found)
            other = int(np.count_nonzero(wanted.argmax(axis=1) != found.argmax(axis=1)))
            allowed = max(1, int(limit.changed * len(wanted))) if limit.changed else 0
            if not error <= limit.error or other > allowed:  # so that NaN is a fault
                faults.append(
                    f"{member}, {view}: relative error of logits {error:.1e} (at most {limit.error:.0e} is allowed), "
                    f"{other} of {len(wanted)} predictions differ (at most {allowed} may)"
                )
            worst, changed, count = max(worst, error), changed + other, count + len(wanted)
    if faults:
        raise DeviceError(
            "E620", f"the predictions of {contender} differ from those of {reference}", details=tuple(faults)
        )
    return Agreement(contender, reference, count, changed, worst)


def compare_classes(
    contender: str, classes: Sequence[str], reference: str, expected: Sequence[str], *, limit: float
) -> Agreement:
    """Compare the classes of two submissions, of which the share ``limit`` may differ.

    Raises:
        DeviceError: E620 when more do.
    """
    changed = sum(a != b for a, b in zip(classes, expected, strict=True))
    if changed > limit * len(expected):
        raise DeviceError(
            "E620",
            f"{contender} and {reference} differ on {changed} of {len(expected)} images "
            f"(at most {int(limit * len(expected))} may)",
        )
    return Agreement(contender, reference, len(expected), changed)
