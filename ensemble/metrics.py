"""How good answers are: macro F1, accuracy, per-axis accuracy, log-loss, calibration, and how sure one can be of it.

All but the last two start from a confusion matrix ``(..., C, C)``, rows the truth, columns the answer; leading axes
are repetitions, such as the resamples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.labels import LabelSpace


def confusion_matrix(truth: Classes, answers: Classes, *, classes: int) -> Floats:
    """How often class i ``(N,)`` was answered with class j ``(N,)``, as ``(C, C)``."""
    return _count(truth * classes + answers, None, classes)


def class_f1(confusion: Floats) -> Floats:
    """Each class's F1 ``(..., C)``: ``2 TP / (support + answers)``, 0 where a class neither occurs nor is answered."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    occurrences = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    f1: Floats = np.divide(2 * right, occurrences, out=np.zeros_like(occurrences), where=occurrences > 0)
    return f1


def macro_f1(confusion: Floats) -> Floats:
    """The plain mean of all C class F1s.

    This is "averaged F1" in Opitz and Burst, "Macro F1 and Macro F1" (arXiv 1911.03347), and what scikit-learn computes
    with ``average="macro", labels=range(C), zero_division=0``. Their other formula, the harmonic mean of the averaged
    precision and the averaged recall, can rank two models the other way round.
    """
    return np.asarray(class_f1(confusion).mean(axis=-1))


def accuracy(confusion: Floats) -> Floats:
    """The share of right answers."""
    return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1)))


def axis_accuracy(confusion: Floats, labels: LabelSpace, axis: str) -> Floats:
    """The share of answers that are right on one axis, such as ``gender``, whatever they say on the others."""
    value = labels.along(axis, np.arange(len(labels)))
    right = value[:, np.newaxis] == value
    return np.asarray((confusion * right).sum(axis=(-2, -1)) / confusion.sum(axis=(-2, -1)))


def nll(truth: Classes, probabilities: Floats) -> float:
    """The negative log-likelihood: the mean of ``-log(probability of the true class)``, for ``(N, C)`` probabilities.

    As in scikit-learn, no probability counts as less than float64's epsilon: a single 0 would make the rest invisible.
    """
    of_truth = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Answers sorted into bins by their highest probability, each array ``(bins,)``, the least sure first.

    ``images`` counts a bin's answers, ``confidence`` and ``right`` are sums over them: of the highest probabilities,
    and of 1 for every right answer.
    """

    images: Floats
    confidence: Floats
    right: Floats


def reliability(truth: Classes, probabilities: Floats, *, bins: int = 15) -> Reliability:
    """Bins of equal width over the highest probability ``(N, C)``, each open below and closed above."""
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == truth
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)

    def total(values: Floats) -> Floats:
        return np.bincount(bin_of, weights=values, minlength=bins).astype(np.float64, copy=False)

    return Reliability(total(np.ones(len(truth))), total(confidence), total(right.astype(np.float64)))


def calibration_error(truth: Classes, probabilities: Floats, *, bins: int = 15) -> float:
    """The expected calibration error: how far the highest probability ``(N, C)`` is from the share of right answers.

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
    """Confusion matrices ``(resamples, C, C)`` of the same size of sample, drawn again with replacement.

    With ``left_out`` they are of the rows that the same draws left out, each once: about 37 % of them.

    ``clusters`` says which rows belong together, such as the person of each photograph: then whole clusters are drawn,
    since seven pictures of one face are not seven independent faces. Without it every row stands for itself. The draws
    depend on the seed and the clusters alone, so two models' matrices can be compared pair by pair.
    """
    cells = truth * classes + answers
    # numbered in the order of their names, so that the order of the rows is of no consequence
    owner = np.arange(len(truth)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples))
    counted = ((times == 0).astype(np.intp) if left_out else times for times in drawn)
    return np.stack([_count(cells, times[owner], classes) for times in counted])


def interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a metric's bootstrap values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _count(cells: Classes, times: NDArray[np.intp] | None, classes: int) -> Floats:
    """How often each cell ``truth * classes + answer`` occurs, a row counted as many ``times`` as it was drawn."""
    counts = np.bincount(cells, weights=times, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.float64, copy=False)
