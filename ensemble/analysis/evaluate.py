"""Evaluate: answers against the truth, with an interval around every score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.blend.blend import Blended
from ensemble.blend.decision_rules import decide
from ensemble.blend.pooling import log_softmax, pool
from ensemble.errors import PredictionError
from ensemble.ids import join_rows
from ensemble.metrics import (
    accuracy,
    axis_accuracy,
    bootstrap,
    calibration_error,
    class_f1,
    confusion_matrix,
    interval,
    macro_f1,
    nll,
)
from ensemble.predictions.dataset import Predictions, require_finite, require_none_missing
from ensemble.predictions.truth import Truth, predictions_mismatch
from ensemble.submission.format import Submission
from ensemble.text_table import render_columns

_MOST_BY_CLASS = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Scores:
    """How good one set of answers is; without probabilities ``nll`` and ``calibration_error`` are None."""

    name: str
    macro_f1: Estimate
    accuracy: Estimate
    axes: Mapping[str, Estimate]
    nll: float | None
    calibration_error: float | None
    class_f1: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one or more sets of answers to the same images; ``support`` counts the images of each true class."""

    scores: tuple[Scores, ...]
    images: int
    persons: int | None
    classes: tuple[str, ...]
    support: tuple[int, ...]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return asdict(self)

    def render(self) -> str:
        """For people: the scores, and, for up to three sets of answers, each class's support and F1."""
        images = f"{self.images:,} images"
        basis = images if self.persons is None else f"{images} of {self.persons:,} persons"
        scores: list[tuple[str | float | None, ...]] = [
            (s.name, str(s.macro_f1), str(s.accuracy), *map(str, s.axes.values()), s.nll, s.calibration_error)
            for s in self.scores
        ]
        header = ("answers", "macro F1", "accuracy", *self.scores[0].axes, "NLL", "ECE")
        summary = f"{basis}; 95 % intervals\n{render_columns(header, scores)}"
        if len(self.scores) > _MOST_BY_CLASS:
            return summary
        by_class: list[tuple[str | float, ...]] = [
            (number, name, self.support[number], *(s.class_f1[number] for s in self.scores))
            for number, name in enumerate(self.classes)
        ]
        return f"{summary}\n" + render_columns(
            ("class", "name", "images", *(f"F1 {s.name}" for s in self.scores)), by_class
        )


def side_by_side(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """One table of several evaluations against the same truth, each set of answers under its owner's name.

    Raises:
        PredictionError: E501 when they are not of the same classes.
    """
    first, *others = evaluations.values()
    if any(other.classes != first.classes for other in others):
        raise PredictionError("E501", "what is evaluated together must be of the same classes in the same order")
    named = (
        replace(scores, name=owner if len(evaluation.scores) == 1 else f"{owner}: {scores.name}")
        for owner, evaluation in evaluations.items()
        for scores in evaluation.scores
    )
    return replace(first, scores=tuple(named))


def evaluate(
    answers: Predictions | Blended | Submission, truth: Truth, *, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Score a member (each view, and the views' linear mean), a blend or a submission.

    Intervals come from a bootstrap over the persons, or over the images where the truth names no persons. Every set of
    answers meets the same resamples.

    Raises:
        DataError: E330 when the truth is not of the same images.
        PredictionError: E501 when it is not of the same classes, E505 when a prediction is not finite, E534 when images
            could not be read and are missing.
    """
    if isinstance(answers, Predictions):
        require_none_missing([answers], truth.ids)
    # sorted, so that neither the order of the answers nor that of the truth is of any consequence
    truth = _take(truth, join_rows(sorted(truth.ids), truth.ids, complain=predictions_mismatch))
    return Evaluation(
        scores=tuple(_score(one, truth, resamples, seed) for one in _answers(answers, truth)),
        images=len(truth.ids),
        persons=None if truth.persons is None else len(set(truth.persons)),
        classes=truth.labels.names,
        support=tuple(np.bincount(truth.classes, minlength=len(truth.labels)).tolist()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """One set of answers in the order of the truth's ids and classes; ``probabilities`` is ``(N, C)`` or None."""

    name: str
    classes: Classes
    probabilities: Floats | None


def _answers(answers: Predictions | Blended | Submission, truth: Truth) -> Iterator[_Answers]:
    rows = join_rows(truth.ids, answers.ids, complain=predictions_mismatch)
    columns = truth.labels.permutation(answers.labels, owner="the answers")
    if isinstance(answers, Predictions):
        for view in answers.logits:
            require_finite(answers, view)
        views = {view: log_softmax(logits[rows[:, np.newaxis], columns]) for view, logits in answers.logits.items()}
        if len(views) > 1:
            views["mean"] = pool(list(views.values()), [1] * len(views))
        for view, log_p in views.items():
            yield _Answers(view, decide(log_p), np.exp(log_p))
        return
    # a class number of the answers, as a class number of the truth
    classes = np.argsort(columns)[answers.classes[rows]]
    if isinstance(answers, Blended):
        yield _Answers("blend", classes, answers.probabilities[rows[:, np.newaxis], columns])
    else:
        yield _Answers("submission", classes, None)


def _score(answers: _Answers, truth: Truth, resamples: int, seed: int) -> Scores:
    count = len(truth.labels)
    once = confusion_matrix(truth.classes, answers.classes, classes=count)
    again = bootstrap(
        truth.classes, answers.classes, classes=count, clusters=truth.persons, resamples=resamples, seed=seed
    )

    def estimate(metric: Callable[[Floats], Floats]) -> Estimate:
        return Estimate(float(metric(once)), *interval(metric(again)))

    probabilities = answers.probabilities
    return Scores(
        name=answers.name,
        macro_f1=estimate(macro_f1),
        accuracy=estimate(accuracy),
        axes={x.name: estimate(partial(axis_accuracy, labels=truth.labels, axis=x.name)) for x in truth.labels.axes},
        nll=None if probabilities is None else nll(truth.classes, probabilities),
        calibration_error=None if probabilities is None else calibration_error(truth.classes, probabilities),
        class_f1=tuple(class_f1(once).tolist()),
    )


def _take(truth: Truth, rows: NDArray[np.intp]) -> Truth:
    persons = None if truth.persons is None else tuple(truth.persons[row] for row in rows)
    return Truth(tuple(truth.ids[row] for row in rows), truth.classes[rows], persons, truth.labels)
