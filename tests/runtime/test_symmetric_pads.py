"""A convolution with asymmetric padding is computed the same with a Pad before it, and stays split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.symmetric_pads import DISABLED_OPTIMIZERS, split_asymmetric_pads

SIZE = (9, 10)


def convolution(
    *, pads: list[int] | None = None, auto: str | None = None, kernel: int = 3, opset: int = 20
) -> onnx.ModelProto:
    """A convolution of stride 2 with this padding, with random weights."""
    weights = np.random.default_rng(0).normal(size=(4, 3, kernel, kernel)).astype(np.float32)
    extra = {"pads": pads} if pads is not None else {"auto_pad": auto} if auto is not None else {}
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], **extra)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, *SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(1).normal(size=(2, 3, *SIZE)).astype(np.float32)
    found = session.run(None, {"x": image})[0]
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("opset", [10, 11, 20])
@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"pads": [0, 0, 1, 1]}, 1),
        ({"pads": [1, 1, 2, 2], "kernel": 5}, 1),
        ({"pads": [1, 0, 0, 2]}, 1),
        ({"pads": [1, 1, 1, 1]}, 0),
        ({}, 0),
        ({"auto": "SAME_UPPER"}, 1),
        ({"auto": "SAME_LOWER"}, 1),
        ({"auto": "SAME_UPPER", "kernel": 5}, 1),
        ({"auto": "VALID"}, 0),
    ],
)
def test_the_answers_are_the_same(change: dict[str, object], count: int, opset: int) -> None:
    """Whatever the padding, and however it is given, the split convolution has symmetric pads and the same answers."""
    model = convolution(opset=opset, **change)  # type: ignore[arg-type]
    expected = run(model)
    assert split_asymmetric_pads(model) == count
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-6)
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    pads = next((list(one.ints) for one in conv.attribute if one.name == "pads"), [0] * 4)
    assert pads[:2] == pads[2:]


@pytest.mark.parametrize("disabled", [True, False])
def test_onnxruntime_keeps_the_padding_apart(tmp_path: Path, disabled: bool) -> None:
    """Without the option onnxruntime fuses Pad and Conv again, as its optimized graph shows; with it, not."""
    model = convolution(pads=[0, 0, 1, 1])
    split_asymmetric_pads(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    if disabled:
        options.add_session_config_entry("optimization.disable_specified_optimizers", DISABLED_OPTIMIZERS)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ("Pad" in kinds) == disabled
