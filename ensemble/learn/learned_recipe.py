"""Make a recipe from what was learned, for the same members' predictions of other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ensemble.blend.pooling import normalize, parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.errors import PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import Fitted
from ensemble.learn.label_learning import learn_labels
from ensemble.learn.learn import AUTO, learn
from ensemble.learn.result import Learned, MemberView
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.members import members_by_name, select_images
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import NO_COLUMNS, TruthOptions, read_truth

_SAME = 1e-4  # of the largest logit of a row: two answers of one model to one image in float32


def learn_from_folds(
    oof: Sequence[Predictions],
    truth: Path,
    *,
    method: str = AUTO,
    metric: str = "macro-f1",
    seed: int = 0,
    columns: TruthOptions = NO_COLUMNS,
    applied_to: Sequence[Predictions] = (),
    listener: Listener = SILENT,
) -> Learned:
    """Learn from the folds' out-of-fold predictions and a CSV of the ground truth, as `learn`.

    What can be refused is refused before learning: ``applied_to``, the predictions that will be blended, must be of the
    same groups and have the views of their out-of-fold predictions. Other views of theirs are left out, which is said
    (W566). Images of theirs that are learned from tell nothing about new ones, and are not used as such (W528).

    The class indices in the CSV are those of the first member by name.

    Raises:
        EnsError: as `gather_folds`, `learn` and `read_truth`.
        PredictionError: E516 when ``applied_to`` lacks a view of ``oof``, E517 when its groups are not the same.
    """
    first = next(iter(members_by_name(oof).values()))
    answers = read_truth(truth, first.labels, options=columns, independent=first.independent, listener=listener)
    if applied_to:
        groups = {member.group for member in members_by_name(oof).values()}
        _require_same_groups(groups, {member.group for member in members_by_name(applied_to).values()})
    gathered = gather_folds(oof, answers, listener=listener)
    _require_learned_views(gathered, applied_to, listener)
    applied_to = _without_learned_images(gathered, applied_to, listener)
    if first.independent:
        return learn_labels(
            gathered, answers, method=method, metric=metric, seed=seed, applied_to=applied_to, listener=listener
        )
    return learn(gathered, answers, method=method, metric=metric, seed=seed, applied_to=applied_to, listener=listener)


def learned_recipe(learned: Learned, members: Sequence[Predictions], *, transductive: bool = False) -> Recipe:
    """Return the recipe that applies the learned candidate to the members, matched by group name.

    A weight learned for a view of a group is shared equally by the group's folds. The views' weights are stored once
    for the recipe, and a group has its own only if its proportions differ. See `Recipe` for ``transductive``.

    Raises:
        PredictionError: E515 when a member name is repeated, E517 when the members' groups are not the learned ones,
            E518 when ``transductive`` is set and no macro-F1 rule was learned.
    """
    recipe = fitted_recipe(
        learned.fitted, learned.member_views, learned.labels, members_by_name(members), transductive=transductive
    )
    return replace(
        recipe,
        positive=_positive_name(learned),
        learned={
            "method": learned.method,
            "metric": learned.metric.name,
            "seed": learned.seed,
            "why": learned.reason,
            "expected_gain": learned.expected_gain,
            "table": learned.table_as_dicts(),
            "views": [asdict(view) for view in learned.view_gains],
        },
    )


def fitted_recipe(
    fitted: Fitted,
    member_views: Sequence[MemberView],
    labels: LabelSpace,
    by_name: Mapping[str, Predictions],
    *,
    transductive: bool = False,
) -> Recipe:
    """Return the recipe of a fitted candidate for members by name, without what documents how it was learned.

    Raises:
        PredictionError: E517 when the members' groups are not those of the member views, E518 when ``transductive`` is
            set and no macro-F1 rule was learned.
    """
    weights: dict[str, dict[str, float]] = {}
    for one, weight in zip(member_views, fitted.weights.tolist(), strict=True):
        weights.setdefault(one.member, {})[one.view] = weight
    _require_same_groups(set(weights), {member.group for member in by_name.values()})

    total: dict[str, float] = {}
    for views in weights.values():
        for view, weight in views.items():
            total[view] = total.get(view, 0.0) + weight
    temperatures: dict[str, float] = {}
    if fitted.temperatures is not None:
        pairs = zip(member_views, fitted.temperatures.tolist(), strict=True)
        temperatures = {one.member: value for one, value in pairs}
    return Recipe(
        pool=parse_pool(fitted.space),
        views={view: weight for view, weight in total.items() if weight > 0},
        groups={
            group: Group(
                sum(views.values()),
                {name: member.sha256 for name, member in by_name.items() if member.group == group},
                _own_views(views, total),
                temperatures.get(group),
            )
            for group, views in weights.items()
        },
        labels=labels,
        rule=fitted.rule,
        transductive=transductive,
        activation=next(iter(by_name.values())).activation,
        sharpness=fitted.sharpness,
        bias=tuple(fitted.bias.tolist()) if fitted.bias.any() else None,
    )


def _positive_name(learned: Learned) -> str | None:
    """Return the one of two classes that a contest's metric was about."""
    if learned.metric.contest is None or len(learned.labels) != 2:
        return None
    return learned.labels.names[learned.metric.positive]


def _own_views(views: Mapping[str, float], total: Mapping[str, float]) -> dict[str, float] | None:
    """Return a group's view weights, or None if their proportions are those of all groups together."""
    used = {view: weight for view, weight in views.items() if weight > 0}
    if not used:
        # a group without weight must not require a view that it may not have
        return dict.fromkeys(views, 1.0)
    everywhere = {view: weight for view, weight in total.items() if weight > 0}
    return None if normalize(used) == normalize(everywhere) else used


def _require_learned_views(learned: Sequence[Predictions], members: Sequence[Predictions], listener: Listener) -> None:
    """Check that members have the views of their groups' out-of-fold predictions, and name views that these lack.

    Raises:
        PredictionError: E516 when a member lacks one.
    """
    views = {one.group: set(one.logits) for one in learned}
    others: dict[str, list[str]] = {}
    for member in members:
        lacking, more = sorted(views[member.group] - set(member.logits)), set(member.logits) - views[member.group]
        if lacking:
            asked = ",".join(sorted(views[member.group] - {"identity"}))
            have = ", ".join(sorted(member.logits))
            raise PredictionError(
                "E516",
                f"{member.member} has no view {lacking[0]}, which its out-of-fold predictions have; it has {have}",
                hint=f"predict its images with the same views{f': --views {asked}' if asked else ''}, or learn from "
                f"out-of-fold predictions without {', '.join(lacking)}",
            )
        for view in more:
            others.setdefault(view, []).append(member.member)
    for view, names in sorted(others.items()):
        message = (
            f"out-of-fold predictions lack the view {view}, which {enumerate_some(sorted(names))} has: it is left out"
        )
        cure = f"predict the training images with --views {view}, too, for it to count"
        listener.notice(Notice("W566", f"{message}; {cure}"))


def _require_same_groups(learned: set[str], found: set[str]) -> None:
    missing, extra = sorted(learned - found), sorted(found - learned)
    if missing or extra:
        parts = [f"the recipe was learned from {len(learned)} groups"]
        parts += [f"without predictions: {enumerate_some(missing)}"] * bool(missing)
        parts += [f"without out-of-fold predictions: {enumerate_some(extra)}"] * bool(extra)
        raise PredictionError(
            "E517",
            "; ".join(parts),
            hint="name the same models as PREDICTIONS and with --oof; groups are matched by name",
        )


def _without_learned_images(
    learned: Sequence[Predictions], members: Sequence[Predictions], listener: Listener
) -> Sequence[Predictions]:
    """Return the predictions of new images: without those that have the logits of an out-of-fold prediction.

    They may differ by rounding: another number of images at once, or another processor, adds in another order.

    Other folds were trained on such an image, so that how folds differ and which classes there are would be those of
    training images.
    """
    own = {one.group: one for one in learned}
    seen: set[str] = set()
    for member in members:
        other = own[member.group]
        place = {name: row for row, name in enumerate(other.ids)}
        rows = [row for row, name in enumerate(member.ids) if name in place]
        view = min(other.logits)
        columns = other.labels.permutation(member.labels, owner=member.member)
        found = member.logits[view][rows][:, columns]
        chosen = [place[member.ids[row]] for row in rows]
        looks = other.logits[view][np.newaxis] if other.looks is None else other.looks[view]
        bound = _SAME * np.abs(found).max(axis=1, initial=0)
        same = (np.abs(looks[:, chosen] - found).max(axis=2, initial=0) <= bound).any(axis=0)
        seen.update(member.ids[row] for row, is_same in zip(rows, same.tolist(), strict=True) if is_same)
    if not seen:
        return members
    every = set().union(*(member.ids for member in members))
    message = (
        f"{len(seen):,} of {len(every):,} images to be blended are those from which was learned: how the folds differ "
        "on new images, and how often these have which class, is not measured on them"
    )
    listener.notice(Notice("W528", message))
    if not every - seen:
        return ()
    return [select_images(member, [name for name in member.ids if name not in seen]) for member in members]
