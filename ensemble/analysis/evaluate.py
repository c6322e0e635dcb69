"""Score predictions against the ground truth, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ensemble.analysis.metric_estimates import Estimate, MetricScore, score_metrics
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
from ensemble.scoring.answers import ScoredAnswers
from ensemble.scoring.catalog import ContestMetric
from ensemble.submission.sheet import Submission
from ensemble.text.text_table import render_columns

_MOST_BY_CLASS = 3


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one set of predictions; ``nll`` and ``calibration_error`` are None without probabilities.

    ``metrics`` are those that were asked for, by name.
    """

    name: str
    macro_f1: Estimate
    accuracy: Estimate
    axes: Mapping[str, Estimate]
    nll: float | None
    calibration_error: float | None
    class_f1: tuple[float, ...]
    metrics: Mapping[str, MetricScore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of one or more sets of predictions for the same images; ``support`` is the images per true class."""

    scores: tuple[Scores, ...]
    images: int
    persons: int | None
    classes: tuple[str, ...]
    support: tuple[int, ...]

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return asdict(self)

    def render(self) -> str:
        """Return tables of the scores, and of F1 per class for up to three sets, with one column per set."""
        owner, names = _split_owner([s.name for s in self.scores])
        images = f"{owner}{self.images:,} images"
        basis = images if self.persons is None else f"{images} of {self.persons:,} persons"
        labels = ("macro F1", "accuracy", *(f"  {axis}" for axis in self.scores[0].axes), "NLL", "ECE")
        columns = [
            map(_text, (s.macro_f1, s.accuracy, *s.axes.values(), s.nll, s.calibration_error)) for s in self.scores
        ]
        scores = render_columns(
            ["", *names],
            [*zip(labels, *columns, strict=True), *metric_rows([s.metrics for s in self.scores])],
        )
        text = f"{basis}; 95 % intervals in brackets\n{scores}"
        if len(self.scores) > _MOST_BY_CLASS:
            return text
        classes = [f"{number:>2} {name}" for number, name in enumerate(self.classes)]
        rows = list(zip(classes, self.support, *(s.class_f1 for s in self.scores), strict=True))
        text = f"{text}\nF1 per class\n{render_columns(['class', 'images', *names], rows)}"
        return text + render_by_class([s.metrics for s in self.scores], classes, self.support, names)


def metric_rows(scores: Sequence[Mapping[str, MetricScore]]) -> list[tuple[str, ...]]:
    """Return a row per metric that was asked for: its title, and the score of each set of predictions."""
    return [(one.title, *(_text(each[name].estimate) for each in scores)) for name, one in scores[0].items()]


def render_by_class(
    scores: Sequence[Mapping[str, MetricScore]], classes: Sequence[str], support: Sequence[int], names: Sequence[str]
) -> str:
    """Return a table per metric that was asked for and is a mean over classes: its value for each class."""
    text = ""
    for name, one in scores[0].items():
        columns = [each[name].by_class for each in scores]
        if any(column is not None for column in columns):
            cells = [map(_text, column or [None] * len(classes)) for column in columns]
            rows = list(zip(classes, support, *cells, strict=True))
            text += f"\n{one.title} per class\n{render_columns(['class', 'images', *names], rows)}"
    return text


def _text(score: Estimate | float | None) -> str:
    if score is None:
        return "-"
    return f"{score:.4f}" if isinstance(score, float) else str(score)


def _split_owner(names: Sequence[str]) -> tuple[str, list[str]]:
    """Split names such as "r18: hflip" into their common owner, if they have one, and the rest."""
    owners = {name.rpartition(": ")[0] for name in names}
    if len(names) < 2 or len(owners) > 1 or "" in owners:
        return "", list(names)
    return f"{owners.pop()}: ", [name.rpartition(": ")[2] for name in names]


def side_by_side(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """Merge evaluations against the same ground truth into one; each set of predictions is named after its owner.

    Raises:
        PredictionError: E501 when they are not of the same classes.
    """
    first, *others = evaluations.values()
    if any(other.classes != first.classes for other in others):
        raise PredictionError("E501", "the predictions to be evaluated must have the same classes in the same order")
    named = (
        replace(scores, name=owner if len(evaluation.scores) == 1 else f"{owner}: {scores.name}")
        for owner, evaluation in evaluations.items()
        for scores in evaluation.scores
    )
    return replace(first, scores=tuple(named))


def evaluate(
    answers: Predictions | Blended | Submission,
    truth: Truth,
    *,
    metrics: Sequence[ContestMetric] = (),
    positive: int = 1,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score a member (each view, and their linear mean), a blend or a submission, also by ``metrics``.

    Intervals are from a bootstrap over persons, or over images if the ground truth has no persons. All sets of
    predictions are scored on the same resamples. Of two classes, ``positive`` is the one that metrics are about.

    Raises:
        DataError: E330 when the ground truth is not of the same images.
        PredictionError: E501 when it is not of the same classes, E505 when a prediction is not finite, E534 when images
            that could not be read are missing.
        OptionError: E204 when a metric is not for such classes.
    """
    for metric in metrics:
        metric.require_fits(exclusive=True, classes=len(truth.labels))
    if isinstance(answers, Predictions):
        require_none_missing([answers], truth.ids)
    # sorted, so that neither the order of the predictions nor that of the ground truth changes an interval
    truth = _select_rows(truth, join_rows(sorted(truth.ids), truth.ids, complain=predictions_mismatch))
    return Evaluation(
        scores=tuple(
            replace(
                _score(one, truth, resamples, seed),
                metrics=score_metrics(
                    metrics,
                    ScoredAnswers(
                        truth.classes,
                        one.classes,
                        one.probabilities if one.ranking is None else one.ranking,
                        len(truth.labels),
                        positive,
                        one.ranking is not None,
                    ),
                    truth.persons,
                    resamples=resamples,
                    seed=seed,
                ),
            )
            for one in _prediction_sets(answers, truth)
        ),
        images=len(truth.ids),
        persons=None if truth.persons is None else len(set(truth.persons)),
        classes=truth.labels.names,
        support=tuple(np.bincount(truth.classes, minlength=len(truth.labels)).tolist()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _PredictionSet:
    """Predictions in the order of the ids and classes of the ground truth; ``probabilities`` is ``(N, C)`` or None.

    ``ranking`` ``(N, C)`` only has an order within each image.
    """

    name: str
    classes: Classes
    probabilities: Floats | None
    ranking: Floats | None = None


def _prediction_sets(answers: Predictions | Blended | Submission, truth: Truth) -> Iterator[_PredictionSet]:
    rows = join_rows(truth.ids, answers.ids, complain=predictions_mismatch)
    columns = truth.labels.permutation(answers.labels, owner="the predictions")
    if isinstance(answers, Predictions):
        for view in answers.logits:
            require_finite(answers, view)
        views = {view: log_softmax(logits[rows[:, np.newaxis], columns]) for view, logits in answers.logits.items()}
        if len(views) > 1:
            views["mean"] = pool(list(views.values()), [1] * len(views))
        for view, log_p in views.items():
            yield _PredictionSet(view, decide(log_p), np.exp(log_p))
        return
    # class indices of the predictions as those of the ground truth
    classes = np.argsort(columns)[answers.classes[rows]]
    if isinstance(answers, Blended):
        yield _PredictionSet("blend", classes, answers.probabilities[rows[:, np.newaxis], columns])
    else:
        ranking = None
        if answers.ranked and answers.probabilities is not None:
            ranking = answers.probabilities[rows[:, np.newaxis], columns]
        yield _PredictionSet("submission", classes, None, ranking)


def _score(predicted: _PredictionSet, truth: Truth, resamples: int, seed: int) -> Scores:
    count = len(truth.labels)
    once = confusion_matrix(truth.classes, predicted.classes, classes=count)
    again = bootstrap(
        truth.classes, predicted.classes, classes=count, clusters=truth.persons, resamples=resamples, seed=seed
    )

    def estimate(metric: Callable[[Floats], Floats]) -> Estimate:
        return Estimate(float(metric(once)), *interval(metric(again)))

    probabilities = predicted.probabilities
    return Scores(
        name=predicted.name,
        macro_f1=estimate(macro_f1),
        accuracy=estimate(accuracy),
        axes={x.name: estimate(partial(axis_accuracy, labels=truth.labels, axis=x.name)) for x in truth.labels.axes},
        nll=None if probabilities is None else nll(truth.classes, probabilities),
        calibration_error=None if probabilities is None else calibration_error(truth.classes, probabilities),
        class_f1=tuple(class_f1(once).tolist()),
    )


def _select_rows(truth: Truth, rows: NDArray[np.intp]) -> Truth:
    persons = None if truth.persons is None else tuple(truth.persons[row] for row in rows)
    return Truth(tuple(truth.ids[row] for row in rows), truth.classes[rows], persons, truth.labels)
