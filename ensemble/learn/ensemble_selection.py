"""Greedy ensemble selection: add the voter that helps most, again and again, with replacement.

Caruana et al., "Ensemble selection from libraries of models" (ICML 2004), with the three remedies of its section 2
against overfitting: replacement, a sorted start, and bags of voters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ensemble.arrays import Classes, Floats

Score: TypeAlias = Callable[[Classes], float]
"""How good answers ``(N,)`` are, higher is better."""

_TINY = np.finfo(np.float64).tiny
_BAG = 10


def select_in_bags(
    log_p: Floats, truth: Classes, *, score: Score | None, steps: int = 15, bags: int = 5, seed: int = 0
) -> Floats:
    """The mean of the shares ``(V,)`` that `select` gives in each of several bags of voters ``(V, N, C)``.

    A bag holds a random half of the voters, of which the ten best by themselves are considered ("Getting the most out
    of ensemble selection", ICDM 2006, prunes likewise): a voter that is only lucky on these images is in half the bags.
    """
    rng = np.random.default_rng(seed)
    voters = len(log_p)
    # half of three voters or fewer is no ensemble
    size = min(voters, max(3, (voters + 1) // 2))
    alone = [_rank(np.exp(one), 1, truth, score) for one in log_p]
    shares = np.zeros(voters)
    for _ in range(bags):
        bag = rng.choice(voters, size=size, replace=False)
        best = sorted(sorted(bag), key=lambda voter: alone[voter], reverse=True)[:_BAG]
        shares[best] += select(log_p[best], truth, score=score, steps=steps) / bags
    return shares


def select(log_p: Floats, truth: Classes, *, score: Score | None, steps: int = 15) -> Floats:
    """The shares ``(V,)``, together one, of voters ``(V, N, C)`` in the mean of probabilities found greedily.

    It starts from the best n voters by themselves, for the n that does best, then adds one voter ``steps`` times,
    whether or not that helps, and returns the best ensemble that it passed. Equal scores are ordered by the
    log-likelihood, and then by the voters' order. Without ``score`` the log-likelihood alone counts.
    """
    p = np.exp(log_p)
    order = sorted(range(len(p)), key=lambda voter: _rank(p[voter], 1, truth, score), reverse=True)
    prefixes = [order[: n + 1] for n in range(len(order))]
    total = np.zeros_like(p[0])
    ranks: list[tuple[float, float]] = []
    for voter in order:
        total += p[voter]
        ranks.append(_rank(total, len(ranks) + 1, truth, score))
    best_rank = max(ranks)
    best = chosen = prefixes[ranks.index(best_rank)]
    total = p[chosen].sum(axis=0)
    for _ in range(steps):
        tried = [_rank(total + one, len(chosen) + 1, truth, score) for one in p]
        rank = max(tried)
        voter = tried.index(rank)
        total += p[voter]
        chosen = [*chosen, voter]
        if rank > best_rank:
            best, best_rank = chosen, rank
    return _shares(best, len(p))


def _rank(total: Floats, size: int, truth: Classes, score: Score | None) -> tuple[float, float]:
    """What an ensemble is ordered by, given the sum ``(N, C)`` of its ``size`` voters: score, then log-likelihood."""
    of_truth = total[np.arange(len(truth)), truth] / size
    likelihood = float(np.log(np.maximum(of_truth, _TINY)).mean())
    return (likelihood if score is None else score(total.argmax(axis=-1))), likelihood


def _shares(chosen: Sequence[int], voters: int) -> Floats:
    return np.bincount(chosen, minlength=voters) / len(chosen)
