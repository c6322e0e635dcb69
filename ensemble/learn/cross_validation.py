"""Nested cross-validation: every answer is given by a candidate that was fitted to other people.

Scores are bootstrapped over people, all candidates with the same resamples, so that their differences can be judged.
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
from ensemble.learn.objective import Measure
from ensemble.metrics import bootstrap

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


def score(measure: Measure, ballots: Ballots, answers: Answers) -> float:
    """How good answers are, the mean of R times; higher is better: the likelihood is its mean logarithm."""
    if measure.score is None:
        return float(answers.likelihood.mean())
    return float(np.mean([measure.of_answers(ballots.truth, once) for once in answers.classes]))


def resample(measure: Measure, ballots: Ballots, answers: Answers, *, seed: int, left_out: bool = False) -> Floats:
    """The score in each of 500 resamples of people, ``(resamples,)``; all answers meet the same resamples.

    With ``left_out`` it is the score on the people that each resample left out.
    """
    if measure.score is None:
        return _bootstrap_mean(answers.likelihood.mean(axis=0), ballots.owner, seed, left_out=left_out)
    owners = ballots.owner.tolist()
    truth = measure.part[ballots.truth]
    each = [
        measure.of_counts(
            bootstrap(
                truth,
                measure.part[once],
                classes=measure.parts,
                clusters=owners,
                resamples=_RESAMPLES,
                seed=seed,
                left_out=left_out,
            )
        )
        for once in answers.classes
    ]
    return np.asarray(np.mean(each, axis=0))


def _join(parts: list[Answers], *, axis: int, order: NDArray[np.intp] | None = None) -> Answers:
    classes = np.concatenate([part.classes for part in parts], axis=axis)
    likelihood = np.concatenate([part.likelihood for part in parts], axis=axis)
    return Answers(classes, likelihood) if order is None else Answers(classes[:, order], likelihood[:, order])


def _bootstrap_mean(values: Floats, owner: Classes, seed: int, *, left_out: bool) -> Floats:
    """The mean of values ``(N,)`` in each resample of their owners, or of those it left out, ``(resamples,)``."""
    total, count = np.bincount(owner, weights=values), np.bincount(owner)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(count), size=len(count)) for _ in range(_RESAMPLES))
    everyone = np.arange(len(count))
    chosen = (np.setdiff1d(everyone, who) if left_out else who for who in drawn)
    return np.array([total[who].sum() / count[who].sum() for who in chosen])
