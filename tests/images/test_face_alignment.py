"""Aligned faces: every photograph of a face gives the same upright square, and what has no points is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ensemble.card import Align, FaceCrop, ModelCard, Preprocess
from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.fuse.prepare_nodes import require_resizable
from ensemble.images.face_alignment import center_and_side, require_points
from ensemble.images.face_boxes import Box, Face
from ensemble.images.face_crop import choose_crop, prepare_image, tell_faces
from tests.support import toys

# the five points of insightface's face_align.arcface_dst, for 112 x 112 px
ARCFACE = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]


def photograph(angle: float, scale: float, *, size: int = 400) -> tuple[Image.Image, Box]:
    """A face of five dots, turned by ``angle`` degrees and enlarged, in the middle of a grey image."""
    turn = scale * np.exp(1j * np.deg2rad(angle))
    points = [complex(size / 2, size / 2) + turn * complex(x - 56, y - 70) for x, y in ARCFACE]
    image = Image.new("RGB", (size, size), (128, 128, 128))
    drawing = ImageDraw.Draw(image)
    for point, color in zip(points, COLORS, strict=True):
        r = 3 * scale
        drawing.ellipse((point.real - r, point.imag - r, point.real + r, point.imag + r), fill=color)
    numbers = tuple(value for point in points for value in (point.real, point.imag))
    return image, Box(size / 2 - 50, size / 2 - 50, size / 2 + 50, size / 2 + 50, numbers)


def places(pixels: np.ndarray) -> list[tuple[float, float]]:
    """The center of each color's dot, px."""
    found = []
    for color in COLORS:
        near = np.abs(pixels.astype(int) - color).sum(axis=2) < 150
        rows, columns = np.nonzero(near)
        found.append((columns.mean() + 0.5, rows.mean() + 0.5))
    return found


@pytest.mark.parametrize("angle", [0, 25, -40, 90, 180])
@pytest.mark.parametrize("scale", [0.7, 1.0, 2.4])
def test_the_points_of_a_face_come_to_arcface_s_places(angle: float, scale: float) -> None:
    """However the photograph is turned and large, eyes, nose and mouth are where insightface puts them, within 1 px."""
    image, box = photograph(angle, scale)
    pixels = prepare_image(image, Preprocess((112, 112), face=FaceCrop(0.0, align="arcface")), box)
    assert np.abs(np.array(places(pixels)) - ARCFACE).max() < 1


@pytest.mark.parametrize(("margin", "size"), [(0.25, 150), (0.2, 64)])
def test_the_eyes_come_to_dlib_s_places(margin: float, size: int) -> None:
    """dlib puts a point at (padding + place) / (2 padding + 1) of its chip; the places are its mean face's."""
    # mean_face_shape of five points in dlib's image_transforms/interpolation.h: outer and inner corner of each eye
    left = (0.8595674595992, 0.2134981538014), (0.6460604764104, 0.2289674387677)
    right = (0.1205750620789, 0.2137274526848), (0.3340850613712, 0.2290642403242)
    eyes = [np.mean(right, axis=0), np.mean(left, axis=0)]
    image, box = photograph(-15, 1.5)
    pixels = prepare_image(image, Preprocess((size, size), face=FaceCrop(margin, align="dlib")), box)
    wanted = [(margin + eye) / (2 * margin + 1) * size for eye in eyes]
    assert np.abs(np.array(places(pixels)[:2]) - wanted).max() < size / 100


def test_a_margin_shows_more_and_black_beyond_the_border() -> None:
    """The face keeps its middle, and takes a smaller share of a square that is larger than the photograph."""
    image, box = photograph(30, 2.0)
    preprocess = Preprocess((112, 112), face=FaceCrop(1.0, align="arcface"))
    pixels = prepare_image(image, preprocess, box)
    assert np.abs(np.array(places(pixels)) - (np.array(ARCFACE) / 3 + 112 / 3)).max() < 1
    assert (pixels[0, 0] == 0).all()


def test_without_a_face_the_square_is_the_median_of_the_others() -> None:
    """The fallback is upright, with the middle and the side of the aligned squares."""
    faces = [Face(str(k), photograph(10 * k, 1.5)[1], 0.9, 1, "first", 400, 400) for k in range(3)]
    crop = choose_crop(faces, None, "arcface")
    assert crop is not None
    assert crop.margin == 0
    squares = [center_and_side(crop, face.box) for face in faces if face.box is not None]
    assert np.allclose(crop.fallback, np.median(squares, axis=0) / 400, atol=1e-3)
    assert prepare_image(Image.new("RGB", (400, 300)), Preprocess((16, 16), face=crop), None).shape == (16, 16, 3)
    dlib = choose_crop(faces, None, "dlib")
    assert dlib is not None
    assert dlib.margin == 0.25


def test_faces_without_points_are_named_before_work_is_done() -> None:
    """E380 for a model and for a training; boxes without points still serve models that crop without aligning."""
    box = Box(1, 1, 9, 9)
    aligned, plain = FaceCrop(0.1, align="dlib"), FaceCrop(0.1)
    require_points(plain, ["a"], [box])
    require_points(aligned, ["a"], [None])
    for call in (
        lambda: require_points(aligned, ["a.jpg"], [box]),
        lambda: choose_crop([Face("a.jpg", box, 0.9, 1, "first", 10, 10)], None, "arcface"),
        lambda: prepare_image(Image.new("RGB", (10, 10)), Preprocess((8, 8), face=aligned), box),
    ):
        with pytest.raises(EnsError) as caught:
            call()
        assert caught.value.code == "E380"
    with pytest.raises(EnsError, match="--align needs the points") as caught:
        choose_crop(None, None, "dlib")
    assert caught.value.code == "E204"


def test_points_in_one_place_are_refused_by_name() -> None:
    """They give a square without a side, and no direction."""
    box = Box(1, 1, 9, 9, (5.0,) * 10)
    with pytest.raises(EnsError, match=r"all within a pixel: a.jpg") as caught:
        choose_crop([Face("a.jpg", box, 0.9, 1, "first", 10, 10)], None, "arcface")
    assert caught.value.code == "E380"


def test_what_the_faces_of_a_file_lack_is_said() -> None:
    """No face at all, and no sizes, by which the place of a crop without a face would be measured: W355."""
    box = Box(1, 1, 9, 9)
    whole, unsized, without = (
        Face("a", box, 0.9, 1, "first", 10, 10),
        Face("b", box, 0.9, 1, "first", 0, 0),
        Face("c", None, None, 0, None, 10, 10),
    )
    middle = ": an image without a face is cut in its middle, not where faces are"
    for faces, words in (
        (None, []),
        ([whole, without], []),
        ([without, without], ["no face was found in any of 2 images: the middle of each is cut"]),
        ([whole, unsized], ["1 of 2 face boxes do not say how large their images are"]),
        (
            [unsized, without],
            ["1 of 1 face boxes do not say how large their images are" + middle],
        ),
    ):
        recorder = Recorder()
        tell_faces(faces, recorder)
        assert [notice.message for notice in recorder.notices] == words


@pytest.mark.parametrize("align", ["arcface", "dlib", None])
def test_the_card_says_how_faces_are_aligned(align: Align | None) -> None:
    """It survives JSON; a crop that does not align has the text of earlier versions."""
    card = replace(toys.CARD, preprocess=replace(toys.CARD.preprocess, face=FaceCrop(0.25, align=align)))
    assert ModelCard.from_json(card.to_json()) == card
    assert ("align" in json.loads(card.to_json())["preprocess"]["face"]) == (align is not None)


def test_a_fused_file_refuses_aligned_faces_by_name() -> None:
    """E804 names the member; a crop that does not align is written as a graph."""
    preprocess = Preprocess((16, 16), face=FaceCrop(0.2))
    require_resizable(preprocess, member="m0")
    with pytest.raises(EnsError, match="m0 aligns faces") as caught:
        require_resizable(replace(preprocess, face=FaceCrop(0.2, align="dlib")), member="m0")
    assert caught.value.code == "E804"
