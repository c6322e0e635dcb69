"""Measures: of all classes, of one axis, and what is not one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from ensemble.errors import EnsError
from ensemble.labels import MASK18, LabelSpace
from ensemble.learn.objective import balanced_accuracy, parse_metric
from ensemble.metrics import confusion_matrix


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


@pytest.mark.parametrize("axis", ["mask", "gender", "age"])
def test_an_axis_is_scored_by_its_values_alone(axis: str) -> None:
    """The scores of an axis are scikit-learn's for the axis's values, whatever the other axes are."""
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(18, size=500), rng.integers(18, size=500)
    true, answered = MASK18.along(axis, truth), MASK18.along(axis, answers)
    expected = {
        "macro-f1": f1_score(true, answered, average="macro"),
        "accuracy": accuracy_score(true, answered),
        "balanced-accuracy": balanced_accuracy_score(true, answered),
    }
    for name, value in expected.items():
        assert parse_metric(f"{name}:{axis}", MASK18).score_classes(truth, answers) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["magic", "nll:age", "macro-f1:height", "macro-f1:", ":age", ""])
def test_what_is_no_metric_is_refused(text: str) -> None:
    """An unknown metric or axis, and the likelihood of an axis, are E204 with what there is."""
    with pytest.raises(EnsError) as caught:
        parse_metric(text, MASK18)
    assert caught.value.code == "E204"


def test_a_single_axis_can_be_named() -> None:
    """With one axis, its score is that of the classes."""
    truth, answers = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    labels = LabelSpace.flat(3)
    by_axis, whole = (
        parse_metric(text, labels).score_classes(truth, answers) for text in ("accuracy:class", "accuracy")
    )
    assert by_axis == whole == 0.75
