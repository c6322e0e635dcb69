"""Estimates: a score with its bootstrap interval, of any contest metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import PositiveClassError
from ensemble.events import SILENT, Listener, Notice
from ensemble.metrics import interval
from ensemble.scoring.answers import ScoredAnswers, resample_weights
from ensemble.scoring.catalog import ContestMetric
from ensemble.submission.positive import find_positive

_ORDERED = 200
"""Resamples of a metric that sorts each column."""
_OWN = 100
"""Resamples of a function of the user, which is called once per resample."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class MetricScore:
    """One metric of one set of predictions; None where it needs probabilities and there are none, or is undefined.

    ``by_class`` has the value of each class or label, where the metric is a mean over them; None where it is undefined.
    """

    title: str
    estimate: Estimate | None
    by_class: tuple[float | None, ...] | None = None


def score_metrics(
    metrics: Sequence[ContestMetric],
    answers: ScoredAnswers,
    clusters: Sequence[str] | NDArray[np.generic] | None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, MetricScore]:
    """Return the score of each metric by name; intervals are from a bootstrap over ``clusters``, or over images."""
    return {one.name: _score(one, answers, clusters, resamples, seed) for one in metrics}


def positive_class(
    names: Sequence[str], named: str | None, *, recorded: str | None = None, listener: Listener = SILENT
) -> int:
    """Return which of two classes metrics such as ROC AUC are about: the one named, or by their names, or the second.

    The class that a recipe ``recorded`` comes before what the names tell.

    Raises:
        PredictionError: E541 when the class that is named is none.
    """
    if len(names) != 2 and named is None:
        return 1
    try:
        found = find_positive(names, "", named, recorded=recorded)
    except PositiveClassError:
        found = 1
    if named is None:
        listener.notice(Notice("I549", f"metrics of one of two classes are about {names[found]!r}"))
    return found


def _score(
    metric: ContestMetric,
    answers: ScoredAnswers,
    clusters: Sequence[str] | NDArray[np.generic] | None,
    resamples: int,
    seed: int,
) -> MetricScore:
    enough = {"decisions", "ranking"} if answers.ranked else {"decisions"}
    if (answers.probabilities is None or answers.ranked) and metric.kind not in enough:
        return MetricScore(metric.title, None)
    count = min(resamples, _OWN if not metric.vectorized else _ORDERED if metric.kind == "order" else resamples)
    drawn = resample_weights(answers.rows, clusters, resamples=count, seed=seed)
    value = metric.once(answers)
    again = np.concatenate([metric.score(answers, weights) for weights in drawn])
    known = again[np.isfinite(again)]
    estimate = None if not np.isfinite(value) or not len(known) else Estimate(value, *interval(known))
    by_class = None
    if metric.by_class is not None:
        found = metric.by_class(answers, np.ones((1, answers.rows)))[0].tolist()
        by_class = tuple(value if np.isfinite(value) else None for value in found)
    return MetricScore(metric.title, estimate, by_class)
