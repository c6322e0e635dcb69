"""The pipeline decodes once, resizes once, looks once, and holds few batches."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.card import FaceCrop, Preprocess
from ensemble.images.decode import decode_image
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import Listing, list_images
from ensemble.images.resize import plain_preprocess
from ensemble.images.views import View, parse_views
from ensemble.predict import pipeline as pipeline_module
from ensemble.predict.inputs import Inputs
from ensemble.predict.pipeline import Batch, Pipeline, Work
from ensemble.runtime.device import CPU
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import Session, start_session
from tests.support import toys

NAMES = [f"{i:02d}.jpg" for i in range(24)]


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    toys.write_pictures(tmp_path / "images", NAMES)
    return list_images(tmp_path / "images")


def sessions(folder: Path, *preprocesses: Preprocess) -> tuple[Session, ...]:
    cards = [replace(toys.card(f"m{i}"), preprocess=preprocess) for i, preprocess in enumerate(preprocesses)]
    return tuple(start_session(read_model(toys.write_model(folder, card))) for card in cards)


SQUASH = Preprocess((16, 12))


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (replace(SQUASH, fill=(0, 0, 0)), True),
        (replace(SQUASH, crop_pct=0.97), True),
        (replace(SQUASH, crop_pct=0.9), False),
        (replace(SQUASH, interpolation="bicubic"), False),
        (replace(SQUASH, resize="center"), False),
        (replace(SQUASH, size=(12, 16)), False),
        (replace(SQUASH, face=FaceCrop(0.2)), False),
    ],
)
def test_each_preprocessing_is_resized_once(
    tmp_path: Path, listing: Listing, monkeypatch: pytest.MonkeyPatch, other: Preprocess, alike: bool
) -> None:
    """Models whose preprocessing differs in nothing that changes a pixel share one resize of each image, and one
    application of each view; models that see other pixels have their own.
    """
    resized: list[Preprocess] = []
    looked: list[int] = []

    def count(image: Image.Image, preprocess: Preprocess, box: Box | None) -> Pixels:
        resized.append(preprocess)
        return prepare_image(image, preprocess, box)

    monkeypatch.setattr(pipeline_module, "prepare_image", count)
    views = parse_views("hflip")

    def look(batch: Pixels) -> Pixels:
        looked.append(len(batch))
        return views[1].apply(batch)

    pipeline = Pipeline(Inputs(listing, views=(views[0], View("hflip", look))), on_gpu=False, workers=1)
    members = sessions(tmp_path, SQUASH, other, SQUASH)
    (answer,) = pipeline.run([Work(range(6), members)])
    assert len(resized) == 6 * (1 if alike else 2)
    assert looked == [6] * (1 if alike else 2)
    assert len(answer.logits) == 3
    # nothing changes a pixel, or something does
    photo = decode_image(toys.encode(toys.picture(1, size=(40, 50)))).pixels
    one, two = (prepare_image(photo, preprocess, None) for preprocess in (SQUASH, other))
    assert np.array_equal(one, two) == alike


@pytest.mark.parametrize("resize", ["squash", "center"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.875])
@pytest.mark.parametrize("size", [(31, 17), (40, 40), (9, 50)])
def test_the_fill_shows_only_where_an_image_is_padded(resize: str, crop_pct: float, size: tuple[int, int]) -> None:
    """Squashed and centered images have no border that another fill would change."""
    preprocess = Preprocess((16, 12), resize=resize, crop_pct=crop_pct)  # type: ignore[arg-type]
    pixels = toys.picture(3, size=size)
    red = replace(preprocess, fill=(255, 0, 0))
    assert np.array_equal(prepare_image(pixels, preprocess, None), prepare_image(pixels, red, None))
    assert plain_preprocess(red) == plain_preprocess(preprocess)
    assert plain_preprocess(replace(red, resize="pad")) != plain_preprocess(replace(preprocess, resize="pad"))


@pytest.mark.parametrize("box", [None, Box(1.0, 2.0, 8.0, 9.0)])
@pytest.mark.parametrize("resize", ["squash", "center", "pad"])
@pytest.mark.parametrize("size", [(40, 30), (200, 9), (9, 200)])
def test_a_photograph_and_its_pixels_are_prepared_alike(resize: str, size: tuple[int, int], box: Box | None) -> None:
    """From Pillow's image or from the array of its pixels, with and without a face, the model sees the same bytes."""
    photo = decode_image(toys.encode(toys.picture(5, size=size)))
    for face in (None, FaceCrop(0.1)):
        preprocess = Preprocess((16, 12), resize=resize, face=face)  # type: ignore[arg-type]
        seen = prepare_image(photo.image, preprocess, box)
        assert np.array_equal(seen, prepare_image(photo.pixels, preprocess, box))


class Counting(Pipeline):
    """Counts the batches whose pixels are in memory."""

    alive = most = 0
    lock = threading.RLock()  # a batch may go while this very thread counts another

    def _prepare(self, rows: range, preprocesses: set[Preprocess]) -> Batch:
        batch = super()._prepare(rows, preprocesses)
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(next(iter(batch.pixels.values())), self.drop)
        return batch

    def drop(self) -> None:
        with self.lock:
            self.alive -= 1


@pytest.mark.parametrize(("on_gpu", "ahead", "most"), [(False, 12, 3), (False, 4, 3), (True, 5, 6), (True, 2, 3)])
def test_few_batches_are_in_memory(tmp_path: Path, listing: Listing, on_gpu: bool, ahead: int, most: int) -> None:
    """Of 24 batches, three workers hold three on the CPU; for a GPU as many as asked for are ahead, and one is there.

    A consumer that is slower than all of them does not change that.
    """
    pipeline = Counting(Inputs(listing, views=parse_views("hflip")), on_gpu=on_gpu, workers=3, ahead=ahead)
    members = sessions(tmp_path, SQUASH)
    if on_gpu:
        fixed = start_gpu_sessions(
            {"m0": read_model(tmp_path / "m0.onnx")}, device=CPU, rows=1, views=parse_views("hflip")
        )
        members = tuple(fixed.values())
    pause = threading.Event()
    for count, _ in enumerate(pipeline.run(Work(range(i, i + 1), members) for i in range(24))):
        pause.wait(0.02 if count < 4 else 0)
    assert 1 <= pipeline.most <= most


def test_work_is_asked_for_as_it_is_needed(tmp_path: Path, listing: Listing) -> None:
    """Whoever plans the batches sees the answers of all but the last few: so a batch size can be tried."""
    planned = answered = 0
    members = sessions(tmp_path, SQUASH)

    def work() -> Iterator[Work]:
        nonlocal planned
        for i in range(24):
            planned += 1
            assert planned - answered <= 4
            yield Work(range(i, i + 1), members)

    for _ in Pipeline(Inputs(listing, views=parse_views("identity")), on_gpu=False, workers=2, ahead=4).run(work()):
        answered += 1
    assert planned == 24


def test_the_stopwatch_tells_the_stages_apart(tmp_path: Path, listing: Listing) -> None:
    """Reading, decoding, resizing and each model have seconds of their own; images count once, and once a view."""
    pipeline = Pipeline(Inputs(listing, views=parse_views("hflip")), on_gpu=False, workers=2)
    list(pipeline.run([Work(range(5), sessions(tmp_path, SQUASH))]))
    assert set(pipeline.watch.seconds) == {"read", "decode", "resize", "m0"}
    assert set(pipeline.watch.elapsed) == {"read", "decode", "resize", "m0"}
    assert (pipeline.watch.rows["decode"], pipeline.watch.rows["m0"]) == (5, 10)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_sessions_bring_no_threads(tmp_path: Path) -> None:
    """A session computes in its caller's thread: nothing waits in a loop beside the workers."""
    members = sessions(tmp_path, SQUASH)
    before = len(list(Path("/proc/self/task").iterdir()))
    members += sessions(tmp_path, SQUASH, replace(SQUASH, resize="pad"))
    for session in members:
        session.run(np.zeros((4, 16, 12, 3), np.uint8))
    assert len(list(Path("/proc/self/task").iterdir())) <= before
