"""Out-of-fold predictions as the mean of folds: the simulated mean against a real one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from ensemble.arrays import Classes, Floats
from ensemble.learn.fold_average import simulate_fold_average

CLASSES = 4


def draw_folds(
    folds: int, *, seed: int, rows: int = 4000, own: float = 1.0, shared: float = 0.7
) -> tuple[Floats, Classes]:
    """Log-probabilities ``(k, N, C)`` of k folds: errors that they share, and errors of each fold alone."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=rows)
    common = 2 * np.eye(CLASSES)[truth] + shared * rng.normal(size=(rows, CLASSES))
    return log_softmax(common + own * rng.normal(size=(folds, rows, CLASSES)), axis=-1), truth


def nll(log_p: Floats, truth: Classes) -> float:
    return -float(log_p[np.arange(len(truth)), truth].mean())


@pytest.mark.parametrize("folds", [2, 5])
def test_the_simulated_mean_is_as_good_as_a_real_one(folds: int) -> None:
    """Accuracy and likelihood of the simulated mean are those of a real mean of folds on other images."""
    one, truth = draw_folds(1, seed=0)
    others, other_truth = draw_folds(folds, seed=1)
    found = simulate_fold_average(one, truth, others, seed=0)
    real_of_logits = log_softmax(others.mean(axis=0), axis=-1)
    real_of_probabilities = np.log(np.exp(others).mean(axis=0))
    for simulated, real in ((found.of_logits, real_of_logits), (found.of_probabilities, real_of_probabilities)):
        right, wanted = (simulated.argmax(axis=1) == truth).mean(), (real.argmax(axis=1) == other_truth).mean()
        assert right == pytest.approx(wanted, abs=0.02)
        assert nll(simulated, truth) == pytest.approx(nll(real, other_truth), abs=0.03)
    # and a single fold is clearly worse than either
    assert nll(one[0], truth) > nll(found.of_logits, truth) + 0.1


def test_equal_folds_change_nothing() -> None:
    """Where all folds predict the same, averaging them removes nothing."""
    one, truth = draw_folds(1, seed=2, rows=200)
    others = np.repeat(draw_folds(1, seed=3, rows=100)[0], 3, axis=0)
    found = simulate_fold_average(one, truth, others, seed=0)
    assert found.factor == 1
    np.testing.assert_allclose(found.of_logits, one[0], atol=1e-12)
    np.testing.assert_allclose(found.of_probabilities, one[0], atol=1e-9)


def test_folds_that_disagree_more_than_they_err_do_not_erase_the_errors() -> None:
    """The factor has a lower bound, whatever the folds say on the other images."""
    one, truth = draw_folds(1, seed=4, rows=300)
    others = log_softmax(20 * np.random.default_rng(5).normal(size=(4, 100, CLASSES)), axis=-1)
    assert simulate_fold_average(one, truth, others, seed=0).factor == 0.25


def test_two_held_out_models_measure_the_step_without_the_new_images() -> None:
    """With two splits the simulated mean of ten models is a real one, though the new images' folds say otherwise."""
    splits, truth = draw_folds(2, seed=6)
    real, real_truth = draw_folds(10, seed=7)
    misleading = np.repeat(real[:1], 10, axis=0)  # ten equal models: measured on these, nothing would average out
    found = simulate_fold_average(splits, truth, misleading, seed=0)
    mean = log_softmax(real.mean(axis=0), axis=-1)
    assert nll(found.of_logits, truth) == pytest.approx(nll(mean, real_truth), abs=0.03)
    assert nll(log_softmax(splits.mean(axis=0), axis=-1), truth) > nll(found.of_logits, truth) + 0.03
    assert simulate_fold_average(splits[:1], truth, misleading, seed=0).factor == 1
