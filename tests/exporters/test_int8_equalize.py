"""Equalized channels of linear activations: the same network in float32, with one range for all channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.int8_calibration import with_outputs
from exporters.int8_equalize import equalize, find_linear_tensors

Array = NDArray[Any]
LINEAR = ("first", "second", "sum")


def build(*, padded: bool = False, reader: str = "Conv", uneven: bool = True) -> onnx.ModelProto:
    """Convolutions of 8 channels: `sum` of `first` and `second`, both linear, read by a convolution or another node."""
    rng = np.random.default_rng(0)
    values: dict[str, Array] = {}
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["real"], "real", to=onnx.TensorProto.FLOAT),
    ]

    def convolve(source: str, made: str, inputs: int, side: int = 1) -> None:
        weight, bias = rng.normal(size=(8, inputs, side, side)), rng.normal(size=8)
        if uneven and made in LINEAR:
            weight *= np.geomspace(0.2, 3, 8).reshape(-1, 1, 1, 1)
            bias += np.linspace(-4, 4, 8)
        values[f"{made}.weight"] = weight / np.sqrt(inputs * side**2)
        values[f"{made}.bias"] = bias
        pads = [side // 2] * 4
        nodes.append(helper.make_node("Conv", [source, f"{made}.weight", f"{made}.bias"], [made], made, pads=pads))

    convolve("real", "stem", 3)
    values["stem.weight"] /= 64
    nodes.append(helper.make_node("Relu", ["stem"], ["positive"], "positive"))
    convolve("positive", "first", 8)
    convolve("first", "wide", 8)
    nodes.append(helper.make_node("Relu", ["wide"], ["bounded"], "bounded"))
    convolve("bounded", "second", 8)
    nodes.append(helper.make_node("Add", ["second", "first"], ["sum"], "sum"))
    if reader == "Conv":
        convolve("sum", "last", 8, 3 if padded else 1)
    else:
        nodes.append(helper.make_node(reader, ["sum"], ["last"], "last"))
    nodes.append(helper.make_node("GlobalAveragePool", ["last"], ["pooled"], "pooled"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"], "logits"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 9, 9, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def draw(seed: int, count: int = 12) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)


def run(proto: onnx.ModelProto, pixels: Array, *names: str) -> list[Array]:
    data = with_outputs(proto, names).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {"image": pixels})
    return found


@pytest.mark.parametrize("padded", [False, True])
def test_the_network_computes_the_same(padded: bool) -> None:
    """The logits of other images are those of before, within float32's rounding, and the weights have changed."""
    proto = build(padded=padded)
    found = equalize(proto, draw(0))
    assert found != proto
    before, after = run(proto, draw(1), "logits")[0], run(found, draw(1), "logits")[0]
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


def test_channels_have_one_range() -> None:
    """On the images that were measured each channel of every linear tensor lies within 30 % of the middle of the
    tensor's range, and the narrowest is at least a third as wide as the widest; before it was a tenth.
    """
    spans = {}
    for when, proto in (("before", build()), ("after", equalize(build(), draw(0)))):
        tensors = run(proto, draw(0), *LINEAR)
        low, high = (np.stack([end(one, axis=(0, 2, 3)) for one in tensors]) for end in (np.min, np.max))
        spans[when] = ((high - low).min(axis=1) / (high - low).max(axis=1)).min()
        if when == "after":
            assert (np.abs(high + low) / 2 < 0.3 * (high.max(axis=1) - low.min(axis=1))[:, np.newaxis]).all()
    assert spans["before"] < 0.2
    assert spans["after"] > 0.33


def test_padded_readers_keep_zero() -> None:
    """A tensor that is read with padding is scaled but not shifted: each channel's zero stays zero."""
    proto = build(padded=True)
    before, after = (run(one, draw(1), "sum")[0] for one in (proto, equalize(proto, draw(0))))
    factors = np.median(after / before, axis=(0, 2, 3)).reshape(1, -1, 1, 1)
    assert np.ptp(factors) > 1
    assert np.abs(after - factors * before).max() < 1e-4 * np.abs(after).max()


@pytest.mark.parametrize("reader", ["Relu", "Sigmoid"])
def test_tensors_that_other_nodes_read_stay(reader: str) -> None:
    """Where one tensor of a sum is read by a node that is not linear, none of them changes."""
    proto = build(reader=reader)
    assert find_linear_tensors(proto.graph) == ()
    assert equalize(proto, draw(0)) == proto


def test_outputs_of_the_graph_stay() -> None:
    """A linear tensor that is an output of the graph, such as maps that are shown, keeps its values."""
    proto = build()
    proto.graph.output.append(helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
    assert equalize(proto, draw(0)) == proto
