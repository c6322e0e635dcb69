"""Metrics of decisions: accuracy, F scores, Matthews and kappa, from the weighted counts of each class or label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats
from ensemble.scoring.answers import ScoredAnswers, true_classes

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Weights per class ``(R, C)``: of the images decided right, of those that have the class, of those decided as it.

    ``total`` ``(R,)`` is the weight of all images.
    """

    right: Floats
    support: Floats
    decided: Floats
    total: Floats


def count(answers: ScoredAnswers, weights: Floats) -> Counts:
    """Count right decisions, true classes and decisions in each resample of weights ``(R, N)``."""
    total = weights.sum(axis=1)
    if not answers.exclusive:
        truth, decided = answers.applies(), answers.chosen()
        right, support, chosen = (weights @ mask.astype(np.float64) for mask in (truth & decided, truth, decided))
        return Counts(right, support, chosen, total)
    assert answers.decided is not None
    truth_of, decided_as = true_classes(answers), answers.decided.astype(np.intp)
    both = np.flatnonzero(truth_of == decided_as)

    def per_class(classes: np.ndarray[tuple[int, ...], np.dtype[np.intp]], part: Floats) -> Floats:
        return np.stack([np.bincount(classes, weights=row, minlength=answers.classes) for row in part])

    return Counts(
        per_class(truth_of[both], weights[:, both]),
        per_class(truth_of, weights),
        per_class(decided_as, weights),
        total,
    )


def accuracy(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the share of images that are right: the class, or all of the labels."""
    if answers.exclusive:
        right = answers.truth == answers.decided
    else:
        right = (answers.applies() == answers.chosen()).all(axis=1)
    return row_mean(right.astype(np.float64), weights)


def hamming_loss(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the share of wrong labels; for exclusive classes that of wrong images."""
    if answers.exclusive:
        return 1 - accuracy(answers, weights)
    return row_mean((answers.applies() != answers.chosen()).mean(axis=1), weights)


def balanced_accuracy(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the mean recall of the classes that occur."""
    found = count(answers, weights)
    recall = found.right / np.where(found.support > 0, found.support, 1)
    return np.asarray(recall.sum(axis=1) / np.maximum((found.support > 0).sum(axis=1), 1))


def f_scores(found: Counts, beta: float) -> Floats:
    """Return the F score of each class ``(R, C)``, 0 where it neither occurs nor is decided."""
    square = beta * beta
    total = square * found.support + found.decided
    return np.asarray((1 + square) * found.right / np.where(total > 0, total, 1))


def f_score(answers: ScoredAnswers, weights: Floats, *, beta: float, average: str) -> Floats:
    """Return the F score averaged as in scikit-learn: ``macro``, ``weighted``, ``micro``, ``binary`` or ``sample``."""
    if average == "sample":
        return row_mean(_row_f(answers, beta), weights)
    found = count(answers, weights)
    if average == "micro":
        right, support, decided = (
            part.sum(axis=1, keepdims=True) for part in (found.right, found.support, found.decided)
        )
        return f_scores(Counts(right, support, decided, found.total), beta)[:, 0]
    scores = f_scores(found, beta)
    if average == "binary":
        return scores[:, answers.positive]
    if average == "weighted":
        total = found.support.sum(axis=1)
        return np.asarray((scores * found.support).sum(axis=1) / np.where(total > 0, total, 1))
    return np.asarray(scores.mean(axis=1))


def class_f(answers: ScoredAnswers, weights: Floats, *, beta: float) -> Floats:
    """Return the F score of each class ``(R, C)``."""
    return f_scores(count(answers, weights), beta)


def _row_f(answers: ScoredAnswers, beta: float) -> Floats:
    truth, chosen = answers.applies(), answers.chosen()
    total = beta * beta * truth.sum(axis=1) + chosen.sum(axis=1)
    return np.asarray((1 + beta * beta) * (truth & chosen).sum(axis=1) / np.where(total > 0, total, 1))


def matthews(answers: ScoredAnswers, weights: Floats) -> Floats:
    """Return the Matthews correlation of all classes (Gorodkin 2004), 0 if truth or decisions are constant.

    For independent labels it is the mean over the labels.
    """
    found = count(answers, weights)
    if not answers.exclusive:
        n = found.total[:, np.newaxis]
        above = found.right * n - found.support * found.decided
        below = found.support * (n - found.support) * found.decided * (n - found.decided)
        varies = _is_between(found.support / n) & _is_between(found.decided / n)
        root = np.sqrt(np.maximum(below, 0))
        return np.asarray(np.divide(above, root, out=np.zeros_like(above), where=varies).mean(axis=1))
    n, s, d = found.total, found.support, found.decided
    above = found.right.sum(axis=1) * n - (s * d).sum(axis=1)
    below = (n**2 - (s**2).sum(axis=1)) * (n**2 - (d**2).sum(axis=1))
    truth_varies, decisions_vary = (np.asarray(_is_between(x / n[:, np.newaxis]).any(axis=1)) for x in (s, d))
    varies = truth_varies & decisions_vary
    return np.asarray(np.divide(above, np.sqrt(np.maximum(below, 0)), out=np.zeros_like(above), where=varies))


def _is_between(shares: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which shares are neither 0 nor 1 but for rounding, which weighted sums of all rows have."""
    return np.asarray((shares > _ROUNDING) & (shares < 1 - _ROUNDING))


def kappa(answers: ScoredAnswers, weights: Floats, *, power: int) -> Floats:
    """Return Cohen's kappa: ``power`` 2 weighs a disagreement by its squared distance, 1 linearly, 0 all alike.

    The distance is that of the class numbers, as with scikit-learn's ``labels=range(C)``. NaN where truth and decisions
    are the same single class.
    """
    truth, decided = true_classes(answers), answers.decided
    assert decided is not None
    observed = row_mean(_penalty(truth - decided.astype(np.intp), power), weights)
    found = count(answers, weights)
    number = np.arange(answers.classes)
    s, d = found.support / found.total[:, np.newaxis], found.decided / found.total[:, np.newaxis]
    expected = np.einsum("ri,ij,rj->r", s, _penalty(number[:, np.newaxis] - number, power), d)
    return np.asarray(1 - np.divide(observed, expected, out=np.full_like(observed, np.nan), where=expected > 0))


def _penalty(difference: np.ndarray[tuple[int, ...], np.dtype[np.intp]], power: int) -> Floats:
    return np.asarray((difference != 0) if power == 0 else np.abs(difference) ** power, dtype=np.float64)


def distance(answers: ScoredAnswers, weights: Floats, *, power: int) -> Floats:
    """Return the mean absolute (``power`` 1) or root mean squared (2) difference of the class numbers."""
    assert answers.decided is not None
    found = row_mean(_penalty(true_classes(answers) - answers.decided.astype(np.intp), power), weights)
    return np.asarray(found ** (1 / power))


def row_mean(values: Floats, weights: Floats) -> Floats:
    """Return the weighted mean of a value per image ``(N,)`` in each resample ``(R,)``."""
    return np.asarray((weights @ values) / weights.sum(axis=1))
