"""Selecting a candidate by likelihood and score, and the bias-corrected gain of the selection."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from ensemble.labels import LabelSpace
from ensemble.learn.cross_validation import CandidateAnswers, LearningData, bootstrap_scores
from ensemble.learn.objective import parse_metric
from ensemble.learn.selection import ResampledScores, bias_corrected_gain, demanded_errors, select_candidate

RESAMPLES = 400


NAMES = ("mean", "log-linear", "calibrated", "pool", "pool+tau", "calibrated+f1", "pool+f1")


def scores(values: Mapping[str, float], error: float = 0.01) -> ResampledScores:
    """Scores of `NAMES` around 0.8, each with an error of its own that is independent of the others."""
    value = np.array([0.8 + values.get(name, 0.0) for name in NAMES])
    noise = np.random.default_rng(0).normal(size=(len(NAMES), RESAMPLES)) * error / np.sqrt(2)
    return ResampledScores(value, value[:, np.newaxis] + noise)


@pytest.mark.parametrize(
    ("gains", "likelihoods", "taken"),
    [
        # the pool with the better likelihood, though another has the better score
        ({"pool+f1": 0.02, "calibrated+f1": 0.03}, {"pool": 0.1, "calibrated": 0.05}, "pool+f1"),
        # of two pools within one standard error the simpler
        ({"pool+f1": 0.03, "calibrated+f1": 0.02}, {"pool": 0.055, "calibrated": 0.05}, "calibrated+f1"),
        # another rule only if it is clearly better
        ({"pool+f1": 0.02, "pool+tau": 0.025}, {"pool": 0.1}, "pool+f1"),
        ({"pool+f1": 0.02, "pool+tau": 0.05}, {"pool": 0.1}, "pool+tau"),
        # a gain within its standard error is none
        ({"pool+f1": 0.005}, {"pool": 0.1}, "mean"),
        # a pool without a bias is adopted for its likelihood, unless its score is worse
        ({"log-linear": 0.001}, {"log-linear": 0.1, "pool": 0.1}, "log-linear"),
        ({"log-linear": -0.001}, {"log-linear": 0.1, "pool": 0.1}, "mean"),
        ({}, {}, "mean"),
    ],
)
def test_the_likelihood_selects_the_pool_and_the_score_the_rule(
    gains: dict[str, float], likelihoods: dict[str, float], taken: str
) -> None:
    """The pool is selected by likelihood, its rule by score, and both only for a gain beyond its error."""
    assert NAMES[select_candidate(NAMES, scores(gains), scores(likelihoods))] == taken


def test_a_gain_on_one_class_mix_alone_is_not_adopted() -> None:
    """A candidate that gains on the images learned from and loses on another class mix is left alone."""
    score, likelihood = scores({"pool+f1": 0.05}), scores({"pool": 0.1})
    assert NAMES[select_candidate(NAMES, score, likelihood, elsewhere=scores({"pool+f1": 0.03}))] == "pool+f1"
    assert NAMES[select_candidate(NAMES, score, likelihood, elsewhere=scores({"pool+f1": -0.03}))] == "mean"


def test_members_that_differ_by_rounding_are_not_selected() -> None:
    """A difference of 1e-12 without any error is rounding, not a gain."""
    value = np.array([0.8, 0.8 + 1e-12])
    same = ResampledScores(value, np.repeat(value[:, np.newaxis], RESAMPLES, axis=1))
    assert select_candidate(("mean", "logit"), same, same) == 0


def test_a_gain_that_is_real_is_expected_whole() -> None:
    """A candidate that is better by 0.1 in every resample is always selected, and its gain is expected."""
    noise = np.random.default_rng(0).normal(0.5, 0.001, size=(2, RESAMPLES))
    in_bag = np.stack([noise[0], noise[0] + 0.1, noise[0] + 0.02])
    out_of_bag = np.stack([noise[1], noise[1] + 0.08, noise[1] + 0.3])
    score = ResampledScores(in_bag.mean(axis=1), in_bag)
    names = ("mean", "log-linear", "greedy")
    assert bias_corrected_gain(names, score, score, out_of_bag) == pytest.approx(0.08, abs=1e-12)


@pytest.mark.slow
def test_the_best_of_many_equal_candidates_has_no_expected_gain() -> None:
    """Of 14 candidates that are correct equally often, the best has an apparent gain; the expected gain is far less.

    Over 16 draws the apparent gain is above one standard error, and the expected one is 0 except for noise.
    """
    labels = LabelSpace.flat(2)
    metric = parse_metric("accuracy", labels)
    apparent, expected = [], []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        truth = rng.integers(2, size=200)
        data = LearningData(np.zeros((1, 200, 2)), truth, np.arange(200))
        classes = [np.where(rng.random(200) < 0.7, truth, 1 - truth)[np.newaxis] for _ in range(14)]
        answers = [CandidateAnswers(one, np.zeros((1, 200))) for one in classes]
        in_bag, out_of_bag = (
            np.stack([bootstrap_scores(metric, data, one, seed=0, out_of_bag=out) for one in answers])
            for out in (False, True)
        )
        score = ResampledScores(in_bag.mean(axis=1), in_bag)
        names = ("mean", *(f"other{i}" for i in range(13)))
        apparent.append(max((one == truth).mean() for one in classes) - (classes[0] == truth).mean())
        expected.append(bias_corrected_gain(names, score, score, out_of_bag))
    assert np.mean(apparent) > 0.04
    assert abs(np.mean(expected)) < np.mean(apparent) / 2


def test_few_people_must_gain_more() -> None:
    """A gain of 1.2 standard errors is adopted from many people, and not from few."""
    noise = np.random.default_rng(0).normal(size=4000)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    score = ResampledScores(np.array([0.5, 0.62]), np.stack([np.full(4000, 0.5), 0.5 + 0.1 * noise]))
    flat = ResampledScores(np.zeros(2), np.zeros((2, 4000)))
    taken = [select_candidate(("mean", "calibrated"), score, flat, errors=demanded_errors(n)) for n in (60, 100, 2000)]
    assert taken == [0, 0, 1]
    assert demanded_errors(10) == demanded_errors(100) == 1.5
    assert 1 < demanded_errors(2000) < demanded_errors(250) < 1.5


def test_a_likelier_pool_must_not_lose_where_people_are_few() -> None:
    """A pool of clearly better likelihood whose score is not better is adopted from many people alone."""
    rng = np.random.default_rng(1)
    score = ResampledScores(np.array([0.5, 0.5]), np.stack([np.full(500, 0.5), 0.5 + 0.1 * rng.normal(size=500)]))
    likelihood = ResampledScores(
        np.array([-1.0, -0.5]), np.stack([np.full(500, -1.0), -0.5 + 0.1 * rng.normal(size=500)])
    )
    assert select_candidate(("mean", "log-linear"), score, likelihood) == 1
    assert select_candidate(("mean", "log-linear"), score, likelihood, errors=demanded_errors(100)) == 0
