"""The candidates of learned blending where several labels may apply to an image: pools by label, then thresholds.

The pools are those of `ensemble.learn.candidates`, with every label a choice of its own:

mean         mean of probabilities; nothing is fitted
logit        mean of log-odds; nothing is fitted
linear       mean of probabilities with maximum-likelihood weights
scaled       mean of probabilities after temperature scaling of each member
log-linear   mean of log-odds with maximum-likelihood weights
greedy       mean of probabilities with weights by ensemble selection on the metric
calibrated   mean of probabilities, then a temperature and a bias per label
pool         log-linear, then a bias per label
rank         mean of percentile ranks, for metrics of order

+threshold   one threshold for all labels, tuned on the metric
+thresholds  a threshold per label, for the F1 of each label and then the metric
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from ensemble.arrays import Classes, Floats
from ensemble.blend.decision_rules import ThresholdRule, decide_labels
from ensemble.blend.pooling import percentile_ranks
from ensemble.learn.candidates import Fitted, weighted_mean
from ensemble.learn.ensemble_selection import select_bagged
from ensemble.learn.label_data import LabelData
from ensemble.learn.likelihood import FEW_IMAGES, fit_linear, fit_log_linear, fit_temperatures
from ensemble.learn.objective import Metric
from ensemble.scoring.answers import ScoredAnswers
from ensemble.submission.sheet import Decisions
from ensemble.submission.write import THRESHOLD

_POOLS = ("mean", "logit", "scaled", "linear", "log-linear", "greedy", "calibrated", "pool")
_RULES = (
    "pool+threshold",
    "pool+thresholds",
    "mean+threshold",
    "mean+thresholds",
    "calibrated+threshold",
    "calibrated+thresholds",
)
_CELLS = 200_000
"""Images times labels that a few weights are fitted to."""
_GRID = np.arange(0.02, 0.99, 0.02)
_TRIES = 15
_FEW = 5
"""Images of a label, below which it has no threshold of its own."""
_DIGITS = 11


@dataclass(frozen=True, slots=True, eq=False)
class LabelOptions:
    """The inputs of a fit besides the data: see `ensemble.learn.candidates.FitOptions`."""

    mean_weights: Floats
    metric: Metric
    seed: int
    member_of: Classes


def label_candidates(metric: Metric) -> tuple[str, ...]:
    """Return the candidates for a metric of labels, the mean first."""
    if metric.needs_decisions:
        return (*_POOLS, *_RULES)
    return (*_POOLS, "rank") if metric.by_score else _POOLS


def apply_labels(fitted: Fitted, odds: Floats, logits: Floats | None = None) -> Floats:
    """Return the probabilities ``(N, C)`` of the pooled log-odds ``(V, N, C)``, or their mean ranks.

    ``logits`` are the log-odds for the pools of log-odds, if they differ (see `LabelData`).
    """
    if fitted.space == "logit" and logits is not None:
        odds = logits
    if fitted.space == "rank":
        assert fitted.member_of is not None
        total = np.zeros(odds.shape[1:])
        for one in np.unique(fitted.member_of[fitted.weights > 0]):
            share = np.where(fitted.member_of == one, fitted.weights, 0.0)
            pooled = np.tensordot(share / share.sum(), expit(odds), axes=1)
            total += share.sum() * percentile_ranks(np.asarray(np.round(pooled, _DIGITS), dtype=np.float64))
        return total
    if fitted.temperatures is not None:
        odds = odds / fitted.temperatures[:, np.newaxis, np.newaxis]
    if fitted.space == "logit":
        pooled = np.tensordot(fitted.weights, odds, axes=1)
    else:
        pooled = logit(np.clip(np.tensordot(fitted.weights, expit(odds), axes=1), 1e-300, 1 - 1e-16))
    return np.asarray(expit(fitted.sharpness * pooled + fitted.bias))


def decided_by(fitted: Fitted, probabilities: Floats) -> Decisions:
    """Return which labels apply ``(N, C)``: by the thresholds of the candidate, or from 0.5."""
    found = decide_labels(probabilities, fitted.rule)
    return np.asarray(probabilities >= THRESHOLD) if found is None else found


def fit_label_candidates(names: Iterable[str], options: LabelOptions, data: LabelData) -> dict[str, Fitted]:
    """Fit candidates to the data; rules of one pool share its fit."""
    pools: dict[str, Fitted] = {}
    fitted: dict[str, Fitted] = {}
    for name in names:
        pool, _, rule = name.partition("+")
        if pool not in pools:
            pools[pool] = _fit_pool(pool, options, data)
        fitted[name] = pools[pool]
        if rule:
            probabilities = apply_labels(pools[pool], data.odds, data.logits)
            thresholds = fit_thresholds(probabilities, data.applies, options.metric, per_label=rule == "thresholds")
            fitted[name] = replace(pools[pool], rule=ThresholdRule(thresholds))
    return fitted


def fit_thresholds(probabilities: Floats, applies: Decisions, metric: Metric, *, per_label: bool) -> Floats:
    """Return thresholds ``(C,)`` for probabilities ``(N, C)`` that raise the metric.

    One for all labels is the best of a grid. Per label the start is the threshold with the best F1 of that label; where
    the data are few enough, each is then moved as long as the metric rises. The better of the two is returned.
    """

    def score(thresholds: Floats) -> float:
        answers = ScoredAnswers(applies, probabilities >= thresholds, probabilities, probabilities.shape[1])
        return float(metric.score_answers(answers, np.ones((1, len(applies))))[0])

    labels = probabilities.shape[1]
    # the median of equally good ones: far from both ends
    scores = np.array([score(np.full(labels, value)) for value in _GRID])
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    single = np.full(labels, _GRID[best[len(best) // 2]])
    if not per_label:
        return single
    own = single.copy()
    for label in np.flatnonzero(applies.sum(axis=0) >= _FEW):
        own[label] = best_f1_threshold(probabilities[:, label], applies[:, label])
    value, alone = score(own), score(single)
    if applies.size * labels <= _CELLS:
        own, value = _move_each(own, value, probabilities, score)
    return own if value > alone else single


def _move_each(
    thresholds: Floats, value: float, probabilities: Floats, score: Callable[[Floats], float]
) -> tuple[Floats, float]:
    """Move each threshold to the best of its label's quantiles, as long as the score rises."""
    for label in range(len(thresholds)):
        for tried in np.unique(np.quantile(probabilities[:, label], np.linspace(0.02, 0.98, _TRIES))):
            new = thresholds.copy()
            new[label] = tried
            found = score(new)
            if found > value:
                thresholds, value = new, found
    return thresholds, value


def best_f1_threshold(scores: Floats, applies: Decisions) -> float:
    """Return the threshold with the best F1 of one label ``(N,)``: half way to the next lower score."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    f1 = 2 * np.cumsum(applies[order]) / (np.arange(1, len(order) + 1) + applies.sum())
    # equal scores are decided alike
    last = np.append(ordered[1:] != ordered[:-1], True)
    best = int(np.where(last, f1, -1).argmax())
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best]
    return float((ordered[best] + below) / 2)


def _fit_pool(name: str, options: LabelOptions, data: LabelData) -> Fitted:
    mean = weighted_mean(options.mean_weights, data.odds.shape[-1])
    if name in {"mean", "logit"}:
        return replace(mean, space="linear" if name == "mean" else "logit")
    if name == "rank":
        return replace(mean, space="rank", member_of=options.member_of)
    if name == "calibrated":
        return _calibrate(mean, data)
    rng = np.random.default_rng(options.seed)
    rows = np.sort(rng.permutation(len(data.applies))[: max(_FEW, _CELLS // data.applies.shape[1])])
    part = data.take(rows)
    log_p, truth = _as_choices(part.odds, part.applies)
    if name == "linear":
        return replace(mean, weights=fit_linear(log_p, truth))
    if name == "scaled":
        return replace(mean, temperatures=fit_temperatures(log_p, truth, options.member_of))
    if name == "greedy":

        def score(probabilities: Floats) -> float:
            p = np.reshape(np.take(probabilities, 1, axis=1), part.applies.shape)
            answers = ScoredAnswers(part.applies, p >= THRESHOLD, p, p.shape[1])
            return float(options.metric.score_answers(answers, np.ones((1, len(p))))[0])

        weights = select_bagged(log_p, truth, score=None, of_probabilities=score, rounds=8, seed=options.seed)
        return replace(mean, weights=weights)
    found = fit_log_linear(_as_choices(part.mean_odds, part.applies)[0], truth, bias=False)
    sharpness = float(found.weights.sum())
    weights = found.weights / sharpness if sharpness > 0 else options.mean_weights
    pooled = Fitted("logit", weights, sharpness, mean.bias)
    return pooled if name == "log-linear" else _calibrate(replace(pooled, sharpness=1.0), data)


def _as_choices(odds: Floats, applies: Decisions) -> tuple[Floats, Classes]:
    """Return every label of every image as a choice between two: log-probabilities ``(V, N * C, 2)``, and the truth."""
    flat = np.asarray(odds.reshape(len(odds), -1), dtype=np.float64)
    return np.stack([log_expit(-flat), log_expit(flat)], axis=-1), applies.reshape(-1).astype(np.intp)


def _calibrate(mean: Fitted, data: LabelData) -> Fitted:
    """Return the mean with a sharpness and a bias per label, by regularized maximum likelihood."""
    odds = logit(np.clip(apply_labels(mean, data.odds, data.logits), 1e-15, 1 - 1e-15))
    truth = data.applies.astype(np.float64)
    rows, labels = odds.shape
    images = np.minimum(truth.sum(axis=0), rows - truth.sum(axis=0))
    strength = np.maximum(1.0, FEW_IMAGES / np.maximum(images, 1)) / rows

    def loss(parameters: Floats) -> tuple[float, Floats]:
        sharpness, bias = parameters[0], parameters[1:]
        x = sharpness * odds + bias
        error = (expit(x) - truth) / rows
        value = -(truth * log_expit(x) + (1 - truth) * log_expit(-x)).sum() / rows + (strength * bias**2).sum() / 2
        return float(value), np.concatenate([[(error * odds).sum()], error.sum(axis=0) + strength * bias])

    bounds = [(1e-3, None)] + [(None, None) if count else (0.0, 0.0) for count in images.tolist()]
    start = np.concatenate([[1.0], np.zeros(labels)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
    return replace(mean, sharpness=float(found.x[0]), bias=np.asarray(found.x[1:]))
