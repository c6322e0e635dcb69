"""Outputs that are decisions, twice the same, or one head per axis become one row of answers, and that is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.adopt.adopt import Adopted, adopt
from ensemble.adopt.graph import SMALLEST
from ensemble.adopt.make_card import AdoptOptions
from ensemble.errors import EnsError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.runtime.parity import draw_pictures

SIZE = (16, 12)
KNOWN = AdoptOptions(input_range="0..1", resize="squash", interpolation="bilinear", resizer="pillow")
NAMES = ("a", "b", "c", "d", "e")


class Graph:
    """A network of one convolution, and behind its pooling what a test adds."""

    def __init__(self, channels: int = 3) -> None:
        self._generator = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self._channels = channels
        kernel = self.draw(8, channels, 3, 3)
        self.add("Conv", ["pixels", self.keep("kernel", kernel)], "maps", strides=[2, 2])
        self.add("GlobalAveragePool", ["maps"], "pooled")
        self.add("Flatten", ["pooled"], "row")

    def draw(self, *shape: int) -> NDArray[np.float32]:
        return self._generator.normal(0, 1, shape).astype(np.float32)

    def keep(self, name: str, value: NDArray[Any]) -> str:
        self.weights[name] = value
        return name

    def add(self, kind: str, inputs: list[str], *outputs: str, domain: str = "", **options: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, list(outputs), domain=domain, **options))

    def head(self, classes: int, name: str) -> None:
        weights = [self.keep(f"{name}.w", self.draw(8, classes)), self.keep(f"{name}.b", self.draw(classes))]
        self.add("Gemm", ["row", *weights], name)

    def save(self, path: Path, *outputs: onnx.ValueInfoProto) -> Path:
        image = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", self._channels, *SIZE])
        weights = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "network", [image], outputs, weights)
        domains = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 1)]
        model = helper.make_model(graph, opset_imports=domains)
        model.ir_version = 8
        onnx.save(model, path)
        return path


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])


def numbers(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["n", *shape])


def run(path: Path, names: list[str], inputs: dict[str, NDArray[Any]]) -> list[Any]:
    found: list[Any] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(names, inputs)
    return found


def pixels() -> NDArray[np.uint8]:
    return draw_pictures(SIZE)


def planes() -> NDArray[np.float32]:
    return (pixels().transpose(0, 3, 1, 2) / 255).astype(np.float32)


def member_logits(adopted: Adopted) -> NDArray[np.float32]:
    found: NDArray[np.float32] = run(adopted.path, ["logits"], {"image": pixels()})[0]
    return found


def shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits.astype(np.float64))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def test_decisions_are_undone(tmp_path: Path) -> None:
    """Of ArgMax and TopK the values they decide on are the answers, under whichever output is named."""
    graph = Graph()
    graph.head(5, "scores")
    graph.add("Softmax", ["scores"], "shares", axis=1)
    graph.keep("three", np.array([3], dtype=np.int64))
    graph.add("TopK", ["shares", "three"], "best", "places")
    graph.add("ArgMax", ["shares"], "winner", axis=1, keepdims=0)
    outputs = [floats("best", 3), numbers("places", 3), numbers("winner")]
    path = graph.save(tmp_path / "net.onnx", *outputs)
    best, places, winner = run(path, ["best", "places", "winner"], {"pixels": planes()})
    for name in (None, "best", "winner"):
        said = Recorder()
        adopted = adopt(path, tmp_path / f"{name}", options=replace(KNOWN, output_name=name), listener=said)
        found = shares(member_logits(adopted))
        assert np.allclose(np.take_along_axis(found, places, axis=1), best, atol=1e-5)
        assert (found.argmax(axis=1) == winner).all()
        assert any(notice.code == "I487" and "shares" in notice.message for notice in said.notices)


def test_a_map_of_names_gives_its_classes(tmp_path: Path) -> None:
    """Custom Vision ends in ZipMap: the values go on as logits, and its names become the labels."""
    graph = Graph()
    graph.head(5, "scores")
    graph.add("Softmax", ["scores"], "shares", axis=1)
    graph.add("ZipMap", ["shares"], "loss", domain="ai.onnx.ml", classlabels_strings=list(NAMES))
    graph.add("ArgMax", ["shares"], "place", axis=1, keepdims=0)
    graph.keep("names", np.array([10, 11, 12, 13, 14], dtype=np.int64))
    graph.add("Gather", ["names", "place"], "label", axis=0)
    table = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    loss = helper.make_value_info("loss", helper.make_sequence_type_proto(table))
    path = graph.save(tmp_path / "net.onnx", loss, numbers("label"))
    adopted = adopt(path, tmp_path / "models", options=KNOWN)
    assert adopted.card.labels.names == NAMES
    rows = run(path, ["loss"], {"pixels": planes()})[0]
    assert np.allclose(shares(member_logits(adopted)), [[row[name] for name in NAMES] for row in rows], atol=1e-5)


def test_of_logits_and_their_softmax_the_logits_are_taken(tmp_path: Path) -> None:
    """Two outputs of which one is made of the other need no --output-name; features beside do."""
    graph = Graph()
    graph.head(5, "scores")
    graph.add("Softmax", ["scores"], "shares", axis=1)
    path = graph.save(tmp_path / "net.onnx", floats("shares", 5), floats("scores", 5))
    found = member_logits(adopt(path, tmp_path / "models", options=KNOWN))
    assert np.allclose(found, run(path, ["scores"], {"pixels": planes()})[0], atol=1e-4)
    path = graph.save(tmp_path / "more.onnx", floats("scores", 5), floats("row", 8))
    with pytest.raises(OptionError, match="not clear"):
        adopt(path, tmp_path / "models", options=KNOWN)


@pytest.mark.parametrize("end", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    "names", [("mask", "gender", "age"), ("head0", "head1", "head2"), ("the_age", "mask_out", "gender")]
)
def test_heads_of_axes_are_joined(tmp_path: Path, end: str, names: tuple[str, ...]) -> None:
    """One output per axis becomes the log-probability of each class: by the names of the axes, or by their order."""
    graph, outputs = Graph(), []
    for name in names:
        width = 2 if name in {"gender", "head1"} else 3
        graph.head(width, name if not end else f"{name}.logits")
        if end:
            graph.add(end, [f"{name}.logits"], name, axis=1)
        outputs.append(floats(name, width))
    path = graph.save(tmp_path / "net.onnx", *outputs)
    adopted = adopt(path, tmp_path / "models", options=replace(KNOWN, labels=MASK18))
    axes = [axis.name for axis in MASK18.axes]
    order = [next((name for name in names if axis in name), names[number]) for number, axis in enumerate(axes)]
    parts = run(path, order, {"pixels": planes()})
    mask, gender, age = (part if end == "Softmax" else shares(part) for part in parts)
    expected = np.einsum("ni,nj,nk->nijk", mask, gender, age).reshape(len(mask), 18)
    assert np.allclose(shares(member_logits(adopted)), expected, atol=1e-5)


def test_heads_of_other_widths_are_not_joined(tmp_path: Path) -> None:
    """Outputs that are not as wide as the axes are asked for by name, and so is what a last layer does not prove."""
    graph = Graph()
    for name, width in (("mask", 3), ("gender", 2), ("age", 4)):
        graph.head(width, name)
    outputs = [floats(name, width) for name, width in (("mask", 3), ("gender", 2), ("age", 4))]
    path = graph.save(tmp_path / "net.onnx", *outputs)
    with pytest.raises(OptionError, match="not clear"):
        adopt(path, tmp_path / "models", options=replace(KNOWN, labels=MASK18))
    graph = Graph()
    for name, width in (("mask", 3), ("gender", 2), ("age", 3)):
        graph.head(width, f"{name}.row")
        graph.add("Abs", [f"{name}.row"], name)
    outputs = [floats(name, width) for name, width in (("mask", 3), ("gender", 2), ("age", 3))]
    with pytest.raises(OptionError, match="does not tell if"):
        adopt(graph.save(path, *outputs), tmp_path / "models", options=replace(KNOWN, labels=MASK18))


@pytest.mark.parametrize("layout", [None, "nchw"])
def test_other_numbers_of_channels_are_named(tmp_path: Path, layout: Any) -> None:
    """A network of four channels is E424 with their number, whether a layout is given or not."""
    graph = Graph(channels=4)
    graph.head(5, "scores")
    path = graph.save(tmp_path / "net.onnx", floats("scores", 5))
    with pytest.raises(ModelError, match="4 channels"):
        adopt(path, tmp_path / "models", options=replace(KNOWN, layout=layout, labels=LabelSpace.flat(5)))


def test_rows_of_numbers_are_no_images(tmp_path: Path) -> None:
    """A model of scikit-learn takes rows of numbers: the hint says what would be adopted."""
    row = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 12])
    node = helper.make_node("Identity", ["X"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [row], [floats("y", 12)]))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(EnsError, match="E424") as caught:
        adopt(tmp_path / "net.onnx", tmp_path / "models", options=KNOWN)
    assert "batch of images" in caught.value.hint


def test_an_output_name_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """Undoing a decision does not replace a name that is misspelled."""
    graph = Graph()
    graph.head(5, "scores")
    graph.add("ArgMax", ["scores"], "winner", axis=1, keepdims=0)
    path = graph.save(tmp_path / "net.onnx", numbers("winner"))
    with pytest.raises(OptionError, match="no output 'winer'"):
        adopt(path, tmp_path / "models", options=replace(KNOWN, output_name="winer"))


def test_a_threshold_before_the_values_is_no_answer(tmp_path: Path) -> None:
    """``threshold > values`` keeps what is below it: neither the threshold nor the values are taken for the answers."""
    graph = Graph()
    graph.head(5, "scores")
    graph.keep("half", np.full(5, 0.5, dtype=np.float32))
    graph.add("Greater", ["half", "scores"], "absent")
    absent = helper.make_tensor_value_info("absent", TensorProto.BOOL, ["n", 5])
    with pytest.raises(OptionError, match="not clear"):
        adopt(graph.save(tmp_path / "net.onnx", absent), tmp_path / "models", options=KNOWN)


def test_an_output_beside_the_heads_is_named_as_left_out(tmp_path: Path) -> None:
    """Where heads are found by the names of the axes, what else there is is said."""
    graph, outputs = Graph(), []
    for name, width in (("mask", 3), ("gender", 2), ("age", 3), ("vector", 7)):
        graph.head(width, name)
        outputs.append(floats(name, width))
    said = Recorder()
    path = graph.save(tmp_path / "net.onnx", *outputs)
    adopt(path, tmp_path / "models", options=replace(KNOWN, labels=MASK18), listener=said)
    assert any(notice.message.endswith("vector left out") for notice in said.notices)


def test_logarithms_stay_finite_where_denormal_numbers_are_zero() -> None:
    """OpenVINO takes numbers below the smallest normal one for zero, and minus infinity times zero is no number."""
    assert np.float32(SMALLEST) >= np.finfo(np.float32).smallest_normal
