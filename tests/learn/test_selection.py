"""The guard: when a candidate is taken, and what choosing the best of many is worth."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import Answers, Ballots, resample
from ensemble.learn.objective import parse_measure
from ensemble.learn.selection import choose, expected_gain

RESAMPLES = 400


@pytest.mark.parametrize(
    ("gain", "error", "taken"),
    [
        ([0.0, 0.02, 0.03], [0.0, 0.01, 0.025], 1),
        ([0.0, 0.02, 0.06], [0.0, 0.01, 0.025], 2),
        ([0.0, 0.01, -0.1], [0.0, 0.02, 0.01], 0),
        ([0.0, 1e-12], [0.0, 0.0], 0),
    ],
)
def test_a_candidate_is_taken_for_a_gain_beyond_its_error(gain: list[float], error: list[float], taken: int) -> None:
    """The largest gain less one error wins, if it is above 0 by more than rounding."""
    assert choose(gain, error) == taken


def test_a_gain_that_is_real_is_expected_whole() -> None:
    """A candidate that is better by 0.1 in every resample is always chosen, and its gain is the expected one."""
    noise = np.random.default_rng(0).normal(0.5, 0.001, size=(2, RESAMPLES))
    drawn = np.stack([noise[0], noise[0] + 0.1, noise[0] + 0.02])
    left_out = np.stack([noise[1], noise[1] + 0.08, noise[1] + 0.3])
    assert expected_gain(drawn, left_out) == pytest.approx(0.08, abs=1e-12)


@pytest.mark.slow
def test_the_best_of_many_that_are_alike_is_not_believed() -> None:
    """Of 14 candidates that are right as often as the first, the best seems to gain; the expected gain is far less.

    Over 40 draws the seeming gain of the luckiest is above one standard error, and the expected one 0 but for noise.
    """
    labels = LabelSpace.flat(2)
    measure = parse_measure("accuracy", labels)
    seeming, expected = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.integers(2, size=200)
        ballots = Ballots(np.zeros((1, 200, 2)), truth, np.arange(200))
        answers = [np.where(rng.random(200) < 0.7, truth, 1 - truth)[np.newaxis] for _ in range(14)]
        drawn, left_out = (
            np.stack(
                [resample(measure, ballots, Answers(one, np.zeros((1, 200))), seed=0, left_out=out) for one in answers]
            )
            for out in (False, True)
        )
        seeming.append(max((one == truth).mean() for one in answers) - (answers[0] == truth).mean())
        expected.append(expected_gain(drawn, left_out))
    assert np.mean(seeming) > 0.04
    assert abs(np.mean(expected)) < np.mean(seeming) / 2
