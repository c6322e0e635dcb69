"""Early exit: detect when the remaining forward passes can no longer change the answer of an image.

A pass is one member on one view. In a linear pool the ensemble's probabilities are ``p = sum_i w_i q_i`` over the
passes, each q_i a point of the simplex. Once some passes have run, ``p = P + R s``: P is their weighted sum, R the
weight of the others, and s can be any point of the simplex. An answer that is the same for every s is certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from ensemble.arrays import Classes, Floats, Mask
from ensemble.blend.decision_rules import AxisRule, MacroF1Rule, OrdinalRule, PriorRule, decide
from ensemble.blend.pooling import log_softmax, normalize
from ensemble.blend.recipe import Recipe
from ensemble.errors import OptionError

_SLACK = 1e-9  # a million times what the sums round away
_UNDERFLOW = -600.0  # below this log-probability, probabilities no longer hold all their digits
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One member on one view, with its share ``weight`` of the whole ensemble."""

    member: str
    view: str
    weight: float
    group: str
    temperature: float = 1.0


def used_part(recipe: Recipe) -> Recipe:
    """Return the recipe without groups and views of weight zero: it blends to the same bits."""
    groups = {
        name: replace(group, views=None if group.views is None else _above_zero(group.views))
        for name, group in recipe.groups.items()
        if group.weight > 0
    }
    return replace(recipe, views=_above_zero(recipe.views), groups=groups)


def passes_of(recipe: Recipe) -> tuple[ForwardPass, ...]:
    """Return the passes that a recipe weighs, by group, member and view; their weights add up to one."""
    shares = normalize({name: group.weight for name, group in recipe.groups.items()})
    return tuple(
        ForwardPass(member, view, shares[name] * share / len(group.members), name, group.temperature or 1.0)
        for name, group in recipe.groups.items()
        for member in group.members
        for view, share in normalize(recipe.views_of(group)).items()
        if shares[name] * share > 0
    )


def in_order(
    passes: Sequence[ForwardPass], cost: Mapping[str, float], *, whole_groups: bool = False
) -> tuple[ForwardPass, ...]:
    """Sort passes by weight per cost, highest first; ``cost`` is that of one pass, by member.

    Certainty needs weight; on ties all members run on one view before any runs on the next. With ``whole_groups``, for
    answers that need not be certain, they always do, since two members differ more than two views of one; and the folds
    of a group run on a view one after the other.
    """
    worth: dict[ForwardPass, float] = {one: one.weight / cost[one.member] for one in passes}
    if whole_groups:
        for one in passes:
            fellows = [other for other in passes if (other.group, other.view) == (one.group, one.view)]
            worth[one] = sum(other.weight for other in fellows) / sum(cost[other.member] for other in fellows)

    def place(one: ForwardPass) -> tuple[tuple[float, ...], str, float, str, str]:
        other = float(one.view != "identity")
        first = (other,) if whole_groups else (-worth[one], other)
        return first, one.view, -worth[one], one.group, one.member

    return tuple(sorted(passes, key=place))


def ends_of_units(passes: Sequence[ForwardPass]) -> tuple[int, ...]:
    """Return the number of passes that have run when each group has finished a view, for passes from `in_order`."""
    ends = [k for k, (a, b) in enumerate(pairwise(passes), 1) if (a.group, a.view) != (b.group, b.view)]
    return (*ends, len(passes))


def require_early_exit(recipe: Recipe, *, exact: bool) -> None:
    """Check that the answers of a recipe can be known early.

    Raises:
        OptionError: E207 when they cannot: each depends on all images, or on every single member.
    """
    if recipe.transductive:
        raise OptionError("E207", "this recipe fits its rule to all images, so that no answer is known before the last")
    if recipe.pool.ranks or recipe.smoothing is not None:
        raise OptionError("E207", "ranks and smoothing depend on other images, so no answer is known early")
    if recipe.class_weights is not None or recipe.activation == "sigmoid" or isinstance(recipe.rule, OrdinalRule):
        what = "several labels" if recipe.activation == "sigmoid" else "weights per class or ordered classes"
        raise OptionError("E207", f"there is no early exit for {what}", hint="leave --early-exit out")
    if exact and (recipe.pool.order != 1 or recipe.pool.votes):
        reason = f"one member of a {recipe.pool.name} pool can overturn any lead; only a linear pool bounds it"
        raise OptionError("E207", reason, hint="leave --early-exit out, or give a share such as 0.999 with --oof")
    if recipe.pool.order not in (0, 1) or recipe.pool.votes:
        raise OptionError("E207", f"there is no early exit for a {recipe.pool.name} pool")


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """The mask ``rows`` ``(n,)`` of those whose answer is certain, and the answer ``classes`` ``(n,)`` of every row."""

    rows: Mask
    classes: Classes


@dataclass(frozen=True, slots=True, eq=False)
class Leaders:
    """The answer ``classes`` ``(n,)`` of each row, and by how much each ``leads`` ``(n,)`` the second."""

    leads: Floats
    classes: Classes


class Running:
    """The weighted sum of the passes so far over the rows of a chunk, in float64."""

    def __init__(self, recipe: Recipe, passes: Sequence[ForwardPass], rows: int) -> None:
        self._recipe = recipe
        self._geometric = recipe.pool.order == 0
        self._weights = [one.weight for one in passes]
        self._temperatures = [one.temperature for one in passes]
        self.seen = 0
        self.total: Floats = np.zeros((rows, len(recipe.labels)))

    def add(self, logits: ArrayLike) -> None:
        """Add the logits ``(n, C)`` of the next pass."""
        log_p = log_softmax(np.asarray(logits, dtype=np.float64) / self._temperatures[self.seen])
        self.total += self._weights[self.seen] * (log_p if self._geometric else np.exp(log_p))
        self.seen += 1

    def keep(self, rows: Mask) -> None:
        """Continue with some of the rows."""
        self.total = self.total[rows]

    def certain(self) -> Settled:
        """Return the rows whose answer no pass to come can change; for linear pools."""
        return certain(self.total, float(np.sum(self._weights[self.seen :])), self._recipe)

    def leaders(self) -> Leaders:
        """Return the answers as if the passes so far were all."""
        share = float(np.sum(self._weights[: self.seen]))
        log_p = self.total / share if self._geometric else np.log(np.maximum(self.total / share, _TINY))
        return _lead(log_p, self._recipe)


def certain(total: Floats, rest: float, recipe: Recipe) -> Settled:
    """Return which rows of ``total`` ``(n, C)``, the sums of the passes so far, have one answer whatever comes.

    For the likeliest class and the prior rule, the leader's floor must be above every rival's ceiling, where all the
    ``rest`` goes to that rival. For the macro-F1 and the axis rule see `_certain_contest`. The bounds are exact, but
    for those two rules with a sharpness below 1, where they are never wrong, but later than need be.
    """
    answers = decide(np.exp(_lead_log(total, recipe)), recipe.rule)
    if recipe.sharpness == 0:
        return Settled(np.zeros(len(total), dtype=np.bool_), answers)
    rule = recipe.rule
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if isinstance(rule, AxisRule):
            sure = np.ones(len(total), dtype=np.bool_)
            places = np.unravel_index(np.arange(total.shape[1]), rule.shape)
            for chosen, place, count in zip(np.unravel_index(answers, rule.shape), places, rule.shape, strict=True):
                parts = (place == np.arange(count)[:, np.newaxis]).astype(np.float64)
                sure &= _certain_contest(total, rest, recipe, parts, parts, chosen)
            return Settled(sure, answers)
        if isinstance(rule, MacroF1Rule):
            gain, loss = np.diag(2 / rule.occurrences), (rule.f1 / rule.occurrences)[:, np.newaxis]
            sure = _certain_contest(total, rest, recipe, gain - loss, gain + np.abs(loss), answers)
            return Settled(sure, answers)
        floor, ceiling = _range(total, rest, recipe)
        sound = _at(floor, answers) - np.logaddexp.reduce(ceiling, axis=1) > _UNDERFLOW
        if isinstance(rule, PriorRule):
            factor = -rule.tau * np.log(rule.prior)
            if not (np.abs(factor) < -_UNDERFLOW).all():
                return Settled(np.zeros(len(total), dtype=np.bool_), answers)
            floor, ceiling = floor + factor, ceiling + factor
        return Settled(sound & _beats_all(floor - _slack(recipe), ceiling, answers), answers)


def _lead_log(total: Floats, recipe: Recipe) -> Floats:
    return _shaped(np.log(np.maximum(total, _TINY)), recipe)


def _shaped(log_p: Floats, recipe: Recipe) -> Floats:
    return log_softmax(recipe.sharpness * log_p + _bias(recipe))


def _bias(recipe: Recipe) -> Floats:
    return np.zeros(len(recipe.labels)) if recipe.bias is None else np.array(recipe.bias)


def _slack(recipe: Recipe) -> float:
    """Return a generous bound on the rounding error of a log-probability that was sharpened and shifted."""
    return float(_SLACK * (1 + recipe.sharpness + np.abs(_bias(recipe)).max()))


def _range(total: Floats, rest: float, recipe: Recipe) -> tuple[Floats, Floats]:
    """Return the bounds of each class's log-probability ``(n, C)``, sharpened and shifted, not normalized."""
    shift = _bias(recipe)
    return recipe.sharpness * np.log(total) + shift, recipe.sharpness * np.log(np.minimum(total + rest, 1.0)) + shift


def _certain_contest(total: Floats, rest: float, recipe: Recipe, scores: Floats, size: Floats, chosen: Classes) -> Mask:
    """Return whether each row's chosen score stays the greatest of ``scores @ p`` ``(K,)``, whatever comes, ``(n,)``.

    Of ``p proportional to y``, ``y_j = (P_j + R s_j) ** sharpness * exp(bias_j)``, only the sign of a difference of two
    scores matters, and the sum of y that divides both does not change it. What is left is ``sum_j a_j y_j``, and least
    where what comes goes to negative a_j: with a sharpness of 1 or more y is convex in s, so that all of it goes to one
    class. With a smaller one y is concave, and below its tangent. ``size`` ``(K, C)`` bounds the terms that the scores
    were made of, and so what rounding can do to them.
    """
    powers = recipe.sharpness
    floor, ceiling = _range(total, rest, recipe)
    top = ceiling.max(axis=1, keepdims=True)
    low, high = np.exp(floor - top), np.exp(ceiling - top)
    ahead = scores[chosen][:, np.newaxis] - scores
    loss = np.maximum(-ahead, 0)
    if powers >= 1:
        worst = (loss * (high - low)[:, np.newaxis]).max(axis=2)
    else:
        middle = total + rest / total.shape[1]
        value = np.exp(powers * np.log(middle) + _bias(recipe) - top)
        slope = powers * value / middle
        above = value - slope * (middle - total) - low
        spread = np.einsum("nkj,nj->nk", loss, above) + rest * (loss * slope[:, np.newaxis]).max(axis=2)
        worst = np.minimum(spread, np.einsum("nkj,nj->nk", loss, high - low))
    slack = _slack(recipe) * (high @ size.T)
    spare = np.take_along_axis(slack, chosen[:, np.newaxis], axis=1) + slack
    sure = np.einsum("nkj,nj->nk", ahead, low) - worst > spare
    sure[np.arange(len(sure)), chosen] = True
    return np.asarray(sure.all(axis=1))


def _at(scores: Floats, answers: Classes) -> Floats:
    return scores[np.arange(len(scores)), answers]


def _beats_all(floor: Floats, ceiling: Floats, answers: Classes) -> Mask:
    """Return whether the answer's floor is above every other class's ceiling, ``(n,)``."""
    rivals = ceiling.copy()
    rivals[np.arange(len(rivals)), answers] = -np.inf
    return np.asarray(_at(floor, answers) > rivals.max(axis=1))


def _lead(log_p: Floats, recipe: Recipe) -> Leaders:
    """Return the answers of pooled log-probabilities ``(n, C)``."""
    probabilities = np.exp(_shaped(log_p, recipe))
    rule = recipe.rule
    answers = decide(probabilities, rule)
    if isinstance(rule, AxisRule):
        cube = probabilities.reshape(-1, *rule.shape)
        axes = range(1, cube.ndim)
        parts = [cube.sum(axis=tuple(k for k in axes if k != axis)) for axis in axes]
        return Leaders(np.min([_gap(part) for part in parts], axis=0), answers)
    if isinstance(rule, MacroF1Rule):
        return Leaders(_gap((2 * probabilities - rule.f1) / rule.occurrences), answers)
    if isinstance(rule, PriorRule):
        scores = probabilities * rule.prior**-rule.tau
        return Leaders(_gap(scores / np.maximum(scores.sum(axis=1, keepdims=True), _TINY)), answers)
    return Leaders(_gap(probabilities), answers)


def _gap(scores: Floats) -> Floats:
    if scores.shape[1] == 1:
        return np.full(len(scores), np.inf)
    best = np.partition(scores, -2, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])


def _above_zero(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if weight > 0}


def keep_members(recipe: Recipe, kept: set[str]) -> Recipe:
    """Return the recipe of some of its members; a group loses weight in proportion to the members it loses."""
    groups = {}
    for name, group in recipe.groups.items():
        members = {member: sha256 for member, sha256 in group.members.items() if member in kept}
        if members:
            weight = group.weight * len(members) / len(group.members)
            groups[name] = replace(group, weight=weight, members=members)
    return replace(recipe, groups=groups)
