"""Ready-made ONNX classifiers: each becomes a member that answers as the original, or what it lacks is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import ensemble
from ensemble.adopt.adopt import adopt
from ensemble.adopt.make_card import AdoptOptions
from ensemble.analysis.cam import find_classifier
from ensemble.cli import ens
from ensemble.errors import DataError, DeviceError, EnsError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Box, Face, read_faces, write_boxes
from ensemble.images.face_crop import choose_crop, face_square
from ensemble.labels import LabelSpace
from ensemble.runtime.model_file import check_model, read_model
from ensemble.runtime.parity import draw_pictures
from ensemble.runtime.session import start_session

CLASSES = 5
SIZE = (16, 12)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
KNOWN = AdoptOptions(
    mean=MEAN, std=STD, resize="squash", interpolation="bilinear", resizer="pillow", labels=LabelSpace.flat(CLASSES)
)


class Network:
    """Writes small convolutional classifiers, as other programs do: every argument is one of their habits."""

    def __init__(self, **habits: Any) -> None:
        self.layout: str = habits.pop("layout", "nchw")
        self.batch: int | str = habits.pop("batch", "n")
        self.size: tuple[Any, Any] = habits.pop("size", SIZE)
        self.channels: int = habits.pop("channels", 3)
        self.classes: int = habits.pop("classes", CLASSES)
        self.end: str = habits.pop("end", "")
        self.kind: int = habits.pop("kind", TensorProto.FLOAT)
        self.opset: int = habits.pop("opset", 17)
        self.rows: Any = habits.pop("rows", "n")  # the first side of the Reshape
        self.token: bool = habits.pop("token", False)
        self.stuck: bool = habits.pop("stuck", False)
        self.squeezed: bool = habits.pop("squeezed", False)
        self.more: bool = habits.pop("more", False)
        self.old: bool = habits.pop("old", False)
        self.props: dict[str, str] = habits.pop("props", {})
        assert not habits, habits

    def proto(self) -> onnx.ModelProto:
        """The model, with random weights that are always the same."""
        generator = np.random.default_rng(0)
        inner = np.float16 if self.kind == TensorProto.FLOAT16 else np.float32
        weights = {
            "kernel": generator.normal(0, 0.5, (8, self.channels, 3, 3)).astype(inner),
            "matrix": generator.normal(0, 1, (8, self.classes)).astype(inner),
            "bias": generator.normal(0, 1, self.classes).astype(inner),
            "shape": np.array([1 if self.rows == 1 else -1, 8], dtype=np.int64),
            "token": np.ones((1, 1, 8), dtype=inner),
            "three": np.array([1 if self.rows == 1 else -1, 1, 8], dtype=np.int64),
            "stuck": np.array([1, 2, 4], dtype=np.int64),
        }
        nodes, last = self._front()
        nodes += [
            helper.make_node("Conv", [last, "kernel"], ["features"], strides=[2, 2]),
            helper.make_node("Relu", ["features"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        ]
        last = "pooled"
        if self.token:
            nodes += [
                helper.make_node("Reshape", [last, "three"], ["one"]),
                helper.make_node("Concat", ["token", "one"], ["both"], axis=1),
                helper.make_node("Transpose", ["both"], ["turned"], perm=[0, 2, 1]),
                helper.make_node("Reshape", ["turned", "pairs"], ["cells"]),
                helper.make_node("GlobalAveragePool", ["cells"], ["mixed"]),
            ]
            weights["pairs"] = np.array([0, 8, 1, 2], dtype=np.int64)
            last = "mixed"
        if self.stuck:  # the sides behind the first are no longer those of one image
            nodes += [
                helper.make_node("Transpose", [last], ["back"], perm=[1, 0, 2, 3]),
                helper.make_node("Reshape", ["back", "stuck"], ["mixed_up"]),
            ]
            last = "mixed_up"
        nodes += [
            helper.make_node("Reshape", [last, "shape"], ["flat"]),
            helper.make_node("Gemm", ["flat", "matrix", "bias"], ["scores"]),
        ]
        last = "scores"
        if self.end:
            options: dict[str, Any] = {"axis": 1} if "oftmax" in self.end else {}
            nodes.append(helper.make_node(self.end, [last], ["shares"], **options))
            last = "shares"
        if self.squeezed:
            weights["flat_shape"] = np.array([-1], dtype=np.int64)
            nodes.append(helper.make_node("Reshape", [last, "flat_shape"], ["single"]))
            last = "single"
        nodes[-1].output[0] = "answers"
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("pixels", self.kind, self._shape())],
            self._outputs(),
            [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        made.ir_version = 3 if self.old else 8
        if self.old:
            made.graph.input.extend(
                helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in made.graph.initializer
            )
        helper.set_model_props(made, self.props)
        onnx.checker.check_model(made)
        return made

    def save(self, path: Path) -> Path:
        onnx.save(self.proto(), path)
        return path

    def _front(self) -> tuple[list[onnx.NodeProto], str]:
        nodes, last = [], "pixels"
        if self.kind == TensorProto.UINT8:
            nodes.append(helper.make_node("Cast", [last], ["floats"], to=TensorProto.FLOAT))
            last = "floats"
        if self.layout == "nhwc":
            nodes.append(helper.make_node("Transpose", [last], ["planes"], perm=[0, 3, 1, 2]))
            last = "planes"
        return nodes, last

    def _shape(self) -> list[Any]:
        sides = [self.channels, *self.size] if self.layout == "nchw" else [*self.size, self.channels]
        return [self.batch, *sides]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        kind = TensorProto.FLOAT16 if self.kind == TensorProto.FLOAT16 else TensorProto.FLOAT
        shape = [self.batch] if self.squeezed else [self.batch, self.classes]
        outputs = [helper.make_tensor_value_info("answers", kind, shape)]
        if self.more:
            outputs.append(helper.make_tensor_value_info("flat", kind, [self.batch, 8]))
        return outputs


def original_answers(path: Path, network: Network, pixels: NDArray[np.uint8], *, bgr: bool = False) -> NDArray[Any]:
    """The file's own answers to ``pixels`` ``(N, H, W, 3)``, with everything in front written for this test."""
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = []
    for one in pixels:
        image = Image.fromarray(one)
        if network.channels == 1:
            values = np.asarray(image.convert("L"))[:, :, np.newaxis] / 255
            values = (values - MEAN[0]) / STD[0]
        else:
            values = ((one[:, :, ::-1] if bgr else one) / 255 - MEAN) / STD
        if network.kind == TensorProto.UINT8:
            values = one.astype(np.float64)
        values = values.transpose(2, 0, 1) if network.layout == "nchw" else values
        kind = helper.tensor_dtype_to_np_dtype(network.kind)
        count = network.batch if isinstance(network.batch, int) else 1
        batch = np.ascontiguousarray(np.stack([values] * count)).astype(kind)
        found.append(np.ravel(runtime.run(["answers"], {"pixels": batch})[0])[: network.classes])
    return np.stack(found).astype(np.float64)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def member_logits(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The member's logits, in one batch and one by one, which must agree."""
    model = check_model(path.read_bytes(), path)
    session = start_session(model)
    together = session.run(pixels)
    alone = np.concatenate([session.run(one[np.newaxis]) for one in pixels])
    assert np.allclose(together, alone, rtol=1e-3 if model.card.precision == "fp16" else 1e-4, atol=1e-4)
    return together


ALIKE: dict[str, tuple[Network, AdoptOptions]] = {
    "logits": (Network(), KNOWN),
    "logits by option": (Network(), replace(KNOWN, output="logits")),
    "channels last": (Network(layout="nhwc"), KNOWN),
    "uint8": (Network(kind=TensorProto.UINT8), replace(KNOWN, mean=None, std=None)),
    "uint8 channels last": (
        Network(kind=TensorProto.UINT8, layout="nhwc"),
        replace(KNOWN, mean=None, std=None),
    ),
    "float16": (Network(kind=TensorProto.FLOAT16), KNOWN),
    "batch of 1": (Network(batch=1), KNOWN),
    "batch of 4": (Network(batch=4), KNOWN),
    "batch of 1 in a constant": (Network(batch=1, rows=1), KNOWN),
    "free batch, but fixed by a constant": (Network(rows=1), KNOWN),
    "batch of 1 with a token": (Network(batch=1, rows=1, token=True), KNOWN),
    "batch of 1 that cannot be freed": (Network(batch=1, stuck=True, rows=1), KNOWN),
    "any size": (Network(size=("h", "w")), replace(KNOWN, size=SIZE)),
    "grey": (Network(channels=1), replace(KNOWN, mean=MEAN[:1], std=STD[:1])),
    "blue first": (Network(), replace(KNOWN, channels="bgr")),
    "log-probabilities": (Network(end="LogSoftmax"), KNOWN),
    "opset 7": (Network(opset=7), KNOWN),
    "opset 9": (Network(opset=9), KNOWN),
    "opset 11": (Network(opset=11), KNOWN),
    "opset 13": (Network(opset=13), KNOWN),
    "opset 21": (Network(opset=21), KNOWN),
    "opset 7 that cannot be freed": (Network(opset=7, batch=1, stuck=True, rows=1), KNOWN),
    "weights among the inputs": (Network(old=True, opset=8), KNOWN),
    "several outputs": (Network(more=True), replace(KNOWN, output_name="answers")),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_member_answers_as_the_original(tmp_path: Path, name: str) -> None:
    """The logits of an adopted network are those of the original file, image by image and in one batch."""
    network, options = ALIKE[name]
    path = network.save(tmp_path / "net.onnx")
    adopted = adopt(path, tmp_path / "models", options=options)
    pixels = draw_pictures(SIZE)[:5]
    expected = original_answers(path, network, pixels, bgr=options.channels == "bgr")
    tolerance = 1e-2 if network.kind == TensorProto.FLOAT16 else 1e-4
    assert np.allclose(member_logits(adopted.path, pixels), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("opset", [7, 12, 17])
@pytest.mark.parametrize(("end", "output"), [("Softmax", None), ("Softmax", "probabilities"), ("", "softmax inside")])
def test_probabilities_stay_the_same(tmp_path: Path, end: str, output: Any, opset: int) -> None:
    """The softmax of the logits is the original's output, if that is probabilities, also where its end is unusual."""
    network = Network(end=end or "Softmax", opset=opset)
    proto = network.proto()
    if not end:  # probabilities that no last layer proves
        proto.graph.node[-1].output[0] = "shares"
        proto.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.float32), "one"))
        proto.graph.node.append(helper.make_node("Div", ["shares", "one"], ["answers"]))
        output = "probabilities"
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    adopted = adopt(path, tmp_path, options=replace(KNOWN, output=output, member="made"))
    pixels = draw_pictures(SIZE)[:4]
    assert np.allclose(
        probabilities(member_logits(adopted.path, pixels)), original_answers(path, network, pixels), atol=1e-5
    )


@pytest.mark.parametrize("squeezed", [True, False])
@pytest.mark.parametrize("end", ["", "Sigmoid"])
def test_a_single_answer_tells_two_classes_apart(tmp_path: Path, end: str, squeezed: bool) -> None:
    """One logit or probability is the evidence for the second of two classes, and a notice says so."""
    network = Network(classes=1, end=end, squeezed=squeezed)
    path, heard = network.save(tmp_path / "net.onnx"), Recorder()
    options = replace(KNOWN, labels=LabelSpace.flat(["no", "yes"]), member="made")
    adopted = adopt(path, tmp_path, options=options, listener=heard)
    pixels = draw_pictures(SIZE)[:4]
    answers = original_answers(path, network, pixels)
    expected = answers if end else 1 / (1 + np.exp(-answers))
    assert np.allclose(probabilities(member_logits(adopted.path, pixels))[:, 1:], expected, atol=1e-5)
    assert any("a single value: two classes" in notice.message for notice in heard.notices)


def test_independent_probabilities_become_log_odds(tmp_path: Path) -> None:
    """Sigmoid outputs of several labels are adopted with activation sigmoid, and their logits are the log-odds."""
    network = Network(end="Sigmoid")
    path = network.save(tmp_path / "net.onnx")
    adopted = adopt(path, tmp_path, options=replace(KNOWN, member="made"))
    pixels = draw_pictures(SIZE)[:4]
    logits = member_logits(adopted.path, pixels)
    assert adopted.card.activation == "sigmoid"
    assert np.allclose(1 / (1 + np.exp(-logits)), original_answers(path, network, pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}"),
        ("classes", '["a", "b", "c", "d", "e"]'),
        ("labels", "a,b,c,d,e"),
        ("class_names", "a\nb\nc\nd\ne"),
        ("id2label", '{"4": "e", "0": "a", "1": "b", "2": "c", "3": "d"}'),
        ("label_names", '{"c": 2, "a": 0, "b": 1, "e": 4, "d": 3}'),
    ],
)
def test_class_names_are_those_in_the_file(tmp_path: Path, key: str, text: str) -> None:
    """Class names in the metadata are used in their order, under any usual key, and a notice names the key."""
    path, heard = Network(props={key: text}).save(tmp_path / "net.onnx"), Recorder()
    adopted = adopt(path, tmp_path, options=replace(KNOWN, labels=None, member="made"), listener=heard)
    assert adopted.card.labels.names == ("a", "b", "c", "d", "e")
    assert any(repr(key) in notice.message for notice in heard.notices)


@pytest.mark.parametrize(("named", "fold"), [(None, 2), (0, 0)])
def test_the_fold_is_the_one_in_the_name_unless_it_is_given(tmp_path: Path, named: int | None, fold: int) -> None:
    """A file called net_fold2 was not trained on fold 2, which is said; --fold decides otherwise."""
    path, said = tmp_path / "net_fold2.onnx", Recorder()
    onnx.save(Network().proto(), path)
    adopted = adopt(path, tmp_path / "models", options=replace(KNOWN, fold=named), listener=said)
    assert adopted.card.fold == fold
    assert any("fold 2, as its name says" in notice.message for notice in said.notices) == (named is None)


def test_what_was_not_named_is_said(tmp_path: Path) -> None:
    """Without options a notice lists every default, and another says that the classes are numbered."""
    heard = Recorder()
    adopted = adopt(Network().save(tmp_path / "net.onnx"), tmp_path / "m", options=AdoptOptions(), listener=heard)
    said = [notice.message for notice in heard.notices if notice.code == "W483"]
    for words in (
        "resize center",
        "interpolation bilinear",
        "resizer pillow",
        "crop-pct 0.875",
        "mean and std of ImageNet",
    ):
        assert words in said[0]
    assert "5 classes: they are numbered" in said[1]
    assert adopted.card.mean == (0.485, 0.456, 0.406)
    named = replace(KNOWN, crop_pct=1.0, output="logits")
    heard = Recorder()
    adopt(tmp_path / "net.onnx", tmp_path / "m", options=named, listener=heard)
    assert heard.notices == []


@pytest.mark.parametrize(
    ("habits", "options", "words", "hint"),
    [
        ({"size": ("h", "w")}, {}, "takes images of any size", "--size"),
        ({}, {"size": (32, 32)}, "takes images of 16x12 px, not 32x32", ""),
        ({"more": True}, {}, "which one has the answers is not clear", "--output-name"),
        ({"more": True}, {"output_name": "other"}, "has no output 'other', only answers, flat", ""),
        ({"end": "Softmax"}, {"output": "logits"}, "probabilities, not logits", "--output probabilities"),
        ({}, {"output": "probabilities"}, "are no probabilities", ""),
        ({"end": "Tanh"}, {}, "does not tell if answers are logits or probabilities", "--output logits"),
        (
            {"kind": TensorProto.UINT8},
            {"mean": MEAN, "std": STD},
            "normalizes by itself",
            "--features other.onnx,input-range=0..255",
        ),
        ({"size": (3, 12), "layout": "nhwc"}, {}, "does not tell where the channels are", "--layout"),
        ({}, {"channels": "grey"}, "takes 3 channels, which are not grey", ""),
        ({"channels": 1}, {"mean": MEAN, "std": STD}, "need 1 values each", ""),
        ({}, {"layout": "nhwc"}, "which is not nhwc", ""),
    ],
)
def test_what_the_file_cannot_tell_is_asked_for(
    tmp_path: Path, habits: dict[str, Any], options: dict[str, Any], words: str, hint: str
) -> None:
    """An ambiguity or contradiction is E204, which names the option, and no file is written."""
    made = Network(**habits).proto() if habits.get("size") != (3, 12) else _flat_image()
    path = tmp_path / "net.onnx"
    onnx.save(made, path)
    with pytest.raises(OptionError) as caught:
        adopt(path, tmp_path / "models", options=AdoptOptions(**options))
    assert caught.value.code == "E204"
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert not list(tmp_path.glob("models/*"))


def _flat_image() -> onnx.ModelProto:
    """A network whose image is 3 px high and has 3 channels."""
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["answers"]),
    ]
    matrix = numpy_helper.from_array(np.ones((3 * 12 * 3, 2), dtype=np.float32), "matrix")
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 12, 3])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, [1, 2])],
        [matrix],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def two_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    proto.graph.node.append(helper.make_node("Identity", ["more"], ["read"]))


def own_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "my.lib"
    proto.opset_import.append(helper.make_opsetid("my.lib", 1))


def from_the_future(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 99


def with_a_card(proto: onnx.ModelProto) -> None:
    helper.set_model_props(proto, {"ens.card": "{}"})


@pytest.mark.parametrize(
    ("change", "codes", "words"),
    [
        (two_inputs, {"E424"}, "expected one input of images"),
        (own_operator, {"E420", "E425"}, "net.onnx"),
        (from_the_future, {"E420", "E421"}, "net.onnx"),
        (with_a_card, {"E424"}, "is a model of ens already"),
    ],
)
def test_networks_that_cannot_be_members_are_named(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], codes: set[str], words: str
) -> None:
    """Other inputs, operators or versions, and models of ens itself, are refused with their code."""
    proto = Network().proto()
    change(proto)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(EnsError) as caught:
        adopt(path, tmp_path / "models", options=KNOWN)
    assert caught.value.code in codes
    assert words in caught.value.message


def test_a_network_that_answers_nan_is_refused(tmp_path: Path) -> None:
    """By what the file itself answers: not as a difference that the adoption made, which would be a bug to report."""
    path = Network().save(tmp_path / "net.onnx")
    model = onnx.load(path)
    weight = [one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT][-1]
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.full(values.shape, np.nan, values.dtype), weight.name))
    onnx.save(model, path)
    with pytest.raises(DeviceError, match=r"answers of net\.onnx, as it is, are NaN") as caught:
        adopt(path, tmp_path / "models", options=KNOWN)
    assert caught.value.code == "E604"


def test_a_network_that_answers_all_pictures_alike_is_told(tmp_path: Path) -> None:
    """A matrix of zeros is adopted, as its answers are its own, and W506 says that they tell nothing."""
    path = Network().save(tmp_path / "net.onnx")
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name == "matrix")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, CLASSES), np.float32), weight.name))
    onnx.save(model, path)
    heard = Recorder()
    adopt(path, tmp_path / "models", options=replace(KNOWN, output="logits"), listener=heard)
    assert [notice.message for notice in heard.notices if notice.code == "W506"] == [
        f"net: the answers to {len(draw_pictures(SIZE))} pictures are the same, as of a network without its weights"
    ]


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, a text and a model without a network are E420; a missing file is E707."""
    path = tmp_path / "net.onnx"
    with pytest.raises(EnsError, match="E707"):
        adopt(path, tmp_path, options=KNOWN)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="E420"):
        adopt(path, tmp_path, options=KNOWN)


def test_weights_in_a_file_beside_are_taken_inside(tmp_path: Path) -> None:
    """Weights from another file are in the adopted one; without that file it is E422, outside the folder too."""
    path = tmp_path / "in" / "net.onnx"
    path.parent.mkdir()
    onnx.save(Network().proto(), path, save_as_external_data=True, location="net.data", size_threshold=8)
    adopted = adopt(path, tmp_path, options=KNOWN)
    beside = path.with_name("net.data")
    moved = tmp_path / "net.data"
    beside.rename(moved)
    assert check_model(adopted.path.read_bytes(), adopted.path).card == adopted.card
    with pytest.raises(ModelError, match="E422"):
        adopt(path, tmp_path / "again", options=KNOWN)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../net.data"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="E422"):
        adopt(path, tmp_path / "again", options=KNOWN)


def test_labels_of_another_number_are_refused(tmp_path: Path) -> None:
    """A label space that does not fit the answers is E411, with both numbers."""
    with pytest.raises(ModelError, match=r"E411.*tells 5 classes apart, the label space has 3"):
        adopt(Network().save(tmp_path / "n.onnx"), tmp_path / "m", options=replace(KNOWN, labels=LabelSpace.flat(3)))


def test_the_command_line_adopts_and_the_member_predicts(tmp_path: Path) -> None:
    """After `ens adopt` with real images, the member predicts the original's class for an image file."""
    network = Network(end="Softmax", batch=1)
    path = network.save(tmp_path / "net.onnx")
    (tmp_path / "images").mkdir()
    pixels = draw_pictures(SIZE)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "labels.json").write_text(json.dumps(["a", "b", "c", "d", "e"]))
    given = ["--labels", str(tmp_path / "labels.json"), "--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3"]
    given += ["--resize", "squash", "--check-images", str(tmp_path / "images"), "-o", str(tmp_path / "models")]
    done = CliRunner().invoke(ens, ["adopt", str(path), *given], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "as the original on 8 images" in done.output
    model = ensemble.load(tmp_path / "models" / "net.onnx", device="cpu")
    best = original_answers(path, network, pixels).argmax(axis=1)
    found = [model(tmp_path / "images" / f"{number}.png").label for number in range(len(pixels))]
    assert found == ["abcde"[number] for number in best]


def test_export_predict_and_explain_say_what_an_onnx_file_needs(tmp_path: Path) -> None:
    """A raw ONNX file is sent to ens adopt; an adopted one needs no export, and has no features to explain."""
    path = Network().save(tmp_path / "net.onnx")
    adopted = adopt(path, tmp_path / "models", options=KNOWN).path
    (tmp_path / "images").mkdir()
    Image.fromarray(draw_pictures(SIZE)[0]).save(tmp_path / "images" / "a.png")
    out = str(tmp_path / "out")
    for command, words in (
        (["predict", str(path), "--images", str(tmp_path / "images"), "-o", out], "ens adopt model.onnx"),
        (
            ["explain", str(adopted), str(tmp_path / "images" / "a.png"), "-o", out],
            "ens adopt --features",
        ),
        (["adopt", str(adopted), "-o", out], "use it as it is"),
    ):
        done = CliRunner().invoke(ens, command)
        assert isinstance(done.exception, EnsError)
        assert words in done.exception.hint


def channels_last(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network with its pooling as Keras has it: the mean over the sides of maps whose channels are last."""
    nodes = list(network.graph.node)
    place = next(number for number, node in enumerate(nodes) if node.op_type == "GlobalAveragePool")
    nodes[place : place + 1] = [
        helper.make_node("Transpose", ["active"], ["keras"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["keras"], ["pooled"], axes=[1, 2], keepdims=0),
    ]
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    return network


@pytest.mark.parametrize(
    "habits",
    [{}, {"end": "Softmax"}, {"batch": 1}, {"layout": "nhwc", "kind": TensorProto.FLOAT16}],
)
@pytest.mark.parametrize("keras", [False, True])
def test_features_make_an_adopted_member_explainable(tmp_path: Path, habits: dict[str, Any], keras: bool) -> None:
    """With --features the maps are an output whose mean gives the logits, and `ens explain` draws them."""
    path = tmp_path / "net.onnx"
    proto = Network(**habits).proto()
    onnx.save(channels_last(proto) if keras else proto, path)
    adopted = adopt(path, tmp_path / "models", options=replace(KNOWN, features=True, fold=3))
    assert adopted.card.fold == 3
    pixels = draw_pictures(SIZE)
    runtime = onnxruntime.InferenceSession(adopted.path, providers=["CPUExecutionProvider"])
    logits, features = runtime.run(["logits", "features"], {"image": pixels})
    assert features.shape == (len(pixels), 8, 7, 5)
    classifier = find_classifier(read_model(adopted.path))
    assert np.allclose(features.mean(axis=(2, 3)) @ classifier.weights.T + classifier.bias, logits, atol=2e-2)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "images" / "a.png")
    arguments = ["explain", str(adopted.path), str(tmp_path / "images" / "a.png"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(ens, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "out").glob("a*.png"))


@pytest.mark.parametrize("batch", [1, 2])
def test_images_that_run_one_by_one_have_features_too(tmp_path: Path, batch: int) -> None:
    """A network of a fixed batch that cannot be freed gives logits and maps of each image alone, and says so."""
    network = Network(batch=batch).proto()
    shape = numpy_helper.from_array(np.array([batch, 3, *SIZE], dtype=np.int64), "image_shape")
    network.graph.initializer.append(shape)
    network.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["turned"], perm=[1, 0, 2, 3]))
    network.graph.node.insert(1, helper.make_node("Transpose", ["turned"], ["back"], perm=[1, 0, 2, 3]))
    network.graph.node.insert(2, helper.make_node("Concat", ["back", "back"], ["twice"], axis=0))
    network.graph.initializer.append(numpy_helper.from_array(np.arange(batch, dtype=np.int64), "places"))
    network.graph.node.insert(3, helper.make_node("Gather", ["twice", "places"], ["first"], axis=0))
    network.graph.node.insert(4, helper.make_node("Reshape", ["first", "image_shape"], ["image"]))
    next(node for node in network.graph.node if node.op_type == "Conv").input[0] = "image"
    path, recorder = tmp_path / "net.onnx", Recorder()
    onnx.save(network, path)
    adopted = adopt(path, tmp_path / "models", options=replace(KNOWN, features=True), listener=recorder)
    assert any("one by one" in notice.message for notice in recorder.notices)
    model, pixels = read_model(adopted.path), draw_pictures(SIZE)
    runtime = start_session(model)
    logits, features = (runtime.run(pixels, output=output) for output in ("logits", "features"))
    assert np.allclose(logits, original_answers(path, Network(batch=batch), pixels), atol=1e-4)
    find_classifier(model).require_explains(features, logits)
    assert np.ptp(features.mean(axis=(2, 3)), axis=0).min() > 1e-3


def test_a_network_without_pooled_maps_has_no_features(tmp_path: Path) -> None:
    """A network whose last layer does not take the mean of maps is E432 with --features, and nothing is written."""
    by_maximum = Network().proto()
    next(node for node in by_maximum.graph.node if node.op_type == "GlobalAveragePool").op_type = "GlobalMaxPool"
    single = Network(end="Sigmoid", classes=1).proto()
    for proto, classes in ((by_maximum, CLASSES), (single, 2)):
        onnx.save(proto, tmp_path / "net.onnx")
        options = replace(KNOWN, features=True, labels=LabelSpace.flat(classes))
        with pytest.raises(ModelError, match="E432"):
            adopt(tmp_path / "net.onnx", tmp_path / "models", options=options)
    assert not list((tmp_path / "models").glob("*"))


def test_a_network_of_face_crops_becomes_a_member_that_crops(tmp_path: Path) -> None:
    """With --boxes the member answers for the square around the face, and for the usual square without a face."""
    network = Network()
    path = network.save(tmp_path / "net.onnx")
    generator = np.random.default_rng(3)
    (tmp_path / "images").mkdir()
    images = {f"{name}.png": generator.integers(0, 256, (60, 80, 3)).astype(np.uint8) for name in "abc"}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    places = {"a.png": Box(10, 10, 30, 34), "b.png": Box(40, 20, 60, 44), "c.png": None}
    boxes = write_boxes(
        tmp_path / "faces.parquet",
        [Face(name, box, 0.9, 1, "first", 80, 60) for name, box in places.items()],
    )
    given = ["--labels", "5", "--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3", "--resize", "squash"]
    given += ["--check-images", str(tmp_path / "images"), "--boxes", str(boxes), "-o", str(tmp_path / "models")]
    done = CliRunner().invoke(ens, ["adopt", str(path), *given, "--margin", "0.25"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "margin of 0.25" in done.output
    model = ensemble.load(tmp_path / "models" / "net.onnx", device="cpu")
    face = model.card.preprocess.face
    assert face is not None
    assert face == choose_crop(read_faces(boxes).faces, 0.25, None)
    for name, pixels in images.items():
        left, top, right, bottom = face_square(60, 80, face, places[name])
        crop = Image.fromarray(pixels).crop((left, top, right, bottom))
        small = np.asarray(crop.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR))[np.newaxis]
        found = model(tmp_path / "images" / name, box=places[name]).logits
        assert np.allclose(list(found.values()), original_answers(path, network, small)[0], atol=1e-3)
    (tmp_path / "more").mkdir()
    Image.fromarray(images["a.png"]).save(tmp_path / "more" / "d.png")
    given[given.index("--check-images") + 1] = str(tmp_path / "more")
    assert isinstance(CliRunner().invoke(ens, ["adopt", str(path), *given]).exception, DataError)


@pytest.mark.parametrize("option", [("--margin", "0.1"), ("--align", "arcface")])
def test_options_of_face_crops_need_boxes(tmp_path: Path, option: tuple[str, str]) -> None:
    """A margin or an alignment without boxes is E204, and nothing is written."""
    path = Network().save(tmp_path / "net.onnx")
    done = CliRunner().invoke(ens, ["adopt", str(path), "-o", str(tmp_path / "models"), *option])
    assert isinstance(done.exception, OptionError)
    assert "--boxes" in done.exception.hint
    assert not (tmp_path / "models").exists()


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    """Adopting twice writes the same file."""
    path = Network().save(tmp_path / "net.onnx")
    first = adopt(path, tmp_path / "m", options=KNOWN).path.read_bytes()
    assert adopt(path, tmp_path / "m", options=KNOWN).path.read_bytes() == first


def test_inputs_that_nothing_reads_are_no_inputs(tmp_path: Path) -> None:
    """Quantizers leave the names of weights that they replaced among the inputs: it answers as before."""
    proto = Network().proto()
    plain, odd = tmp_path / "plain.onnx", tmp_path / "odd.onnx"
    onnx.save(proto, plain)
    proto.graph.input.append(helper.make_tensor_value_info("replaced", TensorProto.FLOAT, [8, 3, 3, 3]))
    onnx.save(proto, odd)
    pictures = draw_pictures(SIZE)
    one, two = (
        start_session(read_model(adopt(path, tmp_path / "models", options=KNOWN).path)).run(pictures)
        for path in (plain, odd)
    )
    assert np.array_equal(one, two)
