"""Linear heads with an L2 penalty on standardized features: of all classes, of an axis, or a logit per label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp, softmax

from checkpoints.probe.blas_threads import limit_blas
from checkpoints.probe.ordinal_head import Levels, OrdinalBlock, fit_ordinal_path
from ensemble.arrays import Floats, Mask
from ensemble.card import Activation, Head
from ensemble.labels import LabelSpace

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
"""The L2 strengths to choose from: half of one times the squared weights is added to the mean loss of an image."""
_OF_BIAS = 1e-6  # keeps the bias of a class without images finite
_STEPS = 300


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One linear map ``features @ weights + bias``: weights ``(F, K)``, bias ``(K,)``."""

    weights: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """Return the logits ``(N, K)`` of features ``(N, F)``."""
        found: Floats = features @ self.weights + self.bias
        return found

    def moved(self, center: Floats) -> Block:
        """Return the block that gives the same for features from which the center ``(F,)`` was subtracted."""
        return Block(self.weights, self.bias + center @ self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """The blocks of a head, one or one per axis of ``labels``, and the classes they make together."""

    labels: LabelSpace
    blocks: tuple[Block | OrdinalBlock, ...]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    def logits(self, features: Floats) -> Floats:
        """Return the logits ``(N, C)``; of several blocks, the sums of the log-probabilities of the axes' values."""
        if len(self.blocks) == 1:
            return self.blocks[0].logits(features)
        parts = [log_softmax(block.logits(features), axis=1) for block in self.blocks]
        total: Floats = np.sum([part @ spread for part, spread in zip(parts, self.spreads(), strict=True)], axis=0)
        return total

    def moved(self, center: Floats) -> LinearHead:
        """Return the head that gives the same for features from which the center ``(F,)`` was subtracted."""
        return LinearHead(self.labels, tuple(block.moved(center) for block in self.blocks))

    def spreads(self) -> list[Floats]:
        """Return for each axis the matrix ``(K, C)`` of 0 and 1: which classes have which of its values."""
        every = np.arange(len(self.labels))
        return [
            (self.labels.along(axis.name, every) == np.arange(len(axis.values))[:, np.newaxis]).astype(np.float64)
            for axis in self.labels.axes
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The labels of one block: ``trained`` and ``true`` are classes ``(N,)``, or 0 and 1 ``(N, L)`` for labels.

    With ``balanced`` every class that there is counts as much as the others, however many images it has. With
    ``levels`` the classes are ordered, and the block is an `OrdinalBlock`.
    """

    name: str
    trained: NDArray[np.int64]
    true: NDArray[np.int64]
    outputs: int
    activation: Activation
    balanced: bool = False
    levels: Levels | None = None

    def weights(self, rows: Mask) -> Floats:
        """Return how much each of the rows counts in training, ``(n,)``, 1 on average."""
        return self._weigh(self.trained[rows])

    def _weigh(self, classes: NDArray[np.int64]) -> Floats:
        if not self.balanced:
            return np.ones(len(classes))
        counts = np.bincount(classes, minlength=self.outputs)
        found: Floats = len(classes) / (np.count_nonzero(counts) * counts[classes])
        return found

    def wanted(self, rows: Mask) -> Floats:
        """Return the target probabilities ``(n, K)`` of the rows in training."""
        chosen = self.trained[rows]
        return chosen.astype(np.float64) if chosen.ndim == 2 else np.eye(self.outputs)[chosen]

    def loss(self, logits: Floats, rows: Mask) -> float:
        """Return the sum of the negative log-likelihood of the true labels over the rows, as they are weighed."""
        true = self.true[rows]
        if true.ndim == 2:
            return float((np.logaddexp(0, logits) - true * logits).sum())
        of_row = logsumexp(logits, axis=1) - np.take_along_axis(logits, true[:, np.newaxis], axis=1)[:, 0]
        return float(of_row @ self._weigh(self.true)[rows])


def make_targets(
    labels: LabelSpace,
    head: Head,
    activation: Activation,
    trained: NDArray[np.int64],
    true: NDArray[np.int64],
    *,
    balanced: bool = False,
    ordered: Mapping[str, Levels] | None = None,
) -> list[Target]:
    """Return one target, or one per axis for the head ``axes``; ``ordered`` has the levels of the ordered axes."""
    ordered = ordered or {}
    if head == "flat":
        name = "all" if activation == "softmax" else "labels"
        return [Target(name, trained, true, len(labels), activation, balanced, ordered.get(labels.axes[0].name))]
    targets = []
    for axis in labels.axes:
        values = labels.along(axis.name, trained), labels.along(axis.name, true)
        outputs, levels = len(axis.values), ordered.get(axis.name)
        targets.append(Target(axis.name, values[0], values[1], outputs, activation, balanced, levels))
    return targets


def fit_path(
    features: Floats, target: Target, rows: Mask, strengths: Sequence[float]
) -> Iterator[Block | OrdinalBlock]:
    """Yield the block fitted on the rows for each strength, strongest first: each starts from the one before.

    Features are standardized by the rows' own mean and standard deviation, which the block then contains.
    """
    chosen = features[rows]
    mean, scale = chosen.mean(axis=0), chosen.std(axis=0)
    scale[scale <= 1e-12 * np.abs(mean)] = np.inf  # a constant feature gets no weight
    chosen = (chosen - mean) / scale
    weights = target.weights(rows)
    if target.levels is not None:
        levels = Levels(target.levels.of_row[rows], target.levels.borders)
        for ordinal in fit_ordinal_path(chosen, levels, weights / len(weights), strengths):
            matrix = ordinal.weights / scale
            yield OrdinalBlock(matrix, ordinal.cuts - mean @ matrix)
        return
    wanted = target.wanted(rows)
    start = np.zeros((chosen.shape[1] + 1) * target.outputs)
    for strength in strengths:
        start = _minimize(chosen, wanted, weights, strength, start, target.activation)
        matrix, bias = _split(start, target.outputs)
        matrix = matrix / scale[:, np.newaxis]
        yield Block(matrix, bias - mean @ matrix)


def _split(values: Floats, outputs: int) -> tuple[Floats, Floats]:
    table = values.reshape(-1, outputs)
    return table[:-1], table[-1]


def _minimize(
    features: Floats, wanted: Floats, weights: Floats, strength: float, start: Floats, activation: Activation
) -> Floats:
    """Return the flat matrix and bias that minimize the weighted mean loss plus the penalty, by L-BFGS."""
    count, outputs = wanted.shape
    share = (weights / count)[:, np.newaxis]

    def loss_and_slope(values: Floats) -> tuple[float, Floats]:
        matrix, bias = _split(values, outputs)
        logits = features @ matrix + bias
        if activation == "sigmoid":
            losses, found = np.logaddexp(0, logits).sum(axis=1), expit(logits)
        else:
            losses, found = logsumexp(logits, axis=1), softmax(logits, axis=1)
        loss = (losses - (wanted * logits).sum(axis=1)) @ share[:, 0]
        error = (found - wanted) * share
        slopes = np.vstack([features.T @ error + strength * matrix, error.sum(axis=0) + _OF_BIAS * bias])
        penalty = (strength * (matrix**2).sum() + _OF_BIAS * (bias**2).sum()) / 2
        return float(loss + penalty), slopes.ravel()

    options = {"maxiter": _STEPS, "ftol": 1e-8, "gtol": 1e-6}
    with limit_blas(features.size):
        found: Floats = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", options=options).x
    return found
