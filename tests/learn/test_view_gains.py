"""View gains: what a view changes in the mean of probabilities, in scores and in images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import LearningData
from ensemble.learn.objective import parse_metric
from ensemble.learn.view_gains import measure_views

ACCURACY = parse_metric("accuracy", LabelSpace.flat(3))
VIEWS = ["hflip", "identity", "rot90"] * 2


def draw() -> LearningData:
    """Two members with three views each, of 200 images of 50 people."""
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=200)
    return LearningData(log_softmax(np.eye(3)[truth] + rng.normal(size=(6, 200, 3))), truth, np.arange(200) // 4)


def test_a_view_is_measured_in_addition_to_the_identity() -> None:
    """Gains and flips are those of the explicit means, for unequal weights of the members."""
    data, weights = draw(), np.array([1, 1, 1, 2, 2, 2]) / 9
    gains = {one.view: one for one in measure_views(data, VIEWS, weights, ACCURACY, seed=0)}
    assert list(gains) == ["hflip", "rot90"]
    p = np.exp(data.log_p)
    alone = ((p[1] + 2 * p[4]) / 3).argmax(axis=1)
    both = ((p[0] + p[1] + 2 * p[3] + 2 * p[4]) / 6).argmax(axis=1)
    found = gains["hflip"]
    expected = accuracy_score(data.truth, both) - accuracy_score(data.truth, alone)
    assert found.gain == pytest.approx(expected, abs=1e-12)
    assert found.wrong_to_right == ((alone != data.truth) & (both == data.truth)).sum()
    assert found.right_to_wrong == ((alone == data.truth) & (both != data.truth)).sum()
    assert found.gain == pytest.approx((found.wrong_to_right - found.right_to_wrong) / 200, abs=1e-12)
    assert found.cost == 2
    assert 0 < found.error < 0.1


def test_a_copy_of_the_identity_changes_nothing() -> None:
    """A view with the identity's predictions has no gain, no error and no flips."""
    data = draw()
    data.log_p[[0, 3]] = data.log_p[[1, 4]]
    copy = measure_views(data, VIEWS, np.full(6, 1 / 6), ACCURACY, seed=0)[0]
    assert (copy.gain, copy.error, copy.right_to_wrong, copy.wrong_to_right) == (0, 0, 0, 0)


def test_a_single_view_has_no_gains() -> None:
    """With members of one view there is nothing to measure."""
    assert measure_views(draw(), ["identity"] * 6, np.full(6, 1 / 6), ACCURACY, seed=0) == ()
