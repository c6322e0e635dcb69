"""A recipe as a teacher: its probabilities of images, where what was learned is learned again without each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.arrays import Classes, Floats
from ensemble.blend.blend import Blended, blend
from ensemble.blend.recipe import Group, Recipe
from ensemble.errors import DataError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import Fitted, candidates_for, fit_candidates
from ensemble.learn.label_candidates import LabelOptions, fit_label_candidates, label_candidates
from ensemble.learn.label_data import stack_labels
from ensemble.learn.learn import fit_options, mean_weights
from ensemble.learn.learned_recipe import fitted_recipe
from ensemble.learn.learning_data import sort_images, stack_members
from ensemble.learn.objective import Metric, parse_contest_metric, parse_metric
from ensemble.learn.result import MemberView
from ensemble.predictions.dataset import Predictions, hash_ids, notice_filled
from ensemble.predictions.members import members_by_name, select_images
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth

_DEFAULT_METRIC = "macro-f1"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Probabilities ``(N, C)`` and what is decided by them: classes ``(N,)``, or the labels that apply ``(N, C)``."""

    probabilities: Floats
    decided: Classes | np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """The recipe of each fold, which was learned without the fold's images, and its answers about these.

    ``fold`` ``(N,)`` is the fold of each image of ``truth``, and ``answers`` have a row for each: no model and no
    weight behind it has learned from that image. ``recipe`` is the one for new images.
    """

    recipe: Recipe
    recipes: tuple[Recipe, ...]
    truth: Truth
    fold: Classes
    answers: Answers


def make_teacher(
    recipe: Recipe, oof: Sequence[Predictions], truth: Truth, fold: Classes, *, listener: Listener = SILENT
) -> Teacher:
    """Return the teacher from out-of-fold predictions of the recipe's groups, and the fold ``(N,)`` of each image.

    Members of other groups and smoothing over rows are left out, which is said (I391, I392), as are images that could
    not be read and have the class prior (W535). Weights that were given
    are the same for all folds; those that were learned are learned again per fold, by the same method and metric.

    Raises:
        DataError: E391 when the recipe has no probabilities, or cannot be learned again.
        PredictionError: E517 when a group of the recipe has no predictions; the codes of `gather_folds` and `blend`.
        TooLittleTruthError: E525 when a learned recipe has fewer than five people.
    """
    recipe = _without_smoothing(recipe, listener)
    known = _known_groups(recipe, oof, listener)
    notice_filled(known, listener)
    gathered = gather_folds(known, truth, listener=listener)
    recipes = recipes_of_folds(recipe, gathered, truth, fold)
    members = [look for member in gathered for look in _looks_of(member)]
    return Teacher(recipe, recipes, truth, fold, answer_by_folds(recipes, members, truth, fold))


def recipes_of_folds(
    recipe: Recipe, gathered: Sequence[Predictions], truth: Truth, fold: Classes
) -> tuple[Recipe, ...]:
    """Return the recipe per fold for members that were joined by `gather_folds`, learned without the fold's images.

    Raises:
        DataError: E391 when the recipe cannot be learned again.
    """
    by_name = members_by_name(gathered)
    looks = {look.member: look for member in by_name.values() for look in _looks_of(member)}
    if recipe.learned is None:
        return (_of_members(recipe, list(looks.values())),) * (int(fold.max()) + 1)
    method, metric, seed = _how_learned(recipe, truth.labels)
    views = tuple(MemberView(name, view) for name, member in by_name.items() for view in sorted(member.logits))
    # with matrices of this size, more BLAS threads are slower, use three times the CPU time, and round differently
    with threadpool_limits(limits=1, user_api="blas"):
        fitted = _fit(method, metric, seed, by_name, views, truth, fold)
    return tuple(fitted_recipe(one, views, truth.labels, looks, transductive=recipe.transductive) for one in fitted)


def metric_of(recipe: Recipe, labels: LabelSpace) -> Metric:
    """Return the metric that a recipe was learned for, macro F1 where its weights were given.

    Raises:
        DataError: E391 when the metric is a function of the user, which is not run, or is not known.
    """
    return _how_learned(recipe, labels)[1]


def answer_by_folds(recipes: Sequence[Recipe], members: Sequence[Predictions], truth: Truth, fold: Classes) -> Answers:
    """Return the answers of each fold's recipe about the fold's images, in the order of the ground truth."""
    parts: list[Blended] = []
    rows = [np.flatnonzero(fold == number) for number in range(len(recipes))]
    for recipe, chosen in zip(recipes, rows, strict=True):
        ids = [truth.ids[row] for row in chosen.tolist()]
        parts.append(blend([select_images(member, ids) for member in members], recipe, ids=ids))
    order = np.argsort(np.concatenate(rows))
    found = [_in_order(part, truth.labels) for part in parts]
    return Answers(
        np.concatenate([one.probabilities for one in found])[order],
        np.concatenate([one.decided for one in found])[order],
    )


def answer_by_own_models(
    teacher: Teacher, members: Sequence[Predictions], fold: int, ids: Sequence[str] | None
) -> Floats:
    """Return the probabilities ``(M, C)`` that a fold's recipe and models give images, such as those they trained on.

    The models of a fold are those that held out its images: by the hash in their cards, or by their fold number where
    a card has no hash. Neither they nor the recipe have learned from an image of the fold. The rows are in the order of
    ``ids``, or sorted.

    Raises:
        DataError: E393 when no model of a group held out those images.
        PredictionError: E504 when images have no prediction.
    """
    recipe = teacher.recipes[fold]
    held_out = [teacher.truth.ids[row] for row in np.flatnonzero(teacher.fold == fold).tolist()]
    digest = hash_ids(held_out)
    chosen: list[Predictions] = []
    used = {name: group for name, group in recipe.groups.items() if _counts(group)}
    for name in used:
        own = [one for one in members if one.group == name and _held_out(one, digest, fold)]
        if not own:
            known = enumerate_some([f"{one.member} ({one.fold})" for one in members if one.group == name])
            raise DataError(
                "E393",
                f"no model of {name} held out exactly the images of fold {fold}; there are predictions of "
                f"{known or 'none of its models'}",
                hint="predict the images with every fold's model of the recipe, and use the folds that they had",
            )
        chosen += own
    if ids is not None:
        chosen = [select_images(one, ids) for one in chosen]
    of_fold = _of_members(replace(recipe, groups=used), chosen)
    return _in_order(blend(chosen, of_fold, ids=ids), teacher.truth.labels).probabilities


def count_passes(recipe: Recipe) -> int:
    """Return how many times a network answers about one image: the views that count of each member that counts."""
    return sum(
        len(group.members) * sum(weight > 0 for weight in recipe.views_of(group).values())
        for group in recipe.groups.values()
        if _counts(group)
    )


def _counts(group: Group) -> bool:
    return group.weight > 0 if group.class_weights is None else any(weight > 0 for weight in group.class_weights)


def _held_out(member: Predictions, digest: str, fold: int) -> bool:
    if member.holdout_sha256 is not None:
        return member.holdout_sha256 == digest
    return member.fold == fold and member.repeat == 0


def _known_groups(recipe: Recipe, oof: Sequence[Predictions], listener: Listener) -> list[Predictions]:
    """Return the members of the recipe's groups, and say which others are left out."""
    found = {member.group for member in oof}
    missing, others = sorted(recipe.groups.keys() - found), sorted(found - recipe.groups.keys())
    if missing:
        message = f"the recipe has groups without out-of-fold predictions: {enumerate_some(missing)}"
        raise PredictionError("E517", message, hint="name the folders of all of its groups with --oof")
    if others:
        message = "out-of-fold predictions of groups that the recipe does not have are left out: "
        listener.notice(Notice("I392", message + enumerate_some(others)))
    return [member for member in oof if member.group in recipe.groups]


def _without_smoothing(recipe: Recipe, listener: Listener) -> Recipe:
    if recipe.pool.ranks:
        message = "a pool of ranks has no probabilities that a student could learn"
        raise DataError("E391", message, hint="save a recipe of another pool or method")
    if recipe.smoothing is not None:
        listener.notice(Notice("I391", "the recipe's smoothing over rows is left out: each image is labeled by itself"))
    return replace(recipe, smoothing=None)


def _looks_of(member: Predictions) -> list[Predictions]:
    """Return the predictions of each fold split as a member of its own, in the group of all."""
    if member.looks is None:
        return [member]
    count = len(next(iter(member.looks.values())))
    return [
        replace(
            member,
            member=f"{member.member} {number}",
            logits={view: values[number] for view, values in member.looks.items()},
            looks=None,
        )
        for number in range(count)
    ]


def _of_members(recipe: Recipe, members: Sequence[Predictions]) -> Recipe:
    """Return the recipe with these members in place of its own, by their groups."""
    groups = {
        name: replace(group, members={one.member: one.sha256 for one in members if one.group == name})
        for name, group in recipe.groups.items()
    }
    return replace(recipe, groups=groups)


def _how_learned(recipe: Recipe, labels: LabelSpace) -> tuple[str, Metric, int]:
    """Return method, metric and seed of a recipe.

    Raises:
        DataError: E391 when the metric is a function of the user, which is not run, or one of them is not known.
    """
    learned = recipe.learned or {}
    text, method, seed = learned.get("metric", _DEFAULT_METRIC), learned.get("method", "mean"), learned.get("seed", 0)
    if not isinstance(text, str) or not isinstance(method, str) or not isinstance(seed, int) or ".py" in text:
        message = f"the recipe was learned by {method!r} for {text!r}, which cannot be learned again for each fold"
        raise DataError("E391", message, hint="learn it for a metric of ens, such as macro-f1, or give its weights")
    if recipe.activation == "sigmoid":
        metric = parse_contest_metric(text, labels, exclusive=False)
        names = label_candidates(metric)
    else:
        positive = None if recipe.positive is None else labels.names.index(recipe.positive)
        metric = parse_metric(text, labels, positive=positive)
        names = candidates_for(metric, labels)
    if method not in names:
        raise DataError("E391", f"the recipe was learned by {method!r}, which is none of {', '.join(names)}")
    return method, metric, seed


def _fit(
    method: str,
    metric: Metric,
    seed: int,
    by_name: Mapping[str, Predictions],
    views: Sequence[MemberView],
    truth: Truth,
    fold: Classes,
) -> list[Fitted]:
    """Fit the method once per fold, to the images of all others."""
    images = sort_images(truth)
    rest = [np.flatnonzero(fold[images.order] != number) for number in range(int(fold.max()) + 1)]
    if truth.applies is not None:
        member_of = np.unique([one.member for one in views], return_inverse=True)[1]
        of_labels = LabelOptions(mean_weights(by_name, views), metric, seed, member_of)
        labeled = stack_labels(by_name, views, truth)
        return [fit_label_candidates([method], of_labels, labeled.take(rows))[method] for rows in rest]
    options = fit_options(by_name, views, metric, truth.labels, seed)
    stacked = stack_members(by_name, views, truth)
    found = []
    for rows in rest:
        part = stacked.take(rows)
        found.append(fit_candidates([method], options, part.log_p, part.truth, part.log_g)[method])
    return found


def _in_order(blended: Blended, labels: LabelSpace) -> Answers:
    """Return what was blended with its classes in the order of ``labels``."""
    columns = labels.permutation(blended.labels, owner="the recipe")
    probabilities = blended.probabilities[:, columns]
    if blended.independent:
        decided = blended.probabilities >= 0.5 if blended.decisions is None else blended.decisions
        return Answers(probabilities, decided[:, columns])
    return Answers(probabilities, np.argsort(columns)[blended.classes])
