"""Nested cross-validation: every answer is given by a candidate that was fitted to other people.

Scores are bootstrapped over people, all candidates with the same resamples, so that their differences can be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from ensemble.candidates import Fitted, Metric
from ensemble.events import SILENT, Listener
from ensemble.metrics import accuracy, bootstrap, confusion_matrix, macro_f1

Classes = NDArray[np.intp]
Floats = NDArray[np.float64]

FOLDS = 5
_RESAMPLES = 500


@dataclass(frozen=True, slots=True, eq=False)
class Ballots:
    """All voters' log-probabilities ``(V, N, C)`` beside the truth ``(N,)``.

    ``owner`` ``(N,)`` numbers the person on each image, or the image itself where persons are not known.
    """

    log_p: Floats
    truth: Classes
    owner: Classes


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """A candidate's answers ``(R, N)``, R times over, and the log-probabilities ``(R, N)`` it gave the true class."""

    classes: Classes
    likelihood: Floats


def answer(fitted: Fitted, ballots: Ballots) -> Answers:
    """What a candidate answers to all images, once."""
    pooled = fitted.apply(ballots.log_p)
    of_truth = pooled[np.arange(len(ballots.truth)), ballots.truth]
    return Answers(fitted.decide(pooled)[np.newaxis], of_truth[np.newaxis])


def cross_validate(
    fit: Callable[[Floats, Classes], Mapping[str, Fitted]],
    ballots: Ballots,
    *,
    repeats: int,
    seed: int,
    listener: Listener = SILENT,
) -> dict[str, Answers]:
    """Every candidate's answers to every image, ``repeats`` times, by what ``fit`` made of other people's images."""
    found: dict[str, list[Answers]] = {}
    for repeat in range(repeats):
        parts: dict[str, list[Answers]] = {}
        tested = []
        for fold, (train, test) in enumerate(split(ballots.truth, ballots.owner, seed=seed + repeat)):
            listener.progress("learn", repeat * FOLDS + fold, repeats * FOLDS)
            unseen = Ballots(ballots.log_p[:, test], ballots.truth[test], ballots.owner[test])
            for name, fitted in fit(ballots.log_p[:, train], ballots.truth[train]).items():
                parts.setdefault(name, []).append(answer(fitted, unseen))
            tested.append(test)
        order = np.argsort(np.concatenate(tested))
        for name, part in parts.items():
            found.setdefault(name, []).append(_join(part, axis=1, order=order))
    listener.progress("learn", repeats * FOLDS, repeats * FOLDS)
    return {name: _join(part, axis=0) for name, part in found.items()}


def split(truth: Classes, owner: Classes, *, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to fit and rows to test, five times: people stay whole, and classes are as even as that allows."""
    images = np.bincount(truth)
    # a class with fewer images than folds cannot be spread at all
    strata = np.where(images[truth] < FOLDS, images.argmax(), truth)
    yield from StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(strata, strata, owner)


def score(metric: Metric, ballots: Ballots, answers: Answers, *, classes: int) -> float:
    """How good answers are, the mean of R times; higher is better: ``nll`` stands for the mean log-likelihood."""
    if metric == "nll":
        return float(answers.likelihood.mean())
    return float(np.mean([measure_answers(metric, ballots.truth, once, classes=classes) for once in answers.classes]))


def resample(metric: Metric, ballots: Ballots, answers: Answers, *, classes: int, seed: int) -> Floats:
    """The score in each of 500 resamples of people, ``(resamples,)``; all answers meet the same resamples."""
    if metric == "nll":
        return _bootstrap_mean(answers.likelihood.mean(axis=0), ballots.owner, seed)
    draw = partial(bootstrap, classes=classes, clusters=ballots.owner.tolist(), resamples=_RESAMPLES, seed=seed)
    each = [FROM_CONFUSION[metric](draw(ballots.truth, once)) for once in answers.classes]
    return np.asarray(np.mean(each, axis=0))


def measure_answers(metric: Metric, truth: Classes, answers: Classes, *, classes: int) -> float:
    """The score of answers ``(N,)``, for any metric but ``nll``."""
    return float(FROM_CONFUSION[metric](confusion_matrix(truth, answers, classes=classes)))


def balanced_accuracy(confusion: Floats) -> Floats:
    """The mean recall of the classes that occur."""
    images = confusion.sum(axis=-1)
    recall = np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(images, 1)
    return np.asarray(recall.sum(axis=-1) / (images > 0).sum(axis=-1))


FROM_CONFUSION: dict[Metric, Callable[[Floats], Floats]] = {
    "macro-f1": macro_f1,
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
}


def _join(parts: list[Answers], *, axis: int, order: NDArray[np.intp] | None = None) -> Answers:
    classes = np.concatenate([part.classes for part in parts], axis=axis)
    likelihood = np.concatenate([part.likelihood for part in parts], axis=axis)
    return Answers(classes, likelihood) if order is None else Answers(classes[:, order], likelihood[:, order])


def _bootstrap_mean(values: Floats, owner: Classes, seed: int) -> Floats:
    """The mean of values ``(N,)`` in each resample of their owners, ``(resamples,)``."""
    total, count = np.bincount(owner, weights=values), np.bincount(owner)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(count), size=len(count)) for _ in range(_RESAMPLES))
    return np.array([total[who].sum() / count[who].sum() for who in drawn])
