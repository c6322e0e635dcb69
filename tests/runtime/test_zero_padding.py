"""Zeros in front of a max pooling stay zeros in onnxruntime, which otherwise takes them for minus infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.zero_padding import keep_padded_zeros

PADS = [0, 0, 1, 1, 0, 0, 1, 1]
RNG = np.random.default_rng(0)
NEGATIVE = -1 - RNG.random((1, 2, 8, 8), dtype=np.float32)


def pooled(
    *before: str, between: str = "", value: float | None = 0.0, opset: int = 18, kind: int = 1
) -> onnx.ModelProto:
    """Return ``x -> before -> Pad -> between -> MaxPool``; ``value`` None leaves the padded value to its default."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes, name = [], "x"
    for step in before:
        nodes.append(helper.make_node(step, [name], [name := f"{name}{step}"]))
    tensors = []
    if opset < 11:
        options: dict[str, Any] = {"pads": PADS} | ({} if value is None else {"value": value})
        nodes.append(helper.make_node("Pad", [name], ["padded"], **options))
    else:
        tensors.append(numpy_helper.from_array(np.array(PADS, np.int64), "pads"))
        if value is not None:
            tensors.append(numpy_helper.from_array(np.array(value, dtype), "value"))
        nodes.append(helper.make_node("Pad", [name, "pads", *(["value"] if value is not None else [])], ["padded"]))
    name = "padded"
    if between:
        options = {"perm": [0, 1, 3, 2]} if between == "Transpose" else {}
        nodes.append(helper.make_node(between, [name], [name := "between"], **options))
    nodes.append(helper.make_node("MaxPool", [name], ["y"], kernel_shape=[3, 3], strides=[2, 2]))
    ends = [
        helper.make_tensor_value_info("x", kind, [1, 2, 8, 8]),
        helper.make_tensor_value_info("y", kind, [1, 2, 4, 4]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answer(proto: onnx.ModelProto, image: NDArray[Any], *, fused: bool = True) -> NDArray[Any]:
    """Run a network as sessions do by default, or without any change of its graph."""
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, {"x": image})[0]
    return found


@pytest.mark.parametrize("value", [0.0, None])
@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("between", ["", "Identity", "Transpose"])
def test_the_padded_zeros_are_the_maximum_of_negative_values(value: float | None, opset: int, between: str) -> None:
    """After the change the session gives what the graph says, for each way to write a padding with zeros."""
    proto = pooled(between=between, value=value, opset=opset)
    wanted = answer(proto, NEGATIVE, fused=False)
    assert wanted.max() == 0
    assert keep_padded_zeros(proto) == 1
    np.testing.assert_allclose(answer(proto, NEGATIVE), wanted, rtol=0, atol=1e-37)
    onnx.checker.check_model(proto, full_check=True)


def test_without_the_change_the_session_answers_otherwise() -> None:
    """onnxruntime's Pad_Fusion is why the change is there: a version without this fault needs it no more."""
    proto = pooled()
    assert np.abs(answer(proto, NEGATIVE) - answer(proto, NEGATIVE, fused=False)).max() > 1


@pytest.mark.parametrize("value", [0.0, None])
def test_half_precision_has_its_own_smallest_number(value: float | None) -> None:
    """In float16 the padded value is 6e-8: the smallest number of float32 would be zero there."""
    proto, image = pooled("Neg", "Neg", value=value, kind=TensorProto.FLOAT16), NEGATIVE.astype(np.float16)
    assert keep_padded_zeros(proto) == 1
    np.testing.assert_allclose(answer(proto, image), answer(proto, image, fused=False), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "proto", [pooled("Relu"), pooled("Relu", "Identity"), pooled(value=-np.inf), pooled(value=-3.0)]
)
def test_a_padding_that_is_fused_rightly_stays(proto: onnx.ModelProto) -> None:
    """Values that are never negative, and paddings of another number, keep their bytes."""
    before = proto.SerializeToString(deterministic=True)
    assert keep_padded_zeros(proto) == 0
    assert proto.SerializeToString(deterministic=True) == before


def test_subgraphs_are_changed_too() -> None:
    """A padding inside a branch of an If is found, with a value from the outer graph."""
    inner = pooled().graph
    value = inner.initializer.pop()
    del inner.input[:]
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8])
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2, 4, 4])
    graph = helper.make_graph([branch], "outer", [flag, image], [result], [value])
    assert keep_padded_zeros(helper.make_model(graph)) == 2


def test_graphs_that_cannot_be_inferred_are_left_to_onnxruntime() -> None:
    """An operator of an unknown domain, nodes without inputs and values that are cut off end in no error here: what
    reads the file next refuses it by name.
    """
    proto = pooled("Identity", value=None)
    proto.graph.node[0].domain = "com.unknown"
    assert keep_padded_zeros(proto) == 1
    for place in (0, 1):
        proto = pooled("Identity")
        del proto.graph.node[place].input[:]
        assert keep_padded_zeros(proto) == 1 - place
    proto = pooled()
    proto.graph.initializer[1].ClearField("raw_data")
    assert keep_padded_zeros(proto) == 0
