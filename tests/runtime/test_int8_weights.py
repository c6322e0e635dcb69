"""int8 files with weights that saturate in 16 bits, as earlier versions wrote them, run on exact kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from ensemble.arrays import Pixels
from ensemble.card import METADATA_KEY
from ensemble.events import Recorder
from ensemble.runtime.int8_weights import may_saturate
from ensemble.runtime.model_file import INPUT, read_model
from ensemble.runtime.session import start_session
from tests.support import toys

CARD = replace(toys.card(size=(24, 20)), precision="int8")


def bright(count: int) -> Pixels:
    """Pictures whose every value is near the largest."""
    return np.stack([toys.picture(seed, size=(24, 20)) // 8 + 224 for seed in range(count)])


def write_int8(folder: Path, *, reduce_range: bool, per_channel: bool) -> Path:
    """A residual network in int8, with 8-bit or with 7-bit weights; positive ones, so that many pairs are large."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [bright(8)]

        def get_next(self) -> dict[str, Any] | None:
            return {INPUT: self.left.pop()} if self.left else None

    proto = toys.convolutional_proto(CARD)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.abs(onnx.numpy_helper.to_array(tensor)), tensor.name))
    source, path = toys.write_model(folder, proto=proto), folder / "int8.onnx"
    quantize_static(
        source, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel, reduce_range=reduce_range
    )
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {METADATA_KEY: CARD.to_json()})
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_weights_that_may_saturate_run_exactly(tmp_path: Path, reduce_range: bool, per_channel: bool) -> None:
    """Wide weights are told (I438), 7-bit ones are not; both answer as the graph does in float, on any processor."""
    model = read_model(write_int8(tmp_path, reduce_range=reduce_range, per_channel=per_channel))
    heard = Recorder()
    found = start_session(model, listener=heard).run(bright(6))
    assert may_saturate(model.data) is not reduce_range
    assert [notice.code for notice in heard.notices] == ([] if reduce_range else ["I438"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
    expected = plain.run(["logits"], {INPUT: bright(6)})[0]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_float_models_say_nothing(tmp_path: Path) -> None:
    """A float32 model has no weights that saturate, and no notice is given."""
    heard = Recorder()
    start_session(read_model(toys.write_model(tmp_path)), listener=heard)
    assert heard.notices == []


@pytest.mark.parametrize("scales", ["one", "of outputs"])
@pytest.mark.parametrize("layer", ["MatMul", "Gemm", "Gemm turned"])
@pytest.mark.parametrize("along", ["inputs", "outputs"])
def test_pairs_are_those_of_one_output(layer: str, along: str, scales: str) -> None:
    """Two large weights of one output saturate, and of two outputs they do not, however a weight is stored."""
    weight = np.zeros((576, 4), dtype=np.int8)
    weight[(0, 1), (0, 0) if along == "inputs" else (0, 1)] = 100
    place = 1
    if layer == "Gemm turned":
        weight, place = np.ascontiguousarray(weight.T), 0
    count = 1 if scales == "one" else 4
    constants = {
        "w": weight,
        "scale": np.full(count, 0.01, np.float32)[0 if scales == "one" else slice(None)],
        "zero": np.zeros(count, np.int8)[0 if scales == "one" else slice(None)],
    }
    axis: dict[str, Any] = {} if scales == "one" else {"axis": place}
    options: dict[str, Any] = {"transB": 1} if layer == "Gemm turned" else {}
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["real"], **axis),
        onnx.helper.make_node(layer.removesuffix(" turned"), ["x", "real"], ["y"], **options),
    ]
    ends = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None) for end in "xy"]
    weights = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = onnx.helper.make_graph(nodes, "one layer", ends[:1], ends[1:], weights)
    assert may_saturate(onnx.helper.make_model(graph).SerializeToString()) == (along == "inputs")
