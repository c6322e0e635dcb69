"""Maximum-likelihood pools: the gradient, the optimality conditions, and optima found by other methods."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from ensemble.arrays import Classes, Floats
from ensemble.labels import Axis, LabelSpace
from ensemble.learn.likelihood import (
    FEW_IMAGES,
    axis_design,
    fit_linear,
    fit_log_linear,
    fit_temperatures,
    log_linear_loss,
)


def problem(seed: int, inputs: int = 3, rows: int = 200, classes: int = 4) -> tuple[Floats, Classes]:
    """Inputs ``(V, N, C)`` that are informative about the truth ``(N,)``, each with its own noise and bias."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, size=rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = 1.5 * np.eye(classes)[truth] + rng.normal(size=(inputs, rows, classes)) * rng.uniform(
        0.5, 2, (inputs, 1, 1)
    )
    return log_softmax(logits + rng.normal(size=(inputs, 1, classes)), axis=-1), truth


def with_a_liar(seed: int) -> tuple[Floats, Classes]:
    """Five inputs, and a sixth whose answers are systematically wrong."""
    log_p, truth = problem(seed, inputs=5)
    lies = np.random.default_rng(seed).normal(size=log_p[0].shape) - 2 * np.eye(log_p.shape[-1])[truth]
    return np.concatenate([log_p, log_softmax(lies, axis=-1)[np.newaxis]]), truth


def linear_loss(weights: Floats, log_p: Floats, truth: Classes) -> float:
    return float(-np.log(np.tensordot(weights, np.exp(log_p), axes=1)[np.arange(len(truth)), truth]).mean())


def log_linear_by_hand(weights: Floats, bias: Floats, log_p: Floats, truth: Classes) -> float:
    """The explicit likelihood and penalty."""
    p = softmax(sum(w * one for w, one in zip(weights, log_p, strict=True)) + bias, axis=-1)
    total = -sum(np.log(p[row, true]) for row, true in enumerate(truth))
    for number, one in enumerate(bias):
        total += max(1.0, FEW_IMAGES / max(1, int((truth == number).sum()))) * one**2 / 2
    return float(total / len(truth))


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_its_formula_and_the_gradient_its_derivative(seed: int) -> None:
    """At random points the loss equals the explicit sum, and its gradient the finite differences."""
    log_p, truth = problem(seed, rows=40)
    loss = log_linear_loss(log_p, truth)
    at = np.random.default_rng(seed).normal(size=7)
    value, gradient = loss(at)
    assert value == pytest.approx(log_linear_by_hand(at[:3], at[3:], log_p, truth), rel=1e-12)
    np.testing.assert_allclose(gradient, approx_fprime(at, lambda x: loss(x)[0], 1e-7), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_log_linear_pool_meets_the_conditions_of_an_optimum(seed: int) -> None:
    """The gradient is 0 along every bias and positive weight, and not negative along a weight of 0 (KKT)."""
    log_p, truth = with_a_liar(seed)
    found = fit_log_linear(log_p, truth)
    gradient = log_linear_loss(log_p, truth)(np.concatenate([found.weights, found.bias]))[1]
    assert (found.weights >= 0).all()
    assert found.weights[5] == 0
    np.testing.assert_allclose(gradient[6:], 0, atol=5e-6)
    np.testing.assert_allclose(gradient[:6][found.weights > 0], 0, atol=5e-6)
    assert (gradient[:6][found.weights == 0] > -5e-6).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_linear_pool_meets_the_conditions_of_an_optimum(seed: int) -> None:
    """On the simplex, the true class's ``mean(p_v / mixture)`` is 1 for inputs with weight, at most 1 for others."""
    log_p, truth = with_a_liar(seed)
    weights = fit_linear(log_p, truth)
    p = np.exp(log_p[:, np.arange(len(truth)), truth])
    ratio = (p / (weights @ p)).mean(axis=1)
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    assert weights[5] == 0
    np.testing.assert_allclose(ratio[weights > 0], 1, atol=1e-5)
    assert (ratio[weights == 0] <= 1 + 1e-5).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_no_weights_of_a_fine_grid_are_better(classes: int) -> None:
    """For two inputs, weights-only pools of both kinds are at least as likely as every point of a grid."""
    log_p, truth = problem(classes, inputs=2, rows=40, classes=classes)
    grid = np.linspace(0, 1, 501)
    losses = [linear_loss(np.array([w, 1 - w]), log_p, truth) for w in grid]
    linear = fit_linear(log_p, truth)
    assert linear_loss(linear, log_p, truth) <= min(losses) + 1e-12
    assert abs(linear[0] - grid[np.argmin(losses)]) <= 0.002
    none = np.zeros(classes)
    points = list(itertools.product(np.linspace(0, 2, 21), repeat=2))
    losses = [log_linear_by_hand(np.array(point), none, log_p, truth) for point in points]
    found = fit_log_linear(log_p, truth, bias=False)
    assert not found.bias.any()
    assert log_linear_by_hand(found.weights, none, log_p, truth) <= min(losses) + 1e-12


def test_no_bias_of_a_fine_grid_is_better() -> None:
    """For one input and two classes, no temperature and biases of a grid have a smaller loss."""
    log_p, truth = problem(5, inputs=1, rows=50, classes=2)
    found = fit_log_linear(log_p, truth)
    best = log_linear_by_hand(found.weights, found.bias, log_p, truth)
    for weight, first, second in itertools.product(np.linspace(0, 2, 11), *[np.linspace(-2, 2, 11)] * 2):
        assert log_linear_by_hand(np.array([weight]), np.array([first, second]), log_p, truth) >= best - 1e-12


def test_every_start_leads_to_the_same_optimum() -> None:
    """An independent optimizer from random starts converges to the pool's loss and parameters."""
    log_p, truth = problem(7)
    found = fit_log_linear(log_p, truth)
    expected = np.concatenate([found.weights, found.bias])
    loss = log_linear_loss(log_p, truth)
    rng = np.random.default_rng(0)
    for _ in range(5):
        start = np.concatenate([rng.exponential(size=3) * 2, rng.normal(size=4) * 2])
        other = minimize(
            loss,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0, None)] * 3 + [(None, None)] * 4,
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        assert other.fun == pytest.approx(loss(expected)[0], abs=1e-9)
        np.testing.assert_allclose(other.x, expected, atol=1e-3)


def test_with_two_classes_it_is_logistic_regression() -> None:
    """For two classes the weights are scikit-learn's unpenalized logistic regression on the inputs' log-odds."""
    log_p, truth = problem(11, inputs=3, rows=2000, classes=2)
    odds = (log_p[:, :, 1] - log_p[:, :, 0]).T
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(odds, truth)
    assert (other.coef_ > 0).all()
    np.testing.assert_allclose(fit_log_linear(log_p, truth, bias=False).weights, other.coef_[0], rtol=1e-4)


def test_apply_is_the_softmax_of_the_weighted_sum() -> None:
    """Applying a pool gives scipy's log-softmax of the weighted sum."""
    log_p, truth = problem(3)
    found = fit_log_linear(log_p, truth)
    total = sum(w * p for w, p in zip(found.weights, log_p, strict=True)) + found.bias
    np.testing.assert_allclose(found.apply(log_p), log_softmax(total, axis=-1), atol=1e-12)


def test_a_temperature_is_found() -> None:
    """An overconfident input, with doubled logits, gets the weight one half, and a calibrated one the weight one."""
    rng = np.random.default_rng(0)
    honest = log_softmax(rng.normal(size=(20_000, 3)) * 2, axis=-1)
    truth = (rng.random((20_000, 1)) > np.exp(honest).cumsum(axis=1)).sum(axis=1)
    for factor in (1.0, 2.0):
        found = fit_log_linear(log_softmax(factor * honest, axis=-1)[np.newaxis], truth, bias=False)
        assert found.weights[0] == pytest.approx(1 / factor, rel=0.05)


def test_a_class_without_images_keeps_its_bias_at_0() -> None:
    """The bias of a class without images is exactly 0."""
    log_p, truth = problem(2)
    found = fit_log_linear(log_p, np.where(truth == 0, 3, truth))
    assert found.bias[0] == 0
    assert (found.bias[1:] != 0).all()


def test_biases_of_small_classes_are_regularized_more() -> None:
    """At equal proportions, fewer images shrink a class's bias more towards 0."""
    rng = np.random.default_rng(0)
    shrunk = []
    for few in (2, 8, 32, 128):
        truth = np.repeat([0, 1], [few, 3 * few])
        uninformative = log_softmax(rng.normal(size=(1, len(truth), 2)) * 1e-9, axis=-1)
        bias = fit_log_linear(uninformative, truth).bias
        shrunk.append(bias[1] - bias[0])
    assert shrunk == sorted(shrunk)
    assert shrunk[0] < 0.4 < 1.0 < shrunk[-1] < np.log(3)


def test_factored_biases_meet_the_conditions_of_an_optimum() -> None:
    """With one bias per value of each axis, the gradient is that of the explicit loss, and 0 at the optimum."""
    log_p, truth = problem(0, classes=6)
    design = axis_design(LabelSpace((Axis("one", ("a", "b")), Axis("two", ("c", "d", "e")))))
    assert design.tolist() == [
        [1, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 0, 1],
    ]

    def by_hand(at: Floats) -> float:
        p = softmax(np.tensordot(at[:3], log_p, axes=1) + design @ at[3:], axis=-1)
        images = np.bincount(truth, minlength=6) @ design
        penalty = (np.maximum(1, FEW_IMAGES / images) * at[3:] ** 2).sum() / 2
        return float((-np.log(p[np.arange(len(truth)), truth]).sum() + penalty) / len(truth))

    at = np.random.default_rng(0).normal(size=8)
    value, gradient = log_linear_loss(log_p, truth, design=design)(at)
    assert value == pytest.approx(by_hand(at), rel=1e-12)
    np.testing.assert_allclose(gradient, approx_fprime(at, by_hand, 1e-7), atol=1e-5)
    found = fit_log_linear(log_p, truth, design=design)
    other = minimize(by_hand, at, bounds=[(0, None)] * 3 + [(None, None)] * 5, options={"ftol": 1e-15, "gtol": 1e-9})
    np.testing.assert_allclose(found.weights, other.x[:3], atol=1e-3)
    np.testing.assert_allclose(found.bias, design @ other.x[3:], atol=1e-3)


def test_temperatures_are_the_likeliest_of_each_member() -> None:
    """A member's views share the temperature that a grid search finds; an uninformative member's is finite."""
    log_p, truth = problem(0, inputs=3)
    log_p = np.concatenate([log_p, np.full((1, *log_p.shape[1:]), -np.log(4))])
    found = fit_temperatures(log_p, truth, np.array([0, 1, 0, 2]))
    assert found[0] == found[2] != found[1]
    assert np.isfinite(found).all()
    for inputs in ([0, 2], [1]):

        def loss(temperature: float, inputs: list[int] = inputs) -> float:
            each = [log_softmax(log_p[v] / temperature, axis=-1)[np.arange(len(truth)), truth].sum() for v in inputs]
            return -float(np.sum(each))

        best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
        assert found[inputs[0]] == pytest.approx(best, rel=1e-4)
    assert len(set(fit_temperatures(log_p[:3], truth).tolist())) == 3
