"""Pooling against scipy, exact fractions and the definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit as scipy_expit
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import softmax
from scipy.stats import rankdata

from ensemble.arrays import Floats
from ensemble.blend.pooling import LINEAR, expit, log_softmax, normalize, parse_pool, percentile_ranks, pool
from ensemble.errors import OptionError, PredictionError

KINDS = ["linear", "logit", "geometric", "power:0.5", "power:-2", "power:100", "power:0.001", "hard"]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, list[float]]:
    """Logits ``(M, N, C)`` of any scale up to a hundred, and M weights, at least one of them positive."""
    members, rows, classes = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(2, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = generator.normal(size=(members, rows, classes)) * draw(st.sampled_from([0.1, 3.0, 100.0]))
    weights = draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 7.0]), min_size=members, max_size=members))
    return logits, weights if any(weights) else [1.0] * members


def test_the_sigmoid_and_the_ranks_are_scipys_to_the_last_bit() -> None:
    """Over the whole range of float64, and with many ties in each column."""
    rng = np.random.default_rng(0)
    x = np.concatenate([*(rng.normal(0, scale, 2000) for scale in (1, 30, 500)), [0, -709.78, -709.79, -745, 800]])
    assert np.array_equal(expit(x), scipy_expit(x))
    values = rng.integers(0, 9, (60, 4)) / 7
    assert np.array_equal(percentile_ranks(values), rankdata(values, axis=0) / 60)


def by_hand(logits: Floats, weights: list[float], order: float) -> Floats:
    """The weighted power mean of softmaxed logits, normalized, directly from its definition."""
    p = softmax(logits, axis=-1).astype(np.longdouble)
    w = np.asarray(weights, dtype=np.longdouble)[:, None, None] / np.sum(np.asarray(weights, dtype=np.longdouble))
    mean = (
        np.exp((w * np.log(p)).sum(axis=0)) if order == 0 else (w * p**order).sum(axis=0) ** (1 / np.longdouble(order))
    )
    return np.asarray(mean / mean.sum(axis=-1, keepdims=True), dtype=np.float64)


@given(problems(), st.sampled_from(["linear", "logit", "geometric", "power:0.5", "power:-2", "power:3"]))
@settings(deadline=None)
def test_every_mean_equals_its_formula(problem: tuple[Floats, list[float]], name: str) -> None:
    """Linear, logit, geometric and power pools equal the power mean of order 1, 0, 0 and p of the definition."""
    logits, weights = problem
    kind = parse_pool(name)
    order = {"linear": 1.0, "logit": 0.0, "geometric": 0.0}.get(name) if ":" not in name else float(name[6:])
    assert order is not None
    expected = by_hand(logits, weights, order)
    np.testing.assert_allclose(np.exp(pool(logits, weights, kind=kind)), expected, rtol=1e-9, atol=1e-300)


@given(problems())
@settings(deadline=None)
def test_the_linear_pool_is_the_average_of_softmaxed_logits(problem: tuple[Floats, list[float]]) -> None:
    """Soft voting is numpy's weighted average of scipy's softmax."""
    logits, weights = problem
    expected = np.average(softmax(logits, axis=-1), axis=0, weights=weights)
    np.testing.assert_allclose(np.exp(pool(logits, weights)), expected, rtol=1e-12, atol=1e-300)


@given(problems())
@settings(deadline=None)
def test_the_logit_pool_averages_logits(problem: tuple[Floats, list[float]]) -> None:
    """The logit pool is the softmax of numpy's weighted average of the logits."""
    logits, weights = problem
    expected = softmax(np.average(logits, axis=0, weights=weights), axis=-1)
    np.testing.assert_allclose(
        np.exp(pool(logits, weights, kind=parse_pool("logit"))), expected, rtol=1e-10, atol=1e-300
    )


@given(problems(), problems())
@settings(deadline=None)
def test_geometric_and_logit_are_the_same_pool(
    problem: tuple[Floats, list[float]], other: tuple[Floats, list[float]]
) -> None:
    """On one level as on two, the geometric mean of probabilities is the mean of logits, bit for bit."""
    results = []
    for name in ("logit", "geometric"):
        kind = parse_pool(name)
        inner = pool(*problem, kind=kind)
        results.append(pool([inner, inner + pool(*problem)], [2, 1], kind=kind))
    np.testing.assert_array_equal(results[0], results[1])


@given(problems())
@settings(deadline=None)
def test_the_hard_pool_counts_votes_and_breaks_ties_by_the_linear_mean(problem: tuple[Floats, list[float]]) -> None:
    """The hard pool's best class has the most votes, counted in fractions, and among those the highest mean."""
    logits, weights = problem
    # tenths, exactly: in floating point 0.1 + 0.1 + 0.1 votes would beat 0.3
    exact = [Fraction(round(weight * 10), 10) for weight in weights]
    means = np.average(softmax(logits, axis=-1), axis=0, weights=weights)
    answers = pool(logits, weights, kind=parse_pool("hard")).argmax(axis=-1)
    for row in range(logits.shape[1]):
        votes = [Fraction(0)] * logits.shape[2]
        for member, weight in enumerate(exact):
            votes[int(logits[member, row].argmax())] += weight
        tied = [c for c, count in enumerate(votes) if count == max(votes)]
        best = max(means[row, c] for c in tied)
        assert answers[row] in [c for c in tied if means[row, c] > best - 1e-9]


def test_a_lead_of_one_vote_in_a_thousand_is_not_a_tie() -> None:
    """501 uncertain votes win against 499 certain ones: the linear mean only breaks ties."""
    lukewarm, certain = [[0.1, 0.0]], [[0.0, 50.0]]
    votes = pool([lukewarm, certain], [501, 499], kind=parse_pool("hard"))
    assert votes[0].argmax() == 0
    assert pool([lukewarm, certain], [501, 499])[0].argmax() == 1
    np.testing.assert_allclose(np.exp(votes[0]), [0.501, 0.499], atol=1e-6)


def test_votes_that_differ_by_rounding_alone_are_tied() -> None:
    """0.1 + 0.2 against 0.3 is a tie, which the more confident side wins."""
    for certain in (0, 1):
        rows = np.array([[[2.0, 0.0]], [[2.0, 0.0]], [[0.0, 2.0]]])
        rows[rows.argmax(axis=-1) == certain] *= 2
        assert pool(rows, [0.1, 0.2, 0.3], kind=parse_pool("hard"))[0].argmax() == certain


@given(problems(), st.sampled_from(KINDS))
@settings(deadline=None)
def test_probabilities_sum_to_one(problem: tuple[Floats, list[float]], name: str) -> None:
    """Whatever the pool, each row's exponentials sum to one."""
    np.testing.assert_allclose(np.exp(pool(*problem, kind=parse_pool(name))).sum(axis=-1), 1, rtol=1e-12)


@given(problems(), st.sampled_from(KINDS), st.floats(-1000, 1000))
@settings(deadline=None)
def test_a_constant_added_to_a_row_of_logits_changes_nothing(
    problem: tuple[Floats, list[float]], name: str, shift: float
) -> None:
    """An offset per row does not matter in any pool, including the one that averages logits."""
    logits, weights = problem
    moved = logits.copy()
    moved[0] += shift
    kind = parse_pool(name)
    before, after = pool(logits, weights, kind=kind), pool(moved, weights, kind=kind)
    np.testing.assert_allclose(np.exp(after), np.exp(before), rtol=1e-7, atol=1e-12)


@given(problems(), st.sampled_from([kind for kind in KINDS if kind != "hard"]))
@settings(deadline=None)
def test_pooling_one_member_returns_it(problem: tuple[Floats, list[float]], name: str) -> None:
    """Pooling one member returns its softmax, except with the vote."""
    logits, _ = problem
    pooled = pool(logits[:1], [0.3], kind=parse_pool(name))
    np.testing.assert_allclose(np.exp(pooled), softmax(logits[0], axis=-1), rtol=1e-9, atol=1e-300)


@given(problems(), st.sampled_from(KINDS), st.sampled_from([0.1, 1 / 3, 3.0, 1e-8]))
@settings(deadline=None)
def test_equal_weights_are_the_same_whatever_their_size(
    problem: tuple[Floats, list[float]], name: str, weight: float
) -> None:
    """Weights of 0.1 each and of 1 each give bit-identical results."""
    logits, _ = problem
    kind = parse_pool(name)
    equal = pool(logits, [weight] * len(logits), kind=kind)
    np.testing.assert_array_equal(equal, pool(logits, [1.0] * len(logits), kind=kind))


@given(problems(), st.sampled_from(KINDS))
@settings(deadline=None)
def test_a_member_without_weight_has_no_influence(problem: tuple[Floats, list[float]], name: str) -> None:
    """A weight of 0 is bit-identical to leaving the member out, even if its logits are NaN."""
    logits, weights = problem
    kind = parse_pool(name)
    more = np.concatenate([logits, np.full_like(logits[:1], np.nan)])
    np.testing.assert_array_equal(pool(more, [*weights, 0.0], kind=kind), pool(logits, weights, kind=kind))


@given(problems())
@settings(deadline=None)
def test_linear_levels_are_one_flat_mean(problem: tuple[Floats, list[float]]) -> None:
    """Averaging pairs first and then the pairs is averaging all four."""
    logits, _ = problem
    four = [logits[0], logits[-1], logits[0] * 2, logits[-1] - logits[0]]
    nested = pool([pool(four[:2], [1, 3]), pool(four[2:], [1, 1])], [2, 1])
    np.testing.assert_allclose(np.exp(nested), np.exp(pool(four, [1, 3, 1, 1])), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", KINDS)
def test_members_are_read_one_at_a_time(name: str) -> None:
    """Members from a generator give bit-identical results to those from an array."""
    logits = np.random.default_rng(0).normal(size=(5, 7, 4))
    kind = parse_pool(name)
    lazy = pool((member for member in logits), range(5), kind=kind)
    np.testing.assert_array_equal(lazy, pool(logits, range(5), kind=kind))


@pytest.mark.parametrize("name", KINDS)
def test_sixteen_members_at_one_in_a_thousand_do_not_underflow(name: str) -> None:
    """Sixteen members that agree on 1e-3 pool to 1e-3, though their product is 1e-48 and float32 ends at 1e-45."""
    member = np.log(np.array([[1e-3, 0.999]], dtype=np.float32))
    pooled = np.exp(pool([member] * 16, [1.0] * 16, kind=parse_pool(name)))
    expected = [0.0, 1.0] if name == "hard" else [1e-3, 0.999]
    np.testing.assert_allclose(pooled[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_certainties_beyond_float64_stay_finite_and_ordered(name: str) -> None:
    """Logits a thousand apart, whose probabilities are 0 in float64, give finite results in the right order."""
    members = np.array([[[0.0, -1000.0, -5000.0]], [[0.0, -900.0, -3e38]]], dtype=np.float32)
    pooled = pool(members, [1, 1], kind=parse_pool(name))[0]
    assert np.isfinite(pooled).all()
    assert pooled[0] > pooled[1] > pooled[2]


def test_the_power_mean_converges_to_the_geometric_mean() -> None:
    """As the power approaches 0 its pool approaches the geometric one, and equals it at 0."""
    logits = np.random.default_rng(1).normal(size=(4, 20, 6)) * 3
    geometric = pool(logits, [1, 2, 3, 4], kind=parse_pool("geometric"))
    gaps = [
        np.abs(np.exp(pool(logits, [1, 2, 3, 4], kind=parse_pool(f"power:{p}"))) - np.exp(geometric)).max()
        for p in (1, 0.1, 0.01, 0.001)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 2e-3
    np.testing.assert_array_equal(pool(logits, [1, 2, 3, 4], kind=parse_pool("power:0")), geometric)


def test_sums_are_in_float64() -> None:
    """A hundred float32 members average to within float64's rounding of the exact mean."""
    logits = np.random.default_rng(2).normal(size=(100, 3, 5)).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=-1)
    exact = [[float(sum(map(Fraction, p[:, i, c])) / 100) for c in range(5)] for i in range(3)]
    np.testing.assert_allclose(np.exp(pool(logits, [1] * 100)), exact, rtol=1e-14)


def test_only_groups_vote() -> None:
    """Within groups the hard pool is linear; all other pools are unchanged."""
    assert parse_pool("hard").within == LINEAR
    assert all(parse_pool(name).within == parse_pool(name) for name in KINDS if name != "hard")


@pytest.mark.parametrize("name", ["linear", "logit", "geometric", "hard", "power:2", "power:0.5", "power:-1"])
def test_a_pool_is_named_as_it_is_written(name: str) -> None:
    """Parsing a pool's name returns the same pool; power:2.0 is power:2, and power:-0 is power:0."""
    assert parse_pool(name).name == name
    assert parse_pool(parse_pool(name).name) == parse_pool(name)
    assert parse_pool("power:2.0") == parse_pool(" power:2 ")
    assert parse_pool("power:-0").name == "power:0"


@pytest.mark.parametrize(
    "text", ["", "mean", "linear:2", "power", "power:", "power:x", "power:nan", "power:inf", "power:1e-4", "power:101"]
)
def test_an_unknown_pool_is_refused(text: str) -> None:
    """An unknown pool is E202, not another pool."""
    with pytest.raises(OptionError) as caught:
        parse_pool(text)
    assert caught.value.code == "E202"


@pytest.mark.parametrize("weights", [[1.0, -0.1], [1.0, math.nan], [1.0, math.inf], [0.0, 0.0]])
def test_fault_83_weights_that_are_none_are_refused(weights: list[float]) -> None:
    """Negative, NaN and infinite weights and a sum of 0 are E508."""
    with pytest.raises(PredictionError) as caught:
        pool(np.zeros((2, 1, 3)), weights)
    assert caught.value.code == "E508"


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_weights_is_not_made_equal_weights(count: int) -> None:
    """Two members with one or three weights are a ValueError."""
    with pytest.raises(ValueError, match="zip"):
        pool(np.zeros((2, 1, 3)), [1.0] * count)


@pytest.mark.slow
@given(st.dictionaries(st.text(), st.floats(0, 1e6), min_size=1).filter(lambda w: sum(w.values()) > 0))
@settings(deadline=None)
def test_shares_sum_to_one_in_the_weights_proportions(weights: dict[str, float]) -> None:
    """Shares sum to one within rounding, and each is its weight's exact part of the sum, rounded once."""
    shares = normalize(weights)
    total = sum(map(Fraction, weights.values()))
    assert math.isclose(sum(shares.values()), 1, rel_tol=1e-12)
    assert shares == {name: float(Fraction(weight) / total) for name, weight in weights.items()}


def test_log_softmax_is_scipys() -> None:
    """Log-probabilities equal scipy's in float64, also for logits of 1e30."""
    logits = np.random.default_rng(3).normal(size=(50, 18)) * np.logspace(-3, 30, 50)[:, None]
    np.testing.assert_allclose(log_softmax(logits), scipy_log_softmax(logits, axis=-1), rtol=1e-13, atol=1e-15)
    assert log_softmax(logits.astype(np.float32)).dtype == np.float64
