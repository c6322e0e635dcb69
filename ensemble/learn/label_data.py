"""Stack predictions of independent labels for learning: every member view's log-odds, in one order of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ensemble.arrays import Classes, Floats, Logits
from ensemble.errors import DataError
from ensemble.events import Listener
from ensemble.labels import LabelSpace
from ensemble.learn.fold_average import FoldAverage, simulate_label_averages
from ensemble.learn.learning_data import StackedViews, average_views, sort_images, stack_new_views, stack_views
from ensemble.learn.result import MemberView
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from ensemble.submission.sheet import Decisions


@dataclass(frozen=True, slots=True, eq=False)
class LabelData:
    """Out-of-fold log-odds ``(V, N, C)`` of all member views, and which labels apply ``(N, C)``.

    ``person`` ``(N,)`` is the index of the person on each image, or of the image itself if persons are unknown. Where
    the folds of a model are averaged, ``odds`` are those of their mean probabilities, and ``logits`` their mean
    log-odds, for the pools of log-odds; without it the two are the same. ``looks`` has for each member view the
    log-odds ``(R, N, C)`` of its R fold splits, or None where it was trained on one; empty once folds are averaged.
    """

    odds: Floats
    applies: Decisions
    person: Classes
    logits: Floats | None = None
    looks: tuple[Floats | None, ...] = ()

    def take(self, rows: Classes) -> LabelData:
        """Return the data of some images, without the fold splits."""
        logits = None if self.logits is None else self.logits[:, rows]
        return LabelData(self.odds[:, rows], self.applies[rows], self.person[rows], logits)

    @property
    def mean_odds(self) -> Floats:
        """The log-odds ``(V, N, C)`` for the pools of log-odds."""
        return self.odds if self.logits is None else self.logits


def stack_labels(by_name: Mapping[str, Predictions], views: Sequence[MemberView], truth: Truth) -> LabelData:
    """Stack all log-odds, sorted by id and in the ground truth's order of labels.

    Raises:
        DataError: E330 when the ground truth has one class per image, or is for other images.
        PredictionError: E501 when labels differ, E505 when a prediction is not finite.
    """
    if truth.applies is None:
        raise DataError("E330", "the ground truth has one class per image, and the predictions several labels")
    images = sort_images(truth)
    found = stack_views(by_name, views, truth, images.ids, normalize=_as_they_are)
    return LabelData(found.values, truth.applies[images.order], images.person, found.of_logits, found.looks)


def stack_new_labels(members: Sequence[Predictions], views: Sequence[MemberView], labels: LabelSpace) -> list[Floats]:
    """Return for each member view the log-odds ``(k, M, C)`` of its folds, as `stack_new_views`."""
    return stack_new_views(members, views, labels, normalize=_as_they_are)


def average_label_folds(
    data: LabelData, views: Sequence[MemberView], new: Sequence[Floats], *, seed: int, listener: Listener
) -> LabelData:
    """Return the data as if the folds of each group had been averaged, as `average_views`."""

    def simulate(looks: Sequence[Floats], folds: Sequence[Floats]) -> list[FoldAverage]:
        return simulate_label_averages(looks, data.applies, folds, seed=seed)

    given = StackedViews(data.odds, data.logits, data.looks)
    found = average_views(given, views, new, simulate=simulate, listener=listener)
    return data if found is given else replace(data, odds=found.values, logits=found.of_logits, looks=())


def _as_they_are(odds: Logits | Floats) -> Floats:
    # in the precision of the file: fold splits are averaged in it
    return cast("Floats", odds)
