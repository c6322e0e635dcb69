"""Linear activations of an int8 network with more than 8 bits: outputs in float32 and inputs in two terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from ensemble.runtime.int8_products import with_convolutions
from ensemble.runtime.int8_weights import may_saturate
from exporters.int8_calibration import measure_activations
from exporters.int8_layers import find_layers
from exporters.int8_linear import suits_two_terms, weights_of_two_terms
from exporters.int8_qdq import find_tensors, find_two_terms, quantize
from exporters.int8_schemes import Range
from tests.exporters.test_int8_equalize import build, draw, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Array = NDArray[Any]


def quantized(*two_terms: str, proto: onnx.ModelProto | None = None) -> tuple[onnx.ModelProto, dict[str, Range]]:
    proto = proto or build()
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    return quantize(proto, ranges, layers, float_sums=True, two_terms=two_terms), ranges


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def kernels(model: onnx.ModelProto, folder: Path) -> list[str]:
    """What onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_products_of_rows_run_on_integers(tmp_path: Path) -> None:
    """onnxruntime fuses each product of rows into MatMulIntegerToFloat, and its convolutions stay on integers."""
    model, _ = quantized("last")
    onnx.checker.check_model(model, full_check=True)
    found = kernels(model, tmp_path)
    assert found.count("MatMulIntegerToFloat") == 2  # first and second
    assert found.count("QLinearConv") == 3  # stem, wide and last
    assert not {"Conv", "MatMul"} & set(found)


def test_a_product_of_rows_is_the_sum_of_integers() -> None:
    """The output is that of the stored inputs and the rounded weights in float64, not rounded to 8 bits."""
    model, ranges = quantized()
    given, found = run(model, draw(1), "bounded/real", "second")
    values = constants(model)
    weight = values["second/weight/int8"].astype(np.float64) * values["second/weight/scale"]
    assert weight.shape == (8, 8)  # inputs, outputs
    expected = np.einsum("bihw,io->bohw", given, weight) + values["second/bias"].reshape(1, -1, 1, 1)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(found - expected).max() < float(ranges["second"].scale) / 1000


def test_an_input_in_two_terms_is_a_tenth_as_wrong() -> None:
    """Weights left aside, the error of the layer's output falls to less than a tenth of that with 8 bits."""
    proto = build()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    exact = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)  # rounded without an error
    weights["last.weight"].CopyFrom(numpy_helper.from_array(exact, "last.weight"))
    errors = []
    for two_terms in ((), ("last",)):
        model, _ = quantized(*two_terms, proto=proto)
        layer = [node for node in model.graph.node if node.name == "last"]
        (read,) = (node.input[0] for node in layer)
        (total, both) = run(model, draw(1), "sum", read)
        weight = constants(model)["last/weight/int8"].astype(np.float64)
        weight *= constants(model)["last/weight/scale"].reshape(-1, 1, 1, 1)
        made = np.einsum("bihw,oi->bohw", both.astype(np.float64), weight[:, :, 0, 0])
        errors.append(float(np.sqrt(np.mean((made - total) ** 2))))
    assert errors[1] < errors[0] / 10


def test_a_value_beyond_its_range_is_caught_by_the_second_term() -> None:
    """What the first term clips is among what it leaves, as far as the second term goes."""
    proto = build()
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    narrow = ranges["sum"]
    ranges["sum"] = Range(narrow.low * 0.99, narrow.high * 0.99)
    model = quantize(proto, ranges, layers, float_sums=True, two_terms=["last"])
    (total, both) = run(model, draw(0), "sum", "last/low/real")
    first, second = both[:, :8], both[:, 8:] / 16
    clipped = np.abs(total - first) > float(ranges["sum"].scale)
    assert clipped.any()
    assert np.abs(total - first - second)[clipped].max() < float(ranges["sum"].scale) / 16


def test_only_linear_tensors_in_float_have_two_terms() -> None:
    """The readers of `first` and `sum`; not that of the image, nor those of what an activation function bounds."""
    proto = build()
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    assert [layer.name for layer in find_two_terms(proto.graph, layers, ranges)] == ["wide", "last"]
    one_sided = ranges | {"sum": Range(0.0, ranges["sum"].high)}
    assert [layer.name for layer in find_two_terms(proto.graph, layers, one_sided)] == ["wide"]
    wide = build(padded=True)  # the last convolution is one of 3x3
    assert [layer.name for layer in find_two_terms(wide.graph, find_layers(wide.graph), ranges)] == ["wide"]


@pytest.mark.parametrize(("inputs", "suits"), [(8, True), (12, True), (6, False), (7, False)])
def test_no_pair_has_a_weight_of_each_term(inputs: int, suits: bool) -> None:
    """Kernels add up neighbors by fours: with other counts the last weight of one term meets the first of the other."""
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    assert suits_two_terms(node, {"w": (4, inputs, 1, 1)}, Range(-1.0, 1.0)) is suits
    assert not suits_two_terms(node, {"w": (4, inputs, 3, 3)}, Range(-1.0, 1.0))


def test_neither_form_saturates() -> None:
    """With weights at the bounds of what kernels may pair, sums of two products stay within 16 bits."""
    proto = build()
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("weight"):
            equal = np.full(tuple(tensor.dims), 0.5, dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(equal, tensor.name))
    model, _ = quantized("last", "wide", proto=proto)
    assert constants(model)["second/weight/int8"].max() == 64
    assert constants(model)["last/weight/int8"].shape == (8, 16, 1, 1)
    assert not may_saturate(model.SerializeToString())
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "second/weight/int8")
    weight.CopyFrom(numpy_helper.from_array(np.full((8, 8), 65, dtype=np.int8), weight.name))
    assert may_saturate(model.SerializeToString())


def test_the_second_weights_are_a_sixteenth() -> None:
    """They are rounded from the exact weight, not from the first integers."""
    weight = np.array([[0.247, -1.0]]).reshape(1, 2, 1, 1)
    integers = np.rint(weight / 0.01).astype(np.int8)
    found = weights_of_two_terms(integers, weight, np.array([0.01]))
    assert found.ravel().tolist() == [25, -100, 2, -6]
    assert found.dtype == np.int8


def test_products_become_convolutions_for_other_runtimes() -> None:
    """The network with convolutions computes the same as that with products, and has no transposition of its own."""
    model, _ = quantized("last")
    data = model.SerializeToString()
    found = onnx.load_model_from_string(with_convolutions(data))
    onnx.checker.check_model(found, full_check=True)
    assert [node.op_type for node in found.graph.node].count("MatMul") == 0
    assert [node.op_type for node in found.graph.node].count("Transpose") == 1  # of the image
    assert [node.op_type for node in found.graph.node].count("Conv") == 5
    used = {name for node in found.graph.node for name in node.input}
    assert {tensor.name for tensor in found.graph.initializer} <= used
    for name in ("second", "sum"):
        before, after = run(model, draw(1), name)[0], run(found, draw(1), name)[0]
        np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())


def test_other_models_are_returned_as_given() -> None:
    """A float32 network, products of matrices, and products whose terms are results keep their bytes."""
    assert with_convolutions(build().SerializeToString()) == build().SerializeToString()
    model, _ = quantized()
    model.graph.output.append(onnx.helper.make_tensor_value_info("second/product", onnx.TensorProto.FLOAT, None))
    model.graph.output.append(onnx.helper.make_tensor_value_info("first/biased", onnx.TensorProto.FLOAT, None))
    assert with_convolutions(model.SerializeToString()) == model.SerializeToString()


def test_products_of_nodes_without_names_become_convolutions() -> None:
    """As other programs write them: each convolution gets a weight of its own."""
    model, _ = quantized()
    for node in model.graph.node:
        node.name = ""
    found = onnx.load_model_from_string(with_convolutions(model.SerializeToString()))
    onnx.checker.check_model(found, full_check=True)
    assert "MatMul" not in {node.op_type for node in found.graph.node}
    names = [tensor.name for tensor in found.graph.initializer]
    assert len(names) == len(set(names))
    before, after = (run(one, draw(1), "logits")[0] for one in (model, found))
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())


@pytest.mark.parametrize("changed", ["second/bias", "second/weight/scale"])
def test_products_of_another_form_are_left(changed: str) -> None:
    """A bias of one value for all columns, and scales of blocks, would be another convolution."""
    model, _ = quantized()
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == changed)
    values = np.full((1,) if changed.endswith("bias") else (2, 8), 0.5, dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, changed))
    found = onnx.load_model_from_string(with_convolutions(model.SerializeToString()))
    assert [node.name for node in found.graph.node if node.op_type == "MatMul"] == ["second/product"]
