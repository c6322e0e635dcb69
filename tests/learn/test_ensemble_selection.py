"""Ensemble selection against a second, plain implementation and AutoGluon's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score, log_loss

from ensemble.arrays import Classes, Floats
from ensemble.learn.ensemble_selection import select, select_bagged


def problem(seed: int, members: int = 5, rows: int = 80, classes: int = 3) -> tuple[Floats, Classes]:
    """Members ``(M, N, C)`` of unequal quality and the truth ``(N,)``, in which every class occurs."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % classes
    noise = rng.normal(size=(members, rows, classes)) * rng.uniform(1, 4, (members, 1, 1))
    return log_softmax(2 * np.eye(classes)[truth] + noise, axis=-1), truth


def macro_f1(truth: Classes, answers: Classes) -> float:
    return float(f1_score(truth, answers, average="macro", labels=np.unique(truth), zero_division=0))


def accuracy(truth: Classes, answers: Classes) -> float:
    return float((truth == answers).mean())


def by_hand(log_p: Floats, truth: Classes, rounds: int, *, likelihood_only: bool) -> list[int]:
    """The members of the ensemble, with repetitions: every ensemble is averaged and scored from scratch."""

    def rank(ensemble: list[int]) -> tuple[float, float]:
        p = np.mean([softmax(log_p[v], axis=-1) for v in ensemble], axis=0)
        likelihood = -log_loss(truth, p / p.sum(axis=1, keepdims=True), labels=np.unique(truth))
        return (0.0 if likelihood_only else macro_f1(truth, p.argmax(axis=1))), likelihood

    members = list(range(len(log_p)))
    best_first = sorted(members, key=lambda v: rank([v]), reverse=True)
    current = max((best_first[:n] for n in range(1, len(members) + 1)), key=rank)
    passed = [current]
    for _ in range(rounds):
        current = max(([*current, v] for v in members), key=rank)
        passed.append(current)
    return max(passed, key=rank)


@pytest.mark.parametrize("likelihood_only", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_it_selects_what_the_plain_implementation_selects(seed: int, likelihood_only: bool) -> None:
    """For either metric the weights are those of ensembles that scikit-learn scores."""
    log_p, truth = problem(seed)
    score = None if likelihood_only else partial(macro_f1, truth)
    expected = np.bincount(by_hand(log_p, truth, 6, likelihood_only=likelihood_only), minlength=5)
    np.testing.assert_allclose(select(log_p, truth, score=score, rounds=6), expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_worse_than_the_best_member_on_its_own_images(seed: int) -> None:
    """On the images it was selected on, the ensemble scores at least as high as each member."""
    log_p, truth = problem(seed, rows=300)
    weights = select(log_p, truth, score=partial(macro_f1, truth))
    mixed = np.tensordot(weights, np.exp(log_p), axes=1)
    alone = [macro_f1(truth, one.argmax(axis=1)) for one in log_p]
    assert macro_f1(truth, mixed.argmax(axis=1)) >= max(alone)


def test_equal_scores_are_ordered_by_the_likelihood() -> None:
    """Of two members with the same correct answers, the more confident one is selected alone."""
    truth = np.array([0, 1, 0, 1])
    sure, unsure = (log_softmax(scale * np.eye(2)[truth], axis=-1) for scale in (3.0, 1.0))
    for log_p, expected in (([sure, unsure], [1, 0]), ([unsure, sure], [0, 1])):
        found = select(np.stack(log_p), truth, score=partial(macro_f1, truth))
        np.testing.assert_array_equal(found, expected)


def test_a_member_may_be_taken_twice() -> None:
    """A good member and a weak but helpful one get unequal weights, which needs replacement."""
    log_p, truth = problem(3, members=2, rows=400)
    weights = select(log_p, truth, score=None, rounds=12)
    assert 0 < weights.min() < 0.5


def test_bagging_spreads_the_weights() -> None:
    """Bagging gives weight to members that one selection leaves out, and the weights sum to one."""
    log_p, truth = problem(1, members=12, rows=200)
    score = partial(accuracy, truth)
    whole, bagged = select(log_p, truth, score=score), select_bagged(log_p, truth, score=score, bags=10, seed=0)
    assert bagged.sum() == pytest.approx(1, rel=1e-12)
    assert (bagged > 0).sum() > (whole > 0).sum()


def test_bags_depend_on_the_seed_alone() -> None:
    """The same seed gives identical weights, another seed other bags."""
    log_p, truth = problem(2, members=12)
    one, same, other = (select_bagged(log_p, truth, score=None, seed=seed) for seed in (0, 0, 1))
    assert one.tobytes() == same.tobytes() != other.tobytes()


@pytest.mark.parametrize("members", [1, 2, 4, 10])
def test_few_members_are_not_bagged(members: int) -> None:
    """With up to ten members every bag contains all of them, so bagging changes nothing."""
    log_p, truth = problem(4, members=members)
    plain = select(log_p, truth, score=None)
    np.testing.assert_allclose(select_bagged(log_p, truth, score=None), plain, rtol=1e-12)


def test_many_members_are_pruned() -> None:
    """Of a hundred members at most ten of each bag of fifty get a weight, and the worst of all never does."""
    log_p, truth = problem(5, members=100, rows=60)
    log_p[7] = log_softmax(-5 * np.eye(3)[truth], axis=-1)
    weights = select_bagged(log_p, truth, score=partial(accuracy, truth), rounds=3, bags=2)
    assert (weights > 0).sum() <= 20
    assert weights[7] == 0


def test_autogluon_selects_the_same_ensemble() -> None:
    """Where the sorted initialization is a single member, the weights are AutoGluon's for the same ensemble size."""
    theirs = pytest.importorskip("autogluon.core.models.greedy_ensemble.ensemble_selection").EnsembleSelection
    metric = pytest.importorskip("autogluon.core.metrics").log_loss
    compared = 0
    for seed in range(40):
        log_p, truth = problem(seed)
        alone = select(log_p, truth, score=None, rounds=0)
        if alone.max() < 1:
            continue
        p = list(np.exp(log_p))
        found = theirs(ensemble_size=7, problem_type="multiclass", metric=metric).fit(p, truth).weights_
        np.testing.assert_allclose(select(log_p, truth, score=None, rounds=6), found, atol=1e-12)
        compared += 1
    assert compared >= 5
