"""The candidates of learned blending: a pool fitted to the truth, and a rule that turns it into answers.

A candidate is named ``pool`` or ``pool+rule``:

mean         the mean of probabilities, folds inside groups and views inside members: nothing is fitted
logit        the mean of logits: nothing is fitted
linear       weights by likelihood, for the mean of probabilities
scaled       the mean of probabilities, after each member was brought to its own best temperature
log-linear   weights by likelihood, for the mean of logits
pool         log-linear, and a bias for each class
factored     log-linear, and a bias for each value of each axis: 5 free numbers for mask18, not 17
calibrated   the mean of probabilities with a temperature, and a bias for each class
greedy       weights by greedy selection on the metric itself

+tau         a power of the prior, tuned on the metric
+f1          the macro-F1 plug-in rule, only after a bias has made the probabilities honest
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.blend.decision_rules import Rule, decide, fit_macro_f1_rule, fit_prior_rule
from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace
from ensemble.learn.ensemble_selection import select_in_bags
from ensemble.learn.likelihood import axis_design, fit_linear, fit_log_linear, fit_temperatures
from ensemble.learn.objective import Measure

_POOLS = ("mean", "logit", "linear", "scaled", "log-linear", "greedy", "calibrated", "factored", "pool")
CANDIDATES: dict[str, tuple[str, ...]] = {
    "macro-f1": (*_POOLS, "mean+tau", "pool+tau", "calibrated+f1", "factored+f1", "pool+f1"),
    "balanced-accuracy": (*_POOLS, "mean+tau", "pool+tau"),
    "accuracy": _POOLS,
    "nll": _POOLS,
}
"""What can be learned for each metric; the first is the bar that the others must clear."""


def candidates_for(measure: Measure, labels: LabelSpace) -> tuple[str, ...]:
    """What can be learned for a measure, the mean first.

    On a single axis a factored bias is the bias of each class. The macro-F1 rule is for the classes, not for an axis.
    """
    names = CANDIDATES[measure.base]
    if len(labels.axes) == 1:
        names = tuple(name for name in names if not name.startswith("factored"))
    return names if measure.base == measure.name else tuple(name for name in names if not name.endswith("+f1"))


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted candidate: ``p proportional to exp(sharpness * log(pooled) + bias)``, then the rule.

    ``pooled`` is the mean of the voters' probabilities (``linear``) or their geometric mean (``logit``), with shares
    ``weights`` ``(V,)`` that are together one. Where there are ``temperatures`` ``(V,)``, log-probabilities are
    divided by them first.
    """

    space: Literal["linear", "logit"]
    weights: Floats
    sharpness: float
    bias: Floats
    rule: Rule = "argmax"
    temperatures: Floats | None = None

    def apply(self, log_p: Floats) -> Floats:
        """The log-probabilities ``(N, C)`` of voters ``(V, N, C)``."""
        voters = np.flatnonzero(self.weights)
        if self.temperatures is not None:
            log_p = np.stack([log_softmax(one / t) for one, t in zip(log_p, self.temperatures, strict=True)])
        if self.space == "logit":
            pooled = sum((self.weights[v] * log_p[v] for v in voters), start=np.zeros(log_p.shape[1:]))
        else:
            total = sum((self.weights[v] * np.exp(log_p[v]) for v in voters), start=np.zeros(log_p.shape[1:]))
            pooled = np.log(np.maximum(total, np.finfo(np.float64).tiny))
        return log_softmax(self.sharpness * pooled + self.bias)

    def decide(self, log_p: Floats) -> Classes:
        """The answers ``(N,)`` to pooled log-probabilities ``(N, C)``, those of `apply`."""
        return decide(np.exp(log_p), self.rule)


def fit_candidates(
    names: Iterable[str],
    log_p: Floats,
    truth: Classes,
    *,
    mean: Floats,
    labels: LabelSpace,
    score: Callable[[Classes, Classes], float] | None,
    seed: int,
    owners: Classes | None = None,
) -> dict[str, Fitted]:
    """Fit candidates to voters ``(V, N, C)`` and true classes ``(N,)``; rules on one pool share its fit.

    ``mean`` ``(V,)`` are the shares that count groups, members and views alike; ``labels`` are the ``C`` classes.
    ``owners`` ``(V,)`` numbers the member of each voter; by default each voter is a member.
    ``score`` says how good answers are, given the truth first; None stands for the likelihood.
    """
    judge = None if score is None else partial(score, truth)
    pools: dict[str, Fitted] = {}
    fitted: dict[str, Fitted] = {}
    for name in names:
        pool, _, rule = name.partition("+")
        if pool not in pools:
            pools[pool] = _fit_pool(pool, log_p, truth, mean, labels, judge, seed, owners)
        fitted[name] = pools[pool]
        if rule:
            fitted[name] = replace(pools[pool], rule=_fit_rule(rule, np.exp(pools[pool].apply(log_p)), truth, judge))
    return fitted


def _fit_rule(name: str, probabilities: Floats, truth: Classes, judge: Callable[[Classes], float] | None) -> Rule:
    if name == "f1":
        return fit_macro_f1_rule(probabilities)
    assert judge is not None, "the likelihood does not depend on answers, so there is nothing to tune"
    return fit_prior_rule(probabilities, truth, judge)


def _fit_pool(
    name: str,
    log_p: Floats,
    truth: Classes,
    mean: Floats,
    labels: LabelSpace,
    judge: Callable[[Classes], float] | None,
    seed: int,
    owners: Classes | None,
) -> Fitted:
    plain = Fitted("linear", mean, 1.0, np.zeros(log_p.shape[-1]))
    if name == "mean":
        return plain
    if name == "logit":
        return replace(plain, space="logit")
    if name == "linear":
        return replace(plain, weights=fit_linear(log_p, truth))
    if name == "scaled":
        return replace(plain, temperatures=fit_temperatures(log_p, truth, owners))
    if name == "greedy":
        return replace(plain, weights=select_in_bags(log_p, truth, score=judge, seed=seed))
    if name == "calibrated":
        found = fit_log_linear(plain.apply(log_p)[np.newaxis], truth)
        return replace(plain, sharpness=float(found.weights[0]), bias=found.bias)
    design = axis_design(labels) if name == "factored" else None
    found = fit_log_linear(log_p, truth, bias=name != "log-linear", design=design)
    sharpness = float(found.weights.sum())
    # voters that know nothing at all get no weight; then any shares are as good
    shares = found.weights / sharpness if sharpness > 0 else mean
    return Fitted("logit", shares, sharpness, found.bias)
