"""Stack predictions of independent labels for learning: every member view's log-odds, in one order of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ensemble.arrays import Classes, Floats
from ensemble.errors import DataError, PredictionError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.learn.fold_average import simulate_label_averages
from ensemble.learn.learning_data import sort_images
from ensemble.learn.result import MemberView
from ensemble.predictions.dataset import Predictions, require_finite
from ensemble.predictions.out_of_fold import ALL_FOLDS
from ensemble.predictions.truth import Truth
from ensemble.submission.sheet import Decisions


@dataclass(frozen=True, slots=True, eq=False)
class LabelData:
    """Out-of-fold log-odds ``(V, N, C)`` of all member views, and which labels apply ``(N, C)``.

    ``person`` ``(N,)`` is the index of the person on each image, or of the image itself if persons are unknown. Where
    the folds of a model are averaged, ``odds`` are those of their mean probabilities, and ``logits`` their mean
    log-odds, for the pools of log-odds; without it the two are the same.
    """

    odds: Floats
    applies: Decisions
    person: Classes
    logits: Floats | None = None

    def take(self, rows: Classes) -> LabelData:
        """Return the data of some images."""
        logits = None if self.logits is None else self.logits[:, rows]
        return LabelData(self.odds[:, rows], self.applies[rows], self.person[rows], logits)

    @property
    def mean_odds(self) -> Floats:
        """The log-odds ``(V, N, C)`` for the pools of log-odds."""
        return self.odds if self.logits is None else self.logits


@dataclass(frozen=True, slots=True, eq=False)
class StackedLabels:
    """The learning data, and for each member view the log-odds ``(R, N, C)`` of its R fold splits.

    They are None for a member that was trained on one split.
    """

    data: LabelData
    looks: tuple[Floats | None, ...]


def stack_labels(by_name: Mapping[str, Predictions], views: Sequence[MemberView], truth: Truth) -> StackedLabels:
    """Stack all log-odds, sorted by id and in the ground truth's order of labels.

    Raises:
        DataError: E330 when the ground truth has one class per image, or is for other images.
        PredictionError: E501 when labels differ, E505 when a prediction is not finite.
    """
    if truth.applies is None:
        raise DataError("E330", "the ground truth has one class per image, and the predictions several labels")
    images = sort_images(truth)
    odds = np.empty((len(views), len(images.ids), len(truth.labels)))
    looks: list[Floats | None] = []
    for i, one in enumerate(views):
        member = by_name[one.member]
        rows = join_rows(images.ids, member.ids, complain=partial(_other_images, one.member))
        columns = truth.labels.permutation(member.labels, owner=one.member)
        require_finite(member, one.view)
        odds[i] = member.logits[one.view][rows[:, np.newaxis], columns]
        looks.append(None if member.looks is None else member.looks[one.view][:, rows[:, np.newaxis], columns])
    logits = odds.copy() if any(one is not None for one in looks) else None
    for i, splits in enumerate(looks):
        if logits is not None and splits is not None:
            logits[i] = splits.mean(axis=0)
    return StackedLabels(LabelData(odds, truth.applies[images.order], images.person, logits), tuple(looks))


def stack_new_labels(members: Sequence[Predictions], views: Sequence[MemberView], labels: LabelSpace) -> list[Floats]:
    """Return for each member view the log-odds ``(k, M, C)`` of the k folds that will be blended.

    The list is empty without predictions of every group.

    Raises:
        PredictionError: E501 when labels differ, E504 when images differ, E505 when a prediction is not finite, E516
            when a view is missing.
    """
    groups: dict[str, list[Predictions]] = {}
    for member in sorted(members, key=lambda one: one.member):
        groups.setdefault(member.group, []).append(member)
    if not all(one.member in groups for one in views):
        return []
    ids = sorted(members[0].ids)
    return [np.stack([_odds_of(fold, one.view, ids, labels) for fold in groups[one.member]]) for one in views]


def _odds_of(fold: Predictions, view: str, ids: Sequence[str], labels: LabelSpace) -> Floats:
    if view not in fold.logits:
        raise PredictionError("E516", f"{fold.member} has no view {view}; it has {', '.join(sorted(fold.logits))}")
    rows = join_rows(ids, fold.ids, complain=partial(_not_the_images, fold.member))
    columns = labels.permutation(fold.labels, owner=fold.member)
    require_finite(fold, view)
    return np.asarray(fold.logits[view][rows[:, np.newaxis], columns], dtype=np.float64)


def average_label_folds(
    stacked: StackedLabels, views: Sequence[MemberView], new: Sequence[Floats], *, seed: int, listener: Listener
) -> LabelData:
    """Return the data as if the folds of each group had been averaged, as they are among the ``new`` predictions.

    What it was learned for is said (I526).
    """
    data = stacked.data
    given = [p[np.newaxis] if looks is None else looks for p, looks in zip(data.odds, stacked.looks, strict=True)]
    averaged = [i for i, folds in enumerate(new) if len(folds) > len(given[i])]
    if not averaged:
        return data
    odds, logits, factors = data.odds.copy(), data.mean_odds.copy(), {}
    looks, folds = [given[i] for i in averaged], [new[i] for i in averaged]
    for i, found in zip(averaged, simulate_label_averages(looks, data.applies, folds, seed=seed), strict=True):
        odds[i], logits[i] = found.of_probabilities, found.of_logits
        member, splits = views[i].member, len(given[i])
        factors[member] = f"{member} x{found.factor:.2f}" + (f" ({splits} fold splits)" if splits > 1 else "")
    message = "learned for the mean of the folds, whose errors are smaller than those out of fold: "
    listener.notice(Notice("I526", f"{message}{enumerate_some(list(factors.values()))}"))
    return replace(data, odds=odds, logits=logits)


def _other_images(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner}: its images are not those of the ground truth: it {difference}", hint=ALL_FOLDS)


def _not_the_images(owner: str, difference: str) -> PredictionError:
    return PredictionError("E504", f"{owner} has predictions of other images: it {difference}")
