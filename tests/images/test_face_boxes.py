"""Face boxes: the file, the join by id, and the square that is cut around a face."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ensemble.card import FaceCrop, ModelCard, Preprocess
from ensemble.errors import DataError, FileError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Boxes, Face, FaceFile, read_boxes, read_faces, write_boxes
from ensemble.images.face_crop import face_square, prepare_image
from ensemble.images.listing import list_images
from ensemble.images.resize import resize_image
from ensemble.images.views import parse_views
from ensemble.predict import inputs
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime.model_file import read_model
from tests.support import toys

IDENTITY = parse_views("identity")
BOX = Box(10.5, 20.25, 30.5, 50.25)
FACES = (Face("b.jpg", None, None, 0, None, 64, 48), Face("a.jpg", BOX, 0.75, 2, "first", 64, 48))


def test_boxes_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Boxes, images without a face and the origin survive the file, whose columns are those documented."""
    path = write_boxes(tmp_path / "boxes.parquet", FACES, origin="how")
    assert read_faces(path) == FaceFile(tuple(sorted(FACES, key=lambda face: face.id)), "how")
    assert read_boxes(path) == Boxes({"a.jpg": BOX, "b.jpg": None})
    columns = ["id", "left", "top", "right", "bottom", "probability", "faces", "found_by", "width", "height", "bytes"]
    assert pq.read_table(path).column_names == columns


def test_the_hash_tells_boxes_apart_and_not_their_order() -> None:
    """Another box, another id or a missing face changes the hash; the order of the rows does not."""
    hashes = {
        Boxes(of).sha256
        for of in ({"a": BOX, "b": None}, {"a": BOX, "b": BOX}, {"a": None, "b": None}, {"a": BOX, "c": None})
    }
    assert len(hashes) == 4
    assert Boxes({"b": None, "a": BOX}).sha256 == Boxes({"a": BOX, "b": None}).sha256


def test_boxes_join_by_id() -> None:
    """Boxes come in the order of the requested ids; a decomposed name matches its composed spelling."""
    composed = "한글.jpg"
    boxes = Boxes({unicodedata.normalize("NFD", composed): BOX, "b": None})
    assert boxes.select(["b", composed]) == (None, BOX)
    with pytest.raises(DataError, match="2 of 3 images are not in the boxes file: c, d") as caught:
        boxes.select(["b", "c", "d"])
    assert caught.value.code == "E351"


@pytest.mark.parametrize("sides", [(0, 0, 0, 5), (5, 0, 1, 5), (0, 0, float("nan"), 5), (0, 9, 5, 9)])
def test_a_box_has_an_area(sides: tuple[float, float, float, float]) -> None:
    """A box that is empty, inside out or not a number is refused."""
    with pytest.raises(DataError) as caught:
        Box(*sides)
    assert caught.value.code == "E350"


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("left", True, "left is 'True', expected a number"),
        ("left", "0", "left is '0', expected a number"),
        ("width", "9", "width is '9', expected a whole number"),
        ("width", 9.0, "width is '9.0', expected a whole number"),
        ("probability", "high", "probability is 'high', expected a number"),
        ("faces", 1.5, "faces is '1.5', expected a whole number"),
        ("found_by", 3, "found_by is '3', expected text"),
        ("left_eye_x", True, "left_eye_x is 'True', expected a number"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path: Path, column: str, value: object, said: str) -> None:
    """They are E350: a size as text was passed over, and with it the check that the image has that size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"id": "a", "left": 0.0, "top": 0.0, "right": 5.0, "bottom": 5.0, "width": 9, "height": 9} | {column: value}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "boxes.parquet")
    with pytest.raises(DataError, match="E350") as caught:
        read_boxes(tmp_path / "boxes.parquet")
    assert said in caught.value.message


def test_other_files_are_no_boxes(tmp_path: Path) -> None:
    """A missing file is E707, one that is not Parquet or lacks the columns is E350, a repeated id E313."""
    with pytest.raises(FileError, match="is not a file"):
        read_boxes(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("id,left")
    with pytest.raises(DataError) as caught:
        read_boxes(tmp_path / "text.parquet")
    assert caught.value.code == "E350"
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"], "class": [3]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"labels\.parquet is no file of face boxes: it has no column 'left'"):
        read_boxes(tmp_path / "labels.parquet")
    with pytest.raises(DataError) as caught:
        read_boxes(write_boxes(tmp_path / "twice.parquet", (FACES[0], FACES[0])))
    assert caught.value.code == "E313"


@pytest.mark.parametrize(
    ("box", "margin", "expected"),  # top, left, side
    [
        (Box(40, 30, 60, 50), 0.0, (30, 40, 20)),  # a square box is cut as it is
        (Box(40, 30, 60, 50), 0.5, (20, 30, 40)),  # half of its side is added on every side
        (Box(45, 30, 55, 50), 0.0, (30, 40, 20)),  # the longer side counts, around the center
        (Box(-10, -10, 10, 10), 0.5, (0, 0, 40)),  # shifted into the image, not made smaller
        (Box(90, 70, 110, 90), 0.5, (40, 80, 40)),
        (Box(10, 10, 90, 70), 1.0, (0, 10, 80)),  # at most the shorter side
        (None, 0.5, (20, 40, 40)),  # the fallback: center (0.5, 0.5) of 120 x 80, half of 80
    ],
)
def test_the_crop_is_a_square_inside_the_image(box: Box | None, margin: float, expected: tuple[int, int, int]) -> None:
    """The square has the documented corner and side, for boxes inside, outside and missing."""
    top, left, side = expected
    assert face_square(80, 120, FaceCrop(margin, (0.5, 0.5, 0.5)), box) == (left, top, left + side, top + side)


def test_the_crop_comes_before_the_resize() -> None:
    """A face crop resizes the square alone; without one the box changes nothing."""
    pixels, box = toys.picture(3, size=(60, 80)), Box(20, 10, 40, 30)
    crop = FaceCrop(0.25)
    plain = Preprocess((16, 16))
    wanted = resize_image(np.ascontiguousarray(pixels[5:35, 15:45]), plain)
    assert np.array_equal(prepare_image(pixels, replace(plain, face=crop), box), wanted)
    assert np.array_equal(prepare_image(pixels, plain, box), resize_image(pixels, plain))


FACE_CARD = replace(toys.CARD, preprocess=replace(toys.CARD.preprocess, face=FaceCrop(0.25, (0.5, 0.4, 0.6))))


def test_cards_keep_the_face_crop() -> None:
    """A card with a face crop survives JSON; one without has no such field, like older cards."""
    assert ModelCard.from_json(FACE_CARD.to_json()) == FACE_CARD
    assert "face" not in json.loads(toys.CARD.to_json())["preprocess"]


@pytest.mark.parametrize("face", [None, 3, {}, {"margin": 0.1}, {"margin": "1", "fallback": [0.5, 0.5, 1]}])
def test_a_card_with_a_broken_face_crop_is_refused(face: object) -> None:
    """A face crop of another form is E427, not a crash."""
    value = json.loads(FACE_CARD.to_json())
    value["preprocess"]["face"] = face
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(json.dumps(value))
    assert caught.value.code == "E427"


@pytest.mark.parametrize(
    ("margin", "fallback"),
    [(-0.1, (0.5, 0.5, 1)), (5, (0.5, 0.5, 1)), (float("nan"), (0.5, 0.5, 1)), (0, (2, 0.5, 1)), (0, (0.5, 0.5, 0))],
)
def test_face_crops_are_checked(margin: float, fallback: tuple[float, float, float]) -> None:
    """A margin or fallback out of range is E204."""
    with pytest.raises(OptionError) as caught:
        FaceCrop(margin, fallback)
    assert caught.value.code == "E204"


def test_a_model_with_a_face_crop_sees_the_crop(tmp_path: Path) -> None:
    """Predicting with boxes gives the logits of the cut images; without boxes or with too few it refuses at once."""
    names = ["a.jpg", "b.jpg", "c.jpg"]
    toys.write_pictures(tmp_path / "images", names, size=(60, 80))
    model = toys.write_model(tmp_path, FACE_CARD)
    boxes = Boxes({"a.jpg": Box(20, 10, 40, 30), "b.jpg": None, "c.jpg": Box(5, 5, 50, 55)})
    with pytest.raises(OptionError, match="face boxes") as caught:
        predict([model], tmp_path / "images", tmp_path / "preds", views=IDENTITY)
    assert caught.value.code == "E206"
    with pytest.raises(DataError) as missing:
        predict([model], tmp_path / "images", tmp_path / "preds", views=IDENTITY, boxes=Boxes({"a.jpg": None}))
    assert missing.value.code == "E351"
    done = predict(
        [model], tmp_path / "images", tmp_path / "preds", views=IDENTITY, boxes=boxes, options=RunOptions(device="cpu")
    )
    found = read_predictions(done.members[0].folder).logits["identity"]
    weights = toys.linear_weights(FACE_CARD, 0)
    for row, name in enumerate(names):
        pixels = read_image(tmp_path / "images" / name).pixels
        seen = prepare_image(pixels, FACE_CARD.preprocess, boxes.of[name])
        assert np.allclose(found[row], seen.reshape(-1) / 255 @ weights, atol=1e-4)


@pytest.mark.parametrize(
    ("box", "fits"),
    [
        (Box(10, 10, 30, 30), True),
        (Box(10, 10, 30, 30, size=(80, 60)), True),
        (Box(10, 10, 30, 30, size=(160, 120)), False),  # of the picture before it was halved
        (Box(10, 10, 30, 30, size=(60, 80)), False),  # of the picture before it was turned
        (Box(-20, -10, 30, 30), True),  # a detector's boxes may reach beyond the border
        (Box(90, 10, 110, 30), False),
        (Box(1e6, 1e6, 1e6 + 20, 1e6 + 20), False),
        (Box(-1e6, -1e6, 1e6 + 80, 1e6 + 60), False),
        (Box(-200, 10, 220, 30), False),
    ],
)
def test_a_box_of_another_image_is_refused(box: Box, fits: bool) -> None:
    """By the size of its image where it says that, and by its place where it does not: E354."""
    image = toys.picture(3, size=(60, 80))
    if fits:
        assert prepare_image(image, FACE_CARD.preprocess, box).shape[2] == 3
        return
    with pytest.raises(DataError) as caught:
        prepare_image(image, FACE_CARD.preprocess, box)
    assert caught.value.code == "E354"


def test_boxes_of_other_pictures_stop_a_run_at_its_start(tmp_path: Path) -> None:
    """The file's sizes are compared with some images before a model starts; the first that differs is named."""
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"], size=(60, 80))
    model = toys.write_model(tmp_path, FACE_CARD)
    faces = [Face(name, Box(20, 10, 40, 30), 1.0, 1, "first", 160, 120) for name in ("a.jpg", "b.jpg")]
    boxes = read_boxes(write_boxes(tmp_path / "boxes.parquet", faces))
    with pytest.raises(DataError, match=r"a\.jpg: the image has 80x60 px.*160x120 px") as caught:
        predict([model], tmp_path / "images", tmp_path / "preds", views=IDENTITY, boxes=boxes)
    assert caught.value.code == "E354"
    assert not (tmp_path / "preds" / FACE_CARD.member / "_complete.json").exists()


def test_one_image_that_was_changed_is_named_and_the_others_are_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each box is compared when it is used: the image is one of those that cannot be read."""
    names = ["a.jpg", "b.jpg"]
    toys.write_pictures(tmp_path / "images", names, size=(60, 80))
    model = toys.write_model(tmp_path, FACE_CARD)
    boxes = Boxes({"a.jpg": Box(20, 10, 40, 30, size=(80, 60)), "b.jpg": Box(20, 10, 40, 30, size=(81, 60))})
    monkeypatch.setattr(inputs, "_try_some", lambda *_: None)
    with pytest.raises(DataError) as caught:
        predict(
            [model],
            tmp_path / "images",
            tmp_path / "preds",
            views=IDENTITY,
            boxes=boxes,
            options=RunOptions(device="cpu"),
        )
    assert caught.value.code == "E326"
    assert "E354" in (tmp_path / "preds" / "errors.csv").read_text()
    assert "a.jpg" not in (tmp_path / "preds" / "errors.csv").read_text()


def test_boxes_without_sizes_are_told(tmp_path: Path) -> None:
    """A file of another program may lack the sizes; then W355 says what is not compared."""
    toys.write_pictures(tmp_path / "images", ["a.jpg"], size=(60, 80))
    model = read_model(toys.write_model(tmp_path, FACE_CARD))
    listing, told = list_images(tmp_path / "images"), Recorder()
    for box, codes in ((Box(20, 10, 40, 30), ["W355"]), (Box(20, 10, 40, 30, size=(80, 60)), []), (None, [])):
        told.notices.clear()
        inputs.select_boxes([model], Boxes({"a.jpg": box}), listing, told)
        assert [notice.code for notice in told.notices] == codes
    with pytest.raises(DataError) as caught:
        inputs.select_boxes([model], Boxes({"a.jpg": Box(2000, 10, 2100, 30)}), listing, told)
    assert caught.value.code == "E354"


def test_other_boxes_are_another_run(tmp_path: Path) -> None:
    """Predictions made with one set of boxes are not continued with another."""
    toys.write_pictures(tmp_path / "images", ["a.jpg"])
    model = toys.write_model(tmp_path, FACE_CARD)
    for box in (None, Box(1, 1, 9, 9)):
        arguments = [model], tmp_path / "images", tmp_path / "preds"
        if box is None:
            predict(*arguments, views=IDENTITY, boxes=Boxes({"a.jpg": box}), options=RunOptions(device="cpu"))
        else:
            with pytest.raises(FileError, match="differs in face boxes"):
                predict(*arguments, views=IDENTITY, boxes=Boxes({"a.jpg": box}), options=RunOptions(device="cpu"))


def others(path: Path, **columns: Sequence[object]) -> Path:
    """A file of boxes as another program might write it, of three images."""
    import pyarrow as pa

    sides = {"left": [5.0] * 3, "top": [5.0] * 3, "right": [20.0] * 3, "bottom": [25.0] * 3}
    pq.write_table(pa.table({"id": ["a.jpg", "b.jpg", "c.jpg"], **sides, **columns}), path)
    return path


def test_boxes_in_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    """As pixels they are the corner of each image, which was cropped without a word."""
    shares = {"left": [0.1, 0.2, 0.0], "top": [0.1, 0.0, 0.0], "right": [0.6, 0.7, 1.0], "bottom": [0.5, 1.0, 1.0]}
    with pytest.raises(DataError, match="shares of the image") as caught:
        read_boxes(others(tmp_path / "b.parquet", **shares))
    assert caught.value.code == "E350"
    shares["right"][2] = 2.0
    assert len(read_boxes(others(tmp_path / "b.parquet", **shares))) == 3


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"left": [None, 5.0, 5.0]}, "the box of a.jpg lacks a side: left null, top 5.0, right 20.0, bottom 25.0"),
        ({"width": [-30, 30, 30], "height": [40, 40, 40]}, "the size -30x40 px is below 0"),
        ({"left": [30.0, 5.0, 5.0]}, "cannot be read as face boxes: a box needs finite sides"),
    ],
)
def test_what_is_wrong_with_a_box_is_said(columns: dict[str, list[object]], said: str, tmp_path: Path) -> None:
    """In words of boxes, not of Python."""
    with pytest.raises(DataError, match=said):
        read_faces(others(tmp_path / "b.parquet", **columns))
