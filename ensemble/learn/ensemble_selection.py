"""Ensemble selection: repeatedly add the member that improves the ensemble most, with replacement.

Caruana et al., "Ensemble selection from libraries of models" (ICML 2004), with the three measures of its section 2
against overfitting: selection with replacement, sorted initialization, and bagging. What is called a member here may
be one view of one member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ensemble.arrays import Classes, Floats

ClassScore: TypeAlias = Callable[[Classes], float]
"""The score of decided classes ``(N,)``; higher is better."""
ProbabilityScore: TypeAlias = Callable[[Floats], float]
"""The score of probabilities ``(N, C)``; higher is better."""

_TINY = np.finfo(np.float64).tiny
_BAG = 10


def select_bagged(
    log_p: Floats,
    truth: Classes,
    *,
    score: ClassScore | None,
    of_probabilities: ProbabilityScore | None = None,
    rounds: int = 15,
    bags: int = 5,
    seed: int = 0,
) -> Floats:
    """Return the weights ``(M,)`` of members ``(M, N, C)``, averaged over the `select` results of several bags.

    A bag is a random half of the members, pruned to its ten best ("Getting the most out of ensemble selection", ICDM
    2006, prunes likewise): a member that is only lucky on these images is in half of the bags. Ten members or fewer
    are not bagged: among few, each bag would lack members that the ensemble needs.
    """
    rng = np.random.default_rng(seed)
    members = len(log_p)
    if members <= _BAG:
        return select(log_p, truth, score=score, of_probabilities=of_probabilities, rounds=rounds)
    size = (members + 1) // 2
    alone = [_rank(np.exp(one), 1, truth, score, of_probabilities) for one in log_p]
    weights = np.zeros(members)
    for _ in range(bags):
        bag = rng.choice(members, size=size, replace=False)
        best = sorted(sorted(bag), key=lambda member: alone[member], reverse=True)[:_BAG]
        weights[best] += (
            select(log_p[best], truth, score=score, of_probabilities=of_probabilities, rounds=rounds) / bags
        )
    return weights


def select(
    log_p: Floats,
    truth: Classes,
    *,
    score: ClassScore | None,
    of_probabilities: ProbabilityScore | None = None,
    rounds: int = 15,
) -> Floats:
    """Return greedily selected weights ``(M,)``, summing to one, for the mean of the probabilities of ``(M, N, C)``.

    Sorted initialization: start from the n best single members, for the best n. Then add one member in each of
    ``rounds`` rounds, even if the score drops, and return the best ensemble on the way. (AutoGluon's ``ensemble_size``
    counts the initial member as well.) Ties in the score are broken by the log-likelihood, then by the members' order.
    With ``score`` None the log-likelihood is the score, or ``of_probabilities`` where it is given.
    """
    p = np.exp(log_p)
    order = sorted(range(len(p)), key=lambda member: _rank(p[member], 1, truth, score, of_probabilities), reverse=True)
    prefixes = [order[: n + 1] for n in range(len(order))]
    total = np.zeros_like(p[0])
    ranks: list[tuple[float, float]] = []
    for member in order:
        total += p[member]
        ranks.append(_rank(total, len(ranks) + 1, truth, score, of_probabilities))
    best_rank = max(ranks)
    best = selected = prefixes[ranks.index(best_rank)]
    total = p[selected].sum(axis=0)
    for _ in range(rounds):
        tried = [_rank(total + one, len(selected) + 1, truth, score, of_probabilities) for one in p]
        rank = max(tried)
        member = tried.index(rank)
        total += p[member]
        selected = [*selected, member]
        if rank > best_rank:
            best, best_rank = selected, rank
    return _weights(best, len(p))


def _rank(
    total: Floats, size: int, truth: Classes, score: ClassScore | None, of_probabilities: ProbabilityScore | None
) -> tuple[float, float]:
    """Return the sort key of an ensemble, score then log-likelihood; ``total`` ``(N, C)`` sums its ``size`` members."""
    p_true = total[np.arange(len(truth)), truth] / size
    likelihood = float(np.log(np.maximum(p_true, _TINY)).mean())
    if of_probabilities is not None:
        return of_probabilities(total / size), likelihood
    return (likelihood if score is None else score(total.argmax(axis=-1))), likelihood


def _weights(selected: Sequence[int], members: int) -> Floats:
    return np.bincount(selected, minlength=members) / len(selected)
