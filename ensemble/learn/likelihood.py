"""Weights and class biases by maximum likelihood. Both pools are convex: there is one optimum, from any start.

A voter is one view of one member. Voters are stacked as log-probabilities ``(V, N, C)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ensemble.arrays import Classes, Floats
from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace

FEW = 30
_TOLERANCE = 1e-6
_ITERATIONS = 500
_LEAST = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class LogLinear:
    """``p proportional to exp(sum_v w_v * log p_v + b)``: weights ``(V,)`` not below 0 and a bias ``(C,)``.

    The sum of the weights is the inverse of a temperature: above 1 the pool is surer than its voters, below 1 less so.
    """

    weights: Floats
    bias: Floats

    def apply(self, log_p: Floats) -> Floats:
        """The log-probabilities ``(N, C)`` of voters ``(V, N, C)``."""
        return log_softmax(np.tensordot(self.weights, log_p, axes=1) + self.bias)


def fit_linear(log_p: Floats, truth: Classes) -> Floats:
    """The shares ``(V,)``, together one, of the mean of probabilities that makes the true classes ``(N,)`` likeliest.

    Minimises ``-mean_n log(sum_v w_v * p_v[n, truth_n])``, which is convex in w. The sum of the weights needs no
    constraint: with ``sum(w)`` added to the loss, stationarity gives ``sum_v w_v * dL/dw_v = sum(w) - 1 = 0``.
    """
    seen = log_p[:, np.arange(len(truth)), truth]
    # a row's largest probability cancels from the gradient, and without it nothing underflows
    p = np.exp(seen - seen.max(axis=0))

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = weights @ p
        return float(weights.sum() - np.log(mixed).mean()), 1 - p @ (1 / mixed) / len(truth)

    # at least one weight is above 0 at the optimum, but a step may pass through none
    floor = 1e-12
    found = _minimise(loss, np.full(len(p), 1 / len(p)), [(floor, None)] * len(p), np.ones(len(p)))
    weights = np.where(found > 2 * floor, found, 0.0)
    return np.asarray(weights / weights.sum())


def axis_design(labels: LabelSpace) -> Floats:
    """Which values of the axes each class has, ``(C, K)`` of zeros and ones, K values on all axes together."""
    classes = np.arange(len(labels))
    return np.concatenate(
        [np.eye(len(axis.values))[labels.along(axis.name, classes)] for axis in labels.axes], axis=1, dtype=np.float64
    )


def fit_log_linear(log_p: Floats, truth: Classes, *, bias: bool = True, design: Floats | None = None) -> LogLinear:
    """The log-linear pool that makes the true classes ``(N,)`` likeliest: weights not below 0 and a bias per class.

    Minimises `log_linear_loss`, a multinomial logistic regression with shared coefficients. Without ``bias`` only the
    weights are fitted. With ``design`` ``(C, K)`` the biases are ``design @ t`` for K numbers t: with `axis_design` one
    for each value of each axis. What does not occur keeps its bias at 0.
    """
    voters, _, classes = log_p.shape
    design = np.eye(classes) if design is None else design
    images = np.bincount(truth, minlength=classes) @ design
    start = np.concatenate([np.full(voters, 1 / voters), np.zeros(len(images))])
    bounds = [(0.0, None)] * voters + [(None, None) if bias and count else (0.0, 0.0) for count in images.tolist()]
    # the loss curves by about n / N along a bias: without its root as the unit, rare classes take twice the steps
    units = np.concatenate([np.ones(voters), np.sqrt(len(truth) / np.maximum(images, 1))])
    found = _minimise(log_linear_loss(log_p, truth, design=design), start, bounds, units)
    return LogLinear(found[:voters], design @ found[voters:])


def fit_temperatures(log_p: Floats, truth: Classes, owners: Classes | None = None) -> Floats:
    """The temperature ``(V,)`` of each voter's member that makes the true classes likeliest, its views taken together.

    Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599): one number a member, by which its logits
    are divided; the likelihood is concave in its inverse. ``owners`` ``(V,)`` numbers the member of each voter.
    """
    voters = len(log_p)
    member = np.arange(voters) if owners is None else owners
    found = np.empty(voters)
    for one in np.unique(member):
        views = log_p[member == one]
        rows = np.concatenate(list(views))[np.newaxis]
        inverse = fit_log_linear(rows, np.tile(truth, len(views)), bias=False).weights[0]
        # a member that knows nothing would be heated for ever
        found[member == one] = 1 / max(float(inverse), _LEAST)
    return found


def log_linear_loss(
    log_p: Floats, truth: Classes, *, design: Floats | None = None
) -> Callable[[Floats], tuple[float, Floats]]:
    """The function of ``(V + K,)`` weights and biases that `fit_log_linear` minimises, with its gradient.

    ``mean_n -log p[n, truth_n] + sum_k s_k * t_k ** 2 / 2N``, where without ``design`` the t are the classes' biases.
    The likelihood of a class with n images pulls at its bias with a force of order n, so an even ``s = 1``, a normal
    prior of deviation 1, already holds small classes back more; with fewer than 30 images s grows to ``30 / n``.
    """
    voters, rows, classes = log_p.shape
    flat = log_p.reshape(voters, -1)
    each = np.arange(rows)
    design = np.eye(classes) if design is None else design
    images = np.bincount(truth, minlength=classes) @ design
    strength = np.maximum(1.0, FEW / np.maximum(images, 1)) / rows

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, bias = parameters[:voters], parameters[voters:]
        logits = (weights @ flat).reshape(rows, classes)
        logits += design @ bias
        logits -= logits.max(axis=1, keepdims=True)
        of_truth = logits[each, truth]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)
        value = (np.log(total[:, 0]) - of_truth).mean() + (strength * bias**2).sum() / 2
        # the gradient by the logits: the probabilities less the truth
        logits /= total
        logits[each, truth] -= 1
        logits /= rows
        slope = logits.sum(axis=0) @ design + strength * bias
        return float(value), np.concatenate([flat @ logits.reshape(-1), slope])

    return loss


def _minimise(
    loss: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    bounds: Sequence[tuple[float | None, float | None]],
    units: Floats,
) -> Floats:
    """Where a convex function is least, to a projected gradient of 1e-6; bounds must be 0, tiny or none."""

    def scaled(steps: Floats) -> tuple[float, Floats]:
        value, gradient = loss(steps * units)
        return value, gradient * units

    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "gtol": _TOLERANCE, "ftol": 0.0, "maxcor": 30}
    found = minimize(scaled, start / units, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x * units)
