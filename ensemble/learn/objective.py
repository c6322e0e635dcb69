"""The metric that learning maximizes: a score of all classes or of one axis, the likelihood, or a contest's metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.errors import OptionError, PredictionError
from ensemble.labels import LabelSpace
from ensemble.metrics import accuracy, confusion_matrix, macro_f1
from ensemble.scoring.answers import ScoredAnswers
from ensemble.scoring.catalog import ContestMetric, find_metric
from ensemble.submission.positive import find_positive

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
    log-likelihood, which does not depend on the decided classes. ``base`` is the name without the axis. Any other
    metric is ``contest``; its scores are negated if lower is better. Of two classes, some are about ``positive``.
    """

    name: str
    title: str
    base: str
    value_of_class: Classes
    values: int
    score: Callable[[Floats], Floats] | None
    contest: ContestMetric | None = None
    positive: int = 1

    @property
    def is_likelihood(self) -> bool:
        """True for the log-likelihood."""
        return self.score is None and self.contest is None

    @property
    def needs_decisions(self) -> bool:
        """True if the score depends on the decided classes, so that a decision rule may raise it."""
        return self.score is not None or (self.contest is not None and self.contest.kind == "decisions")

    @property
    def needs_probabilities(self) -> bool:
        """True if the score cannot be computed from the decided classes and the likelihood."""
        return self.contest is not None and self.contest.kind != "decisions"

    @property
    def by_score(self) -> bool:
        """True if candidates are to be selected by the score alone: the likelihood says little about an order."""
        return self.contest is not None and (self.contest.kind == "order" or not self.contest.vectorized)

    @property
    def resamples(self) -> int:
        """The number of bootstrap resamples."""
        if self.contest is None:
            return 500
        return 200 if self.contest.vectorized else 50

    def score_answers(self, answers: ScoredAnswers, weights: Floats) -> Floats:
        """Return a contest metric's scores ``(R,)`` of answers with weights ``(R, N)``, higher is better."""
        assert self.contest is not None
        found = self.contest.score(answers, weights)
        found = found if self.contest.greater_is_better else -found
        # a resample without one of two classes has no AUC
        return np.where(np.isfinite(found), found, np.nanmean(found) if np.isfinite(found).any() else 0.0)

    def score_probabilities(self, truth: Classes, probabilities: Floats) -> float:
        """Return the score of probabilities ``(N, C)`` of exclusive classes, decided for the most probable one."""
        answers = ScoredAnswers(
            truth, probabilities.argmax(axis=-1), probabilities, probabilities.shape[1], self.positive
        )
        return float(self.score_answers(answers, np.ones((1, len(truth))))[0])

    def score_classes(self, truth: Classes, classes: Classes) -> float:
        """Return the score of the decided classes ``(N,)``."""
        of_class = self.value_of_class
        if self.contest is not None:
            answers = ScoredAnswers(truth, classes, None, self.values, self.positive)
            return float(self.score_answers(answers, np.ones((1, len(truth))))[0])
        return float(self.score_confusion(confusion_matrix(of_class[truth], of_class[classes], classes=self.values)))

    def score_confusion(self, confusion: Floats) -> Floats:
        """Return the scores of confusion matrices ``(..., values, values)``."""
        assert self.score is not None, "the log-likelihood is not a function of the confusion matrix"
        return self.score(confusion)


def parse_metric(text: str, labels: LabelSpace, *, positive: int | None = None) -> Metric:
    """Parse ``macro-f1``, ``accuracy``, ``balanced-accuracy`` or ``nll``, or the name of any contest metric.

    The first three also with ``:axis``. Metrics of one of two classes are about ``positive``, by default the class that
    the names tell, or the second.

    Raises:
        OptionError: E204 when the metric or the axis is unknown, or the metric is not for such classes.
    """
    base, _, axis_name = text.partition(":")
    classes = np.arange(len(labels), dtype=np.intp)
    if text == LIKELIHOOD:
        return Metric(text, "log-likelihood", text, classes, len(labels), None)
    if base not in _SCORES:
        return parse_contest_metric(text, labels, positive=positive)
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


def parse_contest_metric(
    text: str, labels: LabelSpace, *, exclusive: bool = True, positive: int | None = None
) -> Metric:
    """Parse the name of a contest metric, of classes that exclude each other or of independent labels.

    Raises:
        OptionError: E204 when it is unknown, or not for such classes.
    """
    contest = find_metric(text)
    contest.require_fits(exclusive=exclusive, classes=len(labels))
    title = contest.title if contest.greater_is_better else f"negated {contest.title}"
    classes = np.arange(len(labels), dtype=np.intp)
    return Metric(
        text, title, "contest", classes, len(labels), None, contest, _positive(labels) if positive is None else positive
    )


def title_of(text: str, labels: LabelSpace, *, exclusive: bool = True) -> str:
    """Return the title of a metric that a recipe names; a function of a user is not run for it."""
    if ".py" in text:
        return text
    return (parse_metric(text, labels) if exclusive else parse_contest_metric(text, labels, exclusive=False)).title


def _positive(labels: LabelSpace) -> int:
    """Return which of two classes is the positive one: as their names tell, or the second."""
    try:
        return find_positive(labels.names, "", None) if len(labels) == 2 else 1
    except PredictionError:
        return 1
