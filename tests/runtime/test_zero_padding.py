"""Zeros before a maximum stay zeros: ONNX Runtime would leave them out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.zero_padding import keep_padded_zeros

PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])


def model(
    opset: int, *, before: str = "Neg", value: float | None = 0.0, kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A maximum of padded values: ``before`` makes them of the input."""
    tensors, inputs, options = [], ["values"], {}
    if opset >= 11:
        tensors.append(numpy_helper.from_array(PADS, "pads"))
        inputs.append("pads")
        if value is not None:
            constant = np.array(value, dtype=helper.tensor_dtype_to_np_dtype(kind))
            tensors.append(numpy_helper.from_array(constant, "value"))
            inputs.append("value")
    else:
        options = {"pads": PADS.tolist(), "value": value or 0.0}
    nodes = [
        helper.make_node(before, ["x"], ["values"]),
        helper.make_node("Pad", inputs, ["padded"], mode="constant", **options),
        helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    ends = [helper.make_tensor_value_info(name, kind, ["n", 2, *sides]) for name, sides in (("x", (6, 6)), ("y", "hw"))]
    made = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors))
    made.opset_import[0].version, made.ir_version = opset, 8
    return made


def run(proto: onnx.ModelProto, x: NDArray[Any], *, optimised: bool = True) -> NDArray[Any]:
    settings, level = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    found: NDArray[Any] = onnxruntime.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize(("opset", "value"), [(9, 0.0), (13, 0.0), (13, None), (18, 0.0)])
def test_the_maximum_of_padded_zeros_is_zero(opset: int, value: float | None) -> None:
    """With values below 0 a window at the border has the maximum 0, as ONNX says, on all levels of optimization."""
    x = np.random.default_rng(0).uniform(1, 2, (1, 2, 6, 6)).astype(np.float32)
    proto = model(opset, value=value)
    expected = run(proto, x, optimised=False)
    assert expected.max() == 0
    assert keep_padded_zeros(proto) == 1
    assert keep_padded_zeros(proto) == 0
    assert np.allclose(run(proto, x), expected, atol=1e-30)


def test_the_fusion_that_this_is_for_is_still_there() -> None:
    """Without it ONNX Runtime gives another maximum; where this fails, the module can go."""
    x = np.random.default_rng(0).uniform(1, 2, (1, 2, 6, 6)).astype(np.float32)
    proto = model(13)
    assert not np.allclose(run(proto, x), run(proto, x, optimised=False))


@pytest.mark.parametrize("proto", [model(13, before="Relu"), model(13, value=-1.0), model(13, value=float("-inf"))])
def test_other_paddings_are_left_alone(proto: onnx.ModelProto) -> None:
    """Values that are not below 0, and other padded numbers, need no change."""
    data = proto.SerializeToString()
    assert keep_padded_zeros(proto) == 0
    assert proto.SerializeToString() == data


def test_half_precision_keeps_its_type() -> None:
    """The padded number has the type of the values."""
    x = np.random.default_rng(0).uniform(1, 2, (1, 2, 6, 6)).astype(np.float16)
    proto = model(13, kind=TensorProto.FLOAT16)
    assert keep_padded_zeros(proto) == 1
    assert np.allclose(run(proto, x).max(), 0, atol=1e-4)
