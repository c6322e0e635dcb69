"""Nested cross-validation grouped by person: every answer comes from a candidate fitted to other people.

All candidates are scored on the same bootstrap resamples of people, so that the standard errors of their differences
are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from ensemble.arrays import Classes, Floats
from ensemble.events import SILENT, Listener
from ensemble.learn.candidates import Fitted
from ensemble.learn.objective import Metric
from ensemble.metrics import bootstrap, confusion_matrix
from ensemble.scoring.answers import ScoredAnswers, resample_weights

FOLDS = 5
_RESAMPLES = 500


@dataclass(frozen=True, slots=True, eq=False)
class LearningData:
    """Out-of-fold log-probabilities ``(V, N, C)`` of all member views, with the true classes ``(N,)``.

    ``person`` ``(N,)`` is the index of the person on each image, or of the image itself if persons are unknown. Where
    the folds of a model are averaged, ``log_p`` are logarithms of their mean probabilities, and ``log_g`` their mean
    log-probabilities, for the pools of logits; without it the two are the same. ``keep`` says that answers keep their
    probabilities, which some metrics need. ``looks`` has for each member view the log-probabilities ``(R, N, C)`` of
    its R fold splits, or None where it was trained on one; it is empty once folds are averaged.
    """

    log_p: Floats
    truth: Classes
    person: Classes
    log_g: Floats | None = None
    keep: bool = False
    looks: tuple[Floats | None, ...] = ()

    def take(self, rows: NDArray[np.intp]) -> LearningData:
        """Return the data of some images, without the fold splits."""
        log_g = None if self.log_g is None else self.log_g[:, rows]
        return LearningData(self.log_p[:, rows], self.truth[rows], self.person[rows], log_g, self.keep)


@dataclass(frozen=True, slots=True, eq=False)
class CandidateAnswers:
    """A candidate's classes ``(R, N)`` in R repeats, and the log-probabilities ``(R, N)`` of the true classes.

    ``probabilities`` ``(R, N, C)`` are kept only for metrics that need them.
    """

    classes: Classes
    log_p_true: Floats
    probabilities: Floats | None = None


def apply_candidate(fitted: Fitted, data: LearningData) -> CandidateAnswers:
    """Return a candidate's answers to all images, as one repeat."""
    pooled = fitted.apply(data.log_p, data.log_g)
    log_p_true = pooled[np.arange(len(data.truth)), data.truth]
    kept = np.exp(pooled)[np.newaxis] if data.keep else None
    return CandidateAnswers(fitted.decide(pooled)[np.newaxis], log_p_true[np.newaxis], kept)


def cross_validate(
    fit: Callable[[LearningData], Mapping[str, Fitted]],
    data: LearningData,
    *,
    repeats: int,
    seed: int,
    listener: Listener = SILENT,
) -> dict[str, CandidateAnswers]:
    """Return each candidate's out-of-fold answers to all images, ``repeats`` times with other folds.

    ``fit`` fits all candidates to the data of some images.
    """
    found: dict[str, list[CandidateAnswers]] = {}
    for repeat in range(repeats):
        parts: dict[str, list[CandidateAnswers]] = {}
        tested = []
        for fold, (train, test) in enumerate(split_by_person(data.truth, data.person, seed=seed + repeat)):
            listener.progress("learn", repeat * FOLDS + fold, repeats * FOLDS)
            holdout = data.take(test)
            for name, fitted in fit(data.take(train)).items():
                parts.setdefault(name, []).append(apply_candidate(fitted, holdout))
            tested.append(test)
        order = np.argsort(np.concatenate(tested))
        for name, part in parts.items():
            found.setdefault(name, []).append(_concatenate(part, axis=1, order=order))
    listener.progress("learn", repeats * FOLDS, repeats * FOLDS)
    return {name: _concatenate(part, axis=0) for name, part in found.items()}


def split_by_person(
    truth: Classes, person: Classes, *, seed: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield train and test rows of five folds, as scikit-learn's splitters do: no person is in both."""
    images = np.bincount(truth)
    # a class with fewer images than folds cannot be stratified
    strata = np.where(images[truth] < FOLDS, images.argmax(), truth)
    yield from StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(strata, strata, person)


def score_answers(
    metric: Metric, data: LearningData, answers: CandidateAnswers, *, class_weights: Floats | None = None
) -> float:
    """Return the score of the answers, averaged over the repeats; for the likelihood, the mean log-likelihood.

    With ``class_weights`` ``(C,)`` an image of class c counts that many times.
    """
    if metric.contest is not None:
        once = np.ones((1, len(data.truth))) if class_weights is None else class_weights[np.newaxis, data.truth]
        return float(np.mean([metric.score_answers(one, once)[0] for one in _repeats(data, answers, metric.positive)]))
    if metric.score is None:
        return float(answers.log_p_true.mean())
    counted = [
        _weighted(metric, confusion_matrix(data.truth, classes, classes=data.log_p.shape[-1]), class_weights)
        for classes in answers.classes
    ]
    return float(np.mean(metric.score_confusion(np.stack(counted))))


def _weighted(metric: Metric, confusion: Floats, weights: Floats | None) -> Floats:
    """Return confusion matrices ``(..., values, values)`` of the metric's values, from those of classes."""
    if weights is not None:
        confusion = confusion * weights[:, np.newaxis]
    if metric.values == confusion.shape[-1]:
        return confusion
    to_value = np.eye(metric.values)[metric.value_of_class]
    return np.asarray(to_value.T @ confusion @ to_value)


def bootstrap_scores(
    metric: Metric,
    data: LearningData,
    answers: CandidateAnswers,
    *,
    seed: int,
    out_of_bag: bool = False,
    class_weights: Floats | None = None,
    resamples: int = _RESAMPLES,
) -> Floats:
    """Return the score in each of 500 bootstrap resamples of people; one seed gives all answers the same resamples.

    With ``out_of_bag`` the scores are those on the people left out of each resample. With ``class_weights`` ``(C,)`` an
    image of class c counts that many times. A contest metric has fewer ``resamples``.
    """
    if metric.contest is not None:
        return _bootstrap_contest(metric, data, answers, seed, out_of_bag=out_of_bag, class_weights=class_weights)
    if metric.score is None:
        return _bootstrap_mean(
            answers.log_p_true.mean(axis=0), data.person, seed, out_of_bag=out_of_bag, resamples=resamples
        )
    persons = data.person.tolist()
    of_repeats = [
        metric.score_confusion(
            _weighted(
                metric,
                bootstrap(
                    data.truth,
                    classes,
                    classes=data.log_p.shape[-1],
                    clusters=persons,
                    resamples=resamples,
                    seed=seed,
                    left_out=out_of_bag,
                ),
                class_weights,
            )
        )
        for classes in answers.classes
    ]
    return np.asarray(np.mean(of_repeats, axis=0))


def _concatenate(
    parts: list[CandidateAnswers], *, axis: int, order: NDArray[np.intp] | None = None
) -> CandidateAnswers:
    classes = np.concatenate([part.classes for part in parts], axis=axis)
    log_p_true = np.concatenate([part.log_p_true for part in parts], axis=axis)
    every = [part.probabilities for part in parts if part.probabilities is not None]
    kept = np.concatenate(every, axis=axis) if every else None
    if order is None:
        return CandidateAnswers(classes, log_p_true, kept)
    return CandidateAnswers(classes[:, order], log_p_true[:, order], None if kept is None else kept[:, order])


def _repeats(data: LearningData, answers: CandidateAnswers, positive: int) -> Iterator[ScoredAnswers]:
    """Yield the answers of each repeat."""
    for i, classes in enumerate(answers.classes):
        p = None if answers.probabilities is None else answers.probabilities[i]
        yield ScoredAnswers(data.truth, classes, p, data.log_p.shape[-1], positive)


def _bootstrap_contest(
    metric: Metric,
    data: LearningData,
    answers: CandidateAnswers,
    seed: int,
    *,
    out_of_bag: bool,
    class_weights: Floats | None,
) -> Floats:
    """Return a contest metric's score in each resample of people, averaged over the repeats."""
    found = []
    for weights in resample_weights(
        len(data.truth), data.person, resamples=metric.resamples, seed=seed, left_out=out_of_bag
    ):
        each = weights if class_weights is None else weights * class_weights[data.truth]
        found.append(
            np.mean([metric.score_answers(one, each) for one in _repeats(data, answers, metric.positive)], axis=0)
        )
    return np.concatenate(found)


def _bootstrap_mean(
    values: Floats, person: Classes, seed: int, *, out_of_bag: bool, resamples: int = _RESAMPLES
) -> Floats:
    """Return the mean of ``values`` ``(N,)`` over the people in each resample, or over those left out of it."""
    total, count = np.bincount(person, weights=values), np.bincount(person)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(count), size=len(count)) for _ in range(resamples))
    everyone = np.arange(len(count))
    used = (np.setdiff1d(everyone, people) if out_of_bag else people for people in drawn)
    return np.array([total[people].sum() / count[people].sum() for people in used])
