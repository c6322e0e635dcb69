"""A fused file answers as `ens submit` does with the same recipe and models, or it is not written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ensemble.analysis.cam import find_classifier
from ensemble.blend.decision_rules import AxisRule, MacroF1Rule, OrdinalRule, PriorRule, ThresholdRule
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group
from ensemble.blend.smoothing import Smoothing
from ensemble.card import FaceCrop, ModelCard, Precision, Preprocess
from ensemble.cli import ens
from ensemble.errors import DeployError, EnsError
from ensemble.events import Recorder
from ensemble.fuse import fuse as fuse_module
from ensemble.fuse import graph
from ensemble.fuse.fuse import Fused, FuseOptions, fuse
from ensemble.fuse.fused_card import FusedCard, read_fused_card
from ensemble.fuse.fused_session import start_fused
from ensemble.fuse.verify import LIMITS, CheckImages
from ensemble.labels import LabelSpace
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import start_session
from tests.support.fused import LABELS, toy_recipe, write_members
from tests.support.toys import card, convolutional_proto, model_proto, picture, write_model, write_pictures

CLASSES = len(LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `toy_recipe`: two share their preprocessing, and one has the classes in another order."""
    return write_members(tmp_path_factory.mktemp("models"))


def weigh(*weights: Sequence[float]) -> dict[str, Group]:
    """The groups of `toy_recipe` with weights per class."""
    groups = toy_recipe().groups
    return {
        name: replace(group, class_weights=tuple(of)) for (name, group), of in zip(groups.items(), weights, strict=True)
    }


GROUPS = toy_recipe().groups
RECIPES: dict[str, dict[str, Any]] = {
    "soft vote": {},
    "views that exchange labels": {"views": {"identity": 1.0, "hflip:left=right": 2.0, "shift:2:up": 0.5}},
    "views of a group": {"groups": {**GROUPS, "big": replace(GROUPS["big"], views={"vflip": 1.0, "identity": 0.0})}},
    "logit pool and temperature": {
        "pool": parse_pool("logit"),
        "groups": {**GROUPS, "small": replace(GROUPS["small"], temperature=1.7)},
    },
    "power pool": {"pool": parse_pool("power:-2.5")},
    "majority vote": {"pool": parse_pool("hard")},
    "sharpness, bias and macro-F1": {
        "sharpness": 1.4,
        "bias": (0.5, -0.2, 0.1, -0.4),
        "rule": MacroF1Rule(np.array([0.5, 0.7, 0.2, 0.6]), np.array([0.5, 0.6, 0.4, 0.5])),
    },
    "prior": {"rule": PriorRule(0.8, np.array([0.1, 0.2, 0.3, 0.4]))},
    "axes": {"rule": AxisRule((2, 2))},
    "cuts": {"rule": OrdinalRule(np.array([0.8, 1.5, 2.1]))},
    "weights per class": {"groups": weigh((1, 2, 0, 1), (1, 0.5, 2, 0))},
    "weights per class, geometric": {"groups": weigh((1, 2, 0, 1), (1, 0.5, 2, 0)), "pool": parse_pool("geometric")},
    "a group without weight": {"groups": {**GROUPS, "small": replace(GROUPS["small"], weight=0.0)}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_fused_answers_are_those_of_the_program(name: str, folder: Path, tmp_path: Path) -> None:
    """`fuse` compares every class and probability itself, and the recipe's decision is the file's."""
    done = fuse(toy_recipe(**RECIPES[name]), [folder], tmp_path / "e.onnx")
    assert done.checks.images == 16
    assert done.checks.difference < 1e-3
    session = start_fused(done.path.read_bytes(), done.path)
    found = session.run(np.stack([picture(1), picture(2), picture(3)]))
    alone = session.run(picture(2)[np.newaxis])
    assert found.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert found.classes[1] == alone.classes[0]
    assert found.probabilities[1] == pytest.approx(alone.probabilities[0], abs=1e-5)


def test_a_wrong_graph_is_not_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph with another bias than the recipe's is refused, with the images, and leaves no file."""
    real = graph.build_fused
    monkeypatch.setattr(
        fuse_module, "build_fused", lambda plan: real(replace(plan, recipe=replace(plan.recipe, bias=(5.0, 0, 0, 0))))
    )
    with pytest.raises(DeployError, match="answers differ") as caught:
        fuse(toy_recipe(), [folder], tmp_path / "e.onnx")
    assert caught.value.code == "E806"
    assert ".png: x / left instead of" in caught.value.details[0]
    assert not (tmp_path / "e.onnx").exists()


def test_independent_labels_have_their_own_decisions(tmp_path: Path) -> None:
    """Of sigmoid members the file gives log-odds pooled per label, and which labels reach their thresholds."""
    labels = LabelSpace.flat(("cat", "dog", "hat"))
    cards = [replace(card(f"m{i}", labels=labels), activation="sigmoid") for i in range(3)]
    write_members(tmp_path, cards)
    recipe = toy_recipe(
        labels=labels, activation="sigmoid", rule=ThresholdRule(np.array([0.2, 0.5, 0.9])), bias=(0.1, 0.2, -0.3)
    )
    for pool in ("linear", "geometric", "hard"):
        done = fuse(replace(recipe, pool=parse_pool(pool)), [tmp_path], tmp_path / "out" / "e.onnx")
        found = start_fused(done.path.read_bytes(), done.path).run(np.stack([picture(i) for i in range(8)]))
        assert found.applies is not None
        assert np.array_equal(found.applies, found.probabilities >= np.array([0.2, 0.5, 0.9]))
        assert 0 < found.applies.mean() < 1
    fuse(replace(recipe, groups=weigh((1, 2, 0), (1, 0, 2))), [tmp_path], tmp_path / "out" / "e.onnx")


def test_members_of_face_crops_take_boxes(tmp_path: Path) -> None:
    """The boxes are a second input; another box gives another answer, and no box the fallback's."""
    write_model(tmp_path, replace(card("m0", labels=LABELS), preprocess=Preprocess((16, 16), face=FaceCrop(0.3))))
    write_model(tmp_path, card("m1", labels=LABELS), seed=1)
    write_model(tmp_path, card("m2", labels=LABELS), seed=2)
    done = fuse(toy_recipe(), [tmp_path], tmp_path / "out" / "e.onnx")
    assert done.card.takes_boxes
    session = start_fused(done.path.read_bytes(), done.path)
    with pytest.raises(EnsError, match="face boxes") as caught:
        session.run(picture(1)[np.newaxis])
    assert caught.value.code == "E206"
    write_pictures(tmp_path / "images", ["a.jpg"])
    with pytest.raises(EnsError, match="face boxes"):
        fuse(toy_recipe(), [tmp_path], tmp_path / "out" / "f.onnx", images=CheckImages(tmp_path / "images"))


def test_each_member_s_probabilities_are_an_output_if_asked_for(folder: Path, tmp_path: Path) -> None:
    """`members` has them in the order of the card, and their weighted mean is the soft vote."""
    done = fuse(toy_recipe(), [folder], tmp_path / "e.onnx", options=FuseOptions(members=True))
    found = start_fused(done.path.read_bytes(), done.path).run(picture(1)[np.newaxis])
    assert found.members is not None
    assert found.members.shape == (1, 3, CLASSES)
    shares = np.array([member.share for member in done.card.members])
    assert shares == pytest.approx([0.375, 0.375, 0.25])
    assert shares @ found.members[0] == pytest.approx(found.probabilities[0], abs=1e-6)


def test_the_card_tells_the_whole_story(folder: Path, tmp_path: Path) -> None:
    """Recipe, members' cards, license and checks are read back as they were written."""
    path = tmp_path / "e.onnx"
    done = fuse(toy_recipe(bias=(0.0, 1.0, 0.0, 0.0)), [folder], path, options=FuseOptions(license="CC-BY-4.0"))
    read = read_fused_card(path)
    assert read.to_json() == done.card.to_json() == FusedCard.from_json(done.card.to_json()).to_json()
    value = json.loads(read.to_json())
    assert value["labels"] == list(LABELS.names)
    assert value["license"] == "CC-BY-4.0"
    assert [member["card"]["member"] for member in value["members"]] == ["m0", "m1", "m2"]
    assert value["recipe"]["bias"] == [0.0, 1.0, 0.0, 0.0]
    assert value["checks"]["probability_difference_at_most"] == 1e-3


def test_equal_preprocessing_is_computed_once(folder: Path, tmp_path: Path) -> None:
    """Two members of one preprocessing read one tensor: there are resizes for two sizes, and not for three members."""
    done = fuse(toy_recipe(), [folder], tmp_path / "e.onnx")
    operators = [node.op_type for node in onnx.load(done.path).graph.node]
    assert operators.count("Resize") == 2 * 2


def test_networks_of_other_opsets_are_converted(folder: Path, tmp_path: Path) -> None:
    """A member of opset 13 and one of 20 become one valid file."""
    old = model_proto(card("m0", labels=LABELS))
    del old.opset_import[:]
    old.opset_import.append(onnx.helper.make_opsetid("", 13))
    write_model(tmp_path, card("m0", labels=LABELS), proto=old)
    write_model(tmp_path, card("m1", labels=LABELS), proto=convolutional_proto(card("m1", labels=LABELS)))
    write_model(tmp_path, card("m2", labels=LABELS), seed=2)
    done: Fused = fuse(toy_recipe(), [tmp_path], tmp_path / "out" / "e.onnx")
    assert {one.version for one in onnx.load(done.path).opset_import} == {20}


def low_precision(one: ModelCard, *, seed: int) -> onnx.ModelProto:
    """The linear toy model with the product in float16, or of quantized pixels and weights as in int8 models."""
    proto, add = model_proto(one, seed=seed), onnx.helper.make_node
    product, (weights,) = proto.graph.node[-1], [t for t in proto.graph.initializer if t.name == "weights"]
    values = onnx.numpy_helper.to_array(weights)
    del proto.graph.node[-1]
    proto.graph.initializer.remove(weights)
    if one.precision == "fp16":
        stored = {"weights": values.astype(np.float16)}
        proto.graph.node.extend(
            [
                add("Cast", ["flat"], ["half"], to=onnx.TensorProto.FLOAT16),
                add("MatMul", ["half", "weights"], ["product"]),
                add("Cast", ["product"], ["logits"], to=onnx.TensorProto.FLOAT),
            ]
        )
    else:
        step = np.float32(np.abs(values).max() / 127)
        stored = {
            "step": np.array(1 / 255, np.float32),
            "zero": np.array(0, np.uint8),
            "weights8": np.round(values / step).astype(np.int8),
            "step8": np.array(step),
            "zero8": np.array(0, np.int8),
        }
        proto.graph.node.extend(
            [
                add("QuantizeLinear", ["flat", "step", "zero"], ["pixels8"]),
                add("DequantizeLinear", ["pixels8", "step", "zero"], ["pixels"]),
                add("DequantizeLinear", ["weights8", "step8", "zero8"], ["weights"]),
                add("MatMul", ["pixels", "weights"], [product.output[0]]),
            ]
        )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in stored.items())
    return proto


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_members_of_low_precision_are_fused_as_they_are(precision: Precision, tmp_path: Path) -> None:
    """Beside a float32 member, with two views; the file has their types, and the limit of their precision."""
    for number in range(3):
        one = replace(card(f"m{number}", labels=LABELS), precision=precision if number else "fp32")
        write_model(tmp_path, one, proto=low_precision(one, seed=number) if number else model_proto(one))
    recipe = toy_recipe(views={"identity": 1.0, "hflip": 1.0})
    done = fuse(recipe, [tmp_path], tmp_path / "out" / "e.onnx")
    assert done.checks.limit == LIMITS[precision]
    assert done.checks.difference < 1e-3
    kind = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    assert kind in {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}
    assert [member.card.precision for member in done.card.members] == ["fp32", precision, precision]


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("openvino", "m1, m2 are quantized for OpenVINO, and slower in ONNX Runtime"),
        ("symmetric", "int8 models for TensorRT compute in float32 on cpu"),
        ("", ""),
    ],
)
def test_int8_for_another_runtime_is_named(scheme: str, words: str, tmp_path: Path) -> None:
    """A fused file runs in ONNX Runtime: members quantized for OpenVINO or TensorRT are slow in it."""
    for number in range(3):
        one = replace(card(f"m{number}", labels=LABELS), precision="int8" if number else "fp32")
        one = replace(one, checks={"scheme": scheme} if scheme and number else {})
        write_model(tmp_path, one, proto=low_precision(one, seed=number) if number else model_proto(one))
    recorder = Recorder()
    fuse(toy_recipe(views={"identity": 1.0}), [tmp_path], tmp_path / "out" / "e.onnx", listener=recorder)
    found = [notice.message for notice in recorder.notices if notice.code == "W616"]
    assert len(found) == bool(scheme)
    assert all(words in message for message in found)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"pool": parse_pool("rank")}, "E802", "ranks the images"),
        (
            {"rule": MacroF1Rule(np.full(CLASSES, 0.5), np.full(CLASSES, 0.5)), "transductive": True},
            "E802",
            "transductive",
        ),
        ({"smoothing": Smoothing((0.25, 0.5, 0.25), r"(\w)(\d)")}, "E802", "smoothed over the rows"),
        ({"views": {"identity": 1.0, "scale:1.2": 1.0}}, "E803", "scale:1.2"),
        ({"views": {"identity": 1.0, "crop5": 1.0}}, "E201", "'crop5' is written as crop5:tl, crop5:tr"),
        ({"views": {"scale:1.20": 1.0}}, "E201", "'scale:1.20' is written as scale:1.2"),
        ({"views": {"rot180": 1.0}}, "E201", "'rot180' is not a view"),
    ],
    ids=["rank", "transductive", "smoothing", "view", "family", "spelling", "unknown"],
)
def test_what_no_single_image_answers_is_refused_by_name(
    changes: dict[str, Any], code: str, words: str, folder: Path, tmp_path: Path
) -> None:
    """The message names the part of the recipe."""
    with pytest.raises(EnsError, match=words) as caught:
        fuse(toy_recipe(**changes), [folder], tmp_path / "e.onnx")
    assert caught.value.code == code


def test_drawn_pictures_are_said_to_be_drawn(folder: Path, tmp_path: Path) -> None:
    """Without images the comparison is a warning's matter; with a folder of images it is not."""
    recorder = Recorder()
    fuse(toy_recipe(), [folder], tmp_path / "e.onnx", listener=recorder)
    assert [notice.code for notice in recorder.notices] == ["W802"]
    write_pictures(tmp_path / "images", [f"{i}.jpg" for i in range(20)])
    recorder = Recorder()
    done = fuse(toy_recipe(), [folder], tmp_path / "e.onnx", images=CheckImages(tmp_path / "images"), listener=recorder)
    assert recorder.notices == []
    assert done.checks.images == 10
    assert not done.card.checks["drawn"]


def test_the_command_writes_the_file(folder: Path, tmp_path: Path) -> None:
    """`ens fuse` prints the path, the members and what was compared; the options belong together."""
    (tmp_path / "blend.json").write_text(toy_recipe().to_json())
    command = ["fuse", str(tmp_path / "blend.json"), "--models", str(folder), "-o", str(tmp_path / "e.onnx")]
    done = CliRunner().invoke(ens, [*command, "--members"])
    assert done.exit_code == 0, done.output
    assert "3 members" in done.output
    assert "same classes" in done.output
    refused = CliRunner().invoke(ens, [*command, "--boxes", "faces.parquet"])
    assert isinstance(refused.exception, EnsError)
    assert refused.exception.code == "E204"


def test_a_file_that_is_no_fused_one_is_refused(folder: Path, tmp_path: Path) -> None:
    """A member's file and a text are named as what they are not."""
    (tmp_path / "text.onnx").write_text("hello")
    for path in (folder / "m0.onnx", tmp_path / "text.onnx"):
        with pytest.raises(DeployError) as caught:
            read_fused_card(path)
        assert caught.value.code == "E807"


def with_features(one: ModelCard, *, seed: int) -> onnx.ModelProto:
    """The toy residual network with the input of its average pooling as the output ``features``."""
    proto = convolutional_proto(one, seed=seed)
    (pool,) = (node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    proto.graph.node.append(onnx.helper.make_node("Identity", [pool.input[0]], ["features"]))
    shape: list[str | int | None] = ["batch", 24, "rows", "columns"]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, shape))
    return proto


def test_maps_are_those_of_the_strongest_member_that_has_them(tmp_path: Path) -> None:
    """The largest share of the vote is passed over with a notice, since its model has no features."""
    other = LabelSpace.flat(tuple(reversed(LABELS.names)))
    cards = [card("m0", labels=LABELS), card("m1", labels=LABELS), card("m2", labels=other)]
    write_members(tmp_path, cards)
    write_model(tmp_path, cards[2], proto=with_features(cards[2], seed=2))
    recorder = Recorder()
    recipe = toy_recipe(views={"hflip": 1.0, "identity": 1.0})
    options = FuseOptions(maps=True)
    done = fuse(recipe, [tmp_path], tmp_path / "out" / "e.onnx", options=options, listener=recorder)
    assert done.card.maps is not None
    assert done.card.maps.member == "m2"
    said = [notice.message for notice in recorder.notices if notice.code == "I802"]
    assert len(said) == 1
    assert "m0.onnx has no output 'features'" in said[0]
    pixels = picture(3, size=cards[2].preprocess.size)[np.newaxis]
    found = start_fused(done.path.read_bytes(), done.path).run(pixels)
    model = read_model(tmp_path / "m2.onnx")
    features = start_session(model).run(pixels, output="features")
    expected = [find_classifier(model).maps(features, np.array([label]))[0] for label in (3, 2, 1, 0)]
    assert found.maps is not None
    assert found.maps.shape[2:] == done.card.maps.size
    assert found.maps[0] == pytest.approx(np.array(expected), rel=1e-4, abs=1e-5)


def test_no_maps_is_an_error_with_the_reason_of_each_member(folder: Path, tmp_path: Path) -> None:
    """Of three members without features none has maps, and nothing is written."""
    with pytest.raises(DeployError, match="no member") as caught:
        fuse(toy_recipe(), [folder], tmp_path / "e.onnx", options=FuseOptions(maps=True))
    assert caught.value.code == "E808"
    assert len(caught.value.details) == 3
    mirrored = toy_recipe(views={"hflip": 1.0})
    with pytest.raises(DeployError) as caught:
        fuse(mirrored, [folder], tmp_path / "e.onnx", options=FuseOptions(maps=True))
    assert "as they are" in caught.value.details[0]
    assert not (tmp_path / "e.onnx").exists()
