"""Labels of which some are wrong: the probability of each value from several models, fitted to the labels as given.

Models are pooled log-linearly, with a weight per model and a bias per value. A label is wrong with a probability that
depends on the right value and on the given one, a noise layer over a softmax (Goldberger and Ben-Reuven 2017), as the
confident joint of confident learning estimates it (Northcutt et al. 2021). All of it is fitted together, by maximum a
posteriori: first with one noise for all values, then by expectation maximization with one of each pair, shrunk towards
the former. Wrong labels therefore do not make the probabilities less certain, and an axis that is only hard to tell,
such as age, gets a noise near zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from ensemble.arrays import Classes, Floats

_USUAL = -4.0  # log-odds of the noise that is expected before labels are seen: 1.8 %
# standard deviations of normal priors: of those log-odds, of the logarithm of all weights together, which are near 1
# where models are calibrated, and of the logarithm of one weight; a bias has 1
_OF_NOISE, _OF_SCALE, _OF_WEIGHT = 1.5, 0.5, 2.0
_LIMIT = 8.0  # of the logarithm of a weight, of a bias and of the noise's log-odds, from where they start
_LABELS = 100  # strength of the common noise, in labels of each value; chosen on simulated labels of 2 to 100 values
_ROUNDS = 8
_SETTLED = 1e-4  # change of a transition
_TINY = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class NoisyLabels:
    """The result of a fit to U labels of K values by M models.

    ``pooled`` ``(U, K)`` are the probabilities of the true values before the given ones are looked at, and ``wrong``
    ``(U,)`` is the probability that the given value is wrong, after that. ``transitions`` ``(K, K)`` has in each row
    the probabilities of the given values, where that of the row is right. ``weights`` has one number per model.
    """

    pooled: Floats
    wrong: Floats
    transitions: Floats
    weights: tuple[float, ...]

    @property
    def noise(self) -> float:
        """The estimated share of wrong labels."""
        return float(self.wrong.mean())


def fit_noisy_labels(logs: Floats, given: Classes) -> NoisyLabels:
    """Fit weights, biases and transitions to the ``given`` values ``(U,)``, from log-probabilities ``(M, U, K)``."""
    models, units, values = logs.shape
    start = np.concatenate([np.full(models, -np.log(models)), np.zeros(values), [_USUAL]])
    best = _minimize(_CommonNoise(logs, given, start), start)
    common = _symmetric(float(expit(best[-1])), values)
    transitions, best = common, best[:-1]
    for _ in range(_ROUNDS):
        best = _minimize(_GivenNoise(logs, given, start[:-1], transitions), best)
        pooled = _pool(logs, best)
        true = _posterior(pooled, transitions, given)
        counts = np.stack([np.bincount(given, column, minlength=values) for column in true.T])
        before = transitions
        transitions = (counts + _LABELS * common) / (counts.sum(axis=1, keepdims=True) + _LABELS)
        if np.abs(transitions - before).max() < _SETTLED:
            break
    true = _posterior(pooled, transitions, given)
    weights = tuple(float(weight) for weight in np.exp(best[:models]))
    return NoisyLabels(pooled, 1 - true[np.arange(units), given], transitions, weights)


def _symmetric(noise: float, values: int) -> Floats:
    transitions = np.full((values, values), noise / (values - 1))
    np.fill_diagonal(transitions, 1 - noise)
    return transitions


def _pool(logs: Floats, parameters: Floats) -> Floats:
    models, _, values = logs.shape
    weighted = np.tensordot(np.exp(parameters[:models]), logs, axes=1)
    return np.asarray(np.exp(log_softmax(weighted + parameters[models : models + values], axis=1)))


def _posterior(pooled: Floats, transitions: Floats, given: Classes) -> Floats:
    """Return the probabilities ``(U, K)`` of the true values, given the labels."""
    joint = pooled * transitions[:, given].T
    return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), _TINY))


def _minimize(loss: _CommonNoise | _GivenNoise, start: Floats) -> Floats:
    bounds = [(middle - _LIMIT, middle + _LIMIT) for middle in loss.center]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


@dataclass(frozen=True, slots=True, eq=False)
class _GivenNoise:
    """The negative log-posterior per label of weights (their logarithms) and biases, for known ``transitions``.

    ``center`` are the means of the normal priors.
    """

    logs: Floats
    given: Classes
    center: Floats
    transitions: Floats

    def __call__(self, parameters: Floats) -> tuple[float, Floats]:
        """Return the value and its gradient."""
        pooled = _pool(self.logs, parameters)
        joint = pooled * self.transitions[:, self.given].T
        seen = np.maximum(joint.sum(axis=1), _TINY)
        slope = pooled - joint / seen[:, None]
        models, labels = len(self.logs), len(self.given)
        weights = np.exp(parameters[:models])
        by_weight = weights * np.einsum("uk,muk->m", slope, self.logs)
        scale = float(np.log(weights.sum())) / _OF_SCALE
        deviations = np.where(np.arange(len(parameters)) < models, _OF_WEIGHT, 1)
        away = (parameters - self.center) / deviations
        gradient = np.concatenate([by_weight, slope.sum(axis=0)]) + away / deviations
        gradient[:models] += scale / _OF_SCALE * weights / weights.sum()
        return float(-np.log(seen).sum() + ((away**2).sum() + scale**2) / 2) / labels, gradient / labels


@dataclass(frozen=True, slots=True, eq=False)
class _CommonNoise:
    """The same with one noise for all values; its log-odds are the last parameter."""

    logs: Floats
    given: Classes
    center: Floats

    def __call__(self, parameters: Floats) -> tuple[float, Floats]:
        """Return the value and its gradient."""
        values, labels = self.logs.shape[2], len(self.given)
        noise = float(expit(parameters[-1]))
        rest = _GivenNoise(self.logs, self.given, self.center[:-1], _symmetric(noise, values))
        value, gradient = rest(parameters[:-1])
        own = _pool(self.logs, parameters)[np.arange(labels), self.given]
        other = noise / (values - 1)
        seen = np.maximum((1 - noise) * own + other * (1 - own), _TINY)
        by_noise = -(((1 - own) / (values - 1) - own) / seen).sum() * noise * (1 - noise)
        away = float(parameters[-1] - self.center[-1]) / _OF_NOISE
        last = (by_noise + away / _OF_NOISE) / labels
        return value + away**2 / 2 / labels, np.append(gradient, last)
