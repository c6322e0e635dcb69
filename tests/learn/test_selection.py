"""Selecting a candidate by the one-standard-error rule, and the bias-corrected gain of the selection."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import CandidateAnswers, LearningData, bootstrap_scores
from ensemble.learn.objective import parse_metric
from ensemble.learn.selection import bias_corrected_gain, select_candidate

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
def test_a_candidate_is_selected_for_a_gain_beyond_its_error(gain: list[float], error: list[float], taken: int) -> None:
    """The largest gain minus one standard error wins, if it is above 0 by more than rounding."""
    assert select_candidate(gain, error) == taken


def test_a_gain_that_is_real_is_expected_whole() -> None:
    """A candidate that is better by 0.1 in every bootstrap_scores is always selected, and its gain is expected."""
    noise = np.random.default_rng(0).normal(0.5, 0.001, size=(2, RESAMPLES))
    in_bag = np.stack([noise[0], noise[0] + 0.1, noise[0] + 0.02])
    out_of_bag = np.stack([noise[1], noise[1] + 0.08, noise[1] + 0.3])
    assert bias_corrected_gain(in_bag, out_of_bag) == pytest.approx(0.08, abs=1e-12)


@pytest.mark.slow
def test_the_best_of_many_equal_candidates_has_no_expected_gain() -> None:
    """Of 14 candidates that are correct equally often, the best has an apparent gain; the expected gain is far less.

    Over 40 draws the apparent gain is above one standard error, and the expected one is 0 except for noise.
    """
    labels = LabelSpace.flat(2)
    metric = parse_metric("accuracy", labels)
    apparent, expected = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.integers(2, size=200)
        data = LearningData(np.zeros((1, 200, 2)), truth, np.arange(200))
        classes = [np.where(rng.random(200) < 0.7, truth, 1 - truth)[np.newaxis] for _ in range(14)]
        answers = [CandidateAnswers(one, np.zeros((1, 200))) for one in classes]
        in_bag, out_of_bag = (
            np.stack([bootstrap_scores(metric, data, one, seed=0, out_of_bag=out) for one in answers])
            for out in (False, True)
        )
        apparent.append(max((one == truth).mean() for one in classes) - (classes[0] == truth).mean())
        expected.append(bias_corrected_gain(in_bag, out_of_bag))
    assert np.mean(apparent) > 0.04
    assert abs(np.mean(expected)) < np.mean(apparent) / 2
