"""Scores, against scikit-learn and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.metrics import confusion_matrix as sklearn_confusion

from ensemble import metrics
from ensemble.arrays import Classes
from ensemble.labels import MASK18


@st.composite
def answers(draw: st.DrawFn) -> tuple[Classes, Classes, int]:
    """True and answered classes ``(N,)``, and their number C; some classes may be absent from either."""
    classes, rows = draw(st.integers(2, 18)), draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = generator.integers(draw(st.integers(1, classes)), size=rows)
    wrong = generator.integers(classes, size=rows)
    return truth, np.where(generator.random(rows) < draw(st.floats(0, 1)), truth, wrong), classes


@given(answers())
@settings(deadline=None)
def test_scores_are_scikit_learns(drawn: tuple[Classes, Classes, int]) -> None:
    """Confusion matrix, accuracy, class F1s and macro F1 equal scikit-learn's over all C classes, absent ones as 0."""
    truth, answered, classes = drawn
    every = range(classes)
    confusion = metrics.confusion_matrix(truth, answered, classes=classes)
    np.testing.assert_array_equal(confusion, sklearn_confusion(truth, answered, labels=every))
    assert metrics.accuracy(confusion) == pytest.approx(accuracy_score(truth, answered), abs=1e-15)
    f1 = f1_score(truth, answered, labels=every, average=None, zero_division=0)
    np.testing.assert_allclose(metrics.class_f1(confusion), f1, rtol=1e-14)
    macro = f1_score(truth, answered, labels=every, average="macro", zero_division=0)
    assert metrics.macro_f1(confusion) == pytest.approx(macro, rel=1e-14)


def test_macro_f1_is_the_mean_of_f1s_and_not_the_f1_of_means() -> None:
    """Of the two formulas called macro F1 it is the first; on this matrix they differ by more than a tenth."""
    confusion = np.array([[1.0, 0.0], [9.0, 90.0]])
    precision, recall = np.mean([0.1, 1.0]), np.mean([1.0, 90 / 99])
    of_means = 2 * precision * recall / (precision + recall)
    mean_of = np.mean([2 * 0.1 / 1.1, 2 * (90 / 99) / (1 + 90 / 99)])
    assert metrics.macro_f1(confusion) == pytest.approx(mean_of, rel=1e-14)
    assert abs(of_means - mean_of) > 0.1


def test_scores_of_many_matrices_are_those_of_each() -> None:
    """Leading axes are repetitions: a stack of matrices scores as its members do."""
    stack = np.random.default_rng(0).integers(0, 9, (5, 3, 18, 18)).astype(np.float64)
    for score in (metrics.macro_f1, metrics.accuracy, lambda c: metrics.axis_accuracy(c, MASK18, "age")):
        assert score(stack).shape == (5, 3)
        assert score(stack)[4, 2] == score(stack[4, 2])


@pytest.mark.parametrize(
    ("axis", "part"), [("mask", lambda c: c // 6), ("gender", lambda c: c // 3 % 2), ("age", lambda c: c % 3)]
)
def test_an_axis_is_right_whatever_the_others_say(axis: str, part: object) -> None:
    """Accuracy on mask, gender and age is that of class // 6, class // 3 % 2 and class % 3."""
    assert callable(part)
    generator = np.random.default_rng(0)
    truth, answered = generator.integers(18, size=(2, 500))
    confusion = metrics.confusion_matrix(truth, answered, classes=18)
    assert metrics.axis_accuracy(confusion, MASK18, axis) == pytest.approx((part(truth) == part(answered)).mean())


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(deadline=None, max_examples=50)
def test_nll_is_scikit_learns_log_loss(seed: int, classes: int) -> None:
    """The negative log-likelihood equals log_loss, also where a probability is 0."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.3), size=40)
    probabilities[0] = np.eye(classes)[0]
    truth = generator.integers(classes, size=40)
    truth[0] = 1
    assert metrics.nll(truth, probabilities) == pytest.approx(log_loss(truth, probabilities, labels=range(classes)))


def test_calibration_error_by_hand() -> None:
    """Bins count by their rows, and a confidence on the edge of two bins is in the lower one."""
    # bins end at 1/15, 2/15, ...: 0.6 = 9/15 ends the ninth bin, 0.61 is in the tenth, 1.0 in the last
    probabilities = np.array([[0.6, 0.4], [0.58, 0.42], [0.39, 0.61], [1.0, 0.0]])
    truth = np.array([0, 1, 1, 1])
    expected = (abs(1 - 0.6 + 0 - 0.58) + abs(1 - 0.61) + abs(0 - 1.0)) / 4
    assert metrics.calibration_error(truth, probabilities) == pytest.approx(expected, rel=1e-14)


def test_calibration_error_by_brute_force() -> None:
    """The error equals the sum over the bins of Guo's formula, row by row."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(5, 0.5), size=300)
    truth = generator.integers(5, size=300)
    expected = 0.0
    for b in range(15):
        rows = [i for i in range(300) if b / 15 < max(probabilities[i]) <= (b + 1) / 15]
        if rows:
            right = np.mean([np.argmax(probabilities[i]) == truth[i] for i in rows])
            expected += len(rows) / 300 * abs(right - np.mean([max(probabilities[i]) for i in rows]))
    assert metrics.calibration_error(truth, probabilities) == pytest.approx(expected, rel=1e-12)


def test_a_perfectly_calibrated_answer_has_no_calibration_error() -> None:
    """Answers that are right as often as they say have an error near 0, certain wrong ones an error of 1."""
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.full(4, 1.0), size=50_000)
    truth = (probabilities.cumsum(axis=1) < generator.random((50_000, 1))).sum(axis=1)
    assert metrics.calibration_error(truth, probabilities) < 0.01
    assert metrics.calibration_error(np.ones(9, dtype=np.intp), np.tile([1.0, 0.0], (9, 1))) == 1


def test_resamples_are_those_of_drawing_the_clusters_themselves() -> None:
    """Every matrix of the bootstrap is the confusion matrix of the drawn persons' rows, put together by hand."""
    generator = np.random.default_rng(0)
    truth, answered = generator.integers(3, size=(2, 50))
    persons = [f"p{i}" for i in generator.integers(12, size=50)]
    found = metrics.bootstrap(truth, answered, classes=3, clusters=persons, resamples=20, seed=5)
    names = sorted(set(persons))
    again = np.random.default_rng(5)
    for matrix in found:
        drawn = [names[k] for k in again.integers(len(names), size=len(names))]
        rows = [i for name in drawn for i, person in enumerate(persons) if person == name]
        np.testing.assert_array_equal(matrix, sklearn_confusion(truth[rows], answered[rows], labels=range(3)))


@pytest.mark.parametrize("by_person", [False, True])
def test_rows_that_were_not_drawn_are_counted_once(*, by_person: bool) -> None:
    """The out-of-bag matrices, with clusters and without, are of the rows that the same draws leave out."""
    generator = np.random.default_rng(1)
    truth, answered = generator.integers(3, size=(2, 40))
    persons = [f"p{i}" for i in generator.integers(9, size=40)] if by_person else None
    found = metrics.bootstrap(truth, answered, classes=3, clusters=persons, resamples=8, seed=2, left_out=True)
    names = sorted(set(persons)) if persons is not None else list(range(40))
    again = np.random.default_rng(2)
    for matrix in found:
        drawn = {names[k] for k in again.integers(len(names), size=len(names))}
        rows = [i for i in range(40) if (i if persons is None else persons[i]) not in drawn]
        np.testing.assert_array_equal(matrix, sklearn_confusion(truth[rows], answered[rows], labels=range(3)))


def test_the_bootstrap_is_seeded() -> None:
    """The same seed gives the same matrices, another seed others."""
    truth, answered = np.random.default_rng(0).integers(3, size=(2, 40))
    one, same, other = (metrics.bootstrap(truth, answered, classes=3, resamples=5, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_rows_of_one_person_widen_the_interval() -> None:
    """When a person's seven rows are right or wrong together, the interval by person is about sqrt(7) times as wide."""
    generator = np.random.default_rng(0)
    right = np.repeat(generator.random(150) < 0.7, 7)
    truth = np.zeros(1050, dtype=np.intp)
    persons = [str(i // 7) for i in range(1050)]
    width = {}
    for name, clusters in (("rows", None), ("persons", persons)):
        again = metrics.bootstrap(truth, np.where(right, 0, 1), classes=2, clusters=clusters, resamples=800)
        low, high = metrics.interval(metrics.accuracy(again))
        assert low < right.mean() < high
        width[name] = high - low
    assert 2.1 < width["persons"] / width["rows"] < 3.3


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples of a known accuracy, the 95 % interval holds it in 90 to 99 %."""
    generator = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        answered = (generator.random(150) < 0.4).astype(np.intp)
        again = metrics.bootstrap(np.zeros(150, dtype=np.intp), answered, classes=2, resamples=200, seed=seed)
        low, high = metrics.interval(metrics.accuracy(again))
        covered += low <= 0.6 <= high
    assert 180 <= covered <= 198


def test_the_interval_holds_its_share_of_the_values() -> None:
    """An interval of level 0.9 cuts a twentieth off either end."""
    assert metrics.interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))
