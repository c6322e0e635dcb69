"""The one reduction: several answers to the same images become one. Views, folds and members all go through it.

What goes in are logits, what comes out are log-probabilities, and log-probabilities are logits again: so the result of
one level is the input of the next.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ensemble.arrays import Floats
from ensemble.errors import OptionError, PredictionError

K = TypeVar("K", bound=Hashable)

_TIE_BREAK = 1e-6


@dataclass(frozen=True, slots=True)
class Pool:
    """A weighted power mean of probabilities: ``(sum_m w_m * p_m ** order) ** (1 / order)``, made to sum to one.

    Order 1 is the plain mean, order 0 the geometric mean, and the smaller the order, the more a class needs the consent
    of every voter. With ``votes`` each voter first puts its whole weight on its best class.
    """

    name: str
    order: float
    votes: bool = False

    @property
    def within(self) -> Pool:
        """The pool of the levels below, views and folds: the same, except that only groups vote."""
        return LINEAR if self.votes else self


LINEAR = Pool("linear", 1.0)
_NAMED = {
    "linear": LINEAR,
    "logit": Pool("logit", 0.0),
    "geometric": Pool("geometric", 0.0),
    "hard": Pool("hard", 1.0, votes=True),
}


def parse_pool(text: str) -> Pool:
    """A pool from the command line.

    - ``linear``: the mean of the softmaxed logits (soft voting);
    - ``logit``: the mean of the logits, softmaxed;
    - ``geometric``: the mean of the log-probabilities, made to sum to one. It is ``logit`` under another name: a
      log-probability is the logit less a number that is the same for all classes of a row, the weighted mean of such
      numbers is one too, and the final softmax takes it away;
    - ``power:<p>``: the power mean of the probabilities, p = 0 or 0.001 <= abs(p) <= 100; 1 is linear, 0 is geometric;
    - ``hard``: the weighted vote of the groups' best classes, ties broken by the linear mean. Views and folds are
      pooled linearly before their group votes.

    Raises:
        OptionError: E202 when the pool is not known or its power is out of range.
    """
    text = text.strip()
    if text in _NAMED:
        return _NAMED[text]
    if text.startswith("power:"):
        order = _parse_power(text.removeprefix("power:"))
        return Pool(f"power:{str(order).removesuffix('.0')}", order)
    raise OptionError("E202", f"{text!r} is not a pool")


def pool(logits: Iterable[ArrayLike], weights: Sequence[float], *, kind: Pool = LINEAR) -> Floats:
    """Reduce ``(M, N, C)`` logits to ``(N, C)`` log-probabilities, each row's exponentials summing to one.

    ``logits`` may be an array or any iterable of ``(N, C)`` arrays; it is read once, one array at a time, so members
    can be prepared as they are needed. ``weights`` are M numbers of any positive sum; those in the same proportion
    give the same result, and a member of weight 0 has no influence at all.

    Everything happens in float64 and log space: the geometric mean of sixteen members at 1e-3 passes through 1e-48.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or all are 0.
    """
    shares = normalise(dict(enumerate(weights))).values()
    voters = ((log_softmax(member), share) for member, share in zip(logits, shares, strict=True) if share > 0)
    if kind.votes:
        voters = ((_ballot(log_p), share) for log_p, share in voters)
    if kind.order == 0:
        return log_softmax(reduce(np.add, (share * log_p for log_p, share in voters)))
    terms = (kind.order * log_p + math.log(share) for log_p, share in voters)
    return log_softmax(reduce(np.logaddexp, terms) / kind.order)


def log_softmax(logits: ArrayLike) -> Floats:
    """Log-probabilities of ``(..., C)`` logits in float64; log-probabilities come back as they are."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def normalise(weights: Mapping[K, float]) -> dict[K, float]:
    """The weights as shares of one.

    Sums are exact, so that equal weights are the same shares whatever their size: three times 0.1 is three thirds.

    Raises:
        PredictionError: E508 when a weight is negative or not finite, or none is above 0.
    """
    bad = [f"{name}={weight:g}" for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)]
    if bad:
        raise PredictionError("E508", f"weights must be finite and not below 0, got {', '.join(bad)}")
    exact = {name: Fraction(float(weight)) for name, weight in weights.items()}
    total = sum(exact.values())
    if not total:
        raise PredictionError("E508", f"one of the {len(weights)} weights must be above 0, got none")
    return {name: float(weight / total) for name, weight in exact.items()}


def _ballot(log_p: Floats) -> Floats:
    """All of a voter's weight on its best class, but for a millionth that stays spread as it was.

    In the sum over the voters that millionth is the linear mean: it breaks ties, and it cannot overturn a lead of more
    than a millionth of the votes. (A tie is within rounding: 0.1 + 0.2 against 0.3 is one.)
    """
    best = np.arange(log_p.shape[-1]) == log_p.argmax(axis=-1, keepdims=True)
    return np.logaddexp(np.where(best, math.log1p(-_TIE_BREAK), -np.inf), log_p + math.log(_TIE_BREAK))


def _parse_power(text: str) -> float:
    try:
        order = float(text)
    except ValueError:
        order = math.nan
    # below 0.001 the logarithm of the sum no longer holds enough digits to be divided by the power
    if order == 0 or 1e-3 <= abs(order) <= 100:
        return order + 0.0
    raise OptionError("E202", f"power:<p> needs p = 0 or 0.001 to 100, or -100 to -0.001, got {text!r}")
