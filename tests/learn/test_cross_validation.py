"""Nested cross-validation: grouping by person, and how answers are scored."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import Fitted
from ensemble.learn.cross_validation import (
    FOLDS,
    CandidateAnswers,
    LearningData,
    bootstrap_scores,
    cross_validate,
    score_answers,
    split_by_person,
)
from ensemble.learn.objective import parse_metric

ROWS, PEOPLE, CLASSES = 300, 60, 4
LABELS = LabelSpace.flat(CLASSES)


def draw(seed: int = 0) -> LearningData:
    """Three member views, and people with one to many images each."""
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(size=(3, ROWS, CLASSES)))
    person = np.unique(rng.integers(PEOPLE, size=ROWS) // 2, return_inverse=True)[1]
    return LearningData(log_p, rng.choice(CLASSES, size=ROWS, p=[0.6, 0.2, 0.1, 0.1]), person)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_on_both_sides(seed: int) -> None:
    """Every image is tested once, no person is in both train and test, and every fold tests every class."""
    data = draw(seed)
    folds = list(split_by_person(data.truth, data.person, seed=seed))
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(ROWS))
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(ROWS))
        assert not set(data.person[train].tolist()) & set(data.person[test].tolist())
        assert set(data.truth[test].tolist()) == set(range(CLASSES))
    assert len(folds) == FOLDS


def test_answers_come_from_fits_that_have_not_seen_the_image() -> None:
    """A candidate that memorizes the rows it was fitted to never finds the tested row among them."""
    data = draw()
    # the first log-probability of the first member view is the index of the row
    numbered = data.log_p.copy()
    numbered[0, :, 0] = np.arange(ROWS)
    seen: list[set[int]] = []

    def fit(part: LearningData) -> dict[str, Fitted]:
        rows = part.log_p[0, :, 0].astype(int)
        np.testing.assert_array_equal(part.truth, data.truth[rows])
        seen.append(set(rows.tolist()))
        # the bias makes the class certain that has the number of this fit
        return {"memory": Fitted("logit", np.zeros(3), 1.0, 50.0 * np.eye(5)[(len(seen) - 1) % 5][:CLASSES])}

    answers = cross_validate(fit, LearningData(numbered, data.truth, data.person), repeats=2, seed=0)["memory"]
    assert answers.classes.shape == answers.log_p_true.shape == (2, ROWS)
    for repeat in range(2):
        for fold in range(CLASSES):
            tested = set(np.flatnonzero(answers.log_p_true[repeat] > -1e-9)) & set(
                np.flatnonzero(answers.classes[repeat] == fold)
            )
            if fold:  # class 0 is also the answer of the fit that is certain of none
                assert not tested & seen[repeat * FOLDS + fold]
                assert tested


def test_repeats_split_differently() -> None:
    """Two repeats have different folds, and equal seeds have equal ones."""
    data = draw()
    first, again, other = (
        [test.tolist() for _, test in split_by_person(data.truth, data.person, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_score_is_the_mean_of_the_repeats() -> None:
    """Two repeats with accuracies 1 and 0 score one half, in every resample of people."""
    data = draw()
    metric = parse_metric("accuracy", LABELS)
    classes = np.stack([data.truth, (data.truth + 1) % CLASSES])
    answers = CandidateAnswers(classes, np.zeros(classes.shape))
    assert score_answers(metric, data, answers) == 0.5
    resampled = bootstrap_scores(metric, data, answers, seed=0)
    np.testing.assert_allclose(resampled, 0.5, rtol=1e-12)


def test_the_likelihood_is_resampled_over_people() -> None:
    """The spread of the resampled log-likelihood is the standard error of a ratio of sums over people."""
    data = draw()
    likelihood = np.random.default_rng(1).normal(size=ROWS) + np.random.default_rng(2).normal(size=PEOPLE)[data.person]
    answers = CandidateAnswers(data.truth[np.newaxis], likelihood[np.newaxis])
    resampled = bootstrap_scores(parse_metric("nll", LABELS), data, answers, seed=0)
    residual = np.bincount(data.person, weights=likelihood - likelihood.mean())
    assert score_answers(parse_metric("nll", LABELS), data, answers) == pytest.approx(likelihood.mean(), rel=1e-12)
    assert resampled.std() == pytest.approx(np.sqrt((residual**2).sum()) / ROWS, rel=0.12)
