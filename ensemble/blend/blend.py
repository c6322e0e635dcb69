"""Apply a recipe to members' predictions; the order of members, rows and classes does not change the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.blend.decision_rules import decide, decide_labels, fit_macro_f1_rule
from ensemble.blend.odd_members import find_odd
from ensemble.blend.pooling import Pool, expit, log_softmax, pool, pool_by_class, pool_ranks
from ensemble.blend.recipe import Group, Recipe
from ensemble.blend.smoothing import smooth_rows
from ensemble.errors import PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions, notice_filled, require_finite
from ensemble.predictions.members import members_by_name

_SAMPLE = 1000
_MIN_IMAGES = 10
_IDENTICAL = 0.9999
_DIGITS = 11
_HELD_OUT = (
    "members that share no image may be folds, each with the images held out from its training: give those with --oof "
    "and --truth, beside predictions of the new images; ens evaluate scores one fold"
)


@dataclass(frozen=True, slots=True, eq=False)
class Blended:
    """The ensemble's ``probabilities`` ``(N, C)`` and decided ``classes`` ``(N,)``.

    Row i belongs to ``ids[i]``, column j to ``labels.names[j]``; arrays are read-only. ``filled`` lists the unreadable
    images for which at least one member has the class prior. The probabilities of ``independent`` labels do not sum to
    one; ``decisions`` ``(N, C)`` say which of them apply, where the recipe has thresholds.
    """

    ids: tuple[str, ...]
    probabilities: Floats
    classes: Classes
    labels: LabelSpace
    filled: tuple[str, ...] = ()
    independent: bool = False
    decisions: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def blend(
    members: Sequence[Predictions],
    recipe: Recipe,
    *,
    ids: Sequence[str] | None = None,
    listener: Listener = SILENT,
) -> Blended:
    """Pool each member's views, each group's members and the groups; apply sharpness and bias; decide the classes.

    Members are matched by name, rows by id, and columns by class name. The rows are in the order of ``ids``, by
    default sorted.

    Raises:
        PredictionError: E501 when classes differ, E504 when images differ, E505 when a prediction is not finite, E515
            when a member name is repeated, E516 when a view is missing, E517 when the members are not the recipe's.
    """
    by_name = members_by_name(members)
    _require_recipe_fits(by_name, recipe, listener)
    # compute in sorted order whatever order is requested: a vectorized exp() may round a row depending on its position
    sorted_ids = tuple(sorted(next(iter(by_name.values())).ids))
    group_of = {name: group for group in recipe.groups.values() for name in group.members}
    aligned = {name: _align(member, group_of[name], recipe, sorted_ids, listener) for name, member in by_name.items()}
    filled = notice_filled(list(by_name.values()), listener)
    _notice_odd_members(aligned, _rows_without(sorted_ids, filled), recipe, listener)

    probabilities = _pool_groups(aligned, recipe)
    if recipe.smoothing is not None:
        probabilities = smooth_rows(probabilities, sorted_ids, recipe.smoothing, listener=listener)
        if recipe.activation == "softmax":
            probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    # fitted before rows are selected, so that all images count
    rule = fit_macro_f1_rule(probabilities) if recipe.transductive else recipe.rule
    if ids is not None:
        complain = partial(_not_the_images, "the blend")
        probabilities = probabilities[join_rows(ids, sorted_ids, complain=complain, listener=listener)]
    classes = decide(probabilities, rule)
    probabilities.flags.writeable = classes.flags.writeable = False
    order = sorted_ids if ids is None else tuple(ids)
    independent = recipe.activation == "sigmoid"
    decisions = decide_labels(probabilities, rule)
    return Blended(order, probabilities, classes, recipe.labels, filled, independent, decisions)


@dataclass(frozen=True, slots=True, eq=False)
class _Aligned:
    """A member with the weights of its views, and the row and column indices that align it with the blend."""

    member: Predictions
    views: Mapping[str, float]
    temperature: float | None
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    def logits(self, view: str, *, subset: NDArray[np.intp] | None = None) -> NDArray[np.floating]:
        """Return a view's logits ``(N, C)`` divided by the temperature, of all rows or some rows of the blend.

        Each of C independent labels is a choice of its own: its logits are 0 and the log-odds, ``(N, C, 2)``.
        """
        rows = self.rows if subset is None else self.rows[subset]
        found = self.member.logits[view][rows[:, np.newaxis], self.columns]
        scaled = found if self.temperature is None else found.astype(np.float64) / self.temperature
        return np.stack([np.zeros_like(scaled), scaled], axis=-1) if self.member.independent else scaled

    def pooled(self, kind: Pool) -> Floats:
        """Return the pooled log-probabilities ``(N, C)`` of the member's views."""
        return pool((self.logits(view) for view in self.views), list(self.views.values()), kind=kind)


def _pool_groups(aligned: Mapping[str, _Aligned], recipe: Recipe) -> Floats:
    """Return the probabilities ``(N, C)`` of the pooled groups, with sharpness and bias."""
    by_class, weights = recipe.class_weights, [group.weight for group in recipe.groups.values()]
    if recipe.pool.ranks:
        every = np.repeat(np.array(weights)[:, np.newaxis], len(recipe.labels), axis=1)
        scores = (_scores_to_rank(group, aligned, recipe) for group in recipe.groups.values())
        ranks = pool_ranks(scores, every if by_class is None else by_class)
        return ranks if recipe.activation == "sigmoid" else np.round(ranks / ranks.sum(axis=1, keepdims=True), 12)
    groups = (_pool_group(group, aligned, recipe) for group in recipe.groups.values())
    if by_class is None:
        log_p = pool(groups, weights, kind=recipe.pool)
    else:
        log_p = pool_by_class(groups, by_class, kind=recipe.pool)
    if recipe.activation == "sigmoid":
        odds = log_p[..., 1] - log_p[..., 0]
        return np.asarray(expit(recipe.sharpness * odds + (0 if recipe.bias is None else np.array(recipe.bias))))
    if recipe.sharpness != 1 or recipe.bias is not None:
        log_p = log_softmax(recipe.sharpness * log_p + (0 if recipe.bias is None else np.array(recipe.bias)))
    return np.exp(log_p)


def _scores_to_rank(group: Group, aligned: Mapping[str, _Aligned], recipe: Recipe) -> Floats:
    """Return a group's scores ``(N, C)`` in the order of its probabilities.

    They are rounded, since equal probabilities may differ in their last digit once they are pooled, and would no longer
    share a rank. A single table of labels is ranked as it is.
    """
    (first, *others) = group.members
    one = aligned[first]
    if recipe.activation == "sigmoid" and not others and len(one.views) == 1:
        return np.asarray(one.member.logits[next(iter(one.views))][one.rows[:, np.newaxis], one.columns])
    log_p = _pool_group(group, aligned, recipe)
    scores = log_p[..., 1] - log_p[..., 0] if recipe.activation == "sigmoid" else log_p
    return np.round(scores, _DIGITS)


def _pool_group(group: Group, aligned: Mapping[str, _Aligned], recipe: Recipe) -> Floats:
    """Return the pooled log-probabilities ``(N, C)`` of a group's members."""
    kind = recipe.pool.within
    return pool((aligned[name].pooled(kind) for name in group.members), [1] * len(group.members), kind=kind)


def _align(member: Predictions, group: Group, recipe: Recipe, ids: Sequence[str], listener: Listener) -> _Aligned:
    """Check that a member fits the recipe and the other members, and align it with them."""
    views = recipe.views_of(group)
    missing = sorted(views.keys() - member.logits.keys())
    if missing:
        raise PredictionError(
            "E516", f"{member.member} has no view {missing[0]}; it has {', '.join(sorted(member.logits))}"
        )
    apart = set(ids).isdisjoint(member.ids)
    complain = partial(_not_the_images, member.member, hint=_HELD_OUT if apart else None)
    rows = join_rows(ids, member.ids, complain=complain, listener=listener)
    columns = recipe.labels.permutation(member.labels, owner=member.member)
    if not np.array_equal(columns, np.arange(len(columns))):
        listener.notice(Notice("W519", f"{member.member} has the classes in another order; they are matched by name"))
    for view in views:
        require_finite(member, view)
    return _Aligned(member, views, group.temperature, rows, columns)


def _require_recipe_fits(members: Mapping[str, Predictions], recipe: Recipe, listener: Listener) -> None:
    missing = sorted(recipe.inputs.keys() - members.keys())
    extra = sorted(members.keys() - recipe.inputs.keys())
    other = [name for name, member in members.items() if member.activation != recipe.activation]
    if other:
        raise PredictionError("E517", f"{other[0]} has {members[other[0]].activation} outputs, unlike the recipe")
    if missing or extra:
        parts = [f"the members are not the {len(recipe.inputs)} of the recipe"]
        parts += [f"missing: {enumerate_some(missing)}"] * bool(missing)
        parts += [f"not in the recipe: {enumerate_some(extra)}"] * bool(extra)
        raise PredictionError("E517", "; ".join(parts))
    changed = [name for name, sha256 in recipe.inputs.items() if members[name].sha256 != sha256]
    if 0 < len(changed) < len(members):  # all of them are of other images, for which a recipe is kept
        count = f"{len(changed)} of {len(members)} members have other predictions than the recipe was made from"
        listener.notice(Notice("I522", f"{count}: {enumerate_some(changed)}"))


def _rows_without(ids: Sequence[str], filled: Sequence[str]) -> NDArray[np.intp]:
    excluded = set(filled)
    return np.array([row for row, name in enumerate(ids) if name not in excluded], dtype=np.intp)


def _not_the_images(owner: str, difference: str, *, hint: str | None = None) -> PredictionError:
    return PredictionError("E504", f"{owner} has predictions of other images: it {difference}", hint=hint)


def _notice_odd_members(
    aligned: Mapping[str, _Aligned], rows: NDArray[np.intp], recipe: Recipe, listener: Listener
) -> None:
    """Report members that are constant (W506), copies of another (W507) or at odds with the others (W508).

    They are compared on about a thousand of ``rows`` (the images that were not filled), in the first view that all
    members use; if there is none, nothing is reported. Logits are centered over the classes, which changes no decision.
    Folds of one network correlate at 0.8, two views of one network at 0.95; a copy at another precision or temperature
    is above 0.9999.
    """
    names = list(aligned)
    common = set.intersection(*(set(member.views) for member in aligned.values()))
    count = len(rows)
    if not common or not count:
        return
    view = min(common)
    sample = rows[:: max(1, count // _SAMPLE)]
    seen = np.stack([log_softmax(aligned[name].logits(view, subset=sample)) for name in names])
    seen = seen.reshape(len(names), len(sample), -1)
    constant = np.ptp(np.exp(seen), axis=1).max(axis=-1) < 1e-6
    # a learned recipe's members were compared with the ground truth, which knows better
    if recipe.learned is None and recipe.activation == "softmax":
        varied = np.flatnonzero(~constant)
        _notice_disagreeing(np.exp(seen[varied]), [names[i] for i in varied], recipe.labels, listener)
    seen -= seen.mean(axis=-1, keepdims=True)
    flat = seen.reshape(len(names), -1)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    correlation = flat @ flat.T
    for i, name in enumerate(names):
        if constant[i] and count >= _MIN_IMAGES:
            listener.notice(Notice("W506", f"{name} has the same probabilities for all images"))
        for j in range(i):
            same_file = aligned[name].member.sha256 == aligned[names[j]].member.sha256
            if same_file or (count >= _MIN_IMAGES and correlation[i, j] > _IDENTICAL):
                listener.notice(Notice("W507", f"{name} is a copy of {names[j]} (correlation {correlation[i, j]:.6f})"))
                break


def _notice_disagreeing(p: Floats, names: Sequence[str], labels: LabelSpace, listener: Listener) -> None:
    """Report members ``(M, N, C)`` that agree with the mean of the others by chance only, or after a permutation.

    Of two members nobody can say which one is right.
    """
    if len(names) < 3:
        return
    total = p.sum(axis=0)
    for name, one in zip(names, p, strict=True):
        odd = find_odd((total - one).argmax(axis=1), one.argmax(axis=1), classes=len(labels))
        if odd is not None:
            message = f"{name} {odd.describe(labels.names, reference='the other members')}"
            listener.notice(Notice("W508", message))
