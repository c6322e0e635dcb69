"""Pool several predictions of the same images into one: views, folds and members are all pooled by this function.

The input is logits and the output log-probabilities, which are logits as well: the result of one level is the input of
the next.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ensemble.arrays import Floats
from ensemble.errors import OptionError, PredictionError
from ensemble.text.plain_numbers import to_float

K = TypeVar("K", bound=Hashable)

TIE_BREAK = 1e-6
_RANK_DIGITS = 12
_AT_ONCE = 1 << 16  # numbers that expit turns into Python floats together
_LARGEST_EXP = math.log(sys.float_info.max)


@dataclass(frozen=True, slots=True)
class Pool:
    """A weighted power mean of probabilities: ``(sum_m w_m * p_m ** order) ** (1 / order)``, normalized to sum to one.

    Order 1 is the arithmetic mean, order 0 the geometric mean; the smaller the order, the more a class depends on the
    member that gives it the lowest probability. With ``votes`` each member first votes for its most probable class.
    With ``ranks`` the mean is that of the percentile ranks in each column, see `percentile_ranks`.
    """

    name: str
    order: float
    votes: bool = False
    ranks: bool = False

    @property
    def within(self) -> Pool:
        """The pool for views and folds: the same, except that only groups vote or are ranked."""
        return LINEAR if self.votes or self.ranks else self


LINEAR = Pool("linear", 1.0)
_NAMED = {
    "linear": LINEAR,
    "logit": Pool("logit", 0.0),
    "geometric": Pool("geometric", 0.0),
    "hard": Pool("hard", 1.0, votes=True),
    "rank": Pool("rank", 1.0, ranks=True),
}


def parse_pool(text: str) -> Pool:
    """Parse the name of a pool.

    - ``linear``: the mean of the softmaxed logits (soft voting);
    - ``logit``: the mean of the logits, softmaxed;
    - ``geometric``: the mean of the log-probabilities, normalized. It equals ``logit``: a log-probability is the logit
      minus a constant per row, so the means differ by a constant per row, which the final softmax cancels;
    - ``power:<p>``: the power mean of the probabilities, p = 0 or 0.001 <= abs(p) <= 100; 1 is linear, 0 is geometric;
    - ``hard``: the weighted majority vote of the groups, ties broken by the linear mean. Views and folds are pooled
      linearly before their group votes;
    - ``rank``: the mean of the groups' percentile ranks in each column, for metrics of order such as ROC AUC.

    Raises:
        OptionError: E202 when the pool is unknown or its power is out of range.
    """
    text = text.strip()
    if text in _NAMED:
        return _NAMED[text]
    if text.startswith("power:"):
        order = _parse_power(text.removeprefix("power:"))
        return Pool(f"power:{str(order).removesuffix('.0')}", order)
    raise OptionError("E202", f"{text!r} is not a pool")


def pool(logits: Iterable[ArrayLike], weights: Sequence[float], *, kind: Pool = LINEAR) -> Floats:
    """Pool logits ``(M, N, C)`` into normalized log-probabilities ``(N, C)``.

    ``logits`` may be an array or any iterable of M arrays ``(N, C)``; it is read once, one array at a time, so that
    members can be prepared lazily. Only the proportions of the M ``weights`` matter, and a member of weight 0 has no
    influence.

    Computed in float64 and log space: the product of sixteen probabilities of 1e-3 is 1e-48.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or all are 0.
    """
    shares = normalize(dict(enumerate(weights))).values()
    members = ((log_softmax(member), share) for member, share in zip(logits, shares, strict=True) if share > 0)
    if kind.votes:
        members = ((_hard_vote(log_p), share) for log_p, share in members)
    if kind.order == 0:
        return log_softmax(reduce(np.add, (share * log_p for log_p, share in members)))
    terms = (kind.order * log_p + math.log(share) for log_p, share in members)
    return log_softmax(reduce(np.logaddexp, terms) / kind.order)


def pool_by_class(logits: Iterable[ArrayLike], weights: Floats, *, kind: Pool = LINEAR) -> Floats:
    """Pool logits as `pool` does, with weights ``(M, C)`` per class; the pooled probabilities are normalized.

    Logits of independent labels are ``(M, N, C, 2)``, two for each label.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or all of a class are 0.
    """
    shares = normalize_by_class(weights)
    total: Floats | None = None
    for member, share in zip(logits, shares, strict=True):
        log_p = log_softmax(member)
        log_p = _hard_vote(log_p) if kind.votes else log_p
        of_class = share[:, np.newaxis] if log_p.ndim == 3 else share
        with np.errstate(divide="ignore", invalid="ignore"):
            term = of_class * log_p if kind.order == 0 else kind.order * log_p + np.log(of_class)
        start = np.zeros_like(term) if kind.order == 0 else np.full_like(term, -np.inf)
        total = start if total is None else total
        total = total + term if kind.order == 0 else np.logaddexp(total, term)
    assert total is not None, "a recipe has groups"
    return log_softmax(total if kind.order == 0 else total / kind.order)


def percentile_ranks(values: Floats) -> Floats:
    """Return the rank of each row in its column ``(N, C)``, 1 / N to 1, ties averaged: ``rankdata(values) / N``."""
    ranks = np.empty(values.shape)
    for column, found in zip(values.T, ranks.T, strict=True):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        found[:] = ((2 * last - counts + 1) / 2)[inverse]
    return np.asarray(ranks / len(values))


def expit(values: Floats) -> Floats:
    """Return ``1 / (1 + exp(-x))`` of each value, by the C library's exp: the bytes of ``scipy.special.expit``.

    A run of a saved recipe loads no scipy, which takes half a second and 80 MB. numpy's own exp rounds otherwise.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    found = np.empty_like(flat)
    for i in range(0, len(flat), _AT_ONCE):  # a list of all numbers would take five times their memory
        part = flat[i : i + _AT_ONCE].tolist()
        found[i : i + _AT_ONCE] = [0.0 if x < -_LARGEST_EXP else 1 / (1 + math.exp(-x)) for x in part]
    return found.reshape(np.shape(values))


def pool_ranks(scores: Iterable[Floats], weights: Floats) -> Floats:
    """Return the weighted mean of percentile ranks of scores ``(M, N, C)``, with weights ``(M, C)`` per class.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or all of a class are 0.
    """
    shares = normalize_by_class(weights)
    total = reduce(np.add, (share * percentile_ranks(one) for one, share in zip(scores, shares, strict=True)))
    # equal means of other ranks, such as of 3 and 5 or 4 and 4, stay ties
    return np.asarray(np.round(total, _RANK_DIGITS))


def normalize_by_class(weights: Floats) -> Floats:
    """Scale the weights ``(M, C)`` of each class to sum to one.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or all of a class are 0.
    """
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        raise PredictionError("E508", f"weights must be finite and not negative, got {weights[bad][0]:g}")
    total = weights.sum(axis=0)
    if (total == 0).any():
        raise PredictionError("E508", f"no group has a positive weight for class number {int((total == 0).argmax())}")
    return np.asarray(weights / total)


def log_softmax(logits: ArrayLike) -> Floats:
    """Return the float64 log-probabilities of logits ``(..., C)``; log-probabilities are returned unchanged."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    normalized: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def normalize(weights: Mapping[K, float]) -> dict[K, float]:
    """Scale the weights to sum to one.

    The sum is exact, so that equal weights give equal shares whatever their size: three times 0.1 are three thirds.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or none is above 0.
    """
    bad = [f"{name}={weight:g}" for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)]
    if bad:
        raise PredictionError("E508", f"weights must be finite and not negative, got {', '.join(bad)}")
    exact = {name: Fraction(float(weight)) for name, weight in weights.items()}
    total = sum(exact.values())
    if not total:
        raise PredictionError("E508", f"at least one of the {len(weights)} weights must be positive")
    return {name: float(weight / total) for name, weight in exact.items()}


def _hard_vote(log_p: Floats) -> Floats:
    """Return a one-hot vote for the most probable class, mixed with a millionth of the original probabilities.

    Summed over the members, that millionth is the linear mean: it breaks ties (within rounding: 0.1 + 0.2 against 0.3),
    and cannot overturn a lead of more than a millionth of the votes.
    """
    best = np.arange(log_p.shape[-1]) == log_p.argmax(axis=-1, keepdims=True)
    return np.logaddexp(np.where(best, math.log1p(-TIE_BREAK), -np.inf), log_p + math.log(TIE_BREAK))


def _parse_power(text: str) -> float:
    try:
        order = to_float(text)
    except ValueError:
        order = math.nan
    # below 0.001 the logarithm of the sum has too few significant digits to be divided by the power
    if order == 0 or 1e-3 <= abs(order) <= 100:
        return order + 0.0
    raise OptionError("E202", f"power:<p> needs p = 0 or 0.001 to 100, or -100 to -0.001, got {text!r}")
