"""int8 for OpenVINO: inputs of layers alone are stored, channels have units of their own, and OpenVINO judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ensemble.analysis.cam import find_classifier
from ensemble.card import Preprocess, Quantization
from ensemble.errors import DeviceError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import INPUT, LOGITS, read_model
from ensemble.runtime.openvino import build_runtime
from ensemble.runtime.session import start_session
from exporters import accuracy_gate, export
from exporters import int8 as module
from exporters.accuracy_gate import ImageSet, Split
from exporters.int8 import choose_scheme
from exporters.int8_calibration import measure_activations, with_outputs
from exporters.int8_channel_factors import find_scaled_tensors
from exporters.int8_engines import start_engine
from exporters.int8_equalize import equalize
from exporters.int8_layers import find_gates, find_layers, has_activations
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_schemes import ASYMMETRIC, OPENVINO
from exporters.make_card import ExportOptions
from exporters.request import ExportRequest
from tests.support import toys
from tests.support.networks import make_checkpoint

pytestmark = pytest.mark.slow

Array = NDArray[Any]
CHANNELS = 8
CARD = toys.card("net")


class Builder:
    """A network on images ``(B, 9, 9, 3)``, node by node; its channels differ by a factor of fifty."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.values: dict[str, Array] = {}
        make = helper.make_node
        self.nodes = [
            make("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
            make("Cast", ["planes"], ["real"], "real", to=onnx.TensorProto.FLOAT),
        ]

    def convolve(self, source: str, made: str, inputs: int, *, side: int = 1, group: int = 1) -> str:
        weight = self._rng.normal(size=(CHANNELS, inputs // group, side, side)) / np.sqrt(inputs * side**2 / group)
        weight *= np.geomspace(0.1, 5, CHANNELS).reshape(-1, 1, 1, 1)
        self.values |= {f"{made}.weight": weight, f"{made}.bias": self._rng.normal(size=CHANNELS)}
        inputs_of = [source, f"{made}.weight", f"{made}.bias"]
        self.nodes.append(helper.make_node("Conv", inputs_of, [made], made, pads=[side // 2] * 4, group=group))
        return made

    def add(self, op: str, *inputs: str, made: str) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [made], made))
        return made

    def silu(self, source: str) -> str:
        return self.add("Mul", source, self.add("Sigmoid", source, made=f"{source}/sigmoid"), made=f"{source}/silu")

    def end(self, last: str, whole: Sequence[str] = ()) -> onnx.ModelProto:
        self.add("GlobalAveragePool", last, made="pooled")
        self.add("Flatten", "pooled", made=LOGITS)
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 9, 9, 3])],
            [helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, ["batch", CHANNELS])],
            [
                numpy_helper.from_array(array.astype(np.int64 if name in whole else np.float32), name)
                for name, array in self.values.items()
            ],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def build(*, group: int = CHANNELS, gate_activation: str = "silu") -> onnx.ModelProto:
    """An inverted residual block: expansion, SiLU, depthwise, SiLU, squeeze-and-excitation, projection."""
    net = Builder()
    net.convolve("real", "stem", 3)
    net.values["stem.weight"] /= 64
    inner = net.silu(net.convolve(net.silu("stem"), "depthwise", CHANNELS, side=3, group=group))
    net.add("GlobalAveragePool", inner, made="squeezed")
    net.convolve("squeezed", "reduce", CHANNELS)
    reduced = net.silu("reduce") if gate_activation == "silu" else net.add("Relu", "reduce", made="reduced")
    net.convolve(reduced, "expand", CHANNELS)
    net.add("Sigmoid" if gate_activation == "silu" else "HardSigmoid", "expand", made="gate")
    net.add("Mul", inner, "gate", made="excited")
    net.convolve("excited", "project", CHANNELS)
    return net.end("project")


def draw(seed: int, count: int = 12) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)


def run(proto: onnx.ModelProto, pixels: Array, *names: str) -> list[Array]:
    data = with_outputs(proto, names or (LOGITS,)).SerializeToString()
    found: list[Array] = onnxruntime.InferenceSession(data).run(None, {INPUT: pixels})
    return found


def to_integers(proto: onnx.ModelProto, pixels: Array) -> onnx.ModelProto:
    layers = find_layers(proto.graph, with_gates=False)
    tensors = find_tensors(proto.graph, layers, scheme=OPENVINO)
    return quantize(proto, measure_activations(proto, tensors, pixels).extremes(), layers, scheme=OPENVINO)


@pytest.mark.parametrize("group", [CHANNELS, 2, 1])
@pytest.mark.parametrize("gate_activation", ["silu", "relu"])
def test_a_network_whose_channels_have_units_computes_the_same(group: int, gate_activation: str) -> None:
    """Logits stay within float32's rounding, and channels that a convolution reads differ by a sixteenth of before."""
    proto = build(group=group, gate_activation=gate_activation)
    found = equalize(proto, draw(0), nonlinear=True)
    (before,), (after,) = run(proto, draw(1)), run(found, draw(1))
    np.testing.assert_allclose(after, before, atol=1e-4 * float(np.abs(before).max()))
    for name in ("stem/silu", "excited"):
        spreads = [np.abs(run(one, draw(0), name)[0]).max(axis=(0, 2, 3)) for one in (proto, found)]
        spreads = [spread[spread > 0] for spread in spreads]  # a gate may be shut
        ratios = [spread.max() / spread.min() for spread in spreads]
        assert ratios[0] > 5
        assert ratios[1] == pytest.approx(max(1.0, ratios[0] / 16), rel=1e-3)
    assert find_scaled_tensors(proto)[-1].gate == "gate"


def test_units_lower_the_error_of_integers() -> None:
    """With one range for channels of all sizes the squared error is more than twice that with units."""
    proto, images = build(), draw(1, 40)
    (expected,) = run(proto, images)
    errors = [
        np.mean((run(to_integers(one, draw(0, 40)), images)[0] - expected) ** 2)
        for one in (proto, equalize(proto, draw(0, 40), nonlinear=True))
    ]
    assert errors[1] < errors[0] / 2


def test_what_is_not_read_by_convolutions_alone_keeps_its_units() -> None:
    """A residual branch, an output and a weight that two convolutions share cannot divide by a unit."""
    net = Builder()
    net.convolve("real", "stem", 3)
    net.convolve(net.silu("stem"), "inner", CHANNELS)
    net.add("Add", net.silu("inner"), "stem/silu", made="sum")
    proto = net.end("sum")
    assert find_scaled_tensors(proto) == ()
    shared = build()
    next(node for node in shared.graph.node if node.name == "reduce").input[1] = "project.weight"
    assert [one.name for one in find_scaled_tensors(shared)] == ["stem/silu"]


def test_gates_are_what_depends_on_means_alone() -> None:
    """The convolutions of squeeze-and-excitation are no layers here."""
    proto = build()
    gates = {proto.graph.node[i].name for i in find_gates(proto.graph)}
    assert gates == {"reduce", "reduce/sigmoid", "reduce/silu", "expand", "gate"}
    assert [one.name for one in find_layers(proto.graph, with_gates=False)] == ["stem", "depthwise", "project"]
    assert [one.name for one in find_layers(proto.graph)] == ["stem", "depthwise", "reduce", "expand", "project"]


def test_a_head_with_silu_after_the_pooling_has_no_gate() -> None:
    """Both factors depend on means alone: its layers compute on integers, and its activation function counts."""
    net = Builder()
    net.add("GlobalAveragePool", net.convolve("real", "stem", 3), made="mean")
    net.convolve(net.silu(net.convolve("mean", "hidden", CHANNELS)), "last", CHANNELS)
    proto = net.end("last")
    assert find_gates(proto.graph) == frozenset()
    assert [one.name for one in find_layers(proto.graph, with_gates=False)] == ["stem", "hidden", "last"]
    assert has_activations(proto.graph)


def test_a_gate_that_is_expanded_to_the_shape_of_its_map_is_a_gate() -> None:
    """So torch writes ``expand_as``, as in efficient channel attention: the shape depends on no value."""
    net = Builder()
    net.add("GlobalAveragePool", net.add("Relu", net.convolve("real", "stem", 3), made="map"), made="mean")
    net.add("Sigmoid", net.convolve("mean", "attend", CHANNELS), made="gate")
    net.add("Expand", "gate", net.add("Shape", "map", made="shape"), made="expanded")
    net.convolve(net.add("Mul", "map", "expanded", made="gated"), "last", CHANNELS)
    proto = net.end("last")
    assert {proto.graph.node[i].name for i in find_gates(proto.graph)} == {"attend", "gate", "expanded"}
    assert not has_activations(proto.graph)
    (expected,), (found,) = run(proto, draw(1)), run(equalize(proto, draw(0), nonlinear=True), draw(1))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_only_inputs_of_layers_are_stored() -> None:
    """There is one rounding per tensor that a layer reads, none before an activation function, a mean or a gate."""
    found = to_integers(build(), draw(0))
    readers: dict[str, list[str]] = {
        node.output[0]: [] for node in found.graph.node if node.op_type == "DequantizeLinear"
    }
    for node in found.graph.node:
        for name in node.input:
            if name in readers:
                readers[name].append(node.op_type)
    stored = [node for node in found.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in stored] == ["real", "stem/silu", "excited"]
    assert Counter(op for ops in readers.values() for op in ops) == {"Conv": 9}  # three inputs, weights and biases


def test_whole_numbers_are_not_stored() -> None:
    """torch computes the pooling of a channels-last map as a gather, whose places are sums of whole numbers."""
    net = Builder()
    net.values["start"], net.values["step"], net.values["count"] = np.array(0), np.array(1), np.array(CHANNELS)
    net.convolve("real", "stem", 3)
    places = net.add("Range", "start", "count", "step", made="places")
    net.add("Mul", net.add("Add", places, places, made="sums"), "start", made="zeros")
    moved = net.add("Add", places, "zeros", made="moved")
    net.nodes.append(helper.make_node("Gather", ["stem", moved], ["gathered"], "gathered", axis=1))
    net.convolve("gathered", "last", CHANNELS)
    proto = net.end("last", whole=("start", "step", "count"))
    layers = find_layers(proto.graph)
    tensors = find_tensors(proto.graph, layers, scheme=ASYMMETRIC)
    assert tensors == ("real", "stem", "gathered", "last", "pooled")
    ranges = measure_activations(proto, tensors, draw(0)).extremes()
    (expected,), (found,) = run(proto, draw(1)), run(quantize(proto, ranges, layers, scheme=ASYMMETRIC), draw(1))
    assert np.mean((found - expected) ** 2) < 0.05 * np.var(expected)


def test_products_with_a_softmax_are_in_float32() -> None:
    """onnxruntime is wrong about a Softmax between stored tensors, as in attention over branches; others stay."""
    net = Builder()
    net.values["shape"] = np.array([0, CHANNELS, 1, 1])
    source = net.add("Relu", net.convolve("real", "stem", 3), made="map")
    logits = net.convolve(net.add("GlobalAveragePool", source, made="mean"), "select", CHANNELS)
    soft = net.add("Reshape", net.add("Softmax", logits, made="soft"), "shape", made="shaped")
    gated = net.add("Mul", source, soft, made="gated")
    doubled = net.add("Mul", gated, net.convolve(gated, "other", CHANNELS), made="doubled")
    proto = net.end(net.convolve(doubled, "last", CHANNELS), whole=("shape",))
    stored = find_tensors(proto.graph, find_layers(proto.graph), scheme=ASYMMETRIC)
    assert "shaped" not in stored
    assert {"map", "select", "gated", "doubled"} <= set(stored)


def test_parts_of_an_image_may_be_rows() -> None:
    """MobileViT computes the patches of an image as images: what they range over is one row per image."""
    net = Builder()
    net.values |= {"halves": np.array([-1, CHANNELS // 2, 9, 9]), "wholes": np.array([-1, 2 * CHANNELS, 9, 9])}
    net.add("Reshape", net.convolve("real", "stem", 3), "halves", made="parts")
    net.add("Reshape", net.convolve("parts", "inner", CHANNELS // 2), "wholes", made="joined")
    net.convolve("joined", "last", 2 * CHANNELS)
    proto = net.end("last", whole=("halves", "wholes"))
    tensors = find_tensors(proto.graph, find_layers(proto.graph), scheme=OPENVINO)
    assert tensors == ("real", "parts", "joined")
    found = measure_activations(proto, tensors, draw(0)).extremes()
    for name, values in zip(tensors, run(proto, draw(0), *tensors), strict=True):
        np.testing.assert_allclose((found[name].low, found[name].high), (min(values.min(), 0), values.max()), rtol=1e-5)


def test_openvino_and_onnxruntime_give_the_same_answers() -> None:
    """One computes on integers, the other on what they stand for in float32."""
    found = to_integers(equalize(build(), draw(0), nonlinear=True), draw(0))
    (ours,) = run(found, draw(1))
    (theirs,) = build_runtime(found.SerializeToString(), bf16=False).run([LOGITS], {INPUT: draw(1)})
    np.testing.assert_allclose(theirs, ours, atol=0.02 * float(np.std(ours)))


@pytest.mark.parametrize(
    ("op", "expected"), [("Relu", False), ("Clip", False), ("HardSwish", True), ("Mish", True), ("PRelu", True)]
)
def test_the_network_decides_the_default(op: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that onnxruntime computes with the convolution need nothing; others ask for OpenVINO, in one line."""
    net = Builder()
    net.convolve("real", "stem", 3)
    inputs = ("stem", "slope") if op == "PRelu" else ("stem",)
    net.values |= {"slope": np.array([0.25])} if op == "PRelu" else {}
    net.convolve(net.add(op, *inputs, made="active"), "last", CHANNELS)
    proto = net.end("last")
    assert has_activations(proto.graph) is expected
    for version, scheme in (("2026.4", OPENVINO if expected else ASYMMETRIC), ("missing", ASYMMETRIC)):
        heard = Recorder()
        monkeypatch.setattr(module, "openvino_version", lambda version=version: version)
        assert choose_scheme(proto, CARD, None, heard) is scheme
        assert [notice.code for notice in heard.notices] == ["I477"] * expected
        assert all("--quantization" in notice.message for notice in heard.notices)
    for given in ("asymmetric", "openvino"):
        heard = Recorder()
        assert choose_scheme(proto, CARD, _quantization(given), heard).name == given
        assert heard.notices == []


def test_channels_of_files_are_not_quantized_for_openvino() -> None:
    """ens runs such a model in ONNX Runtime alone: the default is for it, and OpenVINO's quantization is refused."""
    own = replace(CARD, mean=(0.5,), std=(0.5,), preprocess=Preprocess((9, 9), channels="1", scale=(0.0, 1.0)))
    heard = Recorder()
    assert choose_scheme(build(), own, None, heard) is ASYMMETRIC
    assert "in ONNX Runtime alone" in heard.notices[0].message
    with pytest.raises(OptionError, match="as they are") as caught:
        choose_scheme(build(), own, "openvino", Recorder())
    assert caught.value.code == "E204"
    assert "asymmetric" in str(caught.value.hint)


def test_what_openvino_does_not_build_is_not_quantized_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default says so and is for ONNX Runtime; an error of a later step says what to do."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("OpenVINO does not support Odd")

    monkeypatch.setattr("exporters.int8_engines.build_runtime", refuse)
    heard = Recorder()
    assert choose_scheme(build(), CARD, None, heard) is ASYMMETRIC
    assert "does not support Odd" in heard.notices[0].message
    assert choose_scheme(build(), CARD, "openvino", heard) is OPENVINO
    with pytest.raises(ModelError, match="does not support Odd") as caught:
        start_engine(b"", CARD, OPENVINO)
    assert caught.value.code == "E436"
    assert "--quantization asymmetric" in str(caught.value.hint)


def _quantization(name: str) -> Quantization:
    return "asymmetric" if name == "asymmetric" else "openvino"


def test_gelu_counts_as_an_activation_function() -> None:
    """As torch writes it, the error function reads a quotient of what the convolution makes."""
    net = Builder()
    net.values["root"] = np.sqrt([2.0])
    net.convolve("real", "stem", 3)
    net.add("Erf", net.add("Div", "stem", "root", made="quotient"), made="error")
    net.add("Mul", "stem", "error", made="active")
    assert has_activations(net.end("active").graph)


def norm_of_groups(net: Builder, source: str) -> str:
    """As torch writes GroupNorm: reshaped by a computed shape, normalized, and back, with a factor and a shift."""
    net.values |= {"ones": np.ones(2), "zeros": np.zeros(2), "factor": np.ones((1, CHANNELS, 1, 1))}
    net.values |= {"groups": np.array([2, -1])}
    net.nodes.append(helper.make_node("Shape", [source], ["batch"], "batch", end=1))
    net.nodes.append(helper.make_node("Concat", ["batch", "groups"], ["grouped"], "grouped", axis=0))
    rows = net.add("Reshape", source, "grouped", made="rows")
    rows = net.add("InstanceNormalization", rows, "ones", "zeros", made="normalized")
    return net.add(
        "Mul", net.add("Reshape", rows, net.add("Shape", source, made="shape"), made="back"), "factor", made="normed"
    )


def written(kind: str, *, gate: bool) -> onnx.ModelProto:
    """A convolution and what follows it, of several nodes; as a gate it reads a mean of the map."""
    net = Builder()
    source = net.convolve("real", "stem", 3)
    whole: tuple[str, ...] = ()
    if gate:
        source = net.convolve(net.add("GlobalAveragePool", source, made="mean"), "gate", CHANNELS)
    net.values |= {"three": np.array(3.0), "sixth": np.array(1 / 6), "cube": np.array(3.0)}
    match kind:
        case "norm, SiLU":
            whole = ("groups",)
            made = net.silu(norm_of_groups(net, source))
        case "SELU":
            made = net.add("Selu", source, made="active")
        case "sum, SiLU":
            made = net.silu(net.add("Add", source, net.convolve("real", "other", 3), made="sum"))
        case "hard-swish":
            made = net.add("Clip", net.add("Add", source, "three", made="moved"), made="clipped")
            made = net.add("Mul", source, net.add("Mul", made, "sixth", made="sixths"), made="active")
        case "squared ReLU":
            made = net.add("Relu", source, made="rectified")
            made = net.add("Mul", made, made, made="active")
        case "GELU by Tanh":
            inner = net.add("Add", source, net.add("Pow", source, "cube", made="cubed"), made="inner")
            made = net.add("Mul", source, net.add("Tanh", inner, made="tanh"), made="active")
        case "ReLU by ReLU":
            made = net.add("Relu", net.convolve("real", "other", 3), made="right")
            made = net.add("Mul", net.add("Relu", source, made="left"), made, made="active")
    if gate:
        made = net.add("Mul", "stem", made, made="gated")
    return net.end(net.convolve(made, "last", CHANNELS), whole)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *(("norm, SiLU", False), ("SELU", False), ("sum, SiLU", True), ("hard-swish", True), ("squared ReLU", True)),
        *(("GELU by Tanh", True), ("ReLU by ReLU", False)),
    ],
)
def test_activation_functions_are_seen_however_they_are_written(kind: str, expected: bool) -> None:
    """Behind a sum, and of several nodes; a product of two layers is none. OpenVINO does not fuse the others."""
    onnx.checker.check_model(proto := written(kind, gate=False))
    assert has_activations(proto.graph) is expected


@pytest.mark.parametrize("kind", ["hard-swish", "squared ReLU", "GELU by Tanh"])
def test_those_of_gates_do_not_count(kind: str) -> None:
    """They take one value per channel, however they are written."""
    assert not has_activations(written(kind, gate=True).graph)


def test_openvino_must_be_installed_for_its_quantization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before any work, with what to do."""
    monkeypatch.setattr("exporters.request.openvino_version", lambda: "missing")
    with pytest.raises(OptionError, match="not installed") as caught:
        ExportRequest((tmp_path / "net.pth",), "int8", "openvino", calibrate=tmp_path)
    assert caught.value.code == "E204"
    assert "asymmetric" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("products", "expected"),
    [(10**6, (256, 500, 500, 500)), (10**9, (120, 450, 500, 500)), (10**11, (64, 250, 350, 350))],
)
def test_large_networks_are_judged_on_fewer_images(products: int, expected: Sequence[int]) -> None:
    """The images that calibrate are spaced over all people; none is in two sets."""
    parts = [tuple(range(start, stop)) for start, stop in ((0, 256), (256, 756), (756, 1256), (1256, 1756))]
    found = Split(*parts).for_products(products)
    assert tuple(map(len, (found.calibration, found.choose, found.gate, found.spare))) == expected
    assert (found.calibration[0], found.calibration[-1]) == (0, 255)
    for some, every in zip((found.calibration, found.choose, found.gate, found.spare), parts, strict=True):
        assert len(set(some)) == len(some)
        assert set(some) <= set(every)
    assert Split((), (0, 1), (2,)).for_products(10**12) == Split((), (0, 1), (2,))


def test_a_whole_export_says_and_records_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with SiLU is quantized for OpenVINO by default, runs in both engines, and answers as in its card."""
    names = tuple(f"{person}/{i}.jpg" for person in "abcdefgh" for i in range(6))
    for person in "abcdefgh":
        (tmp_path / "images" / person).mkdir(parents=True)
    toys.write_pictures(tmp_path / "images", names)
    images = ImageSet(names, tuple(tmp_path / "images" / name for name in names))
    for name in ("LEAST_AGREEMENT", "LEAST_AGREEMENT_WITH_TRUTH"):
        monkeypatch.setattr(accuracy_gate, name, {"fp16": 0.5, "int8": 0.5})
    heard = Recorder()
    options = ExportOptions(size=(32, 32), resize="squash", precision="int8", features=True)
    checkpoint = make_checkpoint("test_efficientnet", classes=4, name="net.pth")
    found = export.export(checkpoint, tmp_path / "models", options=options, gate_images=images, listener=heard)
    codes = [notice.code for notice in heard.notices if notice.code in {"I476", "I477", "W490", "I437"}]
    assert codes[0] == "I477"
    assert {"I476", "W490"}.intersection(codes)
    assert codes[-1] == "I437"
    assert found.card.checks["scheme"] == "openvino"
    assert found.card.checks["multiplications_in_float"] == 0
    assert not any(".se." in name for name in found.card.checks["layers_in_float"])
    pictures = np.stack([toys.picture(100 + i, size=(32, 32)) for i in range(5)])
    model = read_model(found.path)
    answers: list[Array] = []
    for device in (Device("cpu"), Device("openvino")):
        heard = Recorder()
        answers.append(start_session(model, device=device, listener=heard).run(pictures))
        # the card has the answers of both
        assert not {"E606", "I606"}.intersection(notice.code for notice in heard.notices)
    np.testing.assert_allclose(answers[1], answers[0], atol=0.05 * float(np.std(answers[0])))
    plain = export.export(checkpoint, tmp_path / "fp32", options=replace(options, precision="fp32"))
    expected = start_session(read_model(plain.path)).run(pictures)
    assert np.mean((answers[1] - expected) ** 2) < 0.05 * np.var(expected)
    # ens explain reads the classifier in 8 bits
    ours, wanted = (find_classifier(read_model(path)).weights for path in (found.path, plain.path))
    np.testing.assert_allclose(ours, wanted, atol=0.02 * float(np.abs(wanted).max()))
    # another processor, or another version, may answer otherwise in OpenVINO
    key = "logits_of_test_images_openvino"
    wrong = (-np.array(found.card.checks[key])).tolist()
    other = replace(model, card=replace(model.card, checks={**model.card.checks, key: wrong}))
    start_session(other)
    with pytest.raises(DeviceError, match="where it was exported") as caught:
        start_session(other, device=Device("openvino"))
    assert caught.value.code == "E606"
