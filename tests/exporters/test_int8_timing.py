"""Which layers of int8 stay in float because of their time, and that shown maps do not keep a layer in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ensemble.arrays import Pixels
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from exporters import int8, int8_engines, int8_select
from exporters.int8_calibration import measure_activations
from exporters.int8_layers import Layer, count_products, find_layers, prepare
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_timing import Times, time_layers, time_nodes
from tests.support import toys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIDE = 16
CARD = toys.card("net", size=(SIDE, SIDE), labels=LabelSpace.flat(4))
BATCH: Pixels = np.stack([toys.picture(i, size=(SIDE, SIDE)) for i in range(4)])


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """Three convolutions and a head, whose last map is an output too, as `ens explain` reads it."""
    proto = prepare(toys.convolutional_proto(CARD))
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    (pooled,) = (node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(pooled.input[0], onnx.TensorProto.FLOAT, ["b", 24, "h", "w"])
    )
    return proto


def on_integers(proto: onnx.ModelProto, layers: Sequence[Layer]) -> onnx.ModelProto:
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), BATCH).extremes()
    return quantize(proto, ranges, layers)


def optimized_kinds(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that onnxruntime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_a_layer_whose_map_is_shown_computes_on_integers(network: onnx.ModelProto, tmp_path: Path) -> None:
    """onnxruntime makes integer kernels of all layers, also of the one whose output is an output of the graph."""
    kinds = optimized_kinds(on_integers(network, find_layers(network.graph)), tmp_path)
    assert kinds["QLinearConv"] == 3
    assert kinds["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm"} & set(kinds)


def test_onnxruntime_leaves_the_weights_of_float_layers_alone(network: onnx.ModelProto, tmp_path: Path) -> None:
    """A layer in float between layers on integers keeps its weights: its output is that of float32 weights on rounded
    inputs. With one scale onnxruntime rounds them (WeightBiasQuantization in weight_bias_quantization.cc, 1.31).
    """
    layers = find_layers(network.graph)
    model = on_integers(network, [layers[0], layers[2], layers[3]])
    kinds = optimized_kinds(model, tmp_path)
    assert kinds["QLinearConv"] == 2
    middle = network.graph.node[layers[1].nodes[0]]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    kept = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "optimized.onnx").graph.initializer]
    (wide,) = (values for values in kept if values.dtype == np.float32 and values.size >= 24 * 24 * 9)
    # it fills up its blocks of channels with zeros
    np.testing.assert_array_equal(np.unique(wide[wide != 0]), np.unique(weights[middle.input[1]]))


def test_a_shown_map_keeps_its_name_and_values(network: onnx.ModelProto) -> None:
    """It is the map of float32 to the rounding of all layers, and what the layer after it reads."""
    name = network.graph.output[1].name
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            [name], {"image": BATCH}
        )[0]
        for model in (network, on_integers(network, find_layers(network.graph)))
    )
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert len(np.unique(found)) <= 256


def test_every_node_is_timed(network: onnx.ModelProto) -> None:
    """Each layer has a time of its own in float32 and on integers, and together they are most of the whole."""
    layers = find_layers(network.graph)
    for model in (network, on_integers(network, layers)):
        times = time_nodes(model, BATCH)
        spent = time_layers(network, layers, times)
        assert list(spent) == [layer.name for layer in layers]
        assert min(spent[layer.name] for layer in layers[:-1]) > 0  # the head takes about a microsecond, the unit
        assert 0.5 * times.total < sum(spent.values()) <= times.total + 1e-6


def test_names_of_optimized_nodes_find_their_layers(network: onnx.ModelProto) -> None:
    """Names as onnxruntime 1.31 gives them, of fused nodes, of channels blocked and of conversions; an inserted
    transposition is no layer's.
    """
    layers = find_layers(network.graph)
    first, second, *_ = (network.graph.node[layer.nodes[0]] for layer in layers)
    before = network.graph.node[0]
    names = {
        before.name: 1.0,
        f"{first.name}_token_12": 2.0,
        f"{first.name}/weight/dequantize": 4.0,
        f"{first.output[0]}/quantize": 8.0,
        f"{second.output[0]}_nchwc": 16.0,
        "Transpose_token_150": 32.0,
        f"{second.name}/weight/dequantise": 64.0,  # as files of earlier versions spell it
        f"{second.name}/product": 128.0,  # of rows
        f"{second.name}/biased": 256.0,
        f"{second.name}/low/rest": 512.0,
        f"{second.name}/low/quantize": 1024.0,
        f"{second.name}/planes_token_7": 2048.0,
    }
    spent = list(time_layers(network, layers, Times(names)).values())
    assert spent == [15.0, 4048.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("totals", "limit", "leading"),
    [
        ((100, 80, 60, 70), 1.0, 2),
        ((100, 98, 99, 99), 1.0, 0),  # within the noise
        ((100, 120, 60, 90), 1.0, 2),  # the first alone is slower
        ((100, 80, 60, 70), 0.0, 0),  # they have too many multiplications
    ],
)
def test_the_first_layers_stay_in_float_where_that_is_faster(
    network: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
    totals: tuple[int, ...],
    limit: float,
    leading: int,
) -> None:
    """The number of first layers with the least time of the whole network is kept, unless it gains less than 3 %, and
    a notice names them with the times.
    """
    layers = find_layers(network.graph)
    monkeypatch.setattr(int8, "MOST_LEADING", limit)
    monkeypatch.setattr(int8, "_LEADING", 3)

    def fake(proto: Any) -> Times:
        return Times({"all": 200.0 if proto is network else float(totals[len(layers) - len(proto)])})

    heard = Recorder()
    found = int8._time(network, layers, list, count_products(network, layers), fake, CARD, heard)  # type: ignore[arg-type]
    assert found.leading == tuple(layer.name for layer in layers[:leading])
    assert [notice.code for notice in heard.notices] == ["I496"] * bool(leading)
    for notice in heard.notices:
        assert "0.06 ms" in notice.message
        assert "0.10 with all" in notice.message
        assert "0.20 with none" in notice.message


@pytest.mark.parametrize(("integers", "warned"), [(0.5, False), (0.98, True), (1.2, True)])
def test_integers_that_gain_nothing_are_said(
    network: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, integers: float, warned: bool
) -> None:
    """W490 gives both times: the file would be written for nothing."""
    layers = find_layers(network.graph)

    def spend(model: onnx.ModelProto) -> Times:
        return Times({"all": 1000.0 if model is network else 1000.0 * integers})

    heard = Recorder()
    int8._time(network, layers, lambda _: onnx.ModelProto(), count_products(network, layers), spend, CARD, heard)
    said = [notice.message for notice in heard.notices if notice.code == "W490"]
    assert bool(said) is warned
    assert all(f"{integers:.3g} ms an image on integers against 1 in float32" in one for one in said)


def test_layers_in_float_for_their_time_stay_so(network: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of int8 without the first layer: it is among those in float, and its weights are float32."""
    monkeypatch.setattr(int8, "MOST_LEADING", 1.0)
    monkeypatch.setattr(int8, "FASTER", float("inf"))
    monkeypatch.setattr(int8, "_LEADING", 1)
    monkeypatch.setattr(int8_engines, "time_nodes", lambda proto, _: Times({"all": float(len(proto.graph.node))}))
    judges = int8_select.Judges(np.concatenate([BATCH] * 4))
    monkeypatch.setattr("exporters.accuracy_gate.LEAST_AGREEMENT", {"int8": 0.0})
    found = int8.to_int8(network, CARD, int8_select.Samples(BATCH, judges, judges))
    first = find_layers(network.graph)[0]
    assert found.in_float == (first.name,)
    assert found.in_float_share == pytest.approx(
        count_products(network, find_layers(network.graph))[first.name]
        / sum(count_products(network, find_layers(network.graph)).values())
    )
    wide = {tensor.name for tensor in found.proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert network.graph.node[first.nodes[0]].input[1] in wide


@pytest.mark.parametrize(("second", "chosen"), [(0.9, 1), (0.98, 0), (1.2, 0)])
def test_the_faster_of_two_models_is_kept(second: float, chosen: int) -> None:
    """The second order has to gain 3 %."""
    assert int8_select.find_fastest([1.0, second]) == chosen
    assert int8_select.find_fastest([1.0, second], gain=0.8) == 0
