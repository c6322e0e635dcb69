"""The fit of probabilities and noise to labels of which some are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from checkpoints.audit.noisy_labels import fit_noisy_labels


def sample(seed: int, noise: float, *, units: int = 4000, values: int = 3) -> tuple[Any, Any, Any]:
    """Return log-probabilities of two calibrated models of independent evidence, given labels, and wrong ones."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, values, units)
    logits = rng.normal(0, 1, (2, units, values))
    logits[:, np.arange(units), true] += 2  # of unit normal evidence moved by d, the log-likelihood ratio is d * x
    wrong = rng.random(units) < noise
    given = np.where(wrong, (true + rng.integers(1, values, units)) % values, true)
    return log_softmax(2 * logits, axis=2), given, wrong


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.3])
def test_the_noise_and_the_weights_are_those_of_the_sample(noise: float) -> None:
    """The share of wrong labels is estimated, and the models' evidence is independent: both weights are near 1."""
    logs, given, wrong = sample(1, noise)
    fit = fit_noisy_labels(logs, given)
    assert fit.noise == pytest.approx(wrong.mean(), abs=0.015)
    assert fit.weights == pytest.approx((1, 1), abs=0.3)


def test_the_probability_of_being_wrong_is_calibrated() -> None:
    """Of the labels said to be wrong with a probability of p, a share of p is."""
    logs, given, wrong = sample(2, 0.1, units=20_000)
    fit = fit_noisy_labels(logs, given)
    for low, high in ((0.02, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1.0)):
        some = (fit.wrong >= low) & (fit.wrong < high)
        assert some.sum() > 50
        assert wrong[some].mean() == pytest.approx(fit.wrong[some].mean(), abs=0.07), (low, high)


def test_one_sided_noise_is_told_from_noise_on_all_sides() -> None:
    """Where a tenth of one value is given as another, that transition is found, and no other."""
    logs, given, _ = sample(3, 0.0, units=3000)
    given = np.where((given == 1) & (np.random.default_rng(0).random(3000) < 0.1), 0, given)
    found = fit_noisy_labels(logs, given).transitions
    assert found[1, 0] == pytest.approx(0.1, abs=0.04)
    others = ~np.eye(3, dtype=bool)
    others[1, 0] = False
    assert found[others].max() < 0.02
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_the_gradients_are_those_of_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences at points away from the optimum agree in every parameter, with common and with given noise."""
    logs, given, _ = sample(4, 0.1, units=50)
    sizes = set()

    def check(loss: Any, start: Any, **options: Any) -> Any:
        point = start + np.linspace(-0.5, 0.7, len(start))
        slopes = [(loss(point + step)[0] - loss(point - step)[0]) / 2e-6 for step in 1e-6 * np.eye(len(point))]
        np.testing.assert_allclose(loss(point)[1], slopes, rtol=1e-4, atol=1e-7)
        sizes.add(len(point))
        return minimize(loss, start, **options)

    monkeypatch.setattr("checkpoints.audit.noisy_labels.minimize", check)
    fit_noisy_labels(logs, given)
    assert sizes == {5, 6}


def test_few_labels_and_certain_models_stay_finite() -> None:
    """Five labels that the model is certain of, one against it: that one is the most probably wrong."""
    logs = np.full((1, 5, 2), np.log(1e-6))
    logs[0, :, 0] = 0
    fit = fit_noisy_labels(logs, np.array([0, 0, 0, 0, 1]))
    assert np.isfinite(fit.pooled).all()
    assert fit.wrong.argmax() == 4
