"""int8 graphs that OpenVINO computes wrong as they stand are given to it in another form, with the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.openvino import OpenVINORuntime, build_runtime, shared_core
from ensemble.runtime.openvino_graph import computes_weights, for_openvino

Array = NDArray[Any]
SIDE, CHANNELS = 16, 16


class Int8Network:
    """Nodes of a graph from ``x`` ``(B, 16, 16, 16)`` to ``y``, with values in 8 bits."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"tensor{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def rounded(self, name: str, low: float, high: float) -> str:
        step = np.float32((high - low) / 255)
        ends = self.constant(step), self.constant(np.uint8(round(-low / step)))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", name, *ends), *ends)

    def weights(self, *shape: int) -> Array:
        drawn: Array = self.generator.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        return drawn

    def int8(self, values: Array, *, axis: int = 0) -> str:
        others = tuple(i for i in range(values.ndim) if i != axis)
        step = np.abs(values).max(axis=others) / np.float32(63)
        integers = np.rint(values / np.expand_dims(step, others)).astype(np.int8)
        parts = self.constant(integers), self.constant(step), self.constant(np.zeros(len(step), np.int8))
        return self.add("DequantizeLinear", *parts, axis=axis)

    def int32(self, values: Array) -> str:
        step = np.full(len(values), 1e-4, np.float32)
        parts = self.constant(np.rint(values / step).astype(np.int32)), self.constant(step)
        return self.add("DequantizeLinear", *parts, self.constant(np.zeros(len(step), np.int32)), axis=0)

    def convolve(self, name: str, out: int, into: int, side: int, *, bias: float = 0.0, **attributes: Any) -> str:
        inputs = [name, self.int8(self.weights(out, into, side, side))]
        if bias:
            inputs.append(self.int32(self.generator.normal(0, bias, out)))
        return self.add("Conv", *inputs, kernel_shape=[side, side], pads=[side // 2] * 4, **attributes)

    def build(self, last: str) -> bytes:
        self.add("Identity", last, to="y")
        taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])
        given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "channels", "height", "width"])
        graph = helper.make_graph(self.nodes, "network", [taken], [given], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data


def gated() -> bytes:
    """A convolution with a large bias, and a gate of pooled maps that is expanded to the batch, as in ECA."""
    net = Int8Network()
    maps = net.add("Relu", net.convolve(net.rounded("x", -4, 4), 32, CHANNELS, 3, bias=2.0))
    maps = net.convolve(net.rounded(maps, 0, 6), 32, 32, 3, bias=2.0)
    maps = net.rounded(maps, -8, 8)
    batch = net.add("Shape", "x", start=0, end=1)
    gate = net.add("Sigmoid", net.add("ReduceMean", maps, net.constant(np.array([2, 3])), keepdims=1))
    shape = net.add("Concat", batch, net.constant(np.array([32])), net.constant(np.array([SIDE, SIDE])), axis=0)
    gate = net.rounded(net.add("Expand", gate, shape), 0, 1)
    maps = net.rounded(net.add("Relu", net.add("Mul", maps, gate)), 0, 8)
    return net.build(net.convolve(maps, 8, 32, 3, bias=2.0))


def strided(*, hidden: bool = False) -> bytes:
    """A convolution of 1x1 with a stride behind a sum; ``hidden`` behind one on integers whose sums nothing rounds."""
    net = Int8Network()
    maps = net.convolve(net.rounded("x", -4, 4), 64, CHANNELS, 3, bias=1.0)
    maps = net.add("Add", maps, net.add("Conv", "x", net.constant(net.weights(64, CHANNELS, 1, 1))))
    maps = net.rounded(net.add("Relu", maps), 0, 3)
    if hidden:
        maps = net.convolve(maps, 64, 64, 1)
        inputs = maps, net.constant(net.weights(128, 64, 1, 1)), net.constant(net.weights(128, 1)[:, 0])
        maps = net.add("Conv", *inputs, kernel_shape=[1, 1], strides=[2, 2])
    else:
        maps = net.convolve(maps, 128, 64, 1, bias=1.0, strides=[2, 2])
    return net.build(net.convolve(net.rounded(net.add("Relu", maps), 0, 3), 64, 128, 3))


def run(data: bytes, pixels: Array) -> Array:
    options = onnxruntime.SessionOptions()
    # as the nodes say, without onnxruntime's own fusions
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: Array = onnxruntime.InferenceSession(data, options).run(None, {"x": pixels})[0]
    return found


def inputs(count: int = 8) -> Array:
    drawn: Array = np.random.default_rng(3).normal(size=(count, CHANNELS, SIDE, SIDE)).astype(np.float32)
    return drawn


def error(expected: Array, found: Array) -> float:
    return float(np.abs(expected - found).max() / np.abs(expected).max())


@pytest.mark.parametrize("data", [gated(), strided(), strided(hidden=True)], ids=["gated", "strided", "hidden"])
def test_openvino_answers_as_onnxruntime(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bias is lost beside a gate, and no weights are where a stride hides them, with two calls at once too."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr("ensemble.runtime.openvino.available_cores", lambda: 2)
    runtime = build_runtime(data, bf16=False)
    for pixels in (inputs(), inputs(3)):
        assert error(run(data, pixels), runtime.run(None, {"x": pixels})[0]) < 0.03


@pytest.mark.parametrize(("hidden", "expected"), [(False, False), (True, True)])
def test_weights_that_are_computed_at_run_time_are_found(hidden: bool, expected: bool) -> None:
    """A stride of its own keeps weights in 8 bits; one that passes a convolution without rounding is found."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = shared_core()
    compiled = core.compile_model(core.read_model(for_openvino(strided(hidden=hidden))), "CPU")
    assert computes_weights(compiled) is expected
    assert isinstance(OpenVINORuntime(compiled).run(None, {"x": inputs(1)}), list)


@pytest.mark.parametrize("data", [gated(), strided(), strided(hidden=True)], ids=["gated", "strided", "hidden"])
def test_the_graph_gives_the_same_answers(data: bytes) -> None:
    """In onnxruntime, what OpenVINO is given answers as the file."""
    np.testing.assert_allclose(run(for_openvino(data), inputs()), run(data, inputs()), rtol=1e-5, atol=1e-5)


def test_biases_and_strides_are_nodes_of_their_own() -> None:
    """No convolution keeps a constant bias, and none of 1x1 with int8 weights a stride."""
    graph = onnx.load_from_string(for_openvino(strided())).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    assert all(len(node.input) == 2 for node in convolutions)
    assert not any(2 in one.ints for node in convolutions for one in node.attribute if one.name == "strides")
    (pool,) = (node for node in graph.node if node.op_type == "MaxPool")
    assert {one.name: list(one.ints) for one in pool.attribute} == {"kernel_shape": [1, 1], "strides": [2, 2]}


def convolutions_of(nodes: Sequence[onnx.NodeProto]) -> Mapping[str, onnx.NodeProto]:
    return {node.op_type: node for node in nodes if node.op_type in {"Conv", "ConvTranspose"}}


def test_a_bias_that_is_not_constant_stays() -> None:
    """It is computed by the network itself; that of a transposed convolution, in rows and columns, is taken."""
    net = Int8Network()
    maps = net.rounded("x", -4, 4)
    inputs_ = maps, net.int8(net.weights(CHANNELS, 8, 3, 3), axis=1), net.int32(net.generator.normal(size=8))
    maps = net.add("ConvTranspose", *inputs_, kernel_shape=[3, 3])
    mean = net.add("ReduceMean", "x", net.constant(np.array([0, 2, 3])), keepdims=0)
    weight = net.int8(net.weights(CHANNELS, 8, 1, 1))
    data = net.build(net.add("Conv", maps, weight, mean, kernel_shape=[1, 1], strides=[2, 2], pads=[1, 1, 1, 1]))
    found = for_openvino(data)
    kept = convolutions_of(onnx.load_from_string(found).graph.node)
    assert len(kept["Conv"].input) == 3
    assert len(kept["ConvTranspose"].input) == 2
    assert not any(node.op_type == "MaxPool" for node in onnx.load_from_string(found).graph.node)
    np.testing.assert_allclose(run(found, inputs()), run(data, inputs()), rtol=1e-5, atol=1e-5)


def test_a_model_in_float32_is_returned_as_given() -> None:
    """Without 8-bit values there is nothing to write otherwise."""
    net = Int8Network()
    weight, bias = net.constant(net.weights(8, CHANNELS, 1, 1)), net.constant(net.weights(8, 1)[:, 0])
    data = net.build(net.add("Conv", "x", weight, bias, kernel_shape=[1, 1], strides=[2, 2]))
    assert for_openvino(data) is data
