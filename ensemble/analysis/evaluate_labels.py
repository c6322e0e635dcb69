"""Score predictions of several labels per image against the ground truth, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.analysis.evaluate import Estimate
from ensemble.arrays import Floats
from ensemble.errors import DataError, PredictionError
from ensemble.ids import join_rows
from ensemble.metrics import interval
from ensemble.predictions.truth import Truth, predictions_mismatch
from ensemble.submission.sheet import Decisions, Submission
from ensemble.submission.write import THRESHOLD
from ensemble.text_table import render_columns


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The scores of one set of predictions; those of the order of probabilities are None where there are none.

    ``macro_f1`` is the mean of the labels' F1 scores (a label that neither applies nor is predicted anywhere has 0),
    and ``sample_f1`` that of the images'. ``average_precision`` and ``auc`` are means over the labels that apply to
    some images and not to others.
    """

    name: str
    macro_f1: Estimate
    micro_f1: Estimate
    sample_f1: Estimate
    average_precision: Estimate | None
    auc: Estimate | None
    label_f1: tuple[float, ...]


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
        names = [one.name for one in self.scores]
        labels = list(zip(self.labels, self.support, *(one.label_f1 for one in self.scores), strict=True))
        return (
            f"{basis}; several labels per image; 95 % intervals in brackets\n{render_columns(['', *names], rows)}\n"
            f"F1 per label\n{render_columns(['label', 'images', *names], labels)}"
        )


_TITLES = {
    "macro F1": "macro_f1",
    "micro F1": "micro_f1",
    "sample F1": "sample_f1",
    "mean average precision": "average_precision",
    "mean ROC AUC": "auc",
}


def evaluate_labels(
    answers: Mapping[str, Submission], truth: Truth, *, resamples: int = 200, seed: int = 0
) -> LabelEvaluation:
    """Score predictions of several labels per image by name; labels apply from a probability of 0.5, or as decided.

    Intervals are from a bootstrap over persons, or over images if the ground truth has no persons.

    Raises:
        DataError: E330 when the ground truth is not of the same images, or has one class per image.
        PredictionError: E501 when it is not of the same labels.
    """
    if truth.applies is None:
        raise DataError("E330", "the ground truth has one class per image, and the predictions several labels")
    draws = _draws(truth, resamples, seed)
    return LabelEvaluation(
        scores=tuple(_score(name, one, truth, truth.applies, draws) for name, one in answers.items()),
        images=len(truth.ids),
        persons=None if truth.persons is None else len(set(truth.persons)),
        labels=truth.labels.names,
        support=tuple(truth.applies.sum(axis=0).tolist()),
    )


def _score(
    name: str, answers: Submission, truth: Truth, applies: Decisions, draws: Sequence[NDArray[np.intp]]
) -> LabelScores:
    rows = join_rows(truth.ids, answers.ids, complain=predictions_mismatch)
    columns = truth.labels.permutation(answers.labels, owner=name)
    if answers.probabilities is None:
        raise PredictionError("E501", f"{name} has one class per image, and the ground truth several labels")
    p = answers.probabilities[rows[:, np.newaxis], columns]
    decided = p >= THRESHOLD if answers.decisions is None else answers.decisions[rows[:, np.newaxis], columns]

    def estimate(metric: Callable[[NDArray[np.intp]], float]) -> Estimate:
        again = np.array([metric(draw) for draw in draws])
        return Estimate(metric(np.arange(len(truth.ids))), *interval(again[~np.isnan(again)]))

    ranked = answers.decisions is None
    return LabelScores(
        name=name,
        macro_f1=estimate(lambda i: float(_f1(applies[i], decided[i], axis=0).mean())),
        micro_f1=estimate(lambda i: float(_f1(applies[i].reshape(-1), decided[i].reshape(-1), axis=0))),
        sample_f1=estimate(lambda i: float(_f1(applies[i], decided[i], axis=1).mean())),
        average_precision=estimate(lambda i: _mean(average_precision, applies[i], p[i])) if ranked else None,
        auc=estimate(lambda i: _mean(roc_auc, applies[i], p[i])) if ranked else None,
        label_f1=tuple(_f1(applies, decided, axis=0).tolist()),
    )


def _draws(truth: Truth, resamples: int, seed: int) -> list[NDArray[np.intp]]:
    """Return the images of each resample: those of persons drawn with replacement."""
    random = np.random.default_rng(seed)
    # sorted, so that the order of the ground truth does not change an interval
    order = np.array(sorted(range(len(truth.ids)), key=truth.ids.__getitem__), dtype=np.intp)
    if truth.persons is None:
        return [order[random.integers(len(order), size=len(order))] for _ in range(resamples)]
    members: dict[str, list[int]] = {}
    for row in order.tolist():
        members.setdefault(truth.persons[row], []).append(row)
    groups = [np.array(members[person], dtype=np.intp) for person in sorted(members)]
    return [
        np.concatenate([groups[j] for j in random.integers(len(groups), size=len(groups))]) for _ in range(resamples)
    ]


def _f1(truth: Decisions, decided: Decisions, *, axis: int) -> Floats:
    """Return ``2 TP / (truths + decisions)`` along an axis, and 0 where there are neither."""
    hits = 2.0 * (truth & decided).sum(axis=axis)
    total = truth.sum(axis=axis) + decided.sum(axis=axis)
    return np.asarray(hits / np.maximum(total, 1))


def _mean(metric: Callable[[Decisions, Floats], float], truth: Decisions, scores: Floats) -> float:
    found = [metric(truth[:, j], scores[:, j]) for j in range(truth.shape[1])]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def roc_auc(truth: Decisions, scores: Floats) -> float:
    """Return the area under the ROC curve of one label ``(N,)``, NaN if it applies to no or to all images.

    It is the Mann-Whitney statistic: the share of pairs of an image with and one without the label in which the former
    has the higher score, ties counted half.
    """
    positive = int(truth.sum())
    if positive in {0, len(truth)}:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def average_precision(truth: Decisions, scores: Floats) -> float:
    """Return the average precision of one label ``(N,)``, ``sum (R_k - R_k-1) P_k`` over thresholds.

    It is NaN if the label applies to no or to all images. Images of equal scores share a threshold, as in scikit-learn.
    """
    positive = int(truth.sum())
    if positive in {0, len(truth)}:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision, recall = hits[last] / (last + 1), hits[last] / positive
    return float((np.diff(np.append(0.0, recall)) * precision).sum())
