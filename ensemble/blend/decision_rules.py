"""Decision rules that know the metric: the macro-F1 plug-in rule, and one power of the prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.errors import PredictionError

_ROUNDS = 100
_DAMPING = 0.5
_TOLERANCE = 1e-8
_TAUS = np.arange(-0.5, 1.5001, 0.05)


@dataclass(frozen=True, slots=True, eq=False)
class MacroF1Rule:
    """Answer ``argmax_c (2 p_c - F_c) / (n_c + m_c)``.

    F is each class's F1 ``(C,)``; ``occurrences`` ``(C,)`` is the share of images that are of the class, ``n``, plus
    the share that is answered with it, ``m``. Both come from a validation set, so one image's answer does not depend on
    the others'.

    Macro F1 is the mean of ``F_c = 2 TP_c / (n_c + m_c)``. One more answer c, right with probability p, turns F_c into
    ``(2 TP_c + 2 p) / (n_c + m_c + 1)``, which is ``F_c + (2 p - F_c) / (n_c + m_c + 1)``: the rule gives each image
    to the class that gains most, where the 1 is lost in the count. Given calibrated probabilities the optimal
    classifier has this form (Narasimhan et al., "Consistent multiclass algorithms for complex performance measures",
    arXiv 1501.00287; for two classes it is the threshold ``F / 2`` of Lipton et al., arXiv 1402.1892).
    """

    f1: Floats
    occurrences: Floats

    def decide(self, probabilities: Floats) -> Classes:
        """The answers ``(N,)`` to probabilities ``(N, C)``."""
        return np.asarray(((2 * probabilities - self.f1) / self.occurrences).argmax(axis=-1))


@dataclass(frozen=True, slots=True, eq=False)
class PriorRule:
    """Answer ``argmax_c p_c / prior_c ** tau``: with tau 0 the likeliest class, with 1 the best for balanced accuracy.

    Menon et al., "Long-tail learning via logit adjustment" (arXiv 2007.07314). Where members were trained on balanced
    classes the prior has already gone, so tau is tuned and never assumed.
    """

    tau: float
    prior: Floats

    def decide(self, probabilities: Floats) -> Classes:
        """The answers ``(N,)`` to probabilities ``(N, C)``."""
        return np.asarray((probabilities * self.prior**-self.tau).argmax(axis=-1))


@dataclass(frozen=True, slots=True)
class AxisRule:
    """Answer on each axis by itself: the value that is likeliest when the other axes are summed out.

    ``shape`` is how many values each axis has. The answers can form a class that is not the likeliest one: this is the
    best rule for the mean accuracy of the axes, not for the classes.
    """

    shape: tuple[int, ...]

    def decide(self, probabilities: Floats) -> Classes:
        """The answers ``(N,)`` to probabilities ``(N, C)``, C the product of ``shape``."""
        cube = probabilities.reshape(-1, *self.shape)
        every = range(1, cube.ndim)
        parts = [cube.sum(axis=tuple(k for k in every if k != axis)).argmax(axis=1) for axis in every]
        return np.asarray(np.ravel_multi_index(parts, self.shape))


def fit_macro_f1_rule(probabilities: Floats) -> MacroF1Rule:
    """The rule for images with these calibrated probabilities ``(N, C)``; no labels are needed.

    Counts are expected ones: ``n_c = sum p_c``, ``TP_c = sum of p_c over the answers c``. The rule's F and m follow
    from its answers and the answers from F and m: the fixed point is approached from the likeliest classes by half
    steps, as full ones can jump to and fro between two answers, and the best rule on the way is kept.
    """
    # a class that has no probability anywhere can never be right: a tiny count keeps its score finite and negative
    expected = np.maximum(probabilities.mean(axis=0), np.finfo(np.float64).tiny)
    answers = probabilities.argmax(axis=-1)
    f1, answered = _expected_f1(probabilities, answers, expected)
    rule = best = MacroF1Rule(f1, expected + answered)
    best_score = -np.inf
    for _ in range(_ROUNDS):
        answers = rule.decide(probabilities)
        f1, answered = _expected_f1(probabilities, answers, expected)
        if f1.mean() > best_score:
            best, best_score = rule, f1.mean()
        step = f1 - rule.f1
        if np.abs(step).max() < _TOLERANCE:
            break
        change = expected + answered - rule.occurrences
        rule = MacroF1Rule(rule.f1 + _DAMPING * step, rule.occurrences + _DAMPING * change)
    return best


def fit_prior_rule(probabilities: Floats, truth: Classes, score: Callable[[Classes], float]) -> PriorRule:
    """The tau of -0.5 to 1.5, in steps of 0.05, whose answers have the best ``score``; of equal ones that nearest 0.

    The prior is the share of each true class ``(N,)``, with one image more for every class so that none is 0.
    """
    classes = probabilities.shape[1]
    prior = (np.bincount(truth, minlength=classes) + 1) / (len(truth) + classes)
    rules = [PriorRule(round(float(tau), 2), prior) for tau in sorted(_TAUS, key=abs)]
    return max(rules, key=lambda rule: score(rule.decide(probabilities)))


def _expected_f1(probabilities: Floats, answers: Classes, expected: Floats) -> tuple[Floats, Floats]:
    """Each class's expected F1 ``(C,)`` under these answers, and its share of them ``(C,)``."""
    rows, classes = probabilities.shape
    answered = np.bincount(answers, minlength=classes) / rows
    right = np.bincount(answers, weights=probabilities[np.arange(rows), answers], minlength=classes) / rows
    return 2 * right / (expected + answered), answered


Rule: TypeAlias = Literal["argmax"] | AxisRule | MacroF1Rule | PriorRule


def decide(probabilities: NDArray[np.floating], rule: Rule = "argmax") -> Classes:
    """The class of each row of ``(N, C)``: the most probable one, or the rule's choice; of equal ones the first."""
    if not isinstance(rule, str):
        return rule.decide(np.asarray(probabilities, dtype=np.float64))
    classes: Classes = probabilities.argmax(axis=-1)
    return classes


def rule_to_json(rule: Rule) -> str | dict[str, Any]:
    """A rule as a JSON value; numbers keep every bit."""
    if isinstance(rule, MacroF1Rule):
        return {"name": "macro-f1", "f1": rule.f1.tolist(), "occurrences": rule.occurrences.tolist()}
    if isinstance(rule, PriorRule):
        return {"name": "prior", "tau": rule.tau, "prior": rule.prior.tolist()}
    if isinstance(rule, AxisRule):
        return {"name": "per-axis", "shape": list(rule.shape)}
    return rule


def rule_from_json(value: Any) -> Rule:
    """Read a rule back.

    Raises:
        PredictionError: E518 when the rule is not known.
        KeyError, TypeError or ValueError: when a part is missing or of another type.
    """
    if value == "argmax":
        return "argmax"
    name = value["name"] if isinstance(value, dict) else value
    if name == "macro-f1":
        return MacroF1Rule(_numbers(value["f1"]), _numbers(value["occurrences"]))
    if name == "prior":
        return PriorRule(float(value["tau"]), _numbers(value["prior"]))
    if name == "per-axis":
        return AxisRule(tuple(int(count) for count in value["shape"]))
    raise PredictionError("E518", f"the rule {name!r} is none of argmax, macro-f1, per-axis, prior")


def require_rule_fits(rule: Rule, classes: int) -> None:
    """Check a rule's numbers.

    Raises:
        PredictionError: E518 when there is not one a class, one is not finite, or one that divides is not above 0.
    """
    if isinstance(rule, MacroF1Rule):
        parts, divisor = (rule.f1, rule.occurrences), rule.occurrences
    elif isinstance(rule, PriorRule):
        parts, divisor = (rule.prior, rule.prior), rule.prior
        if not math.isfinite(rule.tau):
            raise PredictionError("E518", f"the rule's tau must be finite, got {rule.tau}")
    elif isinstance(rule, AxisRule):
        if min(rule.shape, default=0) < 1 or math.prod(rule.shape) != classes:
            raise PredictionError("E518", f"the rule's axes of {rule.shape} values do not make {classes} classes")
        return
    else:
        return
    if any(part.shape != (classes,) or not np.isfinite(part).all() for part in parts) or not (divisor > 0).all():
        raise PredictionError(
            "E518", f"the rule needs {classes} finite numbers, one a class, and those that divide above 0"
        )


def _numbers(values: Any) -> Floats:
    return np.array(values, dtype=np.float64)
