"""Decide classes from probabilities: argmax, per axis, or by a rule for the metric (macro-F1, a power of the prior)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.errors import PredictionError, cut_text

_ITERATIONS = 100
_DAMPING = 0.5
_TOLERANCE = 1e-8
_CUTS = 41
_TAUS = np.arange(-0.5, 1.5001, 0.05)


@dataclass(frozen=True, slots=True, eq=False)
class MacroF1Rule:
    """Decide ``argmax_c (2 p_c - F_c) / (n_c + m_c)``: the plug-in rule for macro F1.

    F is the F1 of each class ``(C,)``; ``occurrences`` ``(C,)`` is the fraction n of images with that class plus the
    fraction m decided as it. Both are fitted beforehand, so that one image's class does not depend on other images.

    Macro F1 is the mean of ``F_c = 2 TP_c / (n_c + m_c)``. One more decision for c, correct with probability p, turns
    F_c into ``(2 TP_c + 2 p) / (n_c + m_c + 1) = F_c + (2 p - F_c) / (n_c + m_c + 1)``: the rule selects the class with
    the largest gain, neglecting the 1. For calibrated probabilities the optimal classifier has this form (Narasimhan et
    al., "Consistent multiclass algorithms for complex performance measures", arXiv 1501.00287; for two classes it is
    the threshold ``F / 2`` of Lipton et al., arXiv 1402.1892).
    """

    f1: Floats
    occurrences: Floats

    def decide(self, probabilities: Floats) -> Classes:
        """Return the classes ``(N,)`` for probabilities ``(N, C)``."""
        return np.asarray(((2 * probabilities - self.f1) / self.occurrences).argmax(axis=-1))


@dataclass(frozen=True, slots=True, eq=False)
class PriorRule:
    """Decide ``argmax_c p_c / prior_c ** tau``; tau 0 is argmax, tau 1 is optimal for balanced accuracy.

    Menon et al., "Long-tail learning via logit adjustment" (arXiv 2007.07314). Members trained on balanced classes do
    not contain the prior, so tau is tuned rather than assumed.
    """

    tau: float
    prior: Floats

    def decide(self, probabilities: Floats) -> Classes:
        """Return the classes ``(N,)`` for probabilities ``(N, C)``."""
        return np.asarray((probabilities * self.prior**-self.tau).argmax(axis=-1))


@dataclass(frozen=True, slots=True)
class AxisRule:
    """Decide each axis separately: the most probable value of its marginal distribution.

    ``shape`` is the number of values per axis. The values together may form a class that is not the most probable one:
    the rule is optimal for the mean accuracy of the axes, not for that of the classes.
    """

    shape: tuple[int, ...]

    def decide(self, probabilities: Floats) -> Classes:
        """Return the classes ``(N,)`` for probabilities ``(N, C)``; C is the product of ``shape``."""
        cube = probabilities.reshape(-1, *self.shape)
        every = range(1, cube.ndim)
        parts = [cube.sum(axis=tuple(k for k in every if k != axis)).argmax(axis=1) for axis in every]
        return np.asarray(np.ravel_multi_index(parts, self.shape))


@dataclass(frozen=True, slots=True, eq=False)
class OrdinalRule:
    """Decide by the expected class number: class k if ``sum_c c * p_c`` is at least k of the ``cuts`` ``(C - 1,)``.

    For ordered classes, such as grades of a disease, and metrics of distance, such as quadratic weighted kappa.
    """

    cuts: Floats

    def decide(self, probabilities: Floats) -> Classes:
        """Return the classes ``(N,)`` for probabilities ``(N, C)``."""
        expected = probabilities @ np.arange(probabilities.shape[1])
        return np.searchsorted(self.cuts, expected, side="right").astype(np.intp)


@dataclass(frozen=True, slots=True, eq=False)
class ThresholdRule:
    """Decide that label c applies from a probability of ``thresholds[c]``, ``(C,)``: the rule of independent labels."""

    thresholds: Floats

    def decide(self, probabilities: Floats) -> Classes:
        """Return the label ``(N,)`` that is farthest above its threshold, as the single answer of an image."""
        return np.asarray((probabilities - self.thresholds).argmax(axis=-1))

    def apply(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Return which labels apply ``(N, C)``."""
        return np.asarray(probabilities >= self.thresholds)


def decide_labels(probabilities: Floats, rule: Rule) -> NDArray[np.bool_] | None:
    """Return which labels apply ``(N, C)``, or None if the rule has no thresholds."""
    return rule.apply(probabilities) if isinstance(rule, ThresholdRule) else None


def fit_macro_f1_rule(probabilities: Floats, *, absent: NDArray[np.bool_] | None = None) -> MacroF1Rule:
    """Fit the rule to images with these calibrated probabilities ``(N, C)``; no labels are needed.

    Classes that are ``absent`` ``(C,)`` from the ground truth get the average parameters of the others, weighted by
    their frequencies: the rule then neither favors nor avoids a class about which nothing is known.

    Counts are expected counts: ``n_c = sum p_c``, ``TP_c = sum of p_c over the images decided as c``. F and m depend on
    the decisions, and these on F and m. The fixed-point iteration starts from argmax, is damped by one half against
    oscillation, and returns the best rule it visited.
    """
    # a class without probability anywhere has no true positives: a tiny count keeps its score finite and negative
    n = np.maximum(probabilities.mean(axis=0), np.finfo(np.float64).tiny)
    found = _implied_rule(probabilities, probabilities.argmax(axis=-1), n)
    rule = best = found
    best_score = -np.inf
    for _ in range(_ITERATIONS):
        found = _implied_rule(probabilities, rule.decide(probabilities), n)
        if found.f1.mean() > best_score:
            best, best_score = rule, found.f1.mean()
        step = found.f1 - rule.f1
        if np.abs(step).max() < _TOLERANCE:
            break
        change = found.occurrences - rule.occurrences
        rule = MacroF1Rule(rule.f1 + _DAMPING * step, rule.occurrences + _DAMPING * change)
    if absent is None or not absent.any():
        return best
    weights = np.where(absent, 0, n)
    f1, occurrences = (np.average(values, weights=weights) for values in (best.f1, best.occurrences))
    return MacroF1Rule(np.where(absent, f1, best.f1), np.where(absent, occurrences, best.occurrences))


def fit_ordinal_rule(probabilities: Floats, truth: Classes, score: Callable[[Classes], float]) -> OrdinalRule:
    """Return cuts with the best ``score``: from those that give the true class frequencies, by coordinate ascent.

    Each cut is tried at quantiles of the expected class numbers between its neighbors; three passes.
    """
    classes = probabilities.shape[1]
    expected = np.sort(probabilities @ np.arange(classes))
    share = np.cumsum(np.bincount(truth, minlength=classes))[:-1] / len(truth)
    by_frequency = np.quantile(expected, share)
    starts = [np.arange(classes - 1) + 0.5, by_frequency]
    cuts = max(starts, key=lambda one: score(OrdinalRule(one).decide(probabilities)))
    best = score(OrdinalRule(cuts).decide(probabilities))
    tried = np.unique(np.quantile(expected, np.linspace(0, 1, _CUTS)))
    for _ in range(3):
        before = best
        for k in range(classes - 1):
            low = cuts[k - 1] if k else -np.inf
            high = cuts[k + 1] if k + 2 < classes else np.inf
            for value in tried[(tried >= low) & (tried <= high)]:
                new = cuts.copy()
                new[k] = value
                found = score(OrdinalRule(new).decide(probabilities))
                if found > best:
                    cuts, best = new, found
        if best <= before:
            break
    return OrdinalRule(cuts)


def fit_prior_rule(probabilities: Floats, truth: Classes, score: Callable[[Classes], float]) -> PriorRule:
    """Return the rule with the best ``score`` for tau from -0.5 to 1.5 in steps of 0.05; ties go to the tau nearest 0.

    The prior is the fraction of each true class ``(N,)``, with one image added per class. A class without images gets
    the geometric mean of the others, weighted by their frequencies: the rule neither favors nor avoids it.
    """
    classes = probabilities.shape[1]
    images = np.bincount(truth, minlength=classes)
    prior = (images + 1) / (len(truth) + classes)
    prior[images == 0] = np.exp(np.average(np.log(prior), weights=images))
    rules = [PriorRule(round(float(tau), 2), prior) for tau in sorted(_TAUS, key=abs)]
    return max(rules, key=lambda rule: score(rule.decide(probabilities)))


def _implied_rule(probabilities: Floats, decided: Classes, n: Floats) -> MacroF1Rule:
    """Return the expected F1 and the occurrences that follow from decided classes ``(N,)``; ``n`` is ``(C,)``."""
    rows, classes = probabilities.shape
    m = np.bincount(decided, minlength=classes) / rows
    correct = np.bincount(decided, weights=probabilities[np.arange(rows), decided], minlength=classes) / rows
    return MacroF1Rule(2 * correct / (n + m), n + m)


Rule: TypeAlias = Literal["argmax"] | AxisRule | MacroF1Rule | PriorRule | OrdinalRule | ThresholdRule


def decide(probabilities: NDArray[np.floating], rule: Rule = "argmax") -> Classes:
    """Return the class of each row of probabilities ``(N, C)`` by the rule; with ``argmax`` the first wins on ties."""
    if not isinstance(rule, str):
        return rule.decide(np.asarray(probabilities, dtype=np.float64))
    classes: Classes = probabilities.argmax(axis=-1)
    return classes


def rule_to_json(rule: Rule) -> str | dict[str, Any]:
    """Return a rule as a JSON value; floats round-trip exactly."""
    if isinstance(rule, MacroF1Rule):
        return {"name": "macro-f1", "f1": rule.f1.tolist(), "occurrences": rule.occurrences.tolist()}
    if isinstance(rule, PriorRule):
        return {"name": "prior", "tau": rule.tau, "prior": rule.prior.tolist()}
    if isinstance(rule, AxisRule):
        return {"name": "per-axis", "shape": list(rule.shape)}
    if isinstance(rule, OrdinalRule):
        return {"name": "ordinal", "cuts": rule.cuts.tolist()}
    if isinstance(rule, ThresholdRule):
        return {"name": "thresholds", "thresholds": rule.thresholds.tolist()}
    return rule


def rule_from_json(value: Any) -> Rule:
    """Return the rule of a JSON value from `rule_to_json`.

    Raises:
        PredictionError: E518 when the rule is unknown.
        KeyError, TypeError or ValueError: when a field is missing or has another type.
    """
    if value == "argmax":
        return "argmax"
    name = value["name"] if isinstance(value, dict) else value
    if name == "macro-f1":
        return MacroF1Rule(_numbers(value["f1"]), _numbers(value["occurrences"]))
    if name == "prior":
        return PriorRule(float(_numbers(value["tau"])), _numbers(value["prior"]))
    if name == "per-axis":
        return AxisRule(tuple(operator.index(count) for count in value["shape"]))
    if name == "ordinal":
        return OrdinalRule(_numbers(value["cuts"]))
    if name == "thresholds":
        return ThresholdRule(_numbers(value["thresholds"]))
    raise PredictionError(
        "E518", f"the rule {name!r} is not one of argmax, macro-f1, ordinal, per-axis, prior, thresholds"
    )


def require_rule_fits(rule: Rule, classes: int) -> None:
    """Check that a rule's parameters are valid for a number of classes.

    Raises:
        PredictionError: E518 when there is not one per class, one is not finite, or a divisor is not positive.
    """
    if isinstance(rule, MacroF1Rule):
        parts, divisor = (rule.f1, rule.occurrences), rule.occurrences
    elif isinstance(rule, PriorRule):
        parts, divisor = (rule.prior, rule.prior), rule.prior
        if not math.isfinite(rule.tau):
            raise PredictionError("E518", f"the rule's tau must be finite, got {rule.tau}")
    elif isinstance(rule, AxisRule):
        if min(rule.shape, default=0) < 1 or math.prod(rule.shape) != classes:
            raise PredictionError("E518", f"the rule's axes of {rule.shape} values do not form {classes} classes")
        return
    elif isinstance(rule, OrdinalRule):
        if rule.cuts.shape != (classes - 1,) or np.isnan(rule.cuts).any() or (np.diff(rule.cuts) < 0).any():
            raise PredictionError("E518", f"the ordinal rule needs {classes - 1} ascending cuts")
        return
    elif isinstance(rule, ThresholdRule):
        if rule.thresholds.shape != (classes,) or np.isnan(rule.thresholds).any():
            raise PredictionError("E518", f"the rule needs {classes} thresholds, one per label")
        return
    else:
        return
    if any(part.shape != (classes,) or not np.isfinite(part).all() for part in parts) or not (divisor > 0).all():
        raise PredictionError("E518", f"the rule needs {classes} finite numbers, one per class, with positive divisors")
    with np.errstate(over="ignore", under="ignore"):
        factors = divisor**-rule.tau if isinstance(rule, PriorRule) else (2 + np.abs(rule.f1)) / divisor
    if not np.isfinite(factors).all() or not (factors > 0).all():  # all classes would look alike
        raise PredictionError("E518", "the rule's numbers are too large or too small: a score overflows")


def _numbers(values: Any) -> Floats:
    """Return a JSON number or a list of them; text is not read as a number."""
    found = np.array(values)
    if found.dtype.kind not in "iuf":
        raise ValueError(f"a rule has {cut_text(str(values), 60)}, where numbers belong")
    return found.astype(np.float64)
