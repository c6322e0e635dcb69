"""Near-duplicates: copies are found however they were made, and similar images are not taken for copies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints.audit.near_duplicates import WINDOWS, NearDuplicate, find_near_duplicates
from checkpoints.audit.outliers import find_outliers
from checkpoints.audit.thumbnails import Thumbnails, make_thumbnails, sum_tables, window_means


def scene(seed: int, *, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """A picture with detail at several scales, different for every seed."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells, weight in ((3, 1.0), (7, 0.6), (20, 0.3)):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += weight * np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), float)
    return Image.fromarray((total / 1.9).astype(np.uint8))


def recoded(image: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue()))


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def with_mask(image: Image.Image, shade: int) -> Image.Image:
    """The same photograph with a patch over a sixth of it."""
    changed = image.copy()
    changed.paste((shade, shade, shade), (80, 90, 160, 150))
    return changed


def flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def find(tmp_path: Path, *images: Image.Image, **options: Any) -> tuple[NearDuplicate, ...]:
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number:02d}.png")
        image.save(paths[-1])
    return find_near_duplicates(make_thumbnails(paths, workers=1), **options)


OTHERS = [scene(seed) for seed in range(10)]
ONE = OTHERS[3]
WINDOW = (0.1, 0.05, 0.9, 0.85)


@pytest.mark.parametrize(
    ("copy", "mirrored", "cropped"),
    [
        (ONE.copy(), False, False),
        (recoded(ONE, 25), False, False),
        (ONE.resize((97, 73)), False, False),
        (ONE.resize((400, 200)), False, False),  # squashed as well
        (flip(recoded(ONE, 40)), True, False),
        (crop(ONE, *WINDOW), False, True),
        (recoded(crop(ONE, 0, 0.22, 1, 1), 50), False, True),  # one side only
        (crop(ONE, 0.31, 0.27, 0.97, 0.93).resize((90, 90)), False, True),
        (flip(crop(ONE, *WINDOW)), True, True),
        (ONE.point(lambda shade: int(shade * 0.7 + 30)), False, False),  # other brightness and contrast
    ],
)
def test_copies_are_found(copy: Image.Image, mirrored: bool, cropped: bool, tmp_path: Path) -> None:
    """Exactly the planted pair is found, with how it was made."""
    (pair,) = find(tmp_path, *OTHERS, copy)
    assert {pair.copy, pair.of} == {3, 10}
    assert (pair.mirrored, pair.cropped) == (mirrored, cropped)
    assert pair.likeness >= 0.99
    if cropped:
        assert (pair.copy, pair.of) == (10, 3)


def test_crops_of_any_place_and_shape_are_found() -> None:
    """Of 60 crops with sides of 60 to 96 %, half of them mirrored, 95 % are found, and no other pair."""
    rng = np.random.default_rng(0)
    images = [scene(seed) for seed in range(60)]
    for number in range(60):
        wide, high = rng.uniform(0.6, 0.96, 2)
        left, top = rng.random() * (1 - wide), rng.random() * (1 - high)
        part = crop(images[number], left, top, left + wide, top + high)
        images.append(flip(part) if number % 2 else part)
    grey = [np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX)) for image in images]
    sizes = np.array([image.size for image in images])
    found = {
        (pair.copy, pair.of, pair.mirrored) for pair in find_near_duplicates(Thumbnails(np.stack(grey), sizes, {}))
    }
    wanted = {(60 + number, number, number % 2 == 1) for number in range(60)}
    assert len(found & wanted) >= 57
    assert found <= wanted


def portrait(seed: int) -> Image.Image:
    """A picture that is much like those of every other seed, as photographs of faces are."""
    return Image.blend(scene(0, size=(96, 128)), scene(seed, size=(96, 128)), 0.25)


def test_small_crops_among_images_that_are_alike_are_found() -> None:
    """Of 60 crops to 60 to 70 % of the sides, resized, among 240 images that are much alike, 95 % are found."""
    rng = np.random.default_rng(1)
    images = [portrait(seed) for seed in range(1, 241)]
    for number in range(60):
        wide, high = rng.uniform(0.6, 0.7, 2)
        left, top = rng.random() * (1 - wide), rng.random() * (1 - high)
        part = crop(images[number], left, top, left + wide, top + high)
        images.append(recoded(part.resize((int(rng.integers(40, 80)), int(rng.integers(50, 100)))), 70))
    grey = [np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX)) for image in images]
    sizes = np.array([image.size for image in images])
    found = {(pair.copy, pair.of) for pair in find_near_duplicates(Thumbnails(np.stack(grey), sizes, {}))}
    wanted = {(240 + number, number) for number in range(60)}
    assert len(found & wanted) >= 57
    assert found <= wanted


def test_every_place_of_a_crop_is_near_a_window() -> None:
    """Windows of one shape reach all four borders, and neighbors are at most one of 6 x 6 cells apart."""
    shapes = {(round(r - x, 9), round(b - y, 9)) for x, y, r, b in WINDOWS}
    assert min(min(shape) for shape in shapes) == pytest.approx(0.6)
    for shape in shapes:
        mine = np.array([w for w in WINDOWS if np.allclose(w[2:] - w[:2], shape)])
        for axis in (0, 1):
            starts = np.unique(mine[:, axis].round(9))
            assert (starts[0], starts[-1]) == pytest.approx((0, 1 - shape[axis]))
            assert np.diff(starts).max(initial=0) <= shape[axis] / 6 + 1e-9
        assert len(mine) == len(np.unique(mine[:, 0].round(9))) * len(np.unique(mine[:, 1].round(9)))


def test_the_window_of_a_crop_is_found(tmp_path: Path) -> None:
    """The window is where the crop was cut, to about a pixel of the thumbnail."""
    (pair,) = find(tmp_path, *OTHERS, crop(ONE, *WINDOW))
    np.testing.assert_allclose(pair.window, WINDOW, atol=0.02)


def test_similar_photographs_are_no_copies(tmp_path: Path) -> None:
    """The same photograph with another mask, other photographs, and images of one shade are no copies."""
    blank = Image.new("RGB", (50, 50), (90, 90, 90))
    assert find(tmp_path, *OTHERS, with_mask(ONE, 30), with_mask(OTHERS[5], 230), blank, blank.copy()) == ()


def test_without_crops_only_whole_copies_are_found(tmp_path: Path) -> None:
    """A mirrored copy is found, a crop is not."""
    (pair,) = find(tmp_path, *OTHERS, crop(ONE, *WINDOW), flip(OTHERS[1]), crops=False)
    assert ({pair.copy, pair.of}, pair.mirrored) == ({1, 11}, True)


def test_few_images_and_unreadable_ones_are_no_fault(tmp_path: Path) -> None:
    """No image, one image, and a file that is not an image give no pair; the fault is kept."""
    assert find_near_duplicates(make_thumbnails([])) == ()
    assert find(tmp_path, ONE) == ()
    (tmp_path / "bad.png").write_bytes(b"x")
    images = make_thumbnails([tmp_path / "00.png", tmp_path / "bad.png"])
    assert list(images.faults) == [1]
    assert find_near_duplicates(images) == ()


def test_the_mean_of_a_window_is_that_of_its_pixels() -> None:
    """Windows on pixel borders have the mean of the pixels, windows between them the weighted mean."""
    grey = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    windows = np.array([[0.25, 0.5, 0.75, 1.0], [0, 0, 1 / 128, 1 / 64]])
    means = window_means(sum_tables(grey), np.array([1, 0]), windows, 1)[:, 0, 0]
    assert means[0] == pytest.approx(grey[1, 32:, 16:48].mean())
    assert means[1] == pytest.approx(grey[0, 0, 0])


def test_outliers_are_the_blank_the_narrow_and_the_unlike(tmp_path: Path) -> None:
    """Among 40 similar photographs a blank, a very wide and an inverted one stand out, and no other does."""
    rng = np.random.default_rng(0)
    base = np.asarray(scene(0).convert("L").resize((64, 64)), float)
    grey = np.stack([np.clip(base + rng.normal(0, 12, (64, 64)), 0, 255) for _ in range(40)]).astype(np.uint8)
    grey[7], grey[9] = 128, 255 - grey[9]
    sizes = np.tile([240, 180], (40, 1))
    sizes[21] = 2000, 100
    found = {one.row: one.why for one in find_outliers(Thumbnails(grey, sizes, {}))}
    assert sorted(found) == [7, 9, 21]
    assert "one shade" in found[7]
    assert "unlike" in found[9]
    assert "aspect" in found[21]
