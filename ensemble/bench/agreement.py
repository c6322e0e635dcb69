"""Agreement: do two programs give the same answers? Asked before their speed is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Logits
from ensemble.errors import DeviceError
from ensemble.runtime.parity import relative_error

Answers = Mapping[str, Mapping[str, Logits]]


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest relative error of a logit, and the largest share of answers with another class."""

    error: float
    changed: float


# By precision, the strictest first. Of int8 the largest error says little: its export passed a gate on a metric, and
# here it only has to be the same job.
LIMITS: Mapping[str, Limit] = {
    "fp32": Limit(1e-4, 0.0),
    "fp16": Limit(2e-2, 0.005),
    "int8": Limit(float("inf"), 0.2),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the answers of ``arm`` are to those of ``reference``.

    ``error`` is the largest difference of a logit, relative to its row's largest; ``changed`` of ``answers`` have
    another class.
    """

    arm: str
    reference: str
    answers: int
    changed: int
    error: float | None = None

    def render(self) -> str:
        """One line for people."""
        error = "" if self.error is None else f"logits differ by {self.error:.1e}, "
        return f"{self.arm} against {self.reference}: {error}another class in {self.changed} of {self.answers} answers"


def loosest(precisions: Iterable[str]) -> Limit:
    """The limit of the coarsest of some precisions."""
    return LIMITS[max(precisions, key=list(LIMITS).index)]


def compare(arm: str, answers: Answers, reference: str, expected: Answers, *, limits: Mapping[str, Limit]) -> Agreement:
    """Compare logits by member and view, each member within its limit; at least one answer of a lower precision may
    change its class.

    Raises:
        DeviceError: E620 when they differ by more.
    """
    worst, changed, count = 0.0, 0, 0
    faults = []
    for member, views in expected.items():
        limit = limits[member]
        for view, wanted in views.items():
            found = answers[member][view]
            error = relative_error(wanted, found)
            other = int(np.count_nonzero(wanted.argmax(axis=1) != found.argmax(axis=1)))
            allowed = max(1, int(limit.changed * len(wanted))) if limit.changed else 0
            if not error <= limit.error or other > allowed:  # so that NaN is a fault
                faults.append(
                    f"{member}, {view}: logits differ by {error:.1e} (up to {limit.error:.0e} is allowed), "
                    f"another class in {other} of {len(wanted)} answers (up to {allowed})"
                )
            worst, changed, count = max(worst, error), changed + other, count + len(wanted)
    if faults:
        raise DeviceError("E620", f"{arm} gives other answers than {reference}", details=tuple(faults))
    return Agreement(arm, reference, count, changed, worst)


def compare_classes(
    arm: str, classes: Sequence[str], reference: str, expected: Sequence[str], *, limit: float
) -> Agreement:
    """Compare the classes of two submissions, of which the share ``limit`` may differ.

    Raises:
        DeviceError: E620 when more do.
    """
    changed = sum(a != b for a, b in zip(classes, expected, strict=True))
    if changed > limit * len(expected):
        raise DeviceError("E620", f"{arm} decides {changed} of {len(expected)} images otherwise than {reference}")
    return Agreement(arm, reference, len(expected), changed)
