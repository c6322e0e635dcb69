"""Score predictions of several labels per image against the ground truth, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ensemble.analysis.evaluate import metric_rows, render_by_class
from ensemble.analysis.metric_estimates import Estimate, MetricScore, score_metrics
from ensemble.arrays import Floats
from ensemble.errors import DataError, PredictionError
from ensemble.ids import join_rows
from ensemble.predictions.truth import Truth, predictions_mismatch
from ensemble.scoring.answers import ScoredAnswers
from ensemble.scoring.catalog import ContestMetric, find_metric
from ensemble.scoring.curves import average_precision
from ensemble.scoring.probabilistic import mean_area
from ensemble.submission.sheet import Submission
from ensemble.submission.write import THRESHOLD
from ensemble.text.text_table import render_columns


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The scores of one set of predictions; those of the order of probabilities are None where there are none.

    ``macro_f1`` is the mean of the labels' F1 scores (a label that neither applies nor is predicted anywhere has 0),
    and ``sample_f1`` that of the images'. ``average_precision`` and ``auc`` are means over the labels that apply to
    some images (the latter also not to others). ``metrics`` are those that were asked for, by name.
    """

    name: str
    macro_f1: Estimate
    micro_f1: Estimate
    sample_f1: Estimate
    average_precision: Estimate | None
    auc: Estimate | None
    label_f1: tuple[float, ...]
    metrics: Mapping[str, MetricScore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelEvaluation:
    """The scores of one or more sets of predictions of several labels; ``support`` is the images per label."""

    scores: tuple[LabelScores, ...]
    images: int
    persons: int | None
    labels: tuple[str, ...]
    support: tuple[int, ...]

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return asdict(self)

    def render(self) -> str:
        """Return a table of the scores, and of F1 per label."""
        basis = f"{self.images:,} images" + ("" if self.persons is None else f" of {self.persons:,} persons")
        rows = [
            (title, *("-" if (value := getattr(one, name)) is None else str(value) for one in self.scores))
            for title, name in _TITLES.items()
        ]
        every = [one.metrics for one in self.scores]
        rows += metric_rows(every)
        names = [one.name for one in self.scores]
        labels = list(zip(self.labels, self.support, *(one.label_f1 for one in self.scores), strict=True))
        return (
            f"{basis}; several labels per image; 95 % intervals in brackets\n{render_columns(['', *names], rows)}\n"
            f"F1 per label\n{render_columns(['label', 'images', *names], labels)}"
        ) + render_by_class(every, self.labels, self.support, names)


_TITLES = {
    "macro F1": "macro_f1",
    "micro F1": "micro_f1",
    "sample F1": "sample_f1",
    "mean average precision": "average_precision",
    "mean ROC AUC": "auc",
}


def evaluate_labels(
    answers: Mapping[str, Submission],
    truth: Truth,
    *,
    metrics: Sequence[ContestMetric] = (),
    resamples: int = 200,
    seed: int = 0,
) -> LabelEvaluation:
    """Score predictions of several labels per image by name; labels apply from a probability of 0.5, or as decided.

    Intervals are from a bootstrap over persons, or over images if the ground truth has no persons.

    Raises:
        DataError: E330 when the ground truth is not of the same images, or has one class per image.
        OptionError: E204 when a metric is not for several labels.
        PredictionError: E501 when it is not of the same labels.
    """
    for metric in metrics:
        metric.require_fits(exclusive=False, classes=len(truth.labels))
    if truth.applies is None:
        raise DataError("E330", "the ground truth has one class per image, and the predictions several labels")
    return LabelEvaluation(
        scores=tuple(_score(name, one, truth, metrics, resamples, seed) for name, one in answers.items()),
        images=len(truth.ids),
        persons=None if truth.persons is None else len(set(truth.persons)),
        labels=truth.labels.names,
        support=tuple(truth.applies.sum(axis=0).tolist()),
    )


def _score(
    name: str, answers: Submission, truth: Truth, metrics: Sequence[ContestMetric], resamples: int, seed: int
) -> LabelScores:
    # sorted, so that the order of the ground truth does not change an interval
    order = np.array(sorted(range(len(truth.ids)), key=truth.ids.__getitem__), dtype=np.intp)
    rows = join_rows([truth.ids[i] for i in order], answers.ids, complain=predictions_mismatch)
    columns = truth.labels.permutation(answers.labels, owner=name)
    if answers.probabilities is None:
        raise PredictionError("E501", f"{name} has one class per image, and the ground truth several labels")
    assert truth.applies is not None
    p = answers.probabilities[rows[:, np.newaxis], columns]
    decided = p >= THRESHOLD if answers.decisions is None else answers.decisions[rows[:, np.newaxis], columns]
    ranked = answers.decisions is None
    one = ScoredAnswers(truth.applies[order], decided, p if ranked else None, len(truth.labels))
    persons = None if truth.persons is None else [truth.persons[i] for i in order]
    found = score_metrics(LABEL_METRICS if ranked else _SHOWN, one, persons, resamples=resamples, seed=seed)
    by_label = found["macro-f1"].by_class
    assert by_label is not None

    def required(metric: str) -> Estimate:
        estimate = found[metric].estimate
        assert estimate is not None, "F scores are always defined"
        return estimate

    return LabelScores(
        name=name,
        macro_f1=required("macro-f1"),
        micro_f1=required("micro-f1"),
        sample_f1=required("sample-f1"),
        average_precision=found["present-ap"].estimate if ranked else None,
        auc=found["roc-auc"].estimate if ranked else None,
        label_f1=tuple(value or 0.0 for value in by_label),
        metrics=score_metrics(metrics, one, persons, resamples=resamples, seed=seed),
    )


def _present_precision(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the mean average precision of the labels that apply to some images."""
    return mean_area(answers, weights, area=average_precision, average="macro", absent=np.nan)


_SHOWN = tuple(find_metric(name) for name in ("macro-f1", "micro-f1", "sample-f1"))
_AREAS = (ContestMetric("present-ap", "mean average precision", "order", _present_precision), find_metric("roc-auc"))
LABEL_METRICS = (*_SHOWN, *_AREAS)
"""The metrics that are always shown, where there are probabilities."""
