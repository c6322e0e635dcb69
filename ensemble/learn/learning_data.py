"""Stack predictions for learning: every member view's log-probabilities, in one order of images and classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ensemble.arrays import Classes, Floats, Logits
from ensemble.blend.pooling import log_softmax
from ensemble.errors import DataError, PredictionError, TooLittleTruthError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import FOLDS, LearningData
from ensemble.learn.fold_average import FoldAverage, simulate_fold_averages
from ensemble.learn.result import MemberView
from ensemble.predictions.dataset import Predictions, require_finite
from ensemble.predictions.out_of_fold import ALL_FOLDS
from ensemble.predictions.truth import Truth


@dataclass(frozen=True, slots=True, eq=False)
class SortedImages:
    """The images of a ground truth sorted by id: its rows ``(N,)`` in that order, the ids and each one's person."""

    order: Classes
    ids: Sequence[str]
    person: Classes


def sort_images(truth: Truth) -> SortedImages:
    """Sort the images of a ground truth by id, and number their people.

    Raises:
        TooLittleTruthError: E525 when there are fewer people than folds (or images, if people are unknown).
    """
    order = np.array(sorted(range(len(truth.ids)), key=truth.ids.__getitem__), dtype=np.intp)
    ids = [truth.ids[row] for row in order]
    persons = np.array(ids if truth.persons is None else [truth.persons[row] for row in order])
    person = np.unique(persons, return_inverse=True)[1]
    count = len(np.unique(person))
    if count < FOLDS:
        unit = "images" if truth.persons is None else "persons"
        raise TooLittleTruthError("E525", f"learning needs at least {FOLDS} {unit} for cross-validation, got {count}")
    return SortedImages(order, ids, person)


@dataclass(frozen=True, slots=True, eq=False)
class StackedViews:
    """Values ``(V, N, C)`` of V member views: log-probabilities of classes, or log-odds of independent labels.

    ``of_logits`` ``(V, N, C)`` are those of the mean of several models' logits, where a member has several; None where
    none has. ``looks`` has for each member view the values ``(R, N, C)`` of its R fold splits, or None where it was
    trained on one.
    """

    values: Floats
    of_logits: Floats | None
    looks: tuple[Floats | None, ...]


def stack_views(
    by_name: Mapping[str, Predictions],
    views: Sequence[MemberView],
    truth: Truth,
    ids: Sequence[str],
    *,
    normalize: Callable[[Logits | Floats], Floats],
) -> StackedViews:
    """Stack the logits of all member views, in the order of ``ids`` and in that of the ground truth's columns.

    ``normalize`` turns logits ``(..., C)`` into the values.

    Raises:
        DataError: E330 when the ground truth is for other images.
        PredictionError: E501 when classes differ, E505 when a prediction is not finite.
    """
    values = np.empty((len(views), len(ids), len(truth.labels)))
    looks: list[Floats | None] = []
    for i, one in enumerate(views):
        member = by_name[one.member]
        rows = join_rows(ids, member.ids, complain=partial(_other_images, one.member))
        columns = truth.labels.permutation(member.labels, owner=one.member)
        require_finite(member, one.view)
        values[i] = normalize(member.logits[one.view][rows[:, np.newaxis], columns])
        found = None if member.looks is None else member.looks[one.view][:, rows[:, np.newaxis], columns]
        looks.append(None if found is None else normalize(found))
    of_logits = values.copy() if any(one is not None for one in looks) else None
    for i, splits in enumerate(looks):
        if of_logits is not None and splits is not None:
            of_logits[i] = normalize(splits.mean(axis=0))
    return StackedViews(values, of_logits, tuple(looks))


def stack_new_views(
    members: Sequence[Predictions],
    views: Sequence[MemberView],
    labels: LabelSpace,
    *,
    normalize: Callable[[Logits | Floats], Floats],
) -> list[Floats]:
    """Return for each member view the values ``(k, M, C)`` of the k folds that will be blended.

    The list is empty without predictions of every group.

    Raises:
        PredictionError: E501 when classes differ, E504 when images differ, E505 when a prediction is not finite, E516
            when a view is missing.
    """
    groups: dict[str, list[Predictions]] = {}
    for member in sorted(members, key=lambda one: one.member):
        groups.setdefault(member.group, []).append(member)
    if not all(one.member in groups for one in views):
        return []
    ids = sorted(members[0].ids)
    return [
        np.stack([normalize(_rows_of(fold, one.view, ids, labels)) for fold in groups[one.member]]).astype(np.float64)
        for one in views
    ]


def _rows_of(fold: Predictions, view: str, ids: Sequence[str], labels: LabelSpace) -> Logits:
    if view not in fold.logits:
        raise PredictionError("E516", f"{fold.member} has no view {view}; it has {', '.join(sorted(fold.logits))}")
    rows = join_rows(ids, fold.ids, complain=partial(_not_the_images, fold.member))
    columns = labels.permutation(fold.labels, owner=fold.member)
    require_finite(fold, view)
    return fold.logits[view][rows[:, np.newaxis], columns]


def average_views(
    stacked: StackedViews,
    views: Sequence[MemberView],
    new: Sequence[Floats],
    *,
    simulate: Callable[[Sequence[Floats], Sequence[Floats]], Sequence[FoldAverage]],
    listener: Listener,
) -> StackedViews:
    """Return the values as if the folds of each group had been averaged, as they are among the ``new`` predictions.

    ``simulate`` is a function of the looks and the folds of the member views concerned, as `simulate_fold_averages`.
    What is learned for is said (I526). Without a group of several folds ``stacked`` itself is returned.
    """
    given = [p[np.newaxis] if looks is None else looks for p, looks in zip(stacked.values, stacked.looks, strict=True)]
    averaged = [i for i, folds in enumerate(new) if len(folds) > len(given[i])]
    if not averaged:
        return stacked
    values, factors = stacked.values.copy(), {}
    of_logits = (stacked.values if stacked.of_logits is None else stacked.of_logits).copy()
    found = simulate([given[i] for i in averaged], [new[i] for i in averaged])
    for i, average in zip(averaged, found, strict=True):
        values[i], of_logits[i] = average.of_probabilities, average.of_logits
        member, splits = views[i].member, len(given[i])
        factors[member] = f"{member} {average.factor:.2f}" + (f" ({splits} fold splits)" if splits > 1 else "")
    message = "learned for the mean of the folds, whose errors spread less than those out of fold, by these factors: "
    listener.notice(Notice("I526", f"{message}{enumerate_some(list(factors.values()))}"))
    return replace(stacked, values=values, of_logits=of_logits)


def stack_members(by_name: Mapping[str, Predictions], member_views: Sequence[MemberView], truth: Truth) -> LearningData:
    """Stack all predictions, sorted by id and in the ground truth's class order, so that no input order matters."""
    images = sort_images(truth)
    found = stack_views(by_name, member_views, truth, images.ids, normalize=log_softmax)
    classes = truth.classes[images.order]
    return LearningData(found.values, classes, images.person, found.of_logits, looks=found.looks)


def stack_new(members: Sequence[Predictions], member_views: Sequence[MemberView], labels: LabelSpace) -> list[Floats]:
    """Return for each member view the log-probabilities ``(k, M, C)`` of its folds, as `stack_new_views`."""
    return stack_new_views(members, member_views, labels, normalize=log_softmax)


def average_folds(
    data: LearningData, member_views: Sequence[MemberView], new: Sequence[Floats], *, seed: int, listener: Listener
) -> LearningData:
    """Return the data as if the folds of each group had been averaged, as `average_views`."""

    def simulate(looks: Sequence[Floats], folds: Sequence[Floats]) -> list[FoldAverage]:
        return simulate_fold_averages(looks, data.truth, folds, seed=seed)

    given = StackedViews(data.log_p, data.log_g, data.looks)
    found = average_views(given, member_views, new, simulate=simulate, listener=listener)
    return data if found is given else replace(data, log_p=found.values, log_g=found.of_logits, looks=())


def _other_images(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner}: its images are not those of the ground truth: it {difference}", hint=ALL_FOLDS)


def _not_the_images(owner: str, difference: str) -> PredictionError:
    return PredictionError("E504", f"{owner} has predictions of other images: it {difference}")
