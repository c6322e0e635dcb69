"""Near ties of an int8 network are answered by the float32 network in the same file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ensemble.runtime.int8_products import with_convolutions
from exporters.accuracy_gate import Verdict, expect_changes
from exporters.int8_calibration import measure_activations
from exporters.int8_layers import find_layers
from exporters.int8_near_ties import NO_FALLBACK, Fallback, distances, join, joined_logits
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_select import Judges
from tests.exporters.test_int8_equalize import build, draw, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Array = NDArray[Any]
NONE = np.empty((0, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A network on integers and the same one in float32."""
    proto = build()
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    return quantize(proto, ranges, layers, float_sums=True), proto


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_near_ties_have_the_logits_of_float32(pair: tuple[onnx.ModelProto, onnx.ModelProto], batch: int) -> None:
    """To the rounding of float32, whatever the batch; the other rows have those of int8, to the bit."""
    integers, floats = pair
    pixels = draw(3, 40)
    first, second = (np.concatenate([run(one, pixels[i : i + 1], "logits")[0] for i in range(40)]) for one in pair)
    below = float(np.quantile(distances(first), 0.3))
    fallback = Fallback(below, 0.3)
    model = join(integers, floats, fallback)
    onnx.checker.check_model(model, full_check=True)
    found = np.concatenate([run(model, pixels[i : i + batch], "logits")[0] for i in range(0, 40, batch)])
    near = distances(first) < np.float32(below)
    assert 8 <= near.sum() <= 14
    np.testing.assert_allclose(found, joined_logits(first, second, fallback), atol=1e-5)
    np.testing.assert_allclose(found[near], second[near], atol=1e-5)
    np.testing.assert_array_equal(found[~near], first[~near])
    assert (np.abs(first - second).max(axis=1) > 1e-3).all()


def test_openvino_reads_both_networks(pair: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    """Its form of the network keeps what only the branch reads."""
    integers, floats = pair
    first = run(integers, draw(3), "logits")[0]
    model = join(integers, floats, Fallback(float(np.median(distances(first))), 0.5))
    other = onnx.load_model_from_string(with_convolutions(model.SerializeToString()))
    onnx.checker.check_model(other, full_check=True)
    assert "MatMul" not in {node.op_type for node in other.graph.node}
    before, after = (run(one, draw(3), "logits")[0] for one in (model, other))
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


def test_rows_that_are_not_finite_stay_so() -> None:
    """NaN is no near tie: it is found by the checks of logits."""
    found = np.array([[np.nan, 1.0], [1.0, 1.05]], dtype=np.float32)
    joined = joined_logits(found, np.array([[0.0, 1.0], [3.0, 1.0]], dtype=np.float32), Fallback(0.1, 0.5))
    assert np.isnan(joined[0, 0])
    assert joined[1].tolist() == [3.0, 1.0]


def test_one_class_has_no_ties() -> None:
    """Its distance is infinite, and nothing can change."""
    assert np.isinf(distances(np.ones((3, 1), dtype=np.float32))).all()
    ones = np.ones((3, 1), dtype=np.float32)
    assert expect_changes(ones, 0 * ones, NONE[:, :1]) == 0


def noisy(count: int, noise: float, seed: int = 0) -> tuple[Array, Array]:
    """Logits of images and the same with errors."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, 4)).astype(np.float32)
    return reference, (reference + rng.normal(scale=noise, size=(count, 4))).astype(np.float32)


def test_expected_changes_are_those_that_happen() -> None:
    """Over many images the expectation is the count, with and without near ties in float32 (two in a hundred apart)."""
    reference, found = noisy(20_000, 0.05)
    changed = reference.argmax(axis=1) != found.argmax(axis=1)
    assert expect_changes(reference, found, NONE) == pytest.approx(changed.sum(), rel=0.08)
    far = changed & (distances(found) >= 0.05)
    assert expect_changes(reference, found, NONE, below=0.05) == pytest.approx(far.sum(), rel=0.15)
    assert far.sum() < changed.sum() / 2


def test_expected_changes_scatter_less_than_a_count() -> None:
    """On 500 images, with the distances of 1,000 others, the standard deviation is less than two thirds."""
    counts, expected = [], []
    for seed in range(60):
        reference, found = noisy(500, 0.05, seed)
        counts.append(np.count_nonzero(reference.argmax(axis=1) != found.argmax(axis=1)))
        expected.append(expect_changes(reference, found, noisy(1000, 0.05, 1000 + seed)[0]))
    assert np.mean(expected) == pytest.approx(np.mean(counts), rel=0.1)
    assert np.std(expected) < 2 / 3 * np.std(counts)


def test_rows_that_are_not_finite_are_changed() -> None:
    """Each counts as one image."""
    reference, found = noisy(100, 1e-9)
    found[:7, 2] = np.nan
    assert expect_changes(reference, found, NONE) == pytest.approx(7)
    found[:] = np.inf
    assert expect_changes(reference, found, NONE) == 100


def test_as_few_near_ties_as_make_the_model_safe() -> None:
    """Fewer would leave more changes than the margin allows; without a need, or where all are too few, none."""
    reference, found = noisy(2000, 0.05)
    judges = Judges(np.empty((2000, 0), dtype=np.uint8), margin=0.5)
    verdict, fallback = judges.expect(reference, found, NONE, most_again=0.1)
    assert verdict.is_safe
    assert verdict.expected is not None
    assert 18 < verdict.expected <= 20
    assert 0.01 < fallback.share < 0.1
    assert verdict.changed == np.count_nonzero(
        joined_logits(found, reference, fallback).argmax(axis=1) != reference.argmax(axis=1)
    )
    fewer = Fallback(fallback.below * 0.97, 0)
    assert expect_changes(reference, found, NONE, below=fewer.below) > 20
    for logits, most in ((found, 0.0), (noisy(2000, 0.5)[1], 0.1), (noisy(2000, 0.001)[1], 0.1)):
        verdict, fallback = judges.expect(reference, logits, NONE, most_again=most)
        assert fallback == NO_FALLBACK
        assert verdict.is_safe is (logits is not found and verdict.changed < 10)


def test_verdicts_of_the_gate_count() -> None:
    """Only verdicts that choose have an expectation; its share of what is allowed is the margin's."""
    assert Verdict("int8", 1000, 13).is_safe
    assert not Verdict("int8", 1000, 14).is_safe
    assert Verdict("int8", 1000, 14, expected=13.3).is_safe
    assert not Verdict("int8", 1000, 3, expected=13.4).is_safe
    assert Verdict("int8", 1000, 3, expected=16.9, margin=0.85).is_safe


def test_the_card_says_what_is_answered_again() -> None:
    """The threshold as the file has it, and the share."""
    assert Fallback(0.0556, 0.0364444).as_dict() == {"below": 0.0556, "share": 0.0364}
