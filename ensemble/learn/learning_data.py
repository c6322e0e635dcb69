"""Stack predictions for learning: every member view's log-probabilities, in one order of images and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.blend.pooling import log_softmax
from ensemble.errors import DataError, PredictionError, TooLittleTruthError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import FOLDS, LearningData
from ensemble.learn.fold_average import simulate_fold_average
from ensemble.learn.result import MemberView
from ensemble.predictions.dataset import Predictions, require_finite
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


def stack_members(by_name: Mapping[str, Predictions], member_views: Sequence[MemberView], truth: Truth) -> LearningData:
    """Stack all predictions, sorted by id and in the ground truth's class order, so that no input order matters."""
    images = sort_images(truth)
    log_p = np.empty((len(member_views), len(images.ids), len(truth.labels)))
    for i, one in enumerate(member_views):
        member = by_name[one.member]
        rows = join_rows(images.ids, member.ids, complain=partial(_other_images, one.member))
        columns = truth.labels.permutation(member.labels, owner=one.member)
        require_finite(member, one.view)
        log_p[i] = log_softmax(member.logits[one.view][rows[:, np.newaxis], columns])
    return LearningData(log_p, truth.classes[images.order], images.person)


def stack_new(members: Sequence[Predictions], member_views: Sequence[MemberView], labels: LabelSpace) -> list[Floats]:
    """Return for each member view the log-probabilities ``(k, M, C)`` of the k folds that will be blended.

    The list is empty without predictions of every group.

    Raises:
        PredictionError: E501 when classes differ, E504 when images differ, E505 when a prediction is not finite, E516
            when a view is missing.
    """
    groups: dict[str, list[Predictions]] = {}
    for member in sorted(members, key=lambda one: one.member):
        groups.setdefault(member.group, []).append(member)
    if not all(one.member in groups for one in member_views):
        return []
    ids = sorted(members[0].ids)
    return [np.stack([_rows_of(fold, one.view, ids, labels) for fold in groups[one.member]]) for one in member_views]


def _rows_of(fold: Predictions, view: str, ids: Sequence[str], labels: LabelSpace) -> Floats:
    if view not in fold.logits:
        raise PredictionError("E516", f"{fold.member} has no view {view}; it has {', '.join(sorted(fold.logits))}")
    rows = join_rows(ids, fold.ids, complain=partial(_not_the_images, fold.member))
    columns = labels.permutation(fold.labels, owner=fold.member)
    require_finite(fold, view)
    return np.asarray(log_softmax(fold.logits[view][rows[:, np.newaxis], columns]), dtype=np.float64)


def average_folds(
    data: LearningData, member_views: Sequence[MemberView], new: Sequence[Floats], *, seed: int, listener: Listener
) -> LearningData:
    """Return the data as if the folds of each group had been averaged, as they are among the ``new`` predictions."""
    if all(len(folds) < 2 for folds in new):
        return data
    log_p, log_g, factors = data.log_p.copy(), data.log_p.copy(), {}
    for i, (one, folds) in enumerate(zip(member_views, new, strict=True)):
        if len(folds) > 1:
            found = simulate_fold_average(data.log_p[i], data.truth, folds, seed=seed)
            log_p[i], log_g[i], factors[one.member] = found.of_probabilities, found.of_logits, found.factor
    shrunk = enumerate_some([f"{name} x{factor:.2f}" for name, factor in factors.items()])
    message = f"learned for the mean of the folds, whose errors are smaller than those of one fold: {shrunk}"
    listener.notice(Notice("I526", message))
    return replace(data, log_p=log_p, log_g=log_g)


def _other_images(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner}: its images are not those of the ground truth: it {difference}")


def _not_the_images(owner: str, difference: str) -> PredictionError:
    return PredictionError("E504", f"{owner} has predictions of other images: it {difference}")
