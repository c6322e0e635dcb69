"""Resizing and cutting: the same pixels that timm and torchvision trained the model on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ensemble.card import Interpolation, Preprocess, Resize
from ensemble.images.decode import decode_image
from ensemble.images.resize import resize_image
from tests.support.corpus import encode, picture

PICTURE = picture()


@pytest.mark.parametrize(
    ("height", "width", "odd"), [(1, 1, True), (1, 5000, True), (7, 9, True), (8, 161, True), (8, 160, False)]
)
def test_fault_15_tiny_and_narrow_images_are_read(height: int, width: int, odd: bool) -> None:
    """Below 8 px, or beyond 20 to 1, W308 is given; the image is read and resized all the same, in every mode."""
    photo = decode_image(encode(np.full((height, width, 3), 90, np.uint8), "PNG"))
    assert photo.notices == (("W308",) if odd else ())
    for resize in ("squash", "center", "pad"):
        resized = resize_image(photo.pixels, Preprocess((24, 24), resize=resize, fill=(90, 90, 90), crop_pct=0.9))
        assert resized.shape == (24, 24, 3)
        assert (resized == 90).all()


def test_fault_15_narrow_images_need_little_memory() -> None:
    """Scaling 1 x 100,000 px to a short side of 256 would take 26 GB; only the middle of it is scaled."""
    stripe = np.zeros((1, 100_000, 3), np.uint8)
    stripe[0, 50_000:] = 200
    resized = resize_image(stripe, Preprocess((256, 256), resize="center", interpolation="nearest"))
    assert (resized[:, :100] == 0).all()
    assert (resized[:, 156:] == 200).all()


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["squash", "center", "pad"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_equals_timm(resize: Resize, interpolation: Interpolation) -> None:
    """A photograph is resized and cut as timm's evaluation transform does it, pixel for pixel, whatever its size."""
    transforms = pytest.importorskip("timm.data.transforms_factory")
    generator = np.random.default_rng(len(resize + interpolation))
    for trial in range(25):
        height, width = (int(side) for side in generator.integers(8, 150, 2))
        size = tuple(int(side) for side in generator.integers(8, 70, 2))
        if trial % 2:
            size = (size[0], size[0])
        crop_pct = float(generator.choice([1.0, 0.95, 0.9, 0.875, 0.5]))
        mean = (0.485, 0.456, 0.406)
        timms = transforms.transforms_imagenet_eval(
            img_size=size,
            crop_pct=crop_pct,
            crop_mode="border" if resize == "pad" else resize,
            interpolation=interpolation,
            mean=mean,
            normalize=False,
        )
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = timms(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
        wanted = Preprocess((size[0], size[1]), resize, interpolation, crop_pct, fill=(124, 116, 104))
        ours = resize_image(pixels, wanted)
        assert np.array_equal(ours, theirs), (height, width, wanted)


def test_squash_resizes_the_whole_image() -> None:
    """Halving by squashing with `nearest` takes every second pixel."""
    resized = resize_image(PICTURE, Preprocess((24, 32), interpolation="nearest"))
    assert np.array_equal(resized, PICTURE[1::2, 1::2])


def test_an_image_of_the_right_size_is_left_alone() -> None:
    """An image that has the model's size already comes out unchanged, in every mode."""
    for resize in ("squash", "center", "pad"):
        assert np.array_equal(resize_image(PICTURE, Preprocess((48, 64), resize=resize)), PICTURE)
