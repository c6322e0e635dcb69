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
from ensemble.learn.fold_average import simulate_fold_averages
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
class StackedMembers:
    """The learning data, and for each member view the log-probabilities ``(R, N, C)`` of its R fold splits.

    They are None for a member that was trained on one split.
    """

    data: LearningData
    looks: tuple[Floats | None, ...]


def stack_members(
    by_name: Mapping[str, Predictions], member_views: Sequence[MemberView], truth: Truth
) -> StackedMembers:
    """Stack all predictions, sorted by id and in the ground truth's class order, so that no input order matters."""
    images = sort_images(truth)
    log_p = np.empty((len(member_views), len(images.ids), len(truth.labels)))
    looks: list[Floats | None] = []
    for i, one in enumerate(member_views):
        member = by_name[one.member]
        rows = join_rows(images.ids, member.ids, complain=partial(_other_images, one.member))
        columns = truth.labels.permutation(member.labels, owner=one.member)
        require_finite(member, one.view)
        log_p[i] = log_softmax(member.logits[one.view][rows[:, np.newaxis], columns])
        found = None if member.looks is None else member.looks[one.view][:, rows[:, np.newaxis], columns]
        looks.append(None if found is None else log_softmax(found))
    log_g = log_p.copy() if any(one is not None for one in looks) else None
    for i, splits in enumerate(looks):
        if log_g is not None and splits is not None:
            log_g[i] = log_softmax(splits.mean(axis=0))
    return StackedMembers(LearningData(log_p, truth.classes[images.order], images.person, log_g), tuple(looks))


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
    stacked: StackedMembers, member_views: Sequence[MemberView], new: Sequence[Floats], *, seed: int, listener: Listener
) -> LearningData:
    """Return the data as if the folds of each group had been averaged, as they are among the ``new`` predictions."""
    data = stacked.data
    given = [p[np.newaxis] if looks is None else looks for p, looks in zip(data.log_p, stacked.looks, strict=True)]
    averaged = [i for i, folds in enumerate(new) if len(folds) > len(given[i])]
    if not averaged:
        return data
    log_p, factors = data.log_p.copy(), {}
    log_g = data.log_p.copy() if data.log_g is None else data.log_g.copy()
    looks, folds = [given[i] for i in averaged], [new[i] for i in averaged]
    for i, found in zip(averaged, simulate_fold_averages(looks, data.truth, folds, seed=seed), strict=True):
        log_p[i], log_g[i] = found.of_probabilities, found.of_logits
        member, splits = member_views[i].member, len(given[i])
        factors[member] = f"{member} x{found.factor:.2f}" + (f" ({splits} fold splits)" if splits > 1 else "")
    message = "learned for the mean of the folds, whose errors are smaller than those out of fold: "
    listener.notice(Notice("I526", f"{message}{enumerate_some(list(factors.values()))}"))
    return replace(data, log_p=log_p, log_g=log_g)


def _other_images(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner}: its images are not those of the ground truth: it {difference}", hint=ALL_FOLDS)


def _not_the_images(owner: str, difference: str) -> PredictionError:
    return PredictionError("E504", f"{owner} has predictions of other images: it {difference}")
