"""Turn out-of-fold predictions into predictions like those of a submission, which averages the folds of each model.

Out of fold, each image has the prediction of one fold; a test image has those of all k folds, and their mean is better:
what differs from fold to fold averages out. With V the variance of a fold's log-probabilities around the mean of their
true class (measured out of fold, where the truth is known), and S the variance between the folds on the same image
(measured on the test images, where all folds predict), the mean of k folds has the variance ``V - S * (1 - 1 / k)``
around the same class means. Each out-of-fold prediction is therefore moved towards the mean of its true class, by the
factor ``sqrt(1 - (1 - 1 / k) * S / V)``, which gives all of them that variance. This is a simulation of predictions
of the submission's quality, from which weights, biases and rules are then learned and compared.

A model that was trained on R fold splits has R predictions of every image by models that did not see it. Then S is
measured between these, on the images whose truth is known, and the mean of the R, of variance V, is turned into one of
k models by the factor ``sqrt(1 - (1 / R - 1 / k) * S / V)``.

The mean of the folds' probabilities is less confident than that of their logits. Its simulation adds to the moved
prediction the differences of k folds from their mean, taken from a test image of the same predicted class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.blend.pooling import log_softmax

_LEAST = 0.25
"""The smallest factor: a larger part of the deviations than this never averages out between folds of one model."""


@dataclass(frozen=True, slots=True, eq=False)
class FoldAverage:
    """Predictions ``(N, C)`` like the mean of several folds, as log-probabilities.

    ``of_probabilities`` is the logarithm of the mean of the folds' probabilities, ``of_logits`` the normalized mean of
    their logits. ``factor`` is what the deviations from the class means were multiplied by.
    """

    of_probabilities: Floats
    of_logits: Floats
    factor: float


def simulate_fold_average(looks: Floats, truth: Classes, folds: Floats, *, seed: int) -> FoldAverage:
    """Return out-of-fold log-probabilities ``(R, N, C)`` as they would be if ``k`` models had been averaged.

    R is the number of fold splits, each with a model that did not see the image. ``folds`` ``(k, M, C)`` are the
    log-probabilities of all k models on M other images, without a truth; k is above R.
    """
    splits, count = len(looks), len(folds)
    held_out, others = _centre(looks), _centre(folds)
    centred = held_out.mean(axis=0)
    mean_of_class = np.zeros((centred.shape[1],) * 2)
    for c in np.unique(truth):
        mean_of_class[c] = centred[truth == c].mean(axis=0)
    deviation = centred - mean_of_class[truth]
    variance = float(np.square(deviation).mean())
    between = float((held_out if splits > 1 else others).var(axis=0, ddof=1).mean())
    share = 1 - (1 / splits - 1 / count) * between / variance if variance > 0 else 1.0
    factor = float(np.sqrt(max(share, _LEAST**2)))
    moved = mean_of_class[truth] + factor * deviation
    rows = _matching_rows(moved.argmax(axis=1), others.mean(axis=0).argmax(axis=1), seed)
    differences = others - others.mean(axis=0)
    total = sum((np.exp(log_softmax(moved + one[rows])) for one in differences), start=np.zeros_like(moved))
    return FoldAverage(np.log(np.maximum(total / count, np.finfo(np.float64).tiny)), log_softmax(moved), factor)


def _centre(log_p: Floats) -> Floats:
    """Return log-probabilities minus their mean over the classes, which changes no decision."""
    return np.asarray(log_p - log_p.mean(axis=-1, keepdims=True), dtype=np.float64)


def _matching_rows(wanted: Classes, available: Classes, seed: int) -> Classes:
    """Return for each wanted class the row of a random available image of that class, or of any if it has none."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(available), size=len(wanted))
    for c in np.unique(wanted):
        there = np.flatnonzero(available == c)
        if len(there):
            asking = np.flatnonzero(wanted == c)
            rows[asking] = there[rng.integers(len(there), size=len(asking))]
    return rows
