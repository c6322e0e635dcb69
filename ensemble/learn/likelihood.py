"""Fit weights, class biases and temperatures by maximum likelihood; both pools have a convex loss and one optimum.

The inputs are member views (one view of one member each), stacked as log-probabilities ``(V, N, C)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ensemble.arrays import Classes, Floats
from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace

FEW_IMAGES = 30
"""Below this number of images, the bias of a class is regularized more."""

_TOLERANCE = 1e-6
_ITERATIONS = 500
_MIN_INVERSE_TEMPERATURE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class LogLinear:
    """A log-linear pool: ``p proportional to exp(sum_v w_v * log p_v + b)``, weights ``(V,)`` >= 0 and a bias ``(C,)``.

    The sum of the weights is an inverse temperature: above 1 it makes the pool more confident than its inputs.
    """

    weights: Floats
    bias: Floats

    def apply(self, log_p: Floats) -> Floats:
        """Return the log-probabilities ``(N, C)`` of the pooled member views ``(V, N, C)``."""
        return log_softmax(np.tensordot(self.weights, log_p, axes=1) + self.bias)


def fit_linear(log_p: Floats, truth: Classes) -> Floats:
    """Return the maximum-likelihood weights ``(V,)``, summing to one, of the mean of probabilities.

    Minimizes ``-mean_n log(sum_v w_v * p_v[n, truth_n])``, which is convex in w. The sum of the weights needs no
    constraint: with ``sum(w)`` added to the loss, stationarity gives ``sum_v w_v * dL/dw_v = sum(w) - 1 = 0``.
    """
    log_p_true = log_p[:, np.arange(len(truth)), truth]
    # each row's largest probability cancels from the gradient; dividing by it prevents underflow
    p = np.exp(log_p_true - log_p_true.max(axis=0))

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = weights @ p
        return float(weights.sum() - np.log(mixed).mean()), 1 - p @ (1 / mixed) / len(truth)

    # at the optimum a weight is above 0, but a step of the optimizer may set all of them to 0
    floor = 1e-12
    found = _minimize(loss, np.full(len(p), 1 / len(p)), [(floor, None)] * len(p), np.ones(len(p)))
    weights = np.where(found > 2 * floor, found, 0.0)
    return np.asarray(weights / weights.sum())


def axis_design(labels: LabelSpace) -> Floats:
    """Return the one-hot encoding ``(C, K)`` of each class's value on each axis; K values on all axes together."""
    classes = np.arange(len(labels))
    return np.concatenate(
        [np.eye(len(axis.values))[labels.along(axis.name, classes)] for axis in labels.axes], axis=1, dtype=np.float64
    )


def fit_log_linear(log_p: Floats, truth: Classes, *, bias: bool = True, design: Floats | None = None) -> LogLinear:
    """Return the maximum-likelihood log-linear pool, with weights >= 0 and a bias per class.

    Minimizes `log_linear_loss`, a multinomial logistic regression with shared coefficients. Without ``bias`` only the
    weights are fitted. With ``design`` ``(C, K)`` the biases are ``design @ t`` for K parameters t: with `axis_design`
    one per value of each axis. The bias of a class without images stays 0.
    """
    inputs, _, classes = log_p.shape
    design = np.eye(classes) if design is None else design
    images = np.bincount(truth, minlength=classes) @ design
    start = np.concatenate([np.full(inputs, 1 / inputs), np.zeros(len(images))])
    bounds = [(0.0, None)] * inputs + [(None, None) if bias and count else (0.0, 0.0) for count in images.tolist()]
    # the curvature along a bias is about n / N: scaled by its root, rare classes do not take twice as many steps
    scale = np.concatenate([np.ones(inputs), np.sqrt(len(truth) / np.maximum(images, 1))])
    found = _minimize(log_linear_loss(log_p, truth, design=design), start, bounds, scale)
    return LogLinear(found[:inputs], design @ found[inputs:])


def fit_temperatures(log_p: Floats, truth: Classes, member_of: Classes | None = None) -> Floats:
    """Return the maximum-likelihood temperature ``(V,)`` of each member view's member, fitted to all of its views.

    Temperature scaling (Guo et al., "On calibration of modern neural networks", arXiv 1706.04599) divides a member's
    logits by one number; the likelihood is concave in its inverse. ``member_of`` ``(V,)`` is the index of the member
    of each member view; by default each is a member of its own.
    """
    member = np.arange(len(log_p)) if member_of is None else member_of
    found = np.empty(len(log_p))
    for one in np.unique(member):
        views = log_p[member == one]
        rows = np.concatenate(list(views))[np.newaxis]
        inverse = fit_log_linear(rows, np.tile(truth, len(views)), bias=False).weights[0]
        # the temperature of an uninformative member has no upper bound
        found[member == one] = 1 / max(float(inverse), _MIN_INVERSE_TEMPERATURE)
    return found


def log_linear_loss(
    log_p: Floats, truth: Classes, *, design: Floats | None = None
) -> Callable[[Floats], tuple[float, Floats]]:
    """Return the loss that `fit_log_linear` minimizes: a function of ``(V + K,)`` parameters, with its gradient.

    ``mean_n -log p[n, truth_n] + sum_k s_k * t_k ** 2 / 2N``, where without ``design`` the t are the classes' biases.
    The likelihood's gradient by the bias of a class with n images is of order n, so a constant ``s = 1`` (a standard
    normal prior) already shrinks the biases of rare classes more; below 30 images s grows to ``30 / n``.
    """
    inputs, rows, classes = log_p.shape
    flat = log_p.reshape(inputs, -1)
    row = np.arange(rows)
    design = np.eye(classes) if design is None else design
    images = np.bincount(truth, minlength=classes) @ design
    strength = np.maximum(1.0, FEW_IMAGES / np.maximum(images, 1)) / rows

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, bias = parameters[:inputs], parameters[inputs:]
        logits = (weights @ flat).reshape(rows, classes)
        logits += design @ bias
        logits -= logits.max(axis=1, keepdims=True)
        of_truth = logits[row, truth]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)
        value = (np.log(total[:, 0]) - of_truth).mean() + (strength * bias**2).sum() / 2
        # the gradient by the logits: probabilities minus one-hot truth
        logits /= total
        logits[row, truth] -= 1
        logits /= rows
        slope = logits.sum(axis=0) @ design + strength * bias
        return float(value), np.concatenate([flat @ logits.reshape(-1), slope])

    return loss


def _minimize(
    loss: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    bounds: Sequence[tuple[float | None, float | None]],
    scale: Floats,
) -> Floats:
    """Return the minimum of a convex function, up to a projected gradient of 1e-6.

    L-BFGS-B runs on the parameters divided by ``scale``. Bounds are not scaled, so they must be 0, tiny or None.
    """

    def scaled(steps: Floats) -> tuple[float, Floats]:
        value, gradient = loss(steps * scale)
        return value, gradient * scale

    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "gtol": _TOLERANCE, "ftol": 0.0, "maxcor": 30}
    found = minimize(scaled, start / scale, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x * scale)
