"""Turn out-of-fold predictions into predictions like those of a submission, which averages the folds of each model.

Out of fold, each image has the prediction of one fold; a test image has those of all k folds, and their mean is better:
what differs from fold to fold averages out. Let W be the covariance of the out-of-fold log-probabilities of all member
views around the mean of their true class (measured where the truth is known), and B the covariance between the folds on
the same image (measured on the test images, where all folds predict). The mean of k folds has the covariance
``W - (1 - 1 / k) * B`` around the same class means. Each image's deviations from them are therefore multiplied by the
symmetric transport ``W^1/2 (I - (1 - 1 / k) * W^-1/2 B W^-1/2)^1/2 W^-1/2``, which gives all images that covariance:
what the folds agree on stays, what they differ in shrinks, and members whose own errors shrink are more alike. This is
a simulation of predictions of the submission's quality, from which weights, biases and rules are then learned and
compared.

A model that was trained on R fold splits has R predictions of every image by models that did not see it. Then B is
measured between these, on the images whose truth is known, and the mean of the R, of covariance W, is turned into one
of k models with ``1 / R - 1 / k`` in place of ``1 - 1 / k``.

The mean of the folds' probabilities is less confident than that of their logits. Its simulation adds to the moved
prediction the differences of k folds from their mean, taken from a test image of the same predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Classes, Floats, Mask
from ensemble.blend.pooling import log_softmax
from ensemble.predictions.out_of_fold import mean_logits

_LEAST = 0.25
"""The smallest factor: a larger part of the deviations than this never averages out between folds of one model."""
_LARGEST = 1024
"""Member views times classes up to which covariances are used; above it, one factor for each member view."""
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class FoldAverage:
    """Predictions ``(N, C)`` of a member view like the mean of several folds, as log-probabilities or log-odds.

    ``of_probabilities`` is the logarithm of the mean of the folds' probabilities, ``of_logits`` the normalized mean of
    their logits. ``factor`` is the root of the variance around the class means, divided by what it was before.
    """

    of_probabilities: Floats
    of_logits: Floats
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class _FoldedView:
    """One member view out of fold and on new images: centered log-probabilities of classes, or log-odds of one label.

    ``looks`` ``(R, N, C)`` and ``folds`` ``(k, M, C)``; ``mean`` ``(N, C)`` is that of the true class, or of the
    images where the label applies, or does not; ``deviation`` ``(N, C)`` is the rest of the mean of the looks.
    """

    looks: Floats
    folds: Floats
    mean: Floats
    deviation: Floats

    @property
    def share(self) -> float:
        """The part of the covariance between the folds that averaging them removes."""
        return 1 / len(self.looks) - 1 / len(self.folds)

    @property
    def differences(self) -> Floats:
        """Each model's deviation from the mean of all models on the same image ``(models, images, C)``."""
        models = self.looks if len(self.looks) > 1 else self.folds
        return np.asarray(models - models.mean(axis=0))

    def is_alike(self, other: _FoldedView) -> bool:
        """Tell if both were predicted by as many models of the same images, so that one fold's can be paired."""
        return self.differences.shape == other.differences.shape and (len(self.looks) > 1) == (len(other.looks) > 1)


def simulate_fold_averages(
    looks: Sequence[Floats], truth: Classes, folds: Sequence[Floats], *, seed: int
) -> list[FoldAverage]:
    """Return out-of-fold log-probabilities of V member views as they would be if k models had been averaged.

    ``looks[v]`` ``(R, N, C)`` are those of R fold splits, each with a model that did not see the image; ``folds[v]``
    ``(k, M, C)`` are those of all k models on M other images, without a truth. k is above R; both may differ between
    member views.
    """
    views = [_view(one, truth, other) for one, other in zip(looks, folds, strict=True)]
    if sum(view.deviation.shape[1] for view in views) > _LARGEST:
        moved = [_shrink(view) for view in views]
    else:
        moved = _transport(views, free=len(truth) - len(np.unique(truth)))
    found = []
    for view, deviation in zip(views, moved, strict=True):
        answers = view.mean + deviation
        before, after = np.square(view.deviation).sum(), np.square(deviation).sum()
        factor = float(np.sqrt(after / before)) if before > 0 else 1.0
        found.append(FoldAverage(_average(answers, view.folds, seed), log_softmax(answers), factor))
    return found


def simulate_label_averages(
    looks: Sequence[Floats], applies: Mask, folds: Sequence[Floats], *, seed: int
) -> list[FoldAverage]:
    """Return out-of-fold log-odds ``(N, C)`` of labels as they would be if k models had been averaged.

    As `simulate_fold_averages`, with log-odds, and every label ``applies`` ``(N, C)`` a choice of its own: covariances
    are those of the member views' log-odds of one label.
    """
    moved = [np.empty(applies.shape) for _ in looks]
    means = [np.empty(applies.shape) for _ in looks]
    factors = np.ones((applies.shape[1], len(looks)))
    for label in range(applies.shape[1]):
        pairs = zip(looks, folds, strict=True)
        views = [_label_view(one[:, :, [label]], applies[:, label], other[:, :, [label]]) for one, other in pairs]
        for v, deviation in enumerate(_transport(views, free=len(applies) - 2)):
            answers = views[v].mean + deviation
            before, after = np.square(views[v].deviation).sum(), np.square(deviation).sum()
            factors[label, v] = np.sqrt(after / before) if before > 0 else 1.0
            moved[v][:, label] = answers[:, 0]
            means[v][:, label] = _average_odds(answers[:, 0], views[v].folds[:, :, 0], seed + label)
    return [FoldAverage(means[v], moved[v], float(factors[:, v].mean())) for v in range(len(looks))]


def _label_view(looks: Floats, applies: Mask, folds: Floats) -> _FoldedView:
    """Return a view of one label, with the log-odds ``(R, N, 1)`` and ``(k, M, 1)``."""
    odds = np.asarray(looks, dtype=np.float64)
    mean = odds.mean(axis=0)
    of_class = np.zeros_like(mean)
    for value in (False, True):
        of_class[applies == value] = mean[applies == value].mean() if (applies == value).any() else 0.0
    return _FoldedView(odds, np.asarray(folds, dtype=np.float64), of_class, mean - of_class)


def _average_odds(answers: Floats, folds: Floats, seed: int) -> Floats:
    """Return the log-odds ``(N,)`` of the mean of the folds' probabilities, whose mean log-odds are ``answers``."""
    mean = folds.mean(axis=0)
    rows = _matching_rows((answers > 0).astype(np.intp), (mean > 0).astype(np.intp), seed)
    return mean_logits((answers + (folds - mean)[:, rows])[..., np.newaxis], independent=True)[:, 0]


def _view(looks: Floats, truth: Classes, folds: Floats) -> _FoldedView:
    held_out = _center(looks)
    centered = held_out.mean(axis=0)
    mean_of_class = np.zeros((centered.shape[1],) * 2)
    for c in np.unique(truth):
        mean_of_class[c] = centered[truth == c].mean(axis=0)
    return _FoldedView(held_out, _center(folds), mean_of_class[truth], centered - mean_of_class[truth])


def _shrink(view: _FoldedView) -> Floats:
    """Return the deviations ``(N, C)`` of one member view, multiplied by one factor."""
    variance, between = np.square(view.deviation).mean(), _between(view, view).trace() / view.deviation.shape[1]
    kept = 1 - view.share * between / variance if variance > 0 else 1.0
    return np.asarray(np.sqrt(max(kept, _LEAST**2)) * view.deviation)


def _transport(views: Sequence[_FoldedView], *, free: int) -> list[Floats]:
    """Return the deviations ``(N, C)`` of all member views, with the covariance that they have after averaging.

    ``free`` are the degrees of freedom of W. Each view is scaled to a variance of one. Where W has few degrees of
    freedom for its size, it is mixed with the shape of B: all directions of a view then shrink alike.
    """
    scales = [float(np.sqrt(np.square(view.deviation).mean())) or 1.0 for view in views]
    deviations = np.concatenate([view.deviation / scale for view, scale in zip(views, scales, strict=True)], axis=1)
    count, size = len(views), deviations.shape[1]
    removed = np.zeros((count, size // count, count, size // count))
    for i, one in enumerate(views):
        for j, other in enumerate(views):
            if one.is_alike(other):
                share = np.sqrt(one.share * other.share)
                removed[i, :, j] = share * _between(one, other) / (scales[i] * scales[j])
    spread = np.sqrt(np.einsum("vcvc->v", removed) / (size // count))
    spread[spread == 0] = 1.0
    shape = removed / (spread[:, np.newaxis, np.newaxis, np.newaxis] * spread[:, np.newaxis])
    mixed = size / (size + max(free, 0))
    within = deviations.T @ deviations / max(free, 1)
    within = (1 - mixed) * within + mixed * shape.reshape(size, size) + _RIDGE * np.eye(size)
    values, vectors = np.linalg.eigh(within)
    root = np.sqrt(np.maximum(values, _RIDGE**2))
    to_unit, from_unit = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
    parts, directions = np.linalg.eigh(to_unit @ removed.reshape(size, size) @ to_unit)
    factors = np.sqrt(np.clip(1 - parts, _LEAST**2, 1.0))
    moved = deviations @ (from_unit @ (directions * factors) @ directions.T @ to_unit).T
    return [scale * part for scale, part in zip(scales, np.split(moved, count, axis=1), strict=True)]


def _between(one: _FoldedView, other: _FoldedView) -> Floats:
    """Return the covariance ``(C, C)`` between the models on the same image, of two views or of one with itself."""
    a, b = one.differences, other.differences
    return np.asarray(np.tensordot(a, b, axes=((0, 1), (0, 1))) / ((len(a) - 1) * a.shape[1]))


def _average(answers: Floats, folds: Floats, seed: int) -> Floats:
    """Return the logarithm of the mean of the folds' probabilities ``(N, C)``, whose mean logits are ``answers``."""
    mean = folds.mean(axis=0)
    rows = _matching_rows(answers.argmax(axis=1), mean.argmax(axis=1), seed)
    total = sum((np.exp(log_softmax(answers + (one - mean)[rows])) for one in folds), start=np.zeros_like(answers))
    return np.asarray(np.log(np.maximum(total / len(folds), np.finfo(np.float64).tiny)))


def _center(log_p: Floats) -> Floats:
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
