"""Metrics: macro F1, accuracy, per-axis accuracy, log loss, calibration error, and bootstrap intervals.

F1 and accuracy are computed from a confusion matrix ``(..., C, C)``, rows the ground truth, columns the prediction;
leading axes are repetitions, such as the resamples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.labels import LabelSpace


def confusion_matrix(truth: Classes, answers: Classes, *, classes: int) -> Floats:
    """Return how often class i of ``truth`` was predicted as class j, ``(C, C)``, for classes ``(N,)``."""
    return _count(truth * classes + answers, None, classes)


def class_f1(confusion: Floats) -> Floats:
    """Return the F1 per class ``(..., C)``: ``2 TP / (support + predicted)``, 0 if both are 0."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    occurrences = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    f1: Floats = np.divide(2 * right, occurrences, out=np.zeros_like(occurrences), where=occurrences > 0)
    return f1


def macro_f1(confusion: Floats) -> Floats:
    """Return the unweighted mean of the F1 of all C classes.

    This is "averaged F1" in Opitz and Burst, "Macro F1 and Macro F1" (arXiv 1911.03347), and what scikit-learn computes
    with ``average="macro", labels=range(C), zero_division=0``. Their other formula, the harmonic mean of the averaged
    precision and the averaged recall, can rank two models in the opposite order.
    """
    return np.asarray(class_f1(confusion).mean(axis=-1))


def accuracy(confusion: Floats) -> Floats:
    """Return the fraction of correct predictions."""
    return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1)))


def axis_accuracy(confusion: Floats, labels: LabelSpace, axis: str) -> Floats:
    """Return the fraction of predictions that are correct on one axis, such as ``gender``."""
    value = labels.along(axis, np.arange(len(labels)))
    right = (value[:, np.newaxis] == value).astype(np.float64)
    # a product of vectors, as the matrices of a thousand resamples with most cells set to 0 would take a gigabyte
    found = confusion.reshape(*confusion.shape[:-2], right.size) @ right.ravel()
    return np.asarray(found / confusion.sum(axis=(-2, -1)))


def nll(truth: Classes, probabilities: Floats) -> float:
    """Return the negative log-likelihood of ``(N, C)``: the mean of ``-log(probability of the true class)``.

    As in scikit-learn, probabilities are clipped at float64's epsilon: a single 0 would otherwise dominate.
    """
    of_truth = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Predictions in bins by their highest probability, each array ``(bins,)``, in ascending order.

    ``images`` counts the predictions in each bin; ``confidence`` and ``right`` are sums over them: of the highest
    probabilities, and of 1 for every correct prediction.
    """

    images: Floats
    confidence: Floats
    right: Floats


def reliability(truth: Classes, probabilities: Floats, *, bins: int = 15) -> Reliability:
    """Return bins of equal width over the highest probability ``(N, C)``, each open below and closed above."""
    return reliability_of(probabilities.max(axis=-1), probabilities.argmax(axis=-1) == truth, bins=bins)


def reliability_of(confidence: Floats, right: NDArray[np.bool_], *, bins: int = 15) -> Reliability:
    """Return bins of equal width over the confidence ``(N,)`` of predictions that are ``right`` ``(N,)`` or not."""
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)

    def total(values: Floats) -> Floats:
        return np.bincount(bin_of, weights=values, minlength=bins).astype(np.float64, copy=False)

    return Reliability(total(np.ones(len(right))), total(confidence), total(right.astype(np.float64)))


def calibration_error(truth: Classes, probabilities: Floats, *, bins: int = 15) -> float:
    """Return the expected calibration error: the distance of the confidence ``(N, C)`` from the accuracy.

    ``sum_b n_b / N * abs(accuracy_b - confidence_b)`` over the bins of `reliability`: Guo et al., "On Calibration of
    Modern Neural Networks" (2017), equations 2 and 3, with their 15 bins.
    """
    found = reliability(truth, probabilities, bins=bins)
    return float(np.abs(found.right - found.confidence).sum() / len(truth))


def bootstrap(
    truth: Classes,
    answers: Classes,
    *,
    classes: int,
    clusters: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    left_out: bool = False,
) -> Floats:
    """Return confusion matrices ``(resamples, C, C)`` of samples of the same size, drawn with replacement.

    With ``left_out`` they are of the out-of-bag rows of the same draws, each once: about 37 % of them.

    ``clusters`` names the cluster of each row, such as the person of each photograph: then whole clusters are drawn,
    since seven images of one face are not seven independent faces. Without it every row is its own cluster. The draws
    depend on the seed and the clusters only, so two models' matrices can be compared pairwise.
    """
    cells, sizes, count = truth * classes + answers, None, len(truth)
    if clusters is not None:
        # numbered in the order of their names, so that the order of the rows does not matter; the rows of a cluster
        # are put side by side, as reading a million of them in random order takes longer than all the rest
        owner = np.unique(np.asarray(clusters), return_inverse=True)[1]
        sizes = np.bincount(owner)
        cells, count = cells[np.argsort(owner, kind="stable")], len(sizes)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        weights = ((times == 0) if left_out else times).astype(np.float64)
        found.append(_count(cells, weights if sizes is None else np.repeat(weights, sizes), classes))
    return np.stack(found)


def interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a metric's bootstrap values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _count(cells: Classes, times: Floats | None, classes: int) -> Floats:
    """Return how often each cell ``truth * classes + answer`` occurs, each row counted ``times``."""
    counts = np.bincount(cells, weights=times, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.float64, copy=False)
