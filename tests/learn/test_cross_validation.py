"""Nested cross-validation: who is on which side, and what is scored how."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.arrays import Classes, Floats
from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import Fitted
from ensemble.learn.cross_validation import FOLDS, Answers, Ballots, cross_validate, resample, score, split
from ensemble.learn.objective import parse_measure

ROWS, PEOPLE, CLASSES = 300, 60, 4
LABELS = LabelSpace.flat(CLASSES)


def draw(seed: int = 0) -> Ballots:
    """Three voters, and people of one to many images each."""
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(size=(3, ROWS, CLASSES)))
    owner = np.unique(rng.integers(PEOPLE, size=ROWS) // 2, return_inverse=True)[1]
    return Ballots(log_p, rng.choice(CLASSES, size=ROWS, p=[0.6, 0.2, 0.1, 0.1]), owner)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_on_both_sides(seed: int) -> None:
    """Every image is tested once, no person is both fitted to and tested, and every fold tests every class."""
    ballots = draw(seed)
    folds = list(split(ballots.truth, ballots.owner, seed=seed))
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(ROWS))
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(ROWS))
        assert not set(ballots.owner[train].tolist()) & set(ballots.owner[test].tolist())
        assert set(ballots.truth[test].tolist()) == set(range(CLASSES))
    assert len(folds) == FOLDS


def test_answers_come_from_fits_that_have_not_seen_the_image() -> None:
    """A candidate that always answers by a list of the rows it was fitted to never finds the tested row there."""
    ballots = draw()
    # the first voter's first log-probability is the number of the row
    numbered = ballots.log_p.copy()
    numbered[0, :, 0] = np.arange(ROWS)
    seen: list[set[int]] = []

    def fit(log_p: Floats, truth: Classes) -> dict[str, Fitted]:
        rows = log_p[0, :, 0].astype(int)
        np.testing.assert_array_equal(truth, ballots.truth[rows])
        seen.append(set(rows.tolist()))
        # the bias makes the class certain that has the number of this fit
        return {"memory": Fitted("logit", np.zeros(3), 1.0, 50.0 * np.eye(5)[(len(seen) - 1) % 5][:CLASSES])}

    answers = cross_validate(fit, Ballots(numbered, ballots.truth, ballots.owner), repeats=2, seed=0)["memory"]
    assert answers.classes.shape == answers.likelihood.shape == (2, ROWS)
    for repeat in range(2):
        for fold in range(CLASSES):
            tested = set(np.flatnonzero(answers.likelihood[repeat] > -1e-9)) & set(
                np.flatnonzero(answers.classes[repeat] == fold)
            )
            if fold:  # class 0 is also the answer of the fit that is certain of none
                assert not tested & seen[repeat * FOLDS + fold]
                assert tested


def test_repeats_split_differently() -> None:
    """Two repeats have other folds, and the same seed has the same."""
    ballots = draw()
    first, again, other = (
        [test.tolist() for _, test in split(ballots.truth, ballots.owner, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_score_is_the_mean_of_the_repeats() -> None:
    """Two repeats with accuracies 1 and 0 score one half, in every resample of people."""
    ballots = draw()
    measure = parse_measure("accuracy", LABELS)
    classes = np.stack([ballots.truth, (ballots.truth + 1) % CLASSES])
    answers = Answers(classes, np.zeros(classes.shape))
    assert score(measure, ballots, answers) == 0.5
    resampled = resample(measure, ballots, answers, seed=0)
    np.testing.assert_allclose(resampled, 0.5, rtol=1e-12)


def test_the_likelihood_is_resampled_over_people() -> None:
    """The spread of the resampled log-likelihood is the standard error of a ratio of sums over people."""
    ballots = draw()
    likelihood = (
        np.random.default_rng(1).normal(size=ROWS) + np.random.default_rng(2).normal(size=PEOPLE)[ballots.owner]
    )
    answers = Answers(ballots.truth[np.newaxis], likelihood[np.newaxis])
    resampled = resample(parse_measure("nll", LABELS), ballots, answers, seed=0)
    residual = np.bincount(ballots.owner, weights=likelihood - likelihood.mean())
    assert score(parse_measure("nll", LABELS), ballots, answers) == pytest.approx(likelihood.mean(), rel=1e-12)
    assert resampled.std() == pytest.approx(np.sqrt((residual**2).sum()) / ROWS, rel=0.12)
