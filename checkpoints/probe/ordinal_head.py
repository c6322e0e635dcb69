"""A head with cumulative links for an axis whose values are ordered: one score per image, and a cut between two values.

The probability of a value above the cut k is ``sigmoid(score + cuts[k])``, with cuts that descend: the model of
`ensemble.ordinal`. Where the rows have finer levels, such as years of age, the model is fitted to those: the cuts
between the values are some of the cuts between the levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from checkpoints.probe.blas_threads import limit_blas
from ensemble.arrays import Floats
from ensemble.ordinal import join_values

_STEPS = 300
_OF_GAP = 1e-5  # keeps the logarithm of a gap between two cuts finite
_FAR = 30.0  # the logit of a value that no row has
_LEAST_GAP = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """The level of each row, ``of_row (N,)``, and the first level ``(K - 1,)`` of each value but the lowest."""

    of_row: NDArray[np.int64]
    borders: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class OrdinalBlock:
    """The score ``features @ weights``, weights ``(F,)``, and the cuts ``(K - 1,)``, which descend."""

    weights: Floats
    cuts: Floats

    def logits(self, features: Floats) -> Floats:
        """Return the log-probabilities ``(N, K)`` of features ``(N, F)``."""
        links = (features @ self.weights)[:, np.newaxis] + self.cuts
        found: Floats = join_values(log_expit(links), log_expit(-links), self.gaps(), np.hstack)
        return found

    def moved(self, center: Floats) -> OrdinalBlock:
        """Return the block that gives the same for features from which the center ``(F,)`` was subtracted."""
        return OrdinalBlock(self.weights, self.cuts + center @ self.weights)

    def gaps(self) -> Floats:
        """Return the term ``(K - 2,)`` of each value between two cuts, see `join_values`."""
        return np.asarray(np.log(-np.expm1(np.diff(self.cuts))))


def fit_ordinal_path(
    features: Floats, levels: Levels, shares: Floats, strengths: Sequence[float]
) -> Iterator[OrdinalBlock]:
    """Yield the block for each L2 strength, strongest first: each starts from the one before.

    ``features`` ``(N, F)`` are standardized, and ``shares`` ``(N,)`` are the weights of the rows, which add up to 1.
    """
    present, places = np.unique(levels.of_row, return_inverse=True)
    # the levels of the rows alone: the cut before a value is that before its first level that there is
    before = np.searchsorted(present, levels.borders)
    start = np.concatenate([np.zeros(features.shape[1]), _first_cuts(places, shares, len(present))])
    for strength in strengths:
        if len(present) > 1:
            start = _minimize(features, places, shares, strength, start)
        cuts = np.concatenate([[_FAR], _cuts_of(start[features.shape[1] :]), [-_FAR]])[before]
        for k in range(1, len(cuts)):
            cuts[k] = min(cuts[k], cuts[k - 1] - _LEAST_GAP)
        yield OrdinalBlock(start[: features.shape[1]].copy(), cuts)


def _first_cuts(places: NDArray[np.int64], shares: Floats, count: int) -> Floats:
    """Return the first cut and the logarithms of the gaps that give each level its share of the rows."""
    if count < 2:
        return np.empty(0)
    above = 1 - np.cumsum(np.bincount(places, shares, count))[:-1]
    cuts = np.log(above) - np.log1p(-above)
    return np.concatenate([cuts[:1], np.log(np.maximum(-np.diff(cuts), _LEAST_GAP))])


def _cuts_of(values: Floats) -> Floats:
    found: Floats = values[:1] - np.concatenate([[0.0], np.cumsum(np.exp(values[1:]))]) if len(values) else values
    return found


def _minimize(features: Floats, places: NDArray[np.int64], shares: Floats, strength: float, start: Floats) -> Floats:
    """Return the weights, first cut and logarithms of gaps of the least weighted mean loss plus penalty, by L-BFGS."""
    width, top = features.shape[1], int(places.max())
    has_lower, has_upper = places > 0, places < top

    def loss_and_slope(values: Floats) -> tuple[float, Floats]:
        weights, logs = values[:width], values[width + 1 :]
        cuts = _cuts_of(values[width:])
        score = features @ weights
        lower = np.where(has_lower, score + cuts[np.maximum(places - 1, 0)], np.inf)
        upper = np.where(has_upper, score + cuts[np.minimum(places, top - 1)], -np.inf)
        gap = np.maximum(lower - upper, 1e-12)
        share = np.exp(-gap) / -np.expm1(-gap)
        losses = -log_expit(lower) - log_expit(-upper) - np.log(-np.expm1(-gap))
        of_score = (expit(upper) - expit(-lower)) * shares
        of_lower = -(expit(-lower) + share) * shares
        of_upper = (expit(upper) + share) * shares
        of_cut = np.bincount(places[has_lower] - 1, of_lower[has_lower], top)
        of_cut += np.bincount(places[has_upper], of_upper[has_upper], top)
        of_gap = -np.cumsum(of_cut[::-1])[::-1][1:] * np.exp(logs)
        penalty = (strength * (weights @ weights) + _OF_GAP * (logs @ logs)) / 2
        slopes = [features.T @ of_score + strength * weights, [of_cut.sum()], of_gap + _OF_GAP * logs]
        return float(losses @ shares + penalty), np.concatenate(slopes)

    options = {"maxiter": _STEPS, "ftol": 1e-8, "gtol": 1e-6}
    with limit_blas(features.size):
        found: Floats = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", options=options).x
    return found
