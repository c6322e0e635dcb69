"""Areas under curves of one column, for many resamples at once: ROC AUC, partial AUC, average precision.

All take scores ``(N,)``, which rows are positive ``(N,)``, and weights ``(R, N)``: how often each row counts in each of
R resamples. They return ``(R,)``. Rows of equal scores share a threshold, as in scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Weights of the positive and the negative rows at each of G thresholds, ``(R, G)``, highest score first."""

    positive: Floats
    negative: Floats

    @property
    def positives(self) -> Floats:
        """The weight of all positive rows ``(R,)``."""
        return np.asarray(self.positive.sum(axis=1))

    @property
    def negatives(self) -> Floats:
        """The weight of all negative rows ``(R,)``."""
        return np.asarray(self.negative.sum(axis=1))


def make_curve(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Curve:
    """Sort the rows by score and add up the weights of equal scores."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sorted_weights, is_positive = weights[:, order], positive[order]
    return Curve(
        np.add.reduceat(sorted_weights * is_positive, starts, axis=1),
        np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1),
    )


def roc_auc(curve: Curve) -> Floats:
    """Return the area under the ROC curve, NaN where all rows are positive or none is.

    It is the Mann-Whitney statistic: the share of pairs of a positive and a negative row in which the former has the
    higher score, ties counted half.
    """
    below = curve.negatives[:, np.newaxis] - np.cumsum(curve.negative, axis=1)
    pairs = (curve.positive * (below + curve.negative / 2)).sum(axis=1)
    return _divide(pairs, curve.positives * curve.negatives)


def roc_auc_up_to(curve: Curve, max_fpr: float) -> Floats:
    """Return the partial area up to a false-positive rate, standardized to 0.5 for chance and 1 for perfect.

    McClish (1989), as scikit-learn's ``roc_auc_score(..., max_fpr=...)``.
    """
    area = partial_area(curve, max_fpr)
    low = max_fpr**2 / 2
    return np.asarray(0.5 * (1 + (area - low) / (max_fpr - low)))


def partial_area(curve: Curve, max_fpr: float) -> Floats:
    """Return the area under the ROC curve at false-positive rates from 0 to ``max_fpr``."""
    positives, negatives = curve.positives, curve.negatives
    zero = np.zeros((len(curve.positive), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr = np.concatenate([zero, np.cumsum(curve.positive, axis=1) / positives[:, np.newaxis]], axis=1)
        fpr = np.concatenate([zero, np.cumsum(curve.negative, axis=1) / negatives[:, np.newaxis]], axis=1)
        # each segment of the curve is cut at max_fpr
        width = np.diff(fpr, axis=1)
        used = np.clip(max_fpr - fpr[:, :-1], 0, width)
        slope = np.divide(np.diff(tpr, axis=1), width, out=np.zeros_like(width), where=width > 0)
        area = (used * (tpr[:, :-1] + slope * used / 2)).sum(axis=1)
    return np.asarray(np.where((positives > 0) & (negatives > 0), area, np.nan))


def partial_auc_above(curve: Curve, min_tpr: float) -> Floats:
    """Return the area under the ROC curve where the true-positive rate is at least ``min_tpr``: 0 to ``1 - min_tpr``.

    The metric of ISIC 2024: that contest computes it as the partial area of the curve with both axes swapped.
    """
    swapped = Curve(curve.negative[:, ::-1], curve.positive[:, ::-1])
    return partial_area(swapped, 1 - min_tpr)


def average_precision(curve: Curve) -> Floats:
    """Return the average precision, ``sum (R_k - R_k-1) P_k`` over thresholds; NaN without a positive row."""
    hits = np.cumsum(curve.positive, axis=1)
    drawn = hits + np.cumsum(curve.negative, axis=1)
    precision = np.divide(hits, drawn, out=np.zeros_like(hits), where=drawn > 0)
    return _divide((curve.positive * precision).sum(axis=1), curve.positives)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
