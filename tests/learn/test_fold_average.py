"""Out-of-fold predictions as the mean of folds: the simulated mean against a real one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from ensemble.arrays import Classes, Floats
from ensemble.learn.fold_average import FoldAverage, simulate_fold_averages

CLASSES = 4


def draw_folds(
    folds: int, *, seed: int, rows: int = 4000, own: float = 1.0, shared: float = 0.7
) -> tuple[Floats, Classes]:
    """Log-probabilities ``(k, N, C)`` of k folds: errors that they share, and errors of each fold alone."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=rows)
    common = 2 * np.eye(CLASSES)[truth] + shared * rng.normal(size=(rows, CLASSES))
    return log_softmax(common + own * rng.normal(size=(folds, rows, CLASSES)), axis=-1), truth


def simulate(looks: Floats, truth: Classes, folds: Floats) -> FoldAverage:
    """The simulated mean of one member view."""
    return simulate_fold_averages([looks], truth, [folds], seed=0)[0]


def nll(log_p: Floats, truth: Classes) -> float:
    return -float(log_p[np.arange(len(truth)), truth].mean())


@pytest.mark.parametrize("folds", [2, 5])
def test_the_simulated_mean_is_as_good_as_a_real_one(folds: int) -> None:
    """Accuracy and likelihood of the simulated mean are those of a real mean of folds on other images."""
    one, truth = draw_folds(1, seed=0)
    others, other_truth = draw_folds(folds, seed=1)
    found = simulate(one, truth, others)
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
    found = simulate(one, truth, others)
    assert found.factor == pytest.approx(1)
    np.testing.assert_allclose(found.of_logits, one[0], atol=1e-9)
    np.testing.assert_allclose(found.of_probabilities, one[0], atol=1e-9)


def test_folds_that_disagree_more_than_they_err_do_not_erase_the_errors() -> None:
    """The factor has a lower bound, whatever the folds say on the other images."""
    one, truth = draw_folds(1, seed=4, rows=300)
    others = log_softmax(20 * np.random.default_rng(5).normal(size=(4, 100, CLASSES)), axis=-1)
    assert simulate(one, truth, others).factor == pytest.approx(0.25)


def test_two_held_out_models_measure_the_step_without_the_new_images() -> None:
    """With two splits the simulated mean of ten models is a real one, though the new images' folds say otherwise."""
    splits, truth = draw_folds(2, seed=6)
    real, real_truth = draw_folds(10, seed=7)
    misleading = np.repeat(real[:1], 10, axis=0)  # ten equal models: measured on these, nothing would average out
    found = simulate(splits, truth, misleading)
    mean = log_softmax(real.mean(axis=0), axis=-1)
    assert nll(found.of_logits, truth) == pytest.approx(nll(mean, real_truth), abs=0.03)
    assert nll(log_softmax(splits.mean(axis=0), axis=-1), truth) > nll(found.of_logits, truth) + 0.03
    assert simulate(splits[:1], truth, misleading).factor == pytest.approx(1)


def draw_members(folds: int, *, seed: int, rows: int = 3000) -> tuple[list[Floats], Classes]:
    """Two members' log-probabilities ``(k, N, C)``: both have the errors of the image, all in the first direction.

    The errors of each fold alone are in the second direction, where they are those of both members for the first half
    of their variance.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=rows)
    first, second = np.array([1.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, -1.0])
    image = 2 * np.eye(CLASSES)[truth] + 1.2 * rng.normal(size=(rows, 1)) * first
    common = rng.normal(size=(folds, rows, 1))
    own = (common + rng.normal(size=(folds, rows, 1)) for _ in range(2))
    return [log_softmax(image + one * second, axis=-1) for one in own], truth


def test_errors_that_folds_share_stay_and_members_become_alike() -> None:
    """The simulated means of two members have the covariance of real ones, in each direction and between members."""
    held_out, truth = draw_members(1, seed=8)
    others, other_truth = draw_members(5, seed=9)
    found = [one.of_logits for one in simulate_fold_averages(held_out, truth, others, seed=0)]
    real = [log_softmax(one.mean(axis=0), axis=-1) for one in others]

    def covariance(members: list[Floats], classes: Classes) -> Floats:
        centered = np.concatenate([one - one.mean(axis=1, keepdims=True) for one in members], axis=1)
        means = np.stack([centered[classes == c].mean(axis=0) for c in range(CLASSES)])
        return np.asarray(np.cov((centered - means[classes]).T))

    wanted, before = covariance(real, other_truth), covariance([one[0] for one in held_out], truth)
    np.testing.assert_allclose(covariance(found, truth), wanted, atol=0.12)
    assert np.abs(before - wanted).max() > 1.5
    mean, other_mean = sum(found) / 2, sum(real) / 2
    assert nll(log_softmax(mean, axis=-1), truth) == pytest.approx(
        nll(log_softmax(other_mean, axis=-1), other_truth), abs=0.03
    )


def test_many_classes_shrink_by_one_factor_for_each_member_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size that covariances are used for, the deviations of a view are multiplied by one number."""
    monkeypatch.setattr("ensemble.learn.fold_average._LARGEST", 3)
    one, truth = draw_folds(1, seed=0)
    others, other_truth = draw_folds(5, seed=1)
    found = simulate(one, truth, others)
    real = log_softmax(others.mean(axis=0), axis=-1)
    assert nll(found.of_logits, truth) == pytest.approx(nll(real, other_truth), abs=0.03)


def test_a_constant_member_stays_as_it_is() -> None:
    """A member without any deviation has nothing to be multiplied."""
    one, truth = draw_folds(1, seed=4, rows=300)
    flat = np.full((1, 300, CLASSES), -np.log(CLASSES))
    others = draw_folds(3, seed=5, rows=100)[0]
    found = simulate_fold_averages([one, flat], truth, [others, np.repeat(flat[:, :100], 3, axis=0)], seed=0)
    np.testing.assert_allclose(found[1].of_probabilities, flat[0], atol=1e-9)
    assert found[1].factor == 1
