"""Label errors, ranked from out-of-fold probabilities: confident learning (Northcutt et al. 2021, arXiv 1911.00068).

Each axis of a label space is judged by itself, and each label where several may apply. Probabilities are first made
comparable with the labels as given: a temperature and a bias per value are fitted, which does for the ranking what the
thresholds per class do in the paper. Where all images of a group, such as a person, have the same value on an axis,
their evidence is joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from ensemble.arrays import Classes, Floats, Mask
from ensemble.labels import Axis, LabelSpace

ABSENT_PRESENT = ("absent", "present")
_SHRINK = 1e-3  # of the bias per value: a rare value is not moved far
_FLOOR = 1e-6  # of a probability


@dataclass(frozen=True, slots=True)
class LabelError:
    """A label that is probably wrong: ``given`` on an axis of the image ``row``, where ``suggested`` is more probable.

    ``score`` is between 0 and 1: one minus the probability of the given value, and where labels have several axes half
    of that plus half the probability of ``suggested``, so that an axis that is hard to tell does not come first.
    ``joined`` is the number of images whose evidence was joined.
    """

    row: int
    axis: str
    given: str
    suggested: str
    score: float
    joined: int


def find_label_errors(
    probabilities: Floats, classes: Classes, labels: LabelSpace, groups: Sequence[str]
) -> tuple[LabelError, ...]:
    """Return the images whose label on an axis is not the most probable value, the most certain first.

    ``probabilities`` ``(N, C)`` are those of models that were not trained on the image, and ``classes`` ``(N,)`` the
    labels as given. ``groups`` names the person or other group of each image.
    """
    found: list[LabelError] = []
    cube = probabilities.reshape(-1, *labels.shape)
    for place, axis in enumerate(labels.axes):
        others = tuple(1 + other for other in range(len(labels.axes)) if other != place)
        given = labels.along(axis.name, classes)
        found += _errors_of_axis(axis, cube.sum(axis=others), given, groups, by_margin=len(labels.axes) > 1)
    return _ranked(found)


def find_several_label_errors(
    probabilities: Floats, applies: Mask, labels: LabelSpace, groups: Sequence[str]
) -> tuple[LabelError, ...]:
    """Return the same where several labels may apply: ``probabilities`` and ``applies`` are ``(N, C)``."""
    found: list[LabelError] = []
    for label, name in enumerate(labels.names):
        pair = np.stack([1 - probabilities[:, label], probabilities[:, label]], axis=1)
        given = applies[:, label].astype(np.intp)
        found += _errors_of_axis(Axis(name, ABSENT_PRESENT), pair, given, groups, by_margin=False)
    return _ranked(found)


def _ranked(found: list[LabelError]) -> tuple[LabelError, ...]:
    return tuple(sorted(found, key=lambda error: (-error.score, error.row, error.axis)))


def _errors_of_axis(
    axis: Axis, probabilities: Floats, given: Classes, groups: Sequence[str], *, by_margin: bool
) -> list[LabelError]:
    values = axis.values
    logs = np.log(np.clip(probabilities, _FLOOR, None))
    joined = np.ones(len(given), np.intp)
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < len(given) and _same_within(of_row, given):
        size = np.bincount(of_row)
        mean = np.stack([np.bincount(of_row, column) / size for column in logs.T], axis=1)
        logs, joined = mean[of_row], size[of_row]
    calibrated = np.exp(_calibrate(logs, given))
    everyone = np.arange(len(given))
    others = calibrated.copy()
    others[everyone, given] = -1
    others[:, np.bincount(given, minlength=len(values)) == 0] = -1  # a value that no image has is no suggestion
    suggested = others.argmax(axis=1)
    own, best = calibrated[everyone, given], others.max(axis=1)
    score = (1 - own + best) / 2 if by_margin else 1 - own
    return [
        LabelError(
            int(row),
            axis.name,
            values[given[row]],
            values[suggested[row]],
            float(score[row]),
            int(joined[row]),
        )
        for row in np.flatnonzero(own < best)
    ]


def _same_within(of_row: Classes, given: Classes) -> bool:
    """Return whether all images of each group have one value."""
    first = np.zeros(of_row.max() + 1, np.intp)
    first[of_row] = given
    return bool((first[of_row] == given).all())


def _calibrate(logs: Floats, given: Classes) -> Floats:
    """Return log-probabilities with the temperature and the bias per value that make the given labels most likely."""
    rows = np.arange(len(given))

    def loss(parameters: Floats) -> float:
        moved = log_softmax(logs * np.exp(parameters[0]) + parameters[1:], axis=1)
        return float(-moved[rows, given].mean() + _SHRINK * (parameters**2).sum())

    best = minimize(
        loss, np.zeros(logs.shape[1] + 1), method="L-BFGS-B", bounds=[(-3, 3)] + [(-5, 5)] * logs.shape[1]
    ).x
    return np.asarray(log_softmax(logs * np.exp(best[0]) + best[1:], axis=1))
