"""Measure whether a view is worth its inference cost, on images with ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats, Mask
from ensemble.learn.candidates import Fitted
from ensemble.learn.cross_validation import (
    CandidateAnswers,
    LearningData,
    apply_candidate,
    bootstrap_scores,
    score_answers,
)
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


def measure_views(
    data: LearningData, views: Sequence[str], mean_weights: Floats, metric: Metric, *, seed: int
) -> tuple[ViewGain, ...]:
    """Measure each view in addition to the first: the identity if present, else the first by name.

    ``views[v]`` is the view of member view v, and ``mean_weights`` ``(V,)`` are the weights of the plain mean.
    """
    view_names = np.array(views)
    first = first_view(views)
    baseline = _mean_of_views(data, mean_weights, view_names == first, metric, seed)
    gains = []
    for view in sorted(set(views) - {first}):
        both = _mean_of_views(data, mean_weights, (view_names == first) | (view_names == view), metric, seed)
        before, after = (found.answers.classes[0] == data.truth for found in (baseline, both))
        gains.append(
            ViewGain(
                view=view,
                gain=both.score - baseline.score,
                error=float((both.resampled - baseline.resampled).std(ddof=1)),
                right_to_wrong=int((before & ~after).sum()),
                wrong_to_right=int((~before & after).sum()),
                cost=float(1 + (view_names == view).sum() / (view_names == first).sum()),
            )
        )
    return tuple(gains)


def first_view(views: Sequence[str]) -> str:
    """Return the view that others are added to: the identity if present, else the first by name."""
    return _IDENTITY if _IDENTITY in views else min(views)


@dataclass(frozen=True, slots=True, eq=False)
class _MeanOfViews:
    answers: CandidateAnswers
    score: float
    resampled: Floats


def _mean_of_views(data: LearningData, mean_weights: Floats, used: Mask, metric: Metric, seed: int) -> _MeanOfViews:
    weights = np.where(used, mean_weights, 0.0)
    fitted = Fitted("linear", weights / weights.sum(), 1.0, np.zeros(data.log_p.shape[-1]))
    answers = apply_candidate(fitted, data)
    return _MeanOfViews(
        answers, score_answers(metric, data, answers), bootstrap_scores(metric, data, answers, seed=seed)
    )
