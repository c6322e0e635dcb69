"""Symmetric int8, for TensorRT: what its parser takes, what it has kernels for, and what the CPU answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble.arrays import Pixels
from ensemble.card import Quantization
from ensemble.errors import ModelError, OptionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import LOGITS, ModelFile
from ensemble.runtime.symmetric_pads import DISABLED_OPTIMIZERS
from ensemble.runtime.tensorrt import BIAS_OPTIMIZER, require_symmetric
from exporters.int8 import to_int8
from exporters.int8_calibration import Activations
from exporters.int8_layers import find_layers, prepare
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_schemes import ASYMMETRIC, SCHEMES, SYMMETRIC, Range
from exporters.int8_select import Judges, Quantized, Samples
from exporters.request import ExportRequest
from exporters.verify import ExportedModel
from tests.support import toys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIDE = 16
CARD = toys.card("net", size=(SIDE, SIDE), labels=LabelSpace.flat(4))


def draw_batch(count: int) -> Pixels:
    """Pictures of four plain colors with some noise."""
    rng = np.random.default_rng(0)
    colors = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]])
    noise = rng.integers(-30, 31, (count, SIDE, SIDE, 3))
    return (colors[np.arange(count) % 4][:, None, None] + noise).astype(np.uint8)


def make_network() -> onnx.ModelProto:
    """A stem, depthwise convolutions of which TensorRT has no kernel for one, a residual block, a pool, a head."""
    rng = np.random.default_rng(1)
    shapes = {"stem": (16, 3, 3, 3), "odd": (16, 1, 1, 1), "deep": (16, 1, 3, 3), "wide": (16, 16, 1, 1)}
    spread = {name: 1.2 / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    values = {f"{name}.weight": rng.normal(0, spread[name], shape) for name, shape in shapes.items()}
    values |= {f"{name}.bias": rng.normal(0, 0.1, 16) for name in shapes}
    values |= {"head.weight": rng.normal(0, 1, (4, 16)), "head.bias": np.zeros(4), "scale": np.array(1 / 128)}
    values |= {"shift": np.array(-1.0)}
    make, groups = helper.make_node, {"odd": 16, "deep": 16}
    nodes = [
        make("Transpose", ["image"], ["planes"], "n1", perm=[0, 3, 1, 2]),
        make("Cast", ["planes"], ["floats"], "n2", to=TensorProto.FLOAT),
        make("Mul", ["floats", "scale"], ["scaled"], "n3"),
        make("Add", ["scaled", "shift"], ["x"], "n4"),
    ]
    last = "x"
    for name in shapes:
        inputs = [last, f"{name}.weight", f"{name}.bias"]
        nodes.append(make("Conv", inputs, [f"{name}.out"], name, group=groups.get(name, 1)))
        nodes.append(make("Relu", [f"{name}.out"], [f"{name}.relu"], f"{name}.act"))
        last = f"{name}.relu"
    nodes += [
        make("Add", ["wide.relu", "deep.relu"], ["sum"], "n5"),
        make("GlobalAveragePool", ["sum"], ["mean"], "n6"),
        make("Flatten", ["mean"], ["rows"], "n7"),
        make("Gemm", ["rows", "head.weight", "head.bias"], [LOGITS], "n8", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # the colors are told apart by what the network makes of them
    rows = run(with_output(model, "rows"), draw_batch(4), "rows").astype(np.float64)
    weight = rows - rows.mean(axis=0)
    bias = -0.5 * (rows**2).sum(axis=1) + rows @ rows.mean(axis=0)
    for name, value in (("head.weight", weight), ("head.bias", bias)):
        (place,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        place.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy that gives a tensor inside the network."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.output[:]
    found.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]))
    return found


def run(model: onnx.ModelProto, batch: Pixels, output: str = LOGITS) -> Any:
    return ExportedModel(model.SerializeToString(), CARD).run(batch)[output]


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return make_network()


def squeeze(network: onnx.ModelProto, quantization: Quantization, heard: Recorder) -> Quantized:
    images = draw_batch(40)
    return to_int8(
        network,
        CARD,
        Samples(images[:8], Judges(images[8:24]), Judges(images[24:])),
        scheme=SCHEMES[quantization],
        listener=heard,
    )


def test_a_symmetric_model_passes_the_gate_and_says_what_it_is(network: onnx.ModelProto) -> None:
    """Its answers on the CPU are float32's on other images, and the card names the scheme and the layers in float."""
    heard = Recorder()
    found = squeeze(network, "symmetric", heard)
    assert found.verdict.agreement == 1
    assert found.as_dict()["scheme"] == "symmetric"
    assert found.as_dict()["layers_in_float"] == ["odd"]
    assert found.as_dict()["multiplications_in_float"] == round(
        14 * 14 * 16 / (14 * 14 * 16 * (27 + 1) + 12 * 12 * 16 * (9 + 16) + 64), 4
    )
    assert [notice.code for notice in heard.notices] == ["I437"]
    assert "TensorRT has no kernels for the first 1" in heard.notices[0].message


def test_an_asymmetric_card_keeps_its_bytes(network: onnx.ModelProto) -> None:
    """It has no entry for the scheme, and no layer is left out for TensorRT's sake."""
    found = squeeze(network, "asymmetric", Recorder())
    assert "scheme" not in found.as_dict()
    assert found.in_float == ()


def test_tensorrt_takes_symmetric_models_alone(network: onnx.ModelProto) -> None:
    """Every zero point is an int8 zero, weights have a scale per output channel, and biases stay float32."""
    card = replace(CARD, precision="int8")
    symmetric = squeeze(network, "symmetric", Recorder()).proto
    require_symmetric(ModelFile(Path("net"), card, symmetric.SerializeToString(), "", (LOGITS,)), Device("tensorrt"))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in symmetric.graph.initializer}
    rounded = [node for node in symmetric.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert all(tensors[node.input[2]].dtype == np.int8 and not tensors[node.input[2]].any() for node in rounded)
    scales = {node.input[0]: tensors[node.input[1]].shape for node in rounded if node.input[0] in tensors}
    assert scales == {f"{name}/weight/int8": (16,) for name in ("stem", "deep", "wide")} | {"n8/weight/int8": (4,)}
    assert all(tensors[name].dtype == np.float32 for name in tensors if name.endswith(".bias"))


@pytest.mark.parametrize("quantization", ["symmetric", "asymmetric"])
def test_what_onnxruntime_hands_to_a_provider_has_no_int32(
    network: onnx.ModelProto, tmp_path: Path, quantization: Quantization
) -> None:
    """With the rules that are off for TensorRT, onnxruntime's first level leaves biases as they are in the file."""
    model = squeeze(network, quantization, Recorder()).proto

    def biases(disabled: str) -> set[int]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("optimization.disable_specified_optimizers", disabled)
        options.add_session_config_entry("session.save_model_format", "ONNX")
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 1}

    path = tmp_path / "basic.onnx"
    assert TensorProto.INT32 in biases(DISABLED_OPTIMIZERS)
    kept = biases(f"{DISABLED_OPTIMIZERS};{BIAS_OPTIMIZER}")
    assert (TensorProto.INT32 in kept) == (quantization == "asymmetric")


def test_symmetric_integers_answer_as_the_formula_says(network: onnx.ModelProto) -> None:
    """A matrix product is that of weights and inputs in steps of a 127th of their magnitude, worked out by hand."""
    proto = prepare(network)
    head = find_layers(proto.graph)[-1]
    ranges = {name: Range(-0.5, 2.0) for name in find_tensors(proto.graph, [head])}
    found = run(quantize(proto, ranges, [head], scheme=SYMMETRIC), draw_batch(6))
    rows = run(with_output(proto, "rows"), draw_batch(6), "rows").astype(np.float64)
    weights = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in proto.graph.initializer}
    weight, step = weights["head.weight"], 2 / 127
    ordered = np.sort(weight, axis=1)
    steps = np.maximum(ordered.clip(0)[:, -2:].sum(axis=1), -ordered.clip(None, 0)[:, :2].sum(axis=1)) / 127
    stored = np.clip(np.rint(rows / step), -128, 127) * step
    expected = stored @ (np.rint(weight / steps[:, None]) * steps[:, None]).T + weights["head.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_a_symmetric_range_is_cut_where_that_rounds_better() -> None:
    """Of normal values and a far one the magnitude that rounds best is smaller; evenly spread values keep theirs."""
    rng = np.random.default_rng(0)
    both = (np.append(rng.normal(size=1_000_000), 40.0), np.linspace(-1, 3, 10_001))
    ends = np.array([(one.min(), one.max()) for one in both])
    counts = [np.histogram(one, 2048, span)[0] for one, span in zip(both, ends, strict=True)]
    low, high = ends.T
    measured = Activations(("tail", "even"), low, high, np.array(counts, dtype=np.float64))
    found = measured.least_squares(scheme=SYMMETRIC)
    assert found["even"] == Range(-1.0, 3.0)
    assert 3 < found["tail"].reach < 20

    def error(reach: float) -> float:
        return float(np.mean((np.rint(both[0] * 127 / reach).clip(-127, 127) * reach / 127 - both[0]) ** 2))

    assert error(found["tail"].reach) < 0.5 * error(40)


@pytest.mark.parametrize(
    ("dims", "group", "suits"),
    [
        ((32, 3, 3, 3), 1, True),  # a stem
        ((64, 3, 7, 7), 1, True),
        ((144, 1, 3, 3), 144, True),  # depthwise
        ((144, 1, 1, 1), 144, False),
        ((20, 1, 3, 3), 20, False),
        ((6, 144, 1, 1), 1, True),  # of squeeze-and-excitation
        ((10, 3, 3, 3), 1, False),
        ((12, 20, 1, 1), 1, False),
        ((32, 8, 1, 3), 1, False),
        ((256, 256, 1, 3), 1, True),
    ],
)
def test_layers_without_tensorrt_kernels_are_left_out(dims: tuple[int, ...], group: int, suits: bool) -> None:
    """As in NVIDIA's tool: few channels must be whole eighths, beside sixteen others, of a square kernel."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    assert SYMMETRIC.suits(node, dims) == suits
    assert ASYMMETRIC.suits(node, dims)
    assert SYMMETRIC.suits(helper.make_node("Gemm", ["x", "w"], ["y"]), (18, 512))


def test_a_network_that_tensorrt_cannot_quantize_is_refused(network: onnx.ModelProto) -> None:
    """Where no layer suits, E436 says so before anything is measured."""
    graph = onnx.ModelProto()
    graph.CopyFrom(network)
    del graph.graph.node[6:]
    (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "stem.weight")
    weight.CopyFrom(numpy_helper.from_array(np.ones((5, 3, 3, 3), dtype=np.float32), "stem.weight"))
    with pytest.raises(ModelError, match="symmetric quantization on TensorRT") as caught:
        squeeze(graph, "symmetric", Recorder())
    assert caught.value.code == "E436"


def test_the_scheme_is_an_option_of_int8_alone(tmp_path: Path) -> None:
    """Together with another precision it is E204, before torch is imported."""
    with pytest.raises(OptionError, match="--quantization is for --precision int8, not fp16") as caught:
        ExportRequest((tmp_path,), precision="fp16", quantization="symmetric")
    assert caught.value.code == "E204"
