"""The metric that learning maximises: a score of all classes or of one axis, or the likelihood."""

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
    """Return the mean recall of the classes that occur, from confusion matrices ``(..., C, C)``."""
    images = confusion.sum(axis=-1)
    recall = np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(images, 1)
    return np.asarray(recall.sum(axis=-1) / (images > 0).sum(axis=-1))


@dataclass(frozen=True, slots=True)
class _ConfusionScore:
    title: str
    of_confusion: Callable[[Floats], Floats]


_SCORES: Mapping[str, _ConfusionScore] = {
    "macro-f1": _ConfusionScore("macro F1", macro_f1),
    "accuracy": _ConfusionScore("accuracy", accuracy),
    "balanced-accuracy": _ConfusionScore("balanced accuracy", balanced_accuracy),
}
METRICS = (*_SCORES, LIKELIHOOD)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric of all classes or of one axis; higher is better.

    ``value_of_class[c]`` is what is compared for class c: the class itself, or its value on the axis; there are
    ``values`` of them. ``score`` turns confusion matrices ``(..., values, values)`` into scores; it is None for the
    log-likelihood, which does not depend on the decided classes. ``base`` is the name without the axis.
    """

    name: str
    title: str
    base: str
    value_of_class: Classes
    values: int
    score: Callable[[Floats], Floats] | None

    def score_classes(self, truth: Classes, classes: Classes) -> float:
        """Return the score of the decided classes ``(N,)``."""
        of_class = self.value_of_class
        return float(self.score_confusion(confusion_matrix(of_class[truth], of_class[classes], classes=self.values)))

    def score_confusion(self, confusion: Floats) -> Floats:
        """Return the scores of confusion matrices ``(..., values, values)``."""
        assert self.score is not None, "the log-likelihood is not a function of the confusion matrix"
        return self.score(confusion)


def parse_metric(text: str, labels: LabelSpace) -> Metric:
    """Parse ``macro-f1``, ``accuracy``, ``balanced-accuracy`` or ``nll``; the first three also with ``:axis``.

    Raises:
        OptionError: E204 when the metric or the axis is unknown.
    """
    base, _, axis_name = text.partition(":")
    classes = np.arange(len(labels), dtype=np.intp)
    if text == LIKELIHOOD:
        return Metric(text, "log-likelihood", text, classes, len(labels), None)
    if base not in _SCORES:
        raise OptionError("E204", f"unknown metric {text!r}; choose one of {', '.join(METRICS)}")
    score = _SCORES[base]
    if base == text:
        return Metric(text, score.title, base, classes, len(labels), score.of_confusion)
    axis = next((axis for axis in labels.axes if axis.name == axis_name), None)
    if axis is None:
        known = ", ".join(axis.name for axis in labels.axes)
        raise OptionError("E204", f"unknown axis {axis_name!r}; the label space has {known}")
    return Metric(
        name=text,
        title=f"{score.title} of {axis.name}",
        base=base,
        value_of_class=np.asarray(labels.along(axis.name, classes), np.intp),
        values=len(axis.values),
        score=score.of_confusion,
    )
