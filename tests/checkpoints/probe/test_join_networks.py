"""`ens probe --features A --features B`: one member with the features of several networks, each of its own crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.folds import make_folds
from checkpoints.probe.join_networks import join_networks, resize_matrix
from checkpoints.probe.network_spec import parse_network
from checkpoints.probe.open_network import OpenNetwork, open_network
from checkpoints.probe.probe_member import ProbeJob, probe_member
from ensemble.adopt.make_card import AdoptOptions
from ensemble.card import Align, FaceCrop
from ensemble.cli import ens
from ensemble.error_codes import CODES
from ensemble.errors import EnsError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Box, Face, write_boxes
from ensemble.images.face_crop import fallback_crop, prepare_image
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime.model_file import read_model
from tests.checkpoints.probe.test_probe import KNOWN, SIDE, SPACE, write_network, write_table

POINTS = (38.3, 51.7, 73.5, 51.5, 56.0, 71.7, 41.5, 92.4, 70.7, 92.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_table(tmp_path_factory.mktemp("data") / "train"), labels=SPACE)


def separate(opened: Sequence[OpenNetwork], pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The features of each network by itself, one behind the other."""
    return np.concatenate([one.network.run(pixels, one.card) for one in opened], axis=1)


def face_at(scale: float, angle: float) -> Face:
    """A face of ArcFace's template in an image of 400 x 300 px, scaled, turned and moved."""
    turned = np.reshape(POINTS, (5, 2)) @ [1, 1j] * scale * np.exp(1j * angle) + (90 + 60j)
    points = np.stack([turned.real, turned.imag], axis=1).ravel()
    return Face("a.png", Box(100, 80, 200, 220, tuple(points.tolist())), 0.9, 1, None, 400, 300)


def smooth_image() -> Image.Image:
    """An image of 400 x 300 px whose colors change slowly, so that a second resize loses nothing."""
    y, x = np.mgrid[0:300, 0:400]
    planes = [128 + 100 * np.sin(x / 31), 128 + 100 * np.cos(y / 37), 128 + 100 * np.sin((x + y) / 43)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def test_networks_of_one_size_see_the_image_as_each_does(tmp_path: Path) -> None:
    """Layouts, channel orders, ranges, uint8 and half floats, opsets, a fixed batch: the same features as apart."""
    kinds: list[tuple[dict[str, Any], AdoptOptions]] = [
        ({"end": "row"}, KNOWN),
        ({"end": "map", "batch": 1}, replace(KNOWN, input_range="-1..1", channels="bgr")),
        ({"end": "row", "layout": "nhwc", "kind": TensorProto.UINT8}, replace(KNOWN, input_range=None)),
        ({"end": "scores", "opset": 9}, replace(KNOWN, input_range=None, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))),
        ({"end": "row", "kind": TensorProto.FLOAT16}, KNOWN),
    ]
    opened = [
        open_network(write_network(tmp_path / f"{number}.onnx", **habits), options)
        for number, (habits, options) in enumerate(kinds)
    ]
    recorder = Recorder()
    joined = join_networks(opened, listener=recorder)
    pixels = np.random.default_rng(2).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    found = joined.network.run(pixels, joined.card)
    assert joined.network.count == found.shape[1] == 12 * 4 + 5
    assert np.allclose(found, separate(opened, pixels), rtol=2e-2, atol=2e-3)
    assert joined.network.image.batch == 1
    assert "5 networks share the whole image at 8 x 8 px" in recorder.notices[0].message


def test_one_network_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing is joined, and nothing said."""
    recorder, opened = Recorder(), open_network(write_network(tmp_path / "net.onnx"), KNOWN)
    assert join_networks([opened], listener=recorder) is opened
    assert not recorder.notices


@pytest.mark.parametrize(("old", "start", "share", "new"), [(40, 0.0, 1.0, 16), (30, 0.1, 0.6, 30), (25, 0.2, 0.5, 7)])
def test_a_part_is_resized_as_pillow_does(old: int, start: float, share: float, new: int) -> None:
    """Pillow's resize of a box with the triangle filter, of float pixels: within 1e-3 of 255."""
    pixels = np.random.default_rng(1).uniform(0, 255, (old, old)).astype(np.float32)
    box = (start * old, start * old, (start + share) * old, (start + share) * old)
    oracle = Image.fromarray(pixels).resize((new, new), Image.Resampling.BILINEAR, box=box)
    matrix = resize_matrix(old, start, share, new)
    assert np.allclose(matrix @ pixels @ matrix.T, np.asarray(oracle), atol=1e-3)
    assert np.allclose(matrix.sum(axis=1), 1)


@pytest.mark.parametrize(
    "crops",
    [
        [("arcface", 0.0), ("arcface", 0.15)],
        [("arcface", 0.1), ("dlib", 0.25)],
        [("dlib", 0.0), ("dlib", 0.4), ("arcface", 0.0)],
    ],
)
def test_each_network_sees_its_own_square_of_the_face(tmp_path: Path, crops: list[tuple[Align, float]]) -> None:
    """The features of aligned faces are those of each network with its own crop, up to a second resize."""
    face, image = face_at(1.3, 0.3), smooth_image()
    network = write_network(tmp_path / "net.onnx", end="map")
    opened = [open_network(network, KNOWN, face=fallback_crop([face], margin, align)) for align, margin in crops]
    joined = join_networks(opened, [face])
    apart = [prepare_image(image, one.card.preprocess, face.box)[np.newaxis] for one in opened]
    wanted = [one.network.run(pixels, one.card) for one, pixels in zip(opened, apart, strict=True)]
    pixels = prepare_image(image, joined.card.preprocess, face.box)[np.newaxis]
    found = joined.network.run(pixels, joined.card)
    assert np.abs(found - np.concatenate(wanted, axis=1)).max() < 0.05 * np.abs(found).max()
    crop = joined.card.preprocess.face
    assert crop is not None
    assert crop.align == "arcface" or all(align == "dlib" for align, _ in crops)
    weights = [tensor.name for tensor in joined.network.model.proto.graph.initializer if "filters" in tensor.name]
    assert len(weights) == 1, "the weights of one file are in the graph once"


def test_a_joined_member_answers_as_its_out_of_fold_predictions(data: Dataset, tmp_path: Path) -> None:
    """The file of each fold gives the logits that the head gave; the card tells both networks."""
    opened = [
        open_network(write_network(tmp_path / "a.onnx", end="row"), KNOWN),
        open_network(write_network(tmp_path / "b.onnx", end="scores", batch=1), KNOWN),
    ]
    folds = make_folds(data.rows, folds=2, seed=0, labels=data.labels)
    job = ProbeJob(data, folds, "p", join_networks(opened), tmp_path / "runs", head="axes")
    result = probe_member(job)
    assert (result.features, result.score > 0.8) == (17, True)
    for one in result.folds:
        card = read_model(one.path).card
        assert card.checks["probe"]["features"] == "a.onnx:row + b.onnx:scores"
        held = [row for row in data.rows if folds.of_person[row.person] == card.fold][:4]
        pixels = np.stack([prepare_image(Image.open(row.path), card.preprocess, None) for row in held])
        values = onnx.load(one.path)
        assert values.graph.output[0].name == "logits"
        part = read_predictions(result.oof / card.member)
        head = job.network.run(pixels, job.card)
        assert np.isfinite(head).all()
        assert part.logits["identity"].shape == (len(part.ids), 4)


@pytest.mark.parametrize(
    ("second", "habits", "words"),
    [
        (replace(KNOWN, resize="center"), {}, "differ in resize"),
        (replace(KNOWN, interpolation="bicubic"), {}, "differ in interpolation"),
        (KNOWN, {"batch": 4}, "batches of different sizes"),
    ],
)
def test_networks_that_cannot_share_an_image_are_refused(
    tmp_path: Path, second: AdoptOptions, habits: dict[str, Any], words: str
) -> None:
    """Another way to resize, another filter, another fixed batch: E204 before work is spent."""
    opened = [
        open_network(write_network(tmp_path / "a.onnx", batch=2), KNOWN),
        open_network(write_network(tmp_path / "b.onnx", **habits), second),
    ]
    with pytest.raises(OptionError, match=words) as caught:
        join_networks(opened)
    assert caught.value.code == "E204"
    assert caught.value.hint != CODES["E204"].cure


def test_crops_that_have_no_common_square_are_refused(tmp_path: Path) -> None:
    """Margins that differ without --align, and an aligned face beside a box or a whole image."""
    network = write_network(tmp_path / "net.onnx")
    crops = {"narrow": FaceCrop(0.1), "wide": FaceCrop(0.2), "aligned": FaceCrop(0.0, align="arcface"), "whole": None}
    opened = {name: open_network(network, KNOWN, face=crop) for name, crop in crops.items()}
    for names, words in (("narrow wide", "different margins"), ("aligned wide", "some"), ("whole aligned", "some")):
        with pytest.raises(OptionError, match=words) as caught:
            join_networks([opened[name] for name in names.split()])
        assert caught.value.hint != CODES["E204"].cure
    assert join_networks([opened["wide"], opened["wide"]]).card.preprocess.face == FaceCrop(0.2)


def test_an_opset_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    """A graph that the converter of onnx does not read: E424 names the file."""
    opened = [
        open_network(write_network(tmp_path / f"{name}.onnx", opset=opset), KNOWN)
        for name, opset in (("a", 17), ("b", 9))
    ]
    opened[1].network.model.proto.graph.node.add(op_type="Loop", input=["nowhere"], output=["other"])
    with pytest.raises(ModelError, match=r"b\.onnx of opset 9") as caught:
        join_networks(opened)
    assert caught.value.code == "E424"


def test_settings_of_one_network_are_behind_its_file() -> None:
    """Keys, several outputs, values with commas, and a comma in the name of a file."""
    spec = parse_network("my,face.onnx,margin=0.15,align=arcface,output=bn1,output=pre,fc,mean=0.5,0.4,0.3,size=64x32")
    assert spec.path == Path("my,face.onnx")
    assert (spec.margin, spec.outputs) == (0.15, ("bn1", "pre,fc"))
    assert spec.settings == {"align": "arcface", "mean": "0.5,0.4,0.3", "size": "64x32"}
    assert parse_network("plain.onnx").settings == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.onnx,marign=1", "not one of output"),
        ("a.onnx,resize=squash", "common to all"),
        ("a.onnx,margin=wide", "a number"),
        ("a.onnx,margin=0.1,margin=0.2", "twice"),
        ("a.onnx,size=8,size=8", "twice"),
        ("a.onnx,align=eyes", "arcface"),
        ("a.onnx,output=", "a value"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(text: str, words: str) -> None:
    """Unknown, common, twice, no number, none of the choices, empty: E204 with the text."""
    with pytest.raises(OptionError, match=words) as caught:
        parse_network(text)
    assert caught.value.code == "E204"
    assert caught.value.hint != CODES["E204"].cure


def test_the_command_joins_two_margins_of_one_network(tmp_path: Path) -> None:
    """Both margins in one member of 24 features, whose card has the wider crop; a misspelt key is E204."""
    table = write_table(tmp_path / "train")
    points = (2.0, 3.0, 6.0, 3.5, 4.0, 5.0, 2.5, 7.0, 5.5, 7.5)
    faces = [Face(path.name, Box(1, 1, 9, 9, points), 0.9, 1, None, 10, 12) for path in table.parent.glob("*.png")]
    boxes, network = write_boxes(tmp_path / "boxes.parquet", faces), write_network(tmp_path / "net.onnx")
    words = ["probe", table, "--boxes", boxes, "--align", "arcface", "--folds", 2, "-o", tmp_path / "runs"]
    words += ["--input-range", "0..1", "--resize", "squash", "--member", "p", "--features", f"{network},margin=0.15"]
    done = CliRunner().invoke(ens, [*map(str, words), "--features", str(network), "--json"])
    assert done.exit_code == 0, (done.exception, done.output)
    (first, _) = sorted((tmp_path / "runs" / "p").glob("*.onnx"))
    card = read_model(first).card
    assert card.checks["probe"]["count"] == 24
    assert card.preprocess.face is not None
    assert (card.preprocess.face.margin, card.preprocess.size) == (0.15, (11, 11))
    refused = CliRunner().invoke(ens, [*map(str, words), "--features", f"{network},marign=0"])
    assert isinstance(refused.exception, EnsError)
    assert refused.exception.code == "E204"
