"""Label errors, ranked by the probability of being wrong, from out-of-fold probabilities of one or more models.

Each axis of a label space is judged by itself, and each label where several may apply, see `fit_noisy_labels`. Where
the images of a group, such as a person, have the same value on an axis, their evidence is joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints.audit.noisy_labels import fit_noisy_labels
from ensemble.arrays import Classes, Floats, Mask
from ensemble.errors import OptionError, enumerate_some
from ensemble.labels import Axis, LabelSpace

ABSENT_PRESENT = ("absent", "present")
_FLOOR = 1e-6  # of a probability
LEAST_SCORE = 0.01  # score of a label error that is listed
_ALIKE = 0.9  # share of the chance disagreement within groups that is absent where a value is the group's


@dataclass(frozen=True, slots=True)
class LabelError:
    """A label that is probably wrong: ``given`` on an axis of the image ``row``, where ``suggested`` is more probable.

    ``score`` is the probability that the given value is wrong. ``joined`` is the number of images whose evidence was
    joined.
    """

    row: int
    axis: str
    given: str
    suggested: str
    score: float
    joined: int


@dataclass(frozen=True, slots=True)
class JudgedAxis:
    """The judgment of an axis, or of a label of several.

    ``noise`` is the estimated share of wrong values. ``weights`` has one number per model. ``joined`` is the number of
    groups whose images' evidence was joined, 0 for none. ``mixed`` of them have images of several values. ``unlisted``
    images have a more probable value than the given one, but the given one is hardly wrong: the axis is hard to tell.
    """

    axis: str
    noise: float
    weights: tuple[float, ...]
    joined: int
    mixed: int
    unlisted: int

    def as_dict(self, models: Sequence[str]) -> dict[str, Any]:
        """Return it as JSON-ready values, the weights by the names of the models."""
        counts = {"joined": self.joined, "mixed": self.mixed, "unlisted": self.unlisted}
        return {"noise": self.noise, "weights": dict(zip(models, self.weights, strict=True))} | counts

    def render(self, models: Sequence[str]) -> str:
        """Return it as one line of text."""
        parts = [f"{self.axis}: about {100 * self.noise:.2g} % wrong"]
        if self.joined:
            parts.append(f"one value per group: the evidence of each of {self.joined:,} groups is joined")
        if self.mixed:
            parts.append(f"{self.mixed:,} groups have several values")
        if len(models) > 1:
            parts.append("weights " + ", ".join(f"{n} {w:.2f}" for n, w in zip(models, self.weights, strict=True)))
        if self.unlisted:
            parts.append(f"{self.unlisted:,} labels are not the most probable value, but hard to tell and not listed")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """The label errors, the most certain first, and the judgment of each axis."""

    errors: tuple[LabelError, ...]
    axes: tuple[JudgedAxis, ...]


def find_label_errors(
    members: Sequence[Floats],
    classes: Classes,
    labels: LabelSpace,
    groups: Sequence[str],
    *,
    join: Sequence[str] | None = None,
) -> LabelErrors:
    """Return the images whose label on an axis is probably not the right value.

    ``members`` are the probabilities ``(N, C)`` of models that were not trained on the image, and ``classes`` ``(N,)``
    the labels as given. ``groups`` names the person or other group of each image. ``join`` names the axes whose value
    is the group's; by default they are recognized by the groups' agreement.

    Raises:
        OptionError: E204 when ``join`` names an axis that the labels do not have.
    """
    _require_axes(join, [axis.name for axis in labels.axes])
    cubes = np.stack(members).reshape(len(members), -1, *labels.shape)
    judged = []
    for place, axis in enumerate(labels.axes):
        if len(axis.values) < 2:
            continue  # an only value cannot be wrong
        others = tuple(2 + other for other in range(len(labels.axes)) if other != place)
        given = labels.along(axis.name, classes)
        judged.append(_judge(axis, cubes.sum(axis=others), given, groups, join))
    return _together(judged)


def find_several_label_errors(
    members: Sequence[Floats],
    applies: Mask,
    labels: LabelSpace,
    groups: Sequence[str],
    *,
    join: Sequence[str] | None = None,
) -> LabelErrors:
    """Return the same where several labels may apply: probabilities and ``applies`` are ``(N, C)``."""
    _require_axes(join, labels.names)
    judged = []
    for label, name in enumerate(labels.names):
        present = np.stack([member[:, label] for member in members])
        pairs = np.stack([1 - present, present], axis=2)
        given = applies[:, label].astype(np.intp)
        judged.append(_judge(Axis(name, ABSENT_PRESENT), pairs, given, groups, join))
    return _together(judged)


def _require_axes(join: Sequence[str] | None, names: Sequence[str]) -> None:
    unknown = sorted(set(join or ()) - set(names))
    if unknown:
        raise OptionError("E204", f"--join: {enumerate_some(unknown)} is none of {enumerate_some(list(names))}")


def _together(judged: Sequence[tuple[JudgedAxis, list[LabelError]]]) -> LabelErrors:
    errors = [error for _, some in judged for error in some]
    errors.sort(key=lambda error: (-error.score, error.row, error.axis))
    return LabelErrors(tuple(errors), tuple(axis for axis, _ in judged))


def _judge(
    axis: Axis, members: Floats, given: Classes, groups: Sequence[str], join: Sequence[str] | None
) -> tuple[JudgedAxis, list[LabelError]]:
    """Judge one axis by the members' probabilities ``(M, N, K)`` of its values."""
    logs = np.log(np.clip(members, _FLOOR, None))
    of_row = np.unique(np.asarray(groups), return_inverse=True)[1]
    together = _is_the_groups(of_row, given) if join is None else axis.name in join
    size = np.bincount(of_row)
    unit_of_row, rows = np.arange(len(given)), np.arange(len(given))
    if together:
        # a unit is a given value of a group: a group of two values has two units with the same evidence
        rows, unit_of_row = np.unique(of_row * len(axis.values) + given, return_index=True, return_inverse=True)[1:]
        sums = np.stack([[np.bincount(of_row, column) for column in member.T] for member in logs])
        logs = (sums / size).transpose(0, 2, 1)[:, of_row[rows]]
    fit = fit_noisy_labels(logs, given[rows])
    units = np.arange(len(rows))
    others = fit.pooled.copy()
    others[units, given[rows]] = -1
    others[:, np.bincount(given, minlength=len(axis.values)) == 0] = -1  # what no image has is no suggestion
    suggested, doubtful = others.argmax(axis=1), others.max(axis=1) > fit.pooled[units, given[rows]]
    listed = doubtful & (fit.wrong >= LEAST_SCORE)
    errors = [
        LabelError(
            int(row),
            axis.name,
            axis.values[given[row]],
            axis.values[suggested[unit]],
            float(fit.wrong[unit]),
            int(size[of_row[row]]) if together else 1,
        )
        for row, unit in enumerate(unit_of_row)
        if listed[unit]
    ]
    joined = len(size) if together else 0
    mixed = len(rows) - joined if together else 0
    unlisted = int((doubtful & ~listed)[unit_of_row].sum())
    return JudgedAxis(axis.name, fit.noise, fit.weights, joined, mixed, unlisted), errors


def _is_the_groups(of_row: Classes, given: Classes) -> bool:
    """Return whether images of a group have one value far more often than images at random do.

    A rare value is absent from most groups by chance, so the disagreement within groups is compared with that between
    any two images. Some wrong labels may make a few groups disagree.
    """
    size, values = np.bincount(of_row), int(given.max()) + 1
    within = (size * (size - 1)).sum()
    share = np.bincount(given) / len(given)
    chance = 1 - (share**2).sum()
    if within == 0 or chance == 0:
        return False
    same = np.unique(of_row * values + given, return_counts=True)[1]
    return bool(1 - (same * (same - 1)).sum() / within <= (1 - _ALIKE) * chance)
