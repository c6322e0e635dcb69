"""The candidates of learned blending: a pool fitted to the ground truth, then a decision rule.

A candidate is named ``pool`` or ``pool+rule``:

mean         mean of probabilities, folds within groups and views within members; nothing is fitted
logit        mean of logits; nothing is fitted
linear       mean of probabilities with maximum-likelihood weights
scaled       mean of probabilities after temperature scaling of each member
log-linear   mean of logits with maximum-likelihood weights
pool         log-linear, plus a bias per class
factored     log-linear, plus a bias per value of each axis: 5 free parameters for mask18 instead of 17
calibrated   mean of probabilities, then a temperature and a bias per class
greedy       mean of probabilities with weights by bagged ensemble selection on the metric

rank         mean of percentile ranks, for metrics of order
+ordinal     decide by cuts of the expected class number, tuned on the metric; for ordered classes
+tau         decide after division by a power of the class prior, tuned on the metric
+f1          decide by the macro-F1 plug-in rule; only after a bias has calibrated the probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.blend.decision_rules import Rule, decide, fit_macro_f1_rule, fit_ordinal_rule, fit_prior_rule
from ensemble.blend.pooling import log_softmax, percentile_ranks
from ensemble.labels import LabelSpace
from ensemble.learn.ensemble_selection import select_bagged
from ensemble.learn.likelihood import axis_design, fit_linear, fit_log_linear, fit_temperatures
from ensemble.learn.objective import Metric
from ensemble.scoring.catalog import ContestMetric

_TINY = np.finfo(np.float64).tiny
_DIGITS = 11
_GREEDY_ROWS = 4000
"""Images of a greedy selection by a metric of probabilities, which is evaluated hundreds of times."""
_POOLS = ("mean", "logit", "linear", "scaled", "log-linear", "greedy", "calibrated", "factored", "pool")
CANDIDATES: dict[str, tuple[str, ...]] = {
    "macro-f1": (*_POOLS, "mean+tau", "pool+tau", "calibrated+f1", "factored+f1", "pool+f1"),
    "balanced-accuracy": (*_POOLS, "mean+tau", "pool+tau"),
    "accuracy": _POOLS,
    "nll": _POOLS,
}
"""The candidates for each metric; the first is the baseline of the others."""
CONTEST_CANDIDATES: dict[str, tuple[str, ...]] = {
    "decisions": (*_POOLS, "mean+tau", "pool+tau"),
    "ordinal": (*_POOLS, "mean+tau", "mean+ordinal", "calibrated+ordinal", "pool+ordinal"),
    "probabilities": _POOLS,
    "order": (*_POOLS, "rank"),
}
"""The candidates for each kind of contest metric, see `kind_of`."""


def candidates_for(metric: Metric, labels: LabelSpace) -> tuple[str, ...]:
    """Return the candidates for a metric, the mean first.

    With a single axis, a factored bias would be the bias per class and is left out. The macro-F1 rule is for the
    metric of all classes, not of one axis.
    """
    names = CANDIDATES[metric.base] if metric.contest is None else CONTEST_CANDIDATES[kind_of(metric.contest)]
    if len(labels.axes) == 1:
        names = tuple(name for name in names if not name.startswith("factored"))
    if metric.contest is not None:
        return names
    return names if metric.base == metric.name else tuple(name for name in names if not name.endswith("+f1"))


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted candidate: ``p proportional to exp(sharpness * log(pooled) + bias)``, then the rule.

    ``pooled`` is the arithmetic (``linear``) or geometric (``logit``) mean of the member views' probabilities, with
    ``weights`` ``(V,)`` that sum to one. With ``temperatures`` ``(V,)``, log-probabilities are divided by them first.
    For ranks, ``member_of`` ``(V,)`` is the index of each member view's member.
    """

    space: Literal["linear", "logit", "rank"]
    weights: Floats
    sharpness: float
    bias: Floats
    rule: Rule = "argmax"
    temperatures: Floats | None = None
    member_of: Classes | None = None

    def apply(self, log_p: Floats, log_g: Floats | None = None) -> Floats:
        """Return the log-probabilities ``(N, C)`` of the pooled member views ``(V, N, C)``.

        ``log_g`` are the member views for the geometric mean, if they differ (see `LearningData`).
        """
        if self.space == "rank":
            return self._apply_ranks(log_p)
        if self.space == "logit" and log_g is not None:
            log_p = log_g
        used = np.flatnonzero(self.weights)
        if self.temperatures is not None:
            log_p = np.stack([log_softmax(one / t) for one, t in zip(log_p, self.temperatures, strict=True)])
        if self.space == "logit":
            pooled = sum((self.weights[v] * log_p[v] for v in used), start=np.zeros(log_p.shape[1:]))
        else:
            total = sum((self.weights[v] * np.exp(log_p[v]) for v in used), start=np.zeros(log_p.shape[1:]))
            pooled = np.log(np.maximum(total, np.finfo(np.float64).tiny))
        return log_softmax(self.sharpness * pooled + self.bias)

    def _apply_ranks(self, log_p: Floats) -> Floats:
        """Return the logarithms of mean ranks, each member's views pooled before it is ranked."""
        member = np.arange(len(log_p)) if self.member_of is None else self.member_of
        total = np.zeros(log_p.shape[1:])
        for one in np.unique(member[self.weights > 0]):
            share = np.where(member == one, self.weights, 0.0)
            pooled = np.asarray(np.tensordot(share / share.sum(), np.exp(log_p), axes=1), dtype=np.float64)
            total += share.sum() * percentile_ranks(
                np.asarray(np.round(np.log(np.maximum(pooled, _TINY)), _DIGITS), dtype=np.float64)
            )
        return np.asarray(np.log(total / total.sum(axis=-1, keepdims=True)))

    def decide(self, log_p: Floats) -> Classes:
        """Return the decided classes ``(N,)`` for log-probabilities ``(N, C)`` from `apply`."""
        return decide(np.exp(log_p), self.rule)


def weighted_mean(weights: Floats, classes: int) -> Fitted:
    """Return the mean of probabilities with ``weights`` ``(V,)``, which sum to one; nothing else is fitted."""
    return Fitted("linear", weights, 1.0, np.zeros(classes))


@dataclass(frozen=True, slots=True, eq=False)
class FitOptions:
    """The inputs of a fit besides the data.

    ``mean_weights`` ``(V,)`` are the weights of the plain mean. ``score`` maps true and decided classes to the metric;
    None stands for the likelihood. ``member_of`` ``(V,)`` is the index of each member view's member; by default each
    member view is a member of its own. ``score_probabilities`` maps true classes and probabilities to a metric that
    needs them.
    """

    mean_weights: Floats
    labels: LabelSpace
    score: Callable[[Classes, Classes], float] | None
    seed: int
    member_of: Classes | None = None
    score_probabilities: Callable[[Classes, Floats], float] | None = None


def kind_of(metric: ContestMetric) -> str:
    """Return the candidates' key for a contest metric: by what it depends on, and if its classes are ordered."""
    if metric.kind == "decisions" and any(word in metric.name for word in ("quadratic", "linear", "mae", "rmse")):
        return "ordinal"
    return "probabilities" if metric.kind == "ranking" else metric.kind


def fit_candidates(
    names: Iterable[str], options: FitOptions, log_p: Floats, truth: Classes, log_g: Floats | None = None
) -> dict[str, Fitted]:
    """Fit candidates to member views ``(V, N, C)`` and true classes ``(N,)``; rules of one pool share its fit.

    ``log_g`` are the member views for pools of logits, if they differ.
    """
    score = None if options.score is None else partial(options.score, truth)
    pools: dict[str, Fitted] = {}
    fitted: dict[str, Fitted] = {}
    for name in names:
        pool, _, rule = name.partition("+")
        if pool not in pools:
            pools[pool] = _fit_pool(pool, options, log_p, truth, log_g)
        fitted[name] = pools[pool]
        if rule:
            probabilities = np.exp(pools[pool].apply(log_p, log_g))
            fitted[name] = replace(pools[pool], rule=_fit_rule(rule, probabilities, truth, score))
    return fitted


def _fit_rule(name: str, probabilities: Floats, truth: Classes, score: Callable[[Classes], float] | None) -> Rule:
    if name == "f1":
        absent = np.bincount(truth, minlength=probabilities.shape[1]) == 0
        return fit_macro_f1_rule(probabilities, absent=absent)
    if name == "ordinal":
        assert score is not None, "only metrics of decisions have ordinal rules"
        return fit_ordinal_rule(probabilities, truth, score)
    assert score is not None, "the likelihood does not depend on the decided classes, so there is nothing to tune"
    return fit_prior_rule(probabilities, truth, score)


def _fit_pool(name: str, options: FitOptions, log_p: Floats, truth: Classes, log_g: Floats | None) -> Fitted:
    mean = weighted_mean(options.mean_weights, log_p.shape[-1])
    if name == "mean":
        return mean
    if name == "logit":
        return replace(mean, space="logit")
    if name == "linear":
        return replace(mean, weights=fit_linear(log_p, truth))
    if name == "scaled":
        return replace(mean, temperatures=fit_temperatures(log_p, truth, options.member_of))
    if name == "rank":
        return replace(mean, space="rank", member_of=options.member_of)
    if name == "greedy" and options.score_probabilities is not None:
        rows = np.sort(np.random.default_rng(options.seed).permutation(len(truth))[:_GREEDY_ROWS])
        part, of_probabilities = truth[rows], partial(options.score_probabilities, truth[rows])
        weights = select_bagged(
            log_p[:, rows], part, score=None, of_probabilities=of_probabilities, rounds=8, seed=options.seed
        )
        return replace(mean, weights=weights)
    if name == "greedy":
        score = None if options.score is None else partial(options.score, truth)
        return replace(mean, weights=select_bagged(log_p, truth, score=score, seed=options.seed))
    if name == "calibrated":
        found = fit_log_linear(mean.apply(log_p)[np.newaxis], truth)
        return replace(mean, sharpness=float(found.weights[0]), bias=found.bias)
    design = axis_design(options.labels) if name == "factored" else None
    found = fit_log_linear(log_p if log_g is None else log_g, truth, bias=name != "log-linear", design=design)
    sharpness = float(found.weights.sum())
    # if all member views are uninformative, all weights are 0 and any proportions are equally good
    weights = found.weights / sharpness if sharpness > 0 else options.mean_weights
    return Fitted("logit", weights, sharpness, found.bias)
