"""View gains: what a view changes in the mean of probabilities, in scores and in images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from ensemble.blend.pooling import log_softmax
from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import Ballots
from ensemble.learn.objective import parse_measure
from ensemble.learn.view_gains import measure_views, render_views

ACCURACY = parse_measure("accuracy", LabelSpace.flat(3))
VIEWS = ["hflip", "identity", "rot90"] * 2


def draw() -> Ballots:
    """Two members with three views each, of 200 images of 50 people."""
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=200)
    return Ballots(log_softmax(np.eye(3)[truth] + rng.normal(size=(6, 200, 3))), truth, np.arange(200) // 4)


def test_a_view_is_measured_beside_the_identity() -> None:
    """Gains and flips are those of the means written out, whatever the shares of the members."""
    ballots, shares = draw(), np.array([1, 1, 1, 2, 2, 2]) / 9
    gains = {one.view: one for one in measure_views(ballots, VIEWS, shares, ACCURACY, seed=0)}
    assert list(gains) == ["hflip", "rot90"]
    p = np.exp(ballots.log_p)
    alone = ((p[1] + 2 * p[4]) / 3).argmax(axis=1)
    both = ((p[0] + p[1] + 2 * p[3] + 2 * p[4]) / 6).argmax(axis=1)
    found = gains["hflip"]
    expected = accuracy_score(ballots.truth, both) - accuracy_score(ballots.truth, alone)
    assert found.gain == pytest.approx(expected, abs=1e-12)
    assert found.wrong_to_right == ((alone != ballots.truth) & (both == ballots.truth)).sum()
    assert found.right_to_wrong == ((alone == ballots.truth) & (both != ballots.truth)).sum()
    assert found.gain == pytest.approx((found.wrong_to_right - found.right_to_wrong) / 200, abs=1e-12)
    assert found.cost == 2
    assert 0 < found.error < 0.1


def test_a_copy_of_the_identity_changes_nothing() -> None:
    """A view that says what the identity says has no gain, no error and no flips."""
    ballots = draw()
    ballots.log_p[[0, 3]] = ballots.log_p[[1, 4]]
    copy = measure_views(ballots, VIEWS, np.full(6, 1 / 6), ACCURACY, seed=0)[0]
    assert (copy.gain, copy.error, copy.right_to_wrong, copy.wrong_to_right) == (0, 0, 0, 0)
    assert render_views([copy], "accuracy").startswith("view hflip: accuracy +0.0000 ± 0.0000; 0 images")


def test_one_view_has_nothing_beside_it() -> None:
    """Members with one view have no gains to tell."""
    assert measure_views(draw(), ["identity"] * 6, np.full(6, 1 / 6), ACCURACY, seed=0) == ()
