"""Metrics of probabilities: log loss, Brier, ranks within an image, and curves averaged over classes or labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ensemble.arrays import Floats
from ensemble.scoring.answers import ScoredAnswers, true_classes
from ensemble.scoring.counted import row_mean
from ensemble.scoring.curves import Curve, average_precision, make_curve

_EPS = float(np.finfo(np.float64).eps)


def log_loss(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the mean of ``-log(probability of the truth)``, clipped at float64's epsilon as in scikit-learn.

    For independent labels it is the mean binary log loss over the labels.
    """
    p = answers.known()
    if answers.exclusive:
        of_truth = p[np.arange(answers.rows), true_classes(answers)]
        return row_mean(-np.log(np.clip(of_truth, _EPS, 1 - _EPS)), weights)
    clipped = np.clip(p, _EPS, 1 - _EPS)
    return row_mean(-np.where(answers.applies(), np.log(clipped), np.log1p(-clipped)).mean(axis=1), weights)


def brier(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the mean squared distance of the probabilities from the truth.

    Summed over the classes, but for two exclusive classes that of one (as scikit-learn halves it); for independent
    labels the mean over the labels.
    """
    squares = (answers.known() - answers.applies()) ** 2
    if answers.exclusive:
        return row_mean(np.asarray(squares.sum(axis=1) / (2 if answers.classes == 2 else 1)), weights)
    return row_mean(squares.mean(axis=1), weights)


def calibration_error(answers: ScoredAnswers, weights: Floats, *, bins: int = 15) -> Floats:
    """Return the expected calibration error of the most probable class, or of every label (Guo et al. 2017)."""
    p = answers.known()
    if answers.exclusive:
        confidence, right = p.max(axis=1), p.argmax(axis=1) == answers.truth
        each = weights
    else:
        confidence, right = p.reshape(-1), answers.applies().reshape(-1)
        each = np.repeat(weights, answers.classes, axis=1)
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gap = confidence - right
    found = np.stack([np.bincount(bin_of, weights=row * gap, minlength=bins) for row in each])
    return np.asarray(np.abs(found).sum(axis=1) / each.sum(axis=1))


def top_accuracy(answers: ScoredAnswers, weights: Floats, *, k: int) -> Floats:
    """Return the share of images whose class is among the k most probable; of equal ones the later class is first.

    That is scikit-learn's order in ``top_k_accuracy_score``. For independent labels any one that applies is enough.
    """
    best = np.argsort(answers.known(), axis=1, kind="stable")[:, ::-1][:, :k]
    hit = np.take_along_axis(answers.applies(), best, axis=1).any(axis=1)
    return row_mean(np.asarray(hit, dtype=np.float64), weights)


def mean_average_precision_at(answers: ScoredAnswers, weights: Floats, *, k: int) -> Floats:
    """Return MAP@k: the mean over images of ``sum_j<=k precision_j * relevant_j / min(k, labels)``.

    For one class per image it is ``1 / rank``, 0 beyond k. Of equal probabilities the earlier class is first, as in a
    ranking that `ens blend` writes. An image without a label has 0.
    """
    best = np.argsort(-answers.known(), axis=1, kind="stable")[:, :k]
    applies = answers.applies()
    hit = np.take_along_axis(applies, best, axis=1)
    precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
    possible = np.minimum(applies.sum(axis=1), k)
    return row_mean((precision * hit).sum(axis=1) / np.maximum(possible, 1), weights)


def label_ranking(answers: ScoredAnswers, weights: Floats, *, by_label: bool) -> Floats:
    """Return scikit-learn's label ranking average precision; ``by_label`` every label counts alike (lwlrap).

    Per image and true label: the share of true labels among those ranked at least as high. An image with no or with
    all labels has 1; with ``by_label`` one without labels does not count.
    """
    p, truth = answers.known(), answers.applies()
    rows, total, labels = np.arange(len(p)), np.zeros(len(p)), truth.sum(axis=1)
    for label in range(answers.classes):
        above = p >= p[rows, label, np.newaxis]
        total += np.where(truth[:, label], (above & truth).sum(axis=1) / above.sum(axis=1), 0.0)
    if by_label:
        counted = weights @ labels
        return np.asarray(np.divide(weights @ total, counted, out=np.full(len(weights), np.nan), where=counted > 0))
    single = (labels == 0) | (labels == answers.classes)
    return row_mean(np.where(single, 1.0, total / np.maximum(labels, 1)), weights)


def per_column(answers: ScoredAnswers, weights: Floats, area: Callable[[Curve], Floats]) -> Floats:
    """Return the area of every class or label ``(R, C)``."""
    p, truth = answers.known(), answers.applies()
    return np.stack(
        [area(make_curve(p[:, c], truth[:, c], weights)) for c in range(answers.classes)],
        axis=1,
    )


def mean_area(
    answers: ScoredAnswers, weights: Floats, *, area: Callable[[Curve], Floats], average: str, absent: float
) -> Floats:
    """Return the mean area over classes or labels, ``macro``, ``weighted`` by their images, or ``micro`` (pooled).

    Classes that occur on no image have ``absent``, where that is a number, and else are left out, as are those that a
    resample lacks. Of two exclusive classes only the positive one counts.
    """
    p, truth, columns = answers.known(), answers.applies(), answers.columns()
    if average == "micro":
        every = np.repeat(weights, len(columns), axis=1)
        found = area(make_curve(p[:, columns].reshape(-1), truth[:, columns].reshape(-1), every))
        return found if truth[:, columns].any() or np.isnan(absent) else np.full_like(found, absent)
    found = np.stack([area(make_curve(p[:, c], truth[:, c], weights)) for c in columns], axis=1)
    if not np.isnan(absent):
        found[:, ~truth[:, columns].any(axis=0)] = absent
    share = weights @ truth[:, columns].astype(np.float64) if average == "weighted" else np.ones_like(found)
    share = np.where(np.isnan(found), 0.0, share)
    total = share.sum(axis=1)
    summed = (share * np.nan_to_num(found)).sum(axis=1)
    return np.asarray(np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0))


def padded_average_precision(answers: ScoredAnswers, weights: Floats, *, rows: int) -> Floats:
    """Return the macro average precision after appending rows that have every label with probability 1.

    BirdCLEF 2023's padded cmAP, with 5 rows: a label that applies nowhere has a score, and a rare one counts less.
    """
    p, truth = answers.known(), answers.applies()
    more = np.ones((len(weights), rows))
    each = np.concatenate([weights, more], axis=1)
    padding = np.ones(rows)
    found = [
        average_precision(
            make_curve(np.concatenate([p[:, c], padding]), np.concatenate([truth[:, c], padding > 0]), each)
        )
        for c in range(answers.classes)
    ]
    return np.asarray(np.mean(found, axis=0))
