"""Candidates: pools combined with rules, and edge cases of both."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from ensemble.arrays import Classes, Floats
from ensemble.blend.decision_rules import MacroF1Rule, PriorRule, fit_macro_f1_rule
from ensemble.blend.pooling import parse_pool, pool
from ensemble.labels import MASK18, Axis, LabelSpace
from ensemble.learn.candidates import CANDIDATES, FitOptions, Fitted, candidates_for, fit_candidates
from ensemble.learn.objective import parse_metric

LABELS = LabelSpace((Axis("one", ("a", "b")), Axis("two", ("c", "d"))))


def problem(seed: int = 0, rows: int = 200) -> tuple[Floats, Classes]:
    """Three member views ``(3, N, 4)`` that are informative about the truth ``(N,)``."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, size=rows, p=[0.5, 0.3, 0.15, 0.05])
    return log_softmax(1.5 * np.eye(4)[truth] + rng.normal(size=(3, rows, 4)), axis=-1), truth


def accuracy(truth: Classes, answers: Classes) -> float:
    return float((truth == answers).mean())


def fit(*names: str, log_p: Floats, truth: Classes) -> dict[str, Fitted]:
    options = FitOptions(np.array([0.5, 0.25, 0.25]), LABELS, accuracy, seed=0)
    return fit_candidates(names, options, log_p, truth)


def test_the_first_candidate_of_every_metric_is_the_mean() -> None:
    """The baseline of every metric is the mean of probabilities, and the likelihood has no rules."""
    assert {names[0] for names in CANDIDATES.values()} == {"mean"}
    assert not [name for name in CANDIDATES["nll"] if "+" in name]


def test_candidates_suit_the_metric_and_the_labels() -> None:
    """With a single axis nothing is factored, and for the score of one axis there is no macro-F1 rule."""
    flat = LabelSpace.flat(18)
    for labels, text, factored, rule in (
        (MASK18, "macro-f1", True, True),
        (flat, "macro-f1", False, True),
        (MASK18, "macro-f1:age", True, False),
    ):
        names = candidates_for(parse_metric(text, labels), labels)
        assert names[0] == "mean"
        assert any(name.startswith("factored") for name in names) == factored
        assert any(name.endswith("+f1") for name in names) == rule


def test_a_factored_bias_is_a_sum_over_the_axes() -> None:
    """The bias of a class is one number of its first value plus one of its second: the interaction is 0."""
    log_p, truth = problem()
    bias = fit("factored", log_p=log_p, truth=truth)["factored"].bias.reshape(2, 2)
    assert bias[0, 0] - bias[0, 1] - bias[1, 0] + bias[1, 1] == pytest.approx(0, abs=1e-12)
    assert np.ptp(bias) > 0.1


@pytest.mark.parametrize(("name", "kind"), [("mean", "linear"), ("logit", "logit")])
def test_unfitted_candidates_are_the_pools_of_blending(name: str, kind: str) -> None:
    """The means of probabilities and of logits are those of `pool` with the same weights, whatever the truth."""
    log_p, truth = problem()
    fitted = fit(name, log_p=log_p, truth=truth)[name]
    expected = pool(log_p, [0.5, 0.25, 0.25], kind=parse_pool(kind))
    np.testing.assert_allclose(fitted.apply(log_p), expected, atol=1e-12)
    np.testing.assert_array_equal(fitted.decide(expected), expected.argmax(axis=1))


def test_a_rule_leaves_its_pool_as_it_is() -> None:
    """With a rule, weights, sharpness and bias are those without, and the rule is fitted to its probabilities."""
    log_p, truth = problem()
    fitted = fit("pool", "pool+f1", "pool+tau", log_p=log_p, truth=truth)
    for name, kind in (("pool+f1", MacroF1Rule), ("pool+tau", PriorRule)):
        np.testing.assert_array_equal(fitted[name].apply(log_p), fitted["pool"].apply(log_p))
        assert isinstance(fitted[name].rule, kind)
    probabilities = np.exp(fitted["pool"].apply(log_p))
    expected = fit_macro_f1_rule(probabilities).decide(probabilities)
    np.testing.assert_array_equal(fitted["pool+f1"].decide(np.log(probabilities)), expected)


def test_calibration_leaves_the_mean_its_weights() -> None:
    """The calibrated mean keeps the weights of the mean and has a better likelihood."""
    log_p, truth = problem()
    fitted = fit("mean", "calibrated", log_p=log_p, truth=truth)
    mean, calibrated = (fitted[name].apply(log_p)[np.arange(len(truth)), truth].mean() for name in fitted)
    np.testing.assert_array_equal(fitted["calibrated"].weights, fitted["mean"].weights)
    assert calibrated > mean


def test_uninformative_members_leave_the_mean_its_weights() -> None:
    """Where every weight of the log-linear pool is 0, the weights are the mean's and the sharpness is 0."""
    log_p, truth = problem()
    lies = log_softmax(-log_p, axis=-1)
    fitted = fit("log-linear", log_p=lies, truth=truth)["log-linear"]
    assert fitted.sharpness == 0
    np.testing.assert_array_equal(fitted.weights, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(np.exp(fitted.apply(lies)), 0.25, rtol=1e-12)


def test_probabilities_that_underflow_stay_finite() -> None:
    """A class with a log-probability of -2,000 in every member view has a finite one in the mean."""
    log_p = log_softmax(np.array([[[2000.0, 0.0]], [[1500.0, 0.0]]]), axis=-1)
    fitted = Fitted("linear", np.array([0.5, 0.5]), 1.0, np.zeros(2))
    assert np.isfinite(fitted.apply(log_p)).all()


def test_the_seed_decides_the_bags_of_greedy() -> None:
    """With the same seed, greedy gives bit-identical weights."""
    log_p, truth = problem()
    many = np.concatenate([log_p, log_p[::-1], log_p])
    options = FitOptions(np.full(9, 1 / 9), LABELS, accuracy, seed=0)
    one, same = (fit_candidates(["greedy"], options, many, truth)["greedy"].weights for _ in range(2))
    assert one.tobytes() == same.tobytes()


def test_scaled_members_are_averaged_at_their_own_temperature() -> None:
    """The scaled mean is the mean of probabilities after each logit is divided by its member's temperature."""
    log_p, truth = problem()
    log_p[0] *= 4
    log_p = log_softmax(log_p, axis=-1)
    fitted = fit("scaled", log_p=log_p, truth=truth)["scaled"]
    assert fitted.temperatures is not None
    assert fitted.temperatures[0] > 2 * fitted.temperatures[1:].max()
    each = [np.exp(log_softmax(one / t, axis=-1)) for one, t in zip(log_p, fitted.temperatures, strict=True)]
    expected = 0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2]
    np.testing.assert_allclose(np.exp(fitted.apply(log_p)), expected, rtol=1e-12)
