"""Decision rules against brute force on small problems, another library, and their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, f1_score

from ensemble.arrays import Classes, Floats
from ensemble.blend.decision_rules import AxisRule, MacroF1Rule, PriorRule, fit_macro_f1_rule, fit_prior_rule
from ensemble.labels import MASK18


def draw(seed: int, rows: int, classes: int) -> Floats:
    """Probabilities ``(N, C)`` of very unbalanced classes."""
    rng = np.random.default_rng(seed)
    return np.asarray(softmax(rng.normal(size=(rows, classes)) * 2 - np.arange(classes), axis=-1))


def expected_macro_f1(p: Floats, answers: Classes) -> float:
    """Macro F1 of expected counts, per class from its definition."""
    f1 = []
    for c in range(p.shape[1]):
        right = sum(p[i, c] for i in range(len(p)) if answers[i] == c)
        f1.append(2 * right / (p[:, c].sum() + sum(answers == c)))
    return float(np.mean(f1))


def best_of_all(p: Floats) -> float:
    rows, classes = p.shape
    return max(expected_macro_f1(p, np.array(a)) for a in itertools.product(range(classes), repeat=rows))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "classes"), [(9, 2), (7, 3), (5, 4)])
def test_few_images_are_decided_almost_optimally(rows: int, classes: int) -> None:
    """For a few images, the rule's macro F1 is at most a tenth below the optimum by brute force, and 2 % on average."""
    ratio = []
    for seed in range(12):
        p = draw(seed, rows, classes)
        ratio.append(expected_macro_f1(p, fit_macro_f1_rule(p).decide(p)) / best_of_all(p))
    assert min(ratio) > 0.9
    assert np.mean(ratio) > 0.98


@pytest.mark.parametrize("seed", range(3))
def test_no_single_change_would_gain(seed: int) -> None:
    """Among 400 images, changing the class of any single one gains less than half of one image's weight."""
    p = draw(seed, 400, 4)
    answers = fit_macro_f1_rule(p).decide(p)
    right = np.array([p[answers == c, c].sum() for c in range(4)])
    count = p.sum(axis=0) + np.bincount(answers, minlength=4)
    gains = []
    for row, other in itertools.product(range(400), range(4)):
        own = answers[row]
        if other == own:
            continue
        without = 2 * (right[own] - p[row, own]) / (count[own] - 1) - 2 * right[own] / count[own]
        gains.append(
            without + 2 * (right[other] + p[row, other]) / (count[other] + 1) - 2 * right[other] / count[other]
        )
    assert max(gains) < 0.5 / count.min()


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_is_the_fixed_point_of_its_definition(seed: int) -> None:
    """The F1 and counts of the rule's decisions are its own, except for one borderline image in 1,000."""
    p = draw(seed, 20_000, 5)
    rule = fit_macro_f1_rule(p)
    answers = rule.decide(p)
    answered = np.bincount(answers, minlength=5) / len(p)
    right = np.bincount(answers, weights=p[np.arange(len(p)), answers], minlength=5) / len(p)
    np.testing.assert_allclose(rule.occurrences, p.mean(axis=0) + answered, atol=1e-3)
    np.testing.assert_allclose(rule.f1, 2 * right / (p.mean(axis=0) + answered), atol=1e-3)


def test_two_classes_have_the_threshold_half_of_f1() -> None:
    """When only the F1 of class 1 can change, its threshold is ``F / 2``: class 1 is decided where p_1 exceeds it."""
    f1 = 0.7
    p1 = np.linspace(0.005, 0.995, 100)
    p = np.stack([1 - p1, p1], axis=1)
    # class 0 is so frequent that one image more or less does not move its F1
    rule = MacroF1Rule(np.array([0.9, f1]), np.array([1e9, 0.2]))
    np.testing.assert_array_equal(rule.decide(p) == 1, p1 > f1 / 2)


def test_on_calibrated_probabilities_it_beats_argmax() -> None:
    """With calibrated probabilities, a rule fitted to other images always raises macro F1, by a point on average."""
    rng = np.random.default_rng(0)
    gains = []
    for seed in range(5):
        rule, p = fit_macro_f1_rule(draw(seed, 4000, 5)), draw(100 + seed, 20_000, 5)
        truth = (rng.random((len(p), 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=4)
        plain, ours = (f1_score(truth, a, average="macro") for a in (p.argmax(axis=1), rule.decide(p)))
        gains.append(ours - plain)
    assert min(gains) > 0
    assert np.mean(gains) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_another_library_decides_the_same(seed: int) -> None:
    """xcolumns' block-coordinate ascent on macro F1 agrees with the rule on at least 99.5 % of images."""
    found = pytest.importorskip("xcolumns.block_coordinate")
    p = draw(seed, 5000, 5)
    theirs = found.predict_optimizing_macro_f1_score_using_bc(p, 1, seed=seed, init_y_pred="top").argmax(axis=1)
    ours = fit_macro_f1_rule(p).decide(p)
    assert (theirs == ours).mean() > 0.995
    assert expected_macro_f1(p, ours) == pytest.approx(expected_macro_f1(p, theirs), abs=2e-4)


def test_an_impossible_class_is_never_decided() -> None:
    """A class with probability 0 everywhere is never decided, and all scores stay finite."""
    p = np.concatenate([draw(0, 50, 3), np.zeros((50, 1))], axis=1)
    rule = fit_macro_f1_rule(p)
    assert np.isfinite(rule.f1).all()
    assert set(rule.decide(p).tolist()) == {0, 1, 2}


def test_tau_0_is_argmax_and_tau_1_maximizes_balanced_accuracy() -> None:
    """With tau 0 the prior has no effect; with calibrated probabilities tau 1 has the best balanced accuracy."""
    rng = np.random.default_rng(1)
    p = draw(5, 40_000, 4)
    truth = (rng.random((len(p), 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=3)
    prior = np.bincount(truth) / len(truth)
    np.testing.assert_array_equal(PriorRule(0.0, prior).decide(p), p.argmax(axis=1))
    found = fit_prior_rule(p, truth, lambda answers: float(balanced_accuracy_score(truth, answers)))
    assert found.tau == pytest.approx(1, abs=0.15)


def test_tau_is_the_best_of_its_grid_and_ties_stay_near_0() -> None:
    """No tau of the grid scores higher than the fitted one, and ties go to 0."""
    p = draw(2, 500, 3)
    truth = draw(3, 500, 3).argmax(axis=1)

    def score(answers: Classes) -> float:
        return float(f1_score(truth, answers, average="macro", zero_division=0))

    found = fit_prior_rule(p, truth, score)
    taus = [round(-0.5 + 0.05 * i, 2) for i in range(41)]
    scores = {tau: score(PriorRule(tau, found.prior).decide(p)) for tau in taus}
    assert scores[found.tau] == max(scores.values())
    assert fit_prior_rule(p, truth, lambda answers: 1.0).tau == 0


def test_a_class_without_images_has_a_prior_above_0() -> None:
    """A class without images has the weighted geometric mean of the other priors: it is neither favored nor avoided."""
    found = fit_prior_rule(draw(0, 6, 3), np.array([0, 0, 0, 0, 1, 1]), lambda answers: 0.0)
    np.testing.assert_allclose(found.prior, [5 / 9, 3 / 9, (5 / 9) ** (4 / 6) * (3 / 9) ** (2 / 6)])


def test_the_macro_f1_rule_neither_favors_nor_avoids_an_absent_class() -> None:
    """A class that is absent from the truth has the average parameters of the others, weighted by frequency."""
    p = draw(3, 500, 4)
    absent = np.array([False, False, True, False])
    plain, rule = fit_macro_f1_rule(p), fit_macro_f1_rule(p, absent=absent)
    weights = np.where(absent, 0, p.mean(axis=0))
    np.testing.assert_array_equal(rule.f1[~absent], plain.f1[~absent])
    assert rule.f1[2] == pytest.approx(np.average(plain.f1, weights=weights))
    assert rule.occurrences[2] == pytest.approx(np.average(plain.occurrences, weights=weights))


@pytest.mark.parametrize("seed", range(3))
def test_per_axis_decides_the_most_probable_value_of_each_axis(seed: int) -> None:
    """Each axis gets the most probable value of its marginal distribution."""
    p = np.random.default_rng(seed).dirichlet(np.full(18, 0.3), size=60)
    answers = AxisRule((3, 2, 3)).decide(p)
    for row, answer in zip(p, answers.tolist(), strict=True):
        for axis in MASK18.axes:
            values = MASK18.along(axis.name, np.arange(18))
            sums = [row[values == value].sum() for value in range(len(axis.values))]
            assert MASK18.along(axis.name, [answer])[0] == int(np.argmax(sums))
    assert (answers != p.argmax(axis=1)).any()
