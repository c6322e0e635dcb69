"""Measure whether a view is worth its inference cost, on images with ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats, Mask
from ensemble.learn.candidates import weighted_mean
from ensemble.learn.cross_validation import LearningData, apply_candidate, bootstrap_scores, score_answers
from ensemble.learn.objective import Metric

_IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class ViewGain:
    """The effect of adding one view to the first in the mean of all members' probabilities.

    ``gain`` is the change of the score, ``error`` its standard error over people. ``right_to_wrong`` and
    ``wrong_to_right`` count images, or of independent labels the decisions of all. ``cost`` is the inference cost in
    multiples of that of the first view alone.
    """

    view: str
    gain: float
    error: float
    right_to_wrong: int
    wrong_to_right: int
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class MeanOfViews:
    """A mean of member views: which of its decisions are right, its score, and its score in each resample ``(R,)``."""

    right: Mask
    score: float
    resampled: Floats


def measure_gains(
    views: Sequence[str], mean_weights: Floats, score: Callable[[Floats], MeanOfViews]
) -> tuple[ViewGain, ...]:
    """Measure each view in addition to the first: the identity if present, else the first by name.

    ``views[v]`` is the view of member view v, and ``mean_weights`` ``(V,)`` are the weights of the plain mean.
    ``score`` scores the mean with weights ``(V,)``.
    """
    names = np.array(views)

    def mean_of(used: Mask) -> MeanOfViews:
        weights = np.where(used, mean_weights, 0.0)
        return score(weights / weights.sum())

    first = _IDENTITY if _IDENTITY in views else min(views)
    alone = mean_of(names == first)
    gains = []
    for view in sorted(set(views) - {first}):
        both = mean_of((names == first) | (names == view))
        gains.append(
            ViewGain(
                view=view,
                gain=both.score - alone.score,
                error=float((both.resampled - alone.resampled).std(ddof=1)),
                right_to_wrong=int((alone.right & ~both.right).sum()),
                wrong_to_right=int((~alone.right & both.right).sum()),
                cost=float(1 + (names == view).sum() / (names == first).sum()),
            )
        )
    return tuple(gains)


def measure_views(
    data: LearningData, views: Sequence[str], mean_weights: Floats, metric: Metric, *, seed: int
) -> tuple[ViewGain, ...]:
    """Measure each view in addition to the first, as `measure_gains`."""

    def score(weights: Floats) -> MeanOfViews:
        answers = apply_candidate(weighted_mean(weights, data.log_p.shape[-1]), data)
        return MeanOfViews(
            answers.classes[0] == data.truth,
            score_answers(metric, data, answers),
            bootstrap_scores(metric, data, answers, seed=seed),
        )

    return measure_gains(views, mean_weights, score)
