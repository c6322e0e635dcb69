"""The resizers: the pixels of OpenCV and of torchvision's tensors, which trainings were done with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ensemble.arrays import Pixels
from ensemble.card import Interpolation, Preprocess, Resize, Resizer
from ensemble.errors import OptionError
from ensemble.images.opencv_resize import resize_as_opencv
from ensemble.images.resize import plain_preprocess, resize_image
from ensemble.images.torch_resize import resize_as_torch

_OPENCV = {
    "nearest": "INTER_NEAREST",
    "bilinear": "INTER_LINEAR",
    "area": "INTER_AREA",
    "bicubic": "INTER_CUBIC",
    "lanczos": "INTER_LANCZOS4",
}


def cases(count: int, *, smallest: int) -> Iterator[tuple[Pixels, tuple[int, int]]]:
    """Noise and new sizes: enlarged, shrunk, both at once, by whole numbers and halved; 1, 3 and 4 channels."""
    generator = np.random.default_rng(count)
    for case in range(count):
        height, width, new_height, new_width = (int(side) for side in generator.integers(smallest, 110, 4))
        if case % 4 == 1:
            height, width = new_height * int(generator.integers(1, 5)), new_width * int(generator.integers(1, 5))
        elif case % 4 == 2:
            height, width = new_height * 2, new_width * 2
        channels = (1, 3, 4)[case % 3]
        yield generator.integers(0, 256, (height, width, channels), dtype=np.uint8), (new_height, new_width)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "area", "lanczos"])
def test_every_pixel_equals_opencv(interpolation: Interpolation) -> None:
    """Nearest, linear, area and Lanczos give cv2's pixels for sizes of 4 px and more, whatever the ratio."""
    cv2 = pytest.importorskip("cv2")
    for pixels, (height, width) in cases(80, smallest=4):
        theirs = cv2.resize(pixels, (width, height), interpolation=getattr(cv2, _OPENCV[interpolation]))
        ours = resize_as_opencv(pixels, (height, width), interpolation)
        assert np.array_equal(ours, theirs.reshape(ours.shape)), (pixels.shape, height, width)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "area"])
def test_images_of_one_pixel_equal_opencv(interpolation: Interpolation) -> None:
    """Sides of one to three pixels, where every tap is at a border, are enlarged and shrunk as cv2 does it."""
    cv2 = pytest.importorskip("cv2")
    for height in (1, 2, 3):
        for width in (1, 2, 90):
            pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
            for size in ((8, 8), (40, 24)):
                theirs = cv2.resize(pixels, size[::-1], interpolation=getattr(cv2, _OPENCV[interpolation]))
                assert np.array_equal(resize_as_opencv(pixels, size, interpolation), theirs), (height, width, size)


def test_cubic_equals_opencv_within_a_level() -> None:
    """OpenCV leaves cubic to another library on x86: one level at most, on at most one value in 20 there or here."""
    cv2 = pytest.importorskip("cv2")
    different = values = 0
    for pixels, (height, width) in cases(80, smallest=8):
        theirs = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        ours = resize_as_opencv(pixels, (height, width), "bicubic")
        distance = np.abs(ours.astype(int) - theirs.reshape(ours.shape))
        assert distance.max() <= 1
        different, values = different + int(np.count_nonzero(distance)), values + distance.size
    assert different < 0.06 * values


def test_opencv_is_not_pillow() -> None:
    """Shrinking noise by eight leaves it noisy with OpenCV's linear, and nearly flat with Pillow's antialiased one."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    spread = {resizer: resize_image(noise, _card(resizer, 32)).std() for resizer in ("pillow", "opencv", "torch")}
    assert spread["pillow"] < 15
    assert min(spread["opencv"], spread["torch"]) > 30


def _card(resizer: Any, side: int, **settings: Any) -> Preprocess:
    return Preprocess((side, side), resizer=resizer, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_tensors_equal_torchvision(interpolation: Interpolation, antialias: bool) -> None:
    """uint8 tensors in torchvision's v2 give equal pixels, float tensors pixels within a level once rounded."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    mode = pytest.importorskip("torchvision.transforms").InterpolationMode(interpolation)
    different = values = 0
    for pixels, size in cases(60, smallest=4):
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
        exact = functional.resize(planes, list(size), mode, antialias=antialias).permute(1, 2, 0).numpy()
        rounded = functional.resize(planes.float(), list(size), mode, antialias=antialias).round().clamp(0, 255)
        if torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}:  # elsewhere v2 computes in float32
            ours = resize_as_torch(pixels, size, interpolation, antialias=antialias, in_integers=True)
            assert np.array_equal(ours, exact), (pixels.shape, size)
        ours = resize_as_torch(pixels, size, interpolation, antialias=antialias, in_integers=False)
        distance = np.abs(ours.astype(int) - rounded.permute(1, 2, 0).numpy().astype(int))
        assert distance.max() <= 1
        different, values = different + int(np.count_nonzero(distance)), values + distance.size
    assert different < 0.002 * values


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(97, 64), (64, 97), (33, 131), (90, 90), (20, 41), (41, 20)])
@pytest.mark.parametrize("resize", ["squash", "center", "pad"])
def test_cuts_and_borders_equal_albumentations(resize: Resize, height: int, width: int) -> None:
    """With OpenCV's resizer the sides, the middle and the border are rounded as in an albumentations pipeline."""
    albumentations = pytest.importorskip("albumentations")
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    steps = {
        "squash": [albumentations.Resize(40, 40)],
        "center": [albumentations.SmallestMaxSize(40), albumentations.CenterCrop(35, 35)],
        "pad": [albumentations.LongestMaxSize(40), albumentations.PadIfNeeded(40, 40, border_mode=0, fill=(9, 8, 7))],
    }[resize]
    theirs = albumentations.Compose(steps)(image=pixels)["image"]
    side, share = (35, 35 / 40) if resize == "center" else (40, 1.0)
    ours = resize_image(pixels, _card("opencv", side, resize=resize, crop_pct=share, fill=(9, 8, 7)))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("resizer", ["opencv", "torch", "torch-antialias", "torch-uint8", "torch-uint8-antialias"])
def test_an_image_of_the_right_size_is_left_alone(resizer: Resizer) -> None:
    """No resizer touches an image that has the model's size already, with any interpolation."""
    pixels = np.random.default_rng(3).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for interpolation in ("nearest", "bilinear", "bicubic"):
        assert np.array_equal(resize_image(pixels, _card(resizer, 24, interpolation=interpolation)), pixels)


def test_a_resizer_has_only_its_own_interpolations() -> None:
    """Area is OpenCV's alone, torch has no Lanczos, and the error names what there is and where area is."""
    with pytest.raises(OptionError, match=r"E204.*pillow has no interpolation 'area'") as caught:
        Preprocess((24, 24), interpolation="area")
    assert caught.value.hint is not None
    assert "--resizer opencv" in caught.value.hint
    with pytest.raises(OptionError, match=r"torch has no interpolation 'lanczos', only nearest, bilinear, bicubic"):
        Preprocess((24, 24), interpolation="lanczos", resizer="torch")
    with pytest.raises(OptionError, match="resizer must be one of pillow, opencv"):
        _card("cv2", 24)
    with pytest.raises(OptionError, match=r"channels must be one of rgb, bgr, grey"):
        _card("pillow", 24, channels="gray")


def test_channels_do_not_change_the_pixels() -> None:
    """The graph makes the network's channels, so models that differ in them alone share one resize."""
    assert plain_preprocess(_card("opencv", 24, channels="bgr")) == plain_preprocess(_card("opencv", 24))
    assert plain_preprocess(_card("opencv", 24)) != plain_preprocess(_card("pillow", 24))
