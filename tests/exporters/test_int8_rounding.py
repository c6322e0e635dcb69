"""The rounding of int8 weights: what it measures, that it errs less than the nearest steps, and never saturates."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.int8_weights import LARGEST_PAIR, sum_pairs
from exporters.int8_calibration import start_session, with_outputs
from exporters.int8_layers import Layer, find_layers
from exporters.int8_qdq import RoundedWeights, find_tensors, quantize
from exporters.int8_rounding import _round_groups, _take_inputs, round_weights
from exporters.int8_schemes import ASYMMETRIC, SCHEMES, Range

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((5, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ((5, 4, 3, 3), {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "depthwise": ((4, 1, 5, 5), {"group": 4, "pads": [2, 2, 2, 2]}),
    "grouped": ((6, 2, 3, 1), {"group": 2}),
    "dilated": ((5, 4, 3, 3), {"dilations": [2, 1]}),
}


def make_network(node: onnx.NodeProto, weights: dict[str, NDArray[Any]], channels: int = 4) -> onnx.ModelProto:
    """Images of eight pixels a side whose ``channels`` are like one another, and one layer."""
    mixed = np.random.default_rng(3).normal(1, 0.3, (channels, 3, 1, 1))
    values = {"scale": np.array(1 / 255), "mixed": mixed} | weights
    make = helper.make_node
    nodes = [
        make("Transpose", ["image"], ["planes"], "n1", perm=[0, 3, 1, 2]),
        make("Cast", ["planes"], ["floats"], "n2", to=TensorProto.FLOAT),
        make("Mul", ["floats", "scale"], ["small"], "n3"),
        make("Conv", ["small", "mixed"], ["x"], "n4"),
        node,
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def draw_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(60, 200, (count, 8, 8, 3), dtype=np.uint8)


def layer_of(model: onnx.ModelProto) -> Layer:
    (found,) = (layer for layer in find_layers(model.graph) if model.graph.node[layer.nodes[0]].name == "layer")
    return found


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_what_weights_multiply_makes_the_output(kind: str) -> None:
    """At every place of an image, the taken inputs times the weights are what onnxruntime computes there."""
    dims, options = CONVOLUTIONS[kind]
    weight = np.random.default_rng(1).normal(size=dims).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", **options)
    model = make_network(node, {"w": weight})
    x, y = start_session(with_outputs(model, ["x", "y"])).run(None, {"image": draw_images(1)})
    taken = _take_inputs(node, x, weight, 64, seed=0)
    groups = options.get("group", 1)
    found = taken @ weight.reshape(groups, dims[0] // groups, -1).transpose(0, 2, 1)  # (G, P, O)
    found = found.transpose(1, 0, 2).reshape(-1, dims[0])
    expected = y[0].reshape(dims[0], -1).T
    assert len(found) == min(64, len(expected))
    for row in found:
        assert np.abs(expected - row).max(axis=1).min() < 1e-4


def rounded_error(rows: NDArray[Any], steps: NDArray[Any], scales: NDArray[Any], inputs: NDArray[Any]) -> float:
    return float((((steps * scales[..., None] - rows) @ inputs.transpose(0, 2, 1)) ** 2).mean())


@pytest.mark.parametrize(("groups", "outputs", "size"), [(1, 12, 96), (7, 1, 9), (3, 4, 18)])
def test_correlated_inputs_make_up_for_what_rounding_loses(groups: int, outputs: int, size: int) -> None:
    """On other inputs of the kind the error is less than half of that of the nearest steps, and nothing saturates."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(groups, size, max(2, size // 6)))

    def draw(count: int) -> NDArray[np.float64]:
        found = np.random.default_rng(count).normal(size=(groups, count, common.shape[2])) @ common.transpose(0, 2, 1)
        return found + 0.05 * np.random.default_rng(count + 1).normal(size=found.shape)

    rows = rng.normal(size=(groups, outputs, size))
    scales = ASYMMETRIC.weight_scales(rows.reshape(-1, size)).reshape(groups, outputs)
    taken, fresh = draw(4000), draw(1000)
    second = taken.transpose(0, 2, 1) @ taken / taken.shape[1]
    steps, used = _round_groups(rows, scales, second, taken.shape[1])
    assert (steps == np.rint(steps)).all()
    assert sum_pairs(steps.reshape(-1, size)).max() <= LARGEST_PAIR
    nearest = np.rint(rows / scales[..., None])
    assert rounded_error(rows, steps, used, fresh) < 0.5 * rounded_error(rows, nearest, scales, fresh)


@pytest.mark.parametrize("has_bias", [True, False])
def test_inputs_that_hardly_vary_are_rounded(has_bias: bool) -> None:
    """Their moments are mostly rounding errors, as of a map that a gate has shut: the weights are those of int8."""
    generator = np.random.default_rng(1)
    values = {"w": generator.normal(size=(6, 4, 3, 3)), "b": np.arange(6.0), "shut": np.array(1e-7), "one": np.array(3)}
    node = helper.make_node("Conv", ["flat", "w", "b"][: 2 + has_bias], ["y"], "layer")
    model = make_network(node, values)
    before = [
        helper.make_node("Mul", ["x", "shut"], ["faint"], "n5"),
        helper.make_node("Add", ["faint", "one"], ["flat"], "n6"),
    ]
    nodes = [*model.graph.node[:4], *before, node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = round_weights(model, [layer_of(model)], draw_images(16), scheme=ASYMMETRIC)["layer"]
    steps = found.integers.astype(np.float64)
    assert np.abs(steps).max() > 20
    error = np.abs(steps * found.scales[:, None, None, None] - values["w"])
    # what one weight loses others make up for
    assert (error <= 4 * found.scales[:, None, None, None]).all()


def test_no_moments_are_too_small_or_indefinite_to_round_by() -> None:
    """Where damping does not help, each weight is rounded to its nearest step."""
    rows = np.random.default_rng(0).normal(size=(2, 3, 9))
    scales = ASYMMETRIC.weight_scales(rows.reshape(-1, 9)).reshape(2, 3)
    indefinite = np.stack([np.eye(9), np.diag([-1.0, *[1.0] * 8])])
    for second in (indefinite, np.zeros((2, 9, 9))):
        steps, used = _round_groups(rows, scales, second, 1000, noise=np.full(2, 1e-12))
        np.testing.assert_array_equal(steps, np.rint(rows / used[..., None]))


def test_a_mean_goes_into_the_bias() -> None:
    """The shift of a layer is what its rounded weights add to the mean of its output; without a bias there is none."""
    weight = np.random.default_rng(1).normal(size=(6, 4, 3, 3)).astype(np.float32)
    images = draw_images(16)
    for inputs in (["x", "w", "b"], ["x", "w"]):
        node = helper.make_node("Conv", inputs, ["y"], "layer")
        model = make_network(node, {"w": weight} | ({"b": np.arange(6.0)} if len(inputs) > 2 else {}))
        found = round_weights(model, [layer_of(model)], images, scheme=ASYMMETRIC)["layer"]
        changed = make_network(node, {"w": found.integers * found.scales[:, None, None, None], "b": np.arange(6.0)})
        means = []
        for one in (model, changed):
            y = np.concatenate([start_session(one).run(None, {"image": image[None]})[0] for image in images])
            means.append(y.mean(axis=(0, 2, 3)))
        if len(inputs) > 2:
            np.testing.assert_allclose(means[1] - means[0], found.shift, atol=2e-4)
        else:
            assert not found.shift.any()
            assert np.abs(means[1] - means[0]).max() < 0.02


@pytest.mark.parametrize("quantization", ["asymmetric", "symmetric"])
def test_a_file_has_the_rounded_weights(quantization: Any) -> None:
    """The integers, the scales and the corrected bias are those that were rounded; without a bias there is none."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer")
    model = make_network(node, {"w": np.ones((2, 4, 1, 1)), "b": np.array([1.0, -1.0])})
    rounded = RoundedWeights(np.full((2, 4, 1, 1), 7, dtype=np.int8), np.array([0.1, 0.2]), np.array([0.25, -0.5]))
    layer = layer_of(model)
    ranges = {name: Range(0.0, 2.55) for name in find_tensors(model.graph, [layer])}
    made = quantize(model, ranges, [layer], scheme=SCHEMES[quantization], rounded={"layer": rounded})
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    np.testing.assert_array_equal(tensors["layer/weight/int8"], rounded.integers)
    np.testing.assert_allclose(tensors["layer/weight/scale"], rounded.scales)
    if quantization == "symmetric":
        np.testing.assert_allclose(tensors["layer/bias"], [0.75, -0.5])
    else:
        np.testing.assert_allclose(tensors["layer/bias/int32"] * tensors["layer/bias/scale"], [0.75, -0.5], rtol=1e-3)


def test_a_channel_of_tiny_weights_keeps_its_bias() -> None:
    """Where a bias does not fit into 32 bits at the rounded scale, the scale grows and the weights are rounded anew."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer")
    model = make_network(node, {"w": np.full((1, 4, 1, 1), 1e-12), "b": np.array([5.0])})
    layer = layer_of(model)
    ranges = {name: Range(0.0, 2.55) for name in find_tensors(model.graph, [layer])}
    rounded = round_weights(model, [layer], draw_images(4), scheme=ASYMMETRIC)
    made = quantize(model, ranges, [layer], rounded=rounded)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    np.testing.assert_allclose(tensors["layer/bias/int32"] * tensors["layer/bias/scale"], [5.0], rtol=1e-6)
    assert not tensors["layer/weight/int8"].any()
