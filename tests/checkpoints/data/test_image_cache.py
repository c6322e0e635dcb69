"""Decoded images: the face crops of prediction, and the fallback crop for some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints.data.image_cache import decode_images
from checkpoints.data.mask_contest import Row
from checkpoints.training.batch_source import BatchSource
from checkpoints.training.batches import LabeledImages
from checkpoints.training.sampler import Order
from ensemble.card import FaceCrop, Preprocess
from ensemble.images.face_boxes import Box, Face
from ensemble.images.face_crop import fallback_crop, prepare_image
from tests.support.toys import picture

pytestmark = pytest.mark.slow


def test_the_fallback_is_the_median_of_the_crops_that_are_made() -> None:
    """The fallback has the median center and side of three faces, with the margin, limited to the image."""
    sides = (40, 100, 30)
    faces = [
        Face(str(i), Box(x, 20, x + 20, 20 + side), 1.0, 1, "first", 200, 100)
        for i, (x, side) in enumerate(zip((0, 40, 100), sides, strict=True))
    ]
    faces.append(Face("none", None, None, 0, None, 200, 100))
    crop = fallback_crop(faces, 0.25)
    assert crop == FaceCrop(0.25, (0.25, 0.4, 0.6))
    assert fallback_crop(faces[3:], 0.25) == FaceCrop(0.25, (0.5, 0.5, 1.0))


def test_some_faces_are_learned_as_if_not_found(tmp_path: Path) -> None:
    """Prediction uses every box; training uses the fallback crop for the drawn images, which all have a face."""
    rows, boxes = [], []
    for i in range(40):
        path = tmp_path / f"{i}.png"
        Image.fromarray(picture(i, size=(60, 60))).save(path)
        rows.append(Row(path.name, str(i), 0, 0, 20, i % 3, path, moved=17))
        boxes.append(None if i % 4 == 0 else Box(5, 5, 25, 25))
    preprocess = Preprocess((16, 16), face=FaceCrop(0.2, (0.5, 0.5, 0.4)))
    photos = decode_images(rows, preprocess, boxes=boxes, fallback_share=0.5, seed=1)
    right, wrong = (
        np.stack([prepare_image(picture(i, size=(60, 60)), preprocess, box) for i, box in enumerate(seen)])
        for seen in (boxes, [None] * 40)
    )
    np.testing.assert_array_equal(photos.pixels, right)
    targets, labels = np.array([row.target for row in rows]), np.array([row.label for row in rows])
    order = [Order(part, np.zeros_like(part)) for part in np.arange(40).reshape(4, 10)]
    with BatchSource(LabeledImages(photos, targets, labels), "none", seed=0) as source:
        made = list(source.epoch(order, 1))
    learned = np.concatenate([pixels for pixels, _ in made])
    other = np.array([not np.array_equal(a, b) for a, b in zip(learned, right, strict=True)])
    np.testing.assert_array_equal(learned[other], wrong[other])
    assert 8 < other.sum() < 22
    assert {int(c) for _, classes in made for c in classes} == {17}
    kept = LabeledImages(photos, targets, labels)[np.arange(40) >= 20]
    with BatchSource(kept, "none", seed=0) as source:
        ((pixels, _),) = source.epoch([Order(np.arange(20), np.zeros(20, dtype=np.int64))], 1)
    np.testing.assert_array_equal(pixels, learned[20:])


def test_without_a_face_crop_nothing_is_drawn(tmp_path: Path) -> None:
    """Images without boxes have no fallback crop."""
    path = tmp_path / "a.png"
    Image.fromarray(picture(0)).save(path)
    photos = decode_images([Row("a.png", "a", 0, 0, 20, 0, path)], Preprocess((16, 16)), fallback_share=1.0)
    assert (photos.fallback.shape, photos.fallback_index.tolist()) == ((0, 16, 16, 3), [-1])
