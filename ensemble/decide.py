"""From probabilities to classes, by the rule of a recipe."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import PredictionError
from ensemble.rule import AxisRule, MacroF1Rule, PriorRule

Rule: TypeAlias = Literal["argmax"] | AxisRule | MacroF1Rule | PriorRule


def decide(probabilities: NDArray[np.floating], rule: Rule = "argmax") -> NDArray[np.intp]:
    """The class of each row of ``(N, C)``: the most probable one, or the rule's choice; of equal ones the first."""
    if not isinstance(rule, str):
        return rule.decide(np.asarray(probabilities, dtype=np.float64))
    classes: NDArray[np.intp] = probabilities.argmax(axis=-1)
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


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)
