"""Networks whose answer for an image depends on chance, on the other images or on their order are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble.adopt.adopt import adopt
from ensemble.adopt.make_card import AdoptOptions
from ensemble.arrays import Logits, Pixels
from ensemble.errors import DeviceError, EnsError
from ensemble.images.views import parse_views
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.runtime import independence
from ensemble.runtime.independence import require_independent
from ensemble.runtime.model_file import read_model
from ensemble.runtime.parity import Parity, compare_logits
from ensemble.runtime.separate_rows import prove_rows
from ensemble.runtime.session import start_session
from tests.support import toys

CLASSES = len(toys.CARD.labels)


def ending(nodes: Sequence[onnx.NodeProto], **weights: object) -> onnx.ModelProto:
    """The toy network, whose answers ``plain`` go through ``nodes`` to become ``logits``."""
    model = toys.model_proto()
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.extend(nodes)
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def add(extra: str) -> onnx.NodeProto:
    return helper.make_node("Add", ["plain", extra], ["logits"])


SLICE = {"z": np.array([0]), "k": np.array([5]), "o": np.array([1])}
ONES = np.ones(CLASSES, np.float32)
CHANCE = {
    "noise": ending([helper.make_node("RandomNormalLike", ["plain"], ["r"], scale=0.1), add("r")]),
    "seeded noise": ending([helper.make_node("RandomUniformLike", ["plain"], ["r"], seed=3.0), add("r")]),
    "dropout in training": ending(
        [helper.make_node("Dropout", ["plain", "ratio", "on"], ["logits"])], ratio=np.float32(0.5), on=True
    ),
}
MIXING = {
    "the mean of the batch": ending(
        [helper.make_node("ReduceMean", ["plain", "axis"], ["m"]), helper.make_node("Sub", ["plain", "m"], ["logits"])],
        axis=np.array([0], np.int64),
    ),
    "the maximum of all": ending(
        [helper.make_node("ReduceMax", ["plain"], ["m"]), helper.make_node("Div", ["plain", "m"], ["logits"])]
    ),
    "softmax over the images": ending([helper.make_node("Softmax", ["plain"], ["logits"], axis=0)]),
    "a sum over those before": ending([helper.make_node("CumSum", ["plain", "axis"], ["logits"])], axis=np.int64(0)),
    "zero in a batch of more than five": ending(
        [
            helper.make_node("Shape", ["plain"], ["n"], end=1),
            helper.make_node("Greater", ["five", "n"], ["few"]),
            helper.make_node("Cast", ["few"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["plain", "factor"], ["logits"]),
        ],
        five=np.array([6], np.int64),
    ),
    "a batch normalization in training": ending(
        [helper.make_node("BatchNormalization", ["plain", "s", "b", "m", "v"], ["logits", "x", "y"], training_mode=1)],
        s=ONES,
        b=0 * ONES,
        m=0 * ONES,
        v=ONES,
    ),
}


@pytest.mark.parametrize("name", CHANCE)
def test_a_network_that_draws_is_refused_by_its_layers(tmp_path: Path, name: str) -> None:
    """Dropout in training mode and random layers are E612, which names them."""
    model = read_model(toys.write_model(tmp_path, proto=CHANCE[name]))
    with pytest.raises(DeviceError, match=r"draws at random: (Random|Dropout)") as caught:
        start_session(model)
    assert caught.value.code == "E612"


@pytest.mark.parametrize("name", MIXING)
def test_a_network_that_mixes_images_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever lets another image of the batch, or its place, change an answer is E613 and named."""
    model = read_model(toys.write_model(tmp_path, proto=MIXING[name]))
    with pytest.raises(DeviceError, match="not known to treat images apart: ") as caught:
        start_session(model)
    assert caught.value.code == "E613"


def test_predict_refuses_before_an_image_is_computed(tmp_path: Path) -> None:
    """No part is written for a model that mixes images."""
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    model = toys.write_model(tmp_path, proto=MIXING["the mean of the batch"])
    with pytest.raises(DeviceError) as caught:
        predict(
            [model],
            tmp_path / "images",
            tmp_path / "preds",
            views=parse_views("identity"),
            options=RunOptions(device="cpu"),
        )
    assert caught.value.code == "E613"
    assert not list((tmp_path / "preds").rglob("*.parquet"))


@pytest.mark.parametrize(
    "proto",
    [
        toys.model_proto(),
        toys.convolutional_proto(),
        toys.convolutional_proto(kind="efficientnet", asymmetric=True),
        ending([helper.make_node("Dropout", ["plain"], ["logits"])]),
        ending([helper.make_node("LogSoftmax", ["plain"], ["logits"], axis=-1)]),
        ending([add("shift")], shift=ONES),
    ],
)
def test_usual_layers_are_proved_and_nothing_is_tried(proto: onnx.ModelProto) -> None:
    """Convolutions, pools, activations, fully connected layers and dropout for prediction cost no run."""

    def run(_: Pixels) -> Logits:
        raise AssertionError("tried")

    require_independent(proto.SerializeToString(), run, (16, 12), member="m", precision="fp32")


def test_what_is_not_proved_and_does_not_mix_is_tried_and_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shape that is computed from the batch is no fault."""
    proto = ending(
        [helper.make_node("Shape", ["plain"], ["shape"]), helper.make_node("Reshape", ["plain", "shape"], ["logits"])]
    )
    assert prove_rows(proto, "logits").mixing
    tried = list[float]()

    def count(expected: Logits, found: Logits, *, limit: float) -> Parity:
        tried.append(limit)
        return compare_logits(expected, found, limit=limit)

    monkeypatch.setattr(independence, "compare_logits", count)
    start_session(read_model(toys.write_model(tmp_path, proto=proto)))
    assert len(tried) == 4


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Reshape", ["plain", "s"], ["logits"])],  # (-1, 9): two rows of each
        [helper.make_node("Add", ["plain", "rows"], ["logits"])],  # a value per place in the batch
        [helper.make_node("Transpose", ["plain"], ["logits"])],
        [helper.make_node("Unsqueeze", ["plain", "zero"], ["u"]), helper.make_node("Add", ["u", "plain"], ["logits"])],
        [helper.make_node("Concat", ["plain", "plain"], ["logits"], axis=0)],
        [helper.make_node("ReduceMean", ["plain", "last"], ["logits"])],
        [helper.make_node("Gemm", ["plain", "plain"], ["logits"], transB=1)],
    ],
)
def test_layers_that_move_the_batch_are_not_proved(nodes: list[onnx.NodeProto]) -> None:
    """A proof never rests on a layer that may move a row to another place."""
    model = toys.model_proto()
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.extend(nodes)
    values = {
        "s": np.array([-1, 9]),
        "rows": np.ones((2, CLASSES), np.float32),
        "zero": np.array([0]),
        "last": np.array([-2]),
    }
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    assert prove_rows(model, "logits").mixing


def test_a_random_layer_that_changes_nothing_is_passed_over() -> None:
    """Only layers that the answers depend on count."""
    proto = ending([helper.make_node("Identity", ["plain"], ["logits"])])
    proto.graph.node.append(helper.make_node("RandomNormalLike", ["plain"], ["unused"]))
    assert prove_rows(proto, "logits") == replace(prove_rows(proto, "logits"), chance=(), mixing=())


@pytest.mark.parametrize(("kind", "code"), [("chance", "E612"), ("mixing", "E613")])
def test_adopt_refuses_such_a_network(tmp_path: Path, kind: str, code: str) -> None:
    """A foreign network is tried before it becomes a member."""
    classes = 3
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["plain"]),
        *(
            [helper.make_node("RandomNormalLike", ["plain"], ["r"]), helper.make_node("Add", ["plain", "r"], ["y"])]
            if kind == "chance"
            else [helper.make_node("ReduceMean", ["plain", "z"], ["r"]), helper.make_node("Sub", ["plain", "r"], ["y"])]
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(np.array([0]), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EnsError) as caught:
        adopt(tmp_path / "foreign.onnx", tmp_path / "out", options=AdoptOptions(output="logits"))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "proto",
    [
        ending([helper.make_node("Reshape", ["plain", "s"], ["logits"])], s=np.array([-1])),
        ending([helper.make_node("Unsqueeze", ["plain", "a"], ["logits"])], a=np.array([2])),
        ending([helper.make_node("Concat", ["plain", "plain"], ["logits"], axis=0)]),
        ending([helper.make_node("Slice", ["plain", "z", "k", "o"], ["logits"])], **SLICE),
        ending([helper.make_node("Slice", ["plain", "z", "z"], ["logits"])], z=np.array([0, 0])),
    ],
)
def test_another_shape_than_the_file_declares_is_refused(tmp_path: Path, proto: onnx.ModelProto) -> None:
    """onnxruntime does not compare what it computes with what is declared: E614 at the start."""
    with pytest.raises(DeviceError) as caught:
        start_session(read_model(toys.write_model(tmp_path, proto=proto)))
    assert caught.value.code == "E614"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_not_called_chance(value: float) -> None:
    """NaN differs from NaN: a network whose weights overflow answers the same again, and is refused for what it is."""

    def run(pictures: Pixels) -> Logits:
        found = np.zeros((len(pictures), CLASSES), np.float32)
        found[0] = value
        return found

    data = MIXING["the mean of the batch"].SerializeToString()
    with pytest.raises(DeviceError, match="1 of 4 answers of m are not finite") as caught:
        require_independent(data, run, (16, 12), member="m", precision="fp32")
    assert caught.value.code == "E604"
    assert "another checkpoint" in caught.value.hint
