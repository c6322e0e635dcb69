"""Measure: what learning maximises. A score of all answers, of their part on one axis, or the likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.errors import OptionError
from ensemble.labels import LabelSpace
from ensemble.metrics import accuracy, confusion_matrix, macro_f1

LIKELIHOOD = "nll"


def balanced_accuracy(confusion: Floats) -> Floats:
    """The mean recall of the classes that occur, of counts ``(..., C, C)``."""
    images = confusion.sum(axis=-1)
    recall = np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(images, 1)
    return np.asarray(recall.sum(axis=-1) / (images > 0).sum(axis=-1))


_SCORES: Mapping[str, tuple[str, Callable[[Floats], Floats]]] = {
    "macro-f1": ("macro F1", macro_f1),
    "accuracy": ("accuracy", accuracy),
    "balanced-accuracy": ("balanced accuracy", balanced_accuracy),
}
METRICS = (*_SCORES, LIKELIHOOD)


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """A metric, perhaps of one axis: ``part[c]`` is what counts of class c, out of ``parts`` values.

    ``score`` turns counts ``(..., parts, parts)`` into scores; it is None for the likelihood, which is no matter of
    answers. ``base`` is the metric without the axis.
    """

    name: str
    title: str
    base: str
    part: Classes
    parts: int
    score: Callable[[Floats], Floats] | None

    def of_answers(self, truth: Classes, answers: Classes) -> float:
        """The score of classes ``(N,)`` that were answered."""
        return float(self.of_counts(confusion_matrix(self.part[truth], self.part[answers], classes=self.parts)))

    def of_counts(self, confusion: Floats) -> Floats:
        """The scores of counts ``(..., parts, parts)``."""
        assert self.score is not None, "the likelihood is no matter of counts"
        return self.score(confusion)


def parse_measure(text: str, labels: LabelSpace) -> Measure:
    """A measure from ``macro-f1``, ``accuracy``, ``balanced-accuracy``, ``nll``, or the first three with ``:axis``.

    Raises:
        OptionError: E204 when there is no such metric or axis.
    """
    base, _, axis = text.partition(":")
    whole = np.arange(len(labels), dtype=np.intp)
    if text == LIKELIHOOD:
        return Measure(text, "log-likelihood", text, whole, len(labels), None)
    if base not in _SCORES:
        raise OptionError("E204", f"the metric {text!r} is none of {', '.join(METRICS)}")
    title, score = _SCORES[base]
    if base == text:
        return Measure(text, title, base, whole, len(labels), score)
    found = next((one for one in labels.axes if one.name == axis), None)
    if found is None:
        raise OptionError("E204", f"there is no axis {axis!r}; there are {', '.join(one.name for one in labels.axes)}")
    return Measure(
        text, f"{title} of {axis}", base, np.asarray(labels.along(axis, whole), np.intp), len(found.values), score
    )
