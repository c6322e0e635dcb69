"""A model called from Python gives what `ens predict` gives for the same file, and refuses what is not an image."""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ensemble
from ensemble.blend import blend, make_recipe
from ensemble.card import FaceCrop
from ensemble.errors import DataError, FileError, OptionError
from ensemble.events import Recorder
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.views import parse_views
from ensemble.labels import LabelSpace
from ensemble.predict import RunOptions, predict
from ensemble.predictions import read_predictions
from tests.support import toys
from tests.support.gpus import fake_gpus

VIEWS = "hflip,scale:1.25"
NAMES = [f"{i:02d}.jpg" for i in range(20)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty JPEGs, and six files that decoding changes: turned, transparent, grey, 16-bit, animated, wrongly named."""
    folder = tmp_path / "images"
    toys.write_pictures(folder, NAMES)
    plain = Image.fromarray(toys.picture(30, size=(50, 31)))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(folder / "turned.jpg", exif=exif)
    plain.convert("RGBA").rotate(20).save(folder / "transparent.png")
    plain.convert("L").save(folder / "grey.png")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(folder / "deep.png")
    plain.save(folder / "animated.gif", save_all=True, append_images=[plain.rotate(90)])
    plain.save(folder / "named.png", "JPEG")
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A convolutional model of 18 classes."""
    card = toys.card("net", size=(24, 20))
    return toys.write_model(tmp_path, card, proto=toys.convolutional_proto(card))


def test_the_logits_are_those_of_predict_bit_for_bit(path: Path, images: Path, tmp_path: Path) -> None:
    """By path, alone or in a list of more than one batch, and as PIL image: the logits of each view are predict's."""
    run = predict([path], images, tmp_path / "out", views=parse_views(VIEWS), options=RunOptions(device="cpu")).members[
        0
    ]
    expected = read_predictions(run.folder)
    model = ensemble.load(path, device="cpu")
    files = [images / name for name in expected.ids]
    assert len(files) > 16
    listed = model(files, views=VIEWS)
    with contextlib.ExitStack() as stack:
        opened = model([stack.enter_context(Image.open(file)) for file in files], views=VIEWS)
    for row, file in enumerate(files):
        for found in (listed[row], opened[row], model(str(file), views=parse_views(VIEWS))):
            assert list(found.logits) == ["identity", "hflip", "scale:1.25"]
            for view, logits in found.logits.items():
                assert logits.dtype == np.float32
                assert np.array_equal(logits, expected.logits[view][row]), (file.name, view)


def test_pixels_of_opencvs_kind_are_an_image(path: Path, images: Path) -> None:
    """An upright RGB array gives the file's logits, also when it is a reversed view of a BGR array."""
    model = ensemble.load(path, device="cpu")
    pixels = read_image(images / NAMES[0]).pixels
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    expected = model(images / NAMES[0]).logits["identity"]
    assert np.array_equal(model(pixels).logits["identity"], expected)
    assert np.array_equal(model(bgr[..., ::-1]).logits["identity"], expected)
    assert not np.array_equal(model(bgr).logits["identity"], expected)


def test_the_probabilities_are_those_of_a_blend_of_the_views(path: Path, images: Path, tmp_path: Path) -> None:
    """With views, probabilities and label are those of `ens blend` on what `ens predict` wrote; they sum to one."""
    run = predict([path], images, tmp_path / "out", views=parse_views(VIEWS), options=RunOptions(device="cpu")).members[
        0
    ]
    member = read_predictions(run.folder)
    expected = blend([member], make_recipe([member]))
    found = ensemble.load(path, device="cpu")([images / name for name in expected.ids], views=VIEWS)
    assert all(list(one.probabilities) == list(expected.labels.names) for one in found)
    np.testing.assert_allclose([list(one.probabilities.values()) for one in found], expected.probabilities, rtol=1e-12)
    assert [one.label for one in found] == [expected.labels.names[c] for c in expected.classes]
    assert sum(found[0].probabilities.values()) == pytest.approx(1)


def test_a_product_of_axes_has_a_value_on_each(path: Path, images: Path, tmp_path: Path) -> None:
    """The axes of mask18 spell the label; a flat label space has the one axis ``class``."""
    found = ensemble.load(path, device="cpu")(images / NAMES[3])
    assert list(found.axes) == ["mask", "gender", "age"]
    assert " / ".join(found.axes.values()) == found.label
    flat = toys.write_model(tmp_path, toys.card("flat", labels=LabelSpace.flat(["cat", "dog"])))
    found = ensemble.load(flat, device="cpu")(images / NAMES[3])
    assert found.axes == {"class": found.label}
    assert set(found.probabilities) == {"cat", "dog"}


def test_what_is_odd_about_an_image_is_told(path: Path, images: Path) -> None:
    """A file of another format than its name says has I304, one of several frames I306, and most have nothing."""
    model = ensemble.load(str(path), device="cpu")
    found = model([images / "named.png", images / "animated.gif", images / NAMES[0]])
    assert [one.notices for one in found] == [("I304",), ("I306",), ()]


def test_one_model_answers_in_several_threads(path: Path, images: Path) -> None:
    """Forty calls from four threads give what one thread gives."""
    model = ensemble.load(path, device="cpu")
    expected = model(images / NAMES[0]).logits["identity"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model, [images / NAMES[0]] * 40))
    assert all(np.array_equal(one.logits["identity"], expected) for one in found)


def test_a_model_of_face_crops_takes_boxes(images: Path, tmp_path: Path) -> None:
    """With boxes, and None for no face, the logits are those of predict with the same boxes."""
    card = toys.card("face")
    card = replace(card, preprocess=replace(card.preprocess, face=FaceCrop(0.25, (0.5, 0.4, 0.6))))
    path = toys.write_model(tmp_path, card)
    names = NAMES[:3]
    boxes = [Box(3, 4, 20, 25), None, Box(-2, 10, 12, 30)]
    known = Boxes(dict(zip(names, boxes, strict=True)))
    run = predict(
        [path],
        images,
        tmp_path / "out",
        views=parse_views("identity"),
        ids=names,
        boxes=known,
        options=RunOptions(device="cpu"),
    )
    expected = read_predictions(run.members[0].folder)
    model = ensemble.load(path, device="cpu")
    listed = model(tuple(images / name for name in names), box=boxes)
    for row, name in enumerate(expected.ids):
        place = names.index(name)
        for found in (listed[place], model(images / name, box=boxes[place])):
            assert np.array_equal(found.logits["identity"], expected.logits["identity"][row])


def test_a_model_of_face_crops_needs_boxes(images: Path, tmp_path: Path) -> None:
    """Without a box it is E206 and the hint names box=; a box of another kind or number is E204."""
    card = toys.card("face")
    card = replace(card, preprocess=replace(card.preprocess, face=FaceCrop(0.25)))
    model = ensemble.load(toys.write_model(tmp_path, card), device="cpu")
    anything: Any = model
    image = images / NAMES[0]
    with pytest.raises(OptionError, match=r"E206.*needs box=") as caught:
        model(image)
    assert "ensemble.Box(left, top, right, bottom)" in caught.value.hint
    wrong: Any
    for wrong in ((1, 2, 3, 4), "face", 5, [None]):
        with pytest.raises(OptionError, match=r"E204.*box: expected one ensemble.Box or None per image \(1\)"):
            anything(image, box=wrong)
    for wrong in ([None], None, [None, "face"]):
        with pytest.raises(OptionError, match=r"E204.*per image \(2\), got"):
            anything([image, image], box=wrong)


def test_boxes_for_a_model_without_face_crops_are_told(path: Path, images: Path) -> None:
    """The listener hears I352, and the logits are those without a box."""
    recorder = Recorder()
    model = ensemble.load(path, device="cpu", listener=recorder)
    found = model(images / NAMES[0], box=Box(1, 1, 9, 9))
    assert [notice.code for notice in recorder.notices] == ["I352"]
    assert np.array_equal(found.logits["identity"], model(images / NAMES[0]).logits["identity"])


PIXELS = np.zeros((20, 30, 3), np.uint8)


@pytest.mark.parametrize(
    ("value", "got", "hint"),
    [
        (PIXELS[..., 0], r"uint8 and shape \(20, 30\)", "repeat a grey array"),
        (PIXELS[..., :1], r"uint8 and shape \(20, 30, 1\)", "repeat a grey array"),
        (np.zeros((20, 30, 4), np.uint8), r"uint8 and shape \(20, 30, 4\)", "drop the alpha channel"),
        (PIXELS.transpose(2, 0, 1), r"uint8 and shape \(3, 20, 30\)", "channels last"),
        (PIXELS[np.newaxis], r"uint8 and shape \(1, 20, 30, 3\)", "list(array)"),
        (PIXELS / 255.0, r"float64 and shape \(20, 30, 3\)", "(array * 255).round()"),
        (PIXELS.astype(np.int32), r"int32 and shape \(20, 30, 3\)", "astype(numpy.uint8)"),
        (PIXELS[:0], r"uint8 and shape \(0, 30, 3\)", "uint8 RGB array of shape (height, width, 3)"),
        (np.zeros(5, np.uint8), r"uint8 and shape \(5,\)", "uint8 RGB array of shape (height, width, 3)"),
        (b"\xff\xd8\xff", "bytes", "a PIL image"),
        (None, "NoneType", "a PIL image"),
        (iter([PIXELS]), "list_iterator", "a PIL image"),
    ],
)
def test_what_is_no_image_is_refused(path: Path, value: Any, got: str, hint: str) -> None:
    """E329 says what was expected and what came, with the way from one to the other, alone and in a list."""
    model: Any = ensemble.load(path, device="cpu")
    expected = r"E329.*image {}: expected a path, a PIL image, or a uint8 RGB array of shape \(height, width, 3\), got "
    with pytest.raises(DataError, match=expected.format(0) + f"(an array of )?{got}") as caught:
        model(value)
    assert hint in caught.value.hint
    with pytest.raises(DataError, match=expected.format(1)):
        model([PIXELS, value])


def test_files_that_cannot_be_read_keep_their_codes(path: Path, tmp_path: Path) -> None:
    """A missing image is E314, a text file E303, a missing model E707, a folder for a model E707."""
    model = ensemble.load(path, device="cpu")
    (tmp_path / "text.jpg").write_text("not an image")
    for name, code in (("gone.jpg", "E314"), ("text.jpg", "E303")):
        with pytest.raises(DataError, match=f"{code}.*{re.escape(name)}"):
            model(tmp_path / name)
    for wrong in (tmp_path / "gone.onnx", tmp_path):
        with pytest.raises(FileError, match="E707"):
            ensemble.load(wrong)


def test_views_and_devices_that_do_not_fit_are_refused(path: Path, images: Path) -> None:
    """A view that needs square images, or is none, is E201; a device that is none is E203."""
    model = ensemble.load(path, device="cpu")
    for views in ("rot90", "sideways"):
        with pytest.raises(OptionError, match="E201"):
            model(images / NAMES[0], views=views)
    with pytest.raises(OptionError, match="E203"):
        ensemble.load(path, device="abacus")


def test_a_model_runs_on_a_gpu(path: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a (fake) GPU, device="auto" takes it, compares it with the CPU first, and returns the CPU's logits;
    several GPUs are E204.
    """
    expected = ensemble.load(path, device="cpu")(images / NAMES[0])
    recorder = Recorder()
    with fake_gpus(monkeypatch, tmp_path):
        model = ensemble.load(path, listener=recorder)
        found = model(images / NAMES[0])
        with pytest.raises(OptionError, match=r"E204.*one GPU, got cuda:0,1"):
            ensemble.load(path, device="cuda:0,1")
    assert str(model.device) == "cuda:0"
    assert [notice.code for notice in recorder.notices] == ["I606"]
    np.testing.assert_allclose(found.logits["identity"], expected.logits["identity"], rtol=1e-4, atol=1e-5)


def test_no_images_have_no_predictions(path: Path) -> None:
    """An empty list gives an empty list, whatever the views."""
    assert ensemble.load(path, device="cpu")([], views="hflip") == []
