"""Nested cross-validation: who is on which side, and what is scored how."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, recall_score

from ensemble.candidates import Fitted
from ensemble.metrics import confusion_matrix
from ensemble.nested import FOLDS, Answers, Ballots, balanced_accuracy, cross_validate, resample, score, split
from ensemble.pool import log_softmax

Floats = NDArray[np.float64]
Classes = NDArray[np.intp]

ROWS, PEOPLE, CLASSES = 300, 60, 4


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


def test_balanced_accuracy_is_the_mean_recall_of_classes_that_occur() -> None:
    """It is scikit-learn's figure, also where a class does not occur, and for many matrices at once."""
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(4, size=200), rng.integers(4, size=200)
    truth[truth == 2] = 1
    matrix = confusion_matrix(truth, answers, classes=4)
    expected = recall_score(truth, answers, average="macro", labels=[0, 1, 3])
    assert balanced_accuracy(matrix) == pytest.approx(expected, rel=1e-12)
    full = confusion_matrix(answers, truth, classes=4)
    both = balanced_accuracy(np.stack([matrix, full]))
    np.testing.assert_allclose(both, [expected, balanced_accuracy_score(answers, truth)], rtol=1e-12)


def test_a_score_is_the_mean_of_the_repeats() -> None:
    """Two repeats with accuracies 1 and 0 score one half, in every resample of people."""
    ballots = draw()
    classes = np.stack([ballots.truth, (ballots.truth + 1) % CLASSES])
    answers = Answers(classes, np.zeros(classes.shape))
    assert score("accuracy", ballots, answers, classes=CLASSES) == 0.5
    resampled = resample("accuracy", ballots, answers, classes=CLASSES, seed=0)
    np.testing.assert_allclose(resampled, 0.5, rtol=1e-12)


def test_the_likelihood_is_resampled_over_people() -> None:
    """The spread of the resampled log-likelihood is the standard error of a ratio of sums over people."""
    ballots = draw()
    likelihood = (
        np.random.default_rng(1).normal(size=ROWS) + np.random.default_rng(2).normal(size=PEOPLE)[ballots.owner]
    )
    answers = Answers(ballots.truth[np.newaxis], likelihood[np.newaxis])
    resampled = resample("nll", ballots, answers, classes=CLASSES, seed=0)
    residual = np.bincount(ballots.owner, weights=likelihood - likelihood.mean())
    assert score("nll", ballots, answers, classes=CLASSES) == pytest.approx(likelihood.mean(), rel=1e-12)
    assert resampled.std() == pytest.approx(np.sqrt((residual**2).sum()) / ROWS, rel=0.12)
