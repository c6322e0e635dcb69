"""Which RGB values come out of which pixel types, written down by hand or worked out without Pillow."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.images.decode import decode_image
from tests.support.corpus import ORIENTATION, encode, exif, picture, png, refusal, tiff

PICTURE = picture()
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_back_the_pixels(kind: str) -> None:
    """What was saved without loss comes back unchanged, without notices, as an array that cannot be written to."""
    photo = decode_image(encode(PICTURE, kind, **LOSSLESS[kind]))
    assert np.array_equal(photo.pixels, PICTURE)
    assert photo.pixels.dtype == np.uint8
    assert photo.notices == ()
    assert not photo.pixels.flags.writeable


def test_fault_07_cmyk_becomes_rgb() -> None:
    """Each channel is what ink and black leave of white: (1 - c)(1 - k)."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 128, 255, 64], [10, 20, 30, 40]]], np.uint8)
    golden = [[[255, 255, 255], [0, 255, 255], [0, 0, 0], [191, 95, 0], [207, 198, 190]]]
    photo = decode_image(encode(Image.fromarray(inks, "CMYK"), "TIFF"))
    assert photo.pixels.tolist() == golden
    left = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(photo.pixels - left).max() <= 1


def test_fault_07_cmyk_jpeg_is_not_inverted() -> None:
    """Adobe's CMYK JPEGs hold inverted ink; white paper stays white and a red stays red."""
    for ink, color in (((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0))):
        photo = decode_image(encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100))
        assert np.abs(photo.pixels.astype(int) - color).max() <= 3


def _rows(values: Any, dtype: str) -> bytes:
    """PNG rows: each begins with filter byte 0."""
    return b"".join(b"\0" + np.asarray(row, dtype).tobytes() for row in values)


GREY16 = np.array([[0, 255, 256, 1000], [30_000, 32_768, 65_279, 65_535]], ">u2")
GREY16_SHOWN = [[0, 0, 1, 3], [117, 128, 254, 255]]


@pytest.mark.parametrize(
    "data",
    [
        png(4, 2, 16, 0, _rows(GREY16, ">u2")),
        tiff(GREY16),
        tiff(GREY16.astype("<u2")),
    ],
    ids=["png", "tiff big-endian", "tiff little-endian"],
)
def test_fault_08_grey_of_16_bits_keeps_its_upper_eight(data: bytes) -> None:
    """A 16-bit grey of 1000 is 3 of 255, and not white."""
    photo = decode_image(data)
    assert photo.pixels.tolist() == [[[value] * 3 for value in row] for row in GREY16_SHOWN]


@pytest.mark.parametrize(
    ("data", "golden"),
    [
        (png(2, 1, 16, 2, _rows([[[1000, 2000, 65_535], [256, 255, 0]]], ">u2")), [[3, 7, 255], [1, 0, 0]]),
        (png(2, 1, 16, 6, _rows([[[1000, 2000, 3000, 65_535], [1, 2, 3, 0]]], ">u2")), [[3, 7, 11], [255, 255, 255]]),
        (png(2, 1, 16, 4, _rows([[[1000, 65_535], [40_000, 0]]], ">u2")), [[3, 3, 3], [255, 255, 255]]),
        (png(2, 1, 8, 4, _rows([[[10, 255], [10, 0]]], "u1")), [[10, 10, 10], [255, 255, 255]]),
        (png(8, 1, 1, 0, b"\0\xa0"), [[255] * 3, [0] * 3, [255] * 3, *[[0] * 3] * 5]),
        (png(4, 1, 2, 0, b"\0\x1b"), [[0] * 3, [85] * 3, [170] * 3, [255] * 3]),
        (png(2, 1, 8, 3, b"\0\0\1", PLTE=bytes([1, 2, 3, 250, 251, 252])), [[1, 2, 3], [250, 251, 252]]),
        (encode(Image.new("L", (2, 1), 77), "PNG"), [[77] * 3] * 2),
        (encode(Image.new("1", (2, 1), 1), "TIFF", compression="group4"), [[255] * 3] * 2),
        (tiff(np.array([[5, 200]], np.uint8)), [[5] * 3, [200] * 3]),
    ],
    ids=["RGB16", "RGBA16", "LA16", "LA", "1-bit", "2-bit", "palette", "L", "fax", "tiff"],
)
def test_fault_08_every_pixel_type_becomes_rgb(data: bytes, golden: list[list[int]]) -> None:
    """Grey, palette, few bits and many bits all become the RGB that they stand for."""
    assert decode_image(data).pixels.tolist() == [golden]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i4", ">i4", "<u4", "<i2", ">i2"])
def test_fault_08_numbers_without_a_range_are_refused(dtype: str) -> None:
    """Floating-point and signed or 32-bit pixels have no known white, and are E309 instead of a guess."""
    assert refusal(tiff(np.array([[0, 1000]], dtype))).code == "E309"


def test_fault_08_other_color_spaces_become_rgb() -> None:
    """Black and white of YCbCr and of Lab are black and white."""
    for mode, colors in (("YCbCr", [(0, 128, 128), (255, 128, 128)]), ("LAB", [(0, 128, 128), (255, 128, 128)])):
        image = Image.new(mode, (2, 1))
        image.putdata(colors)
        photo = decode_image(encode(image, "TIFF"))
        assert np.abs(photo.pixels.astype(int) - [[[0] * 3, [255] * 3]]).max() <= 1


def test_fault_09_transparency_is_laid_on_white() -> None:
    """Opaque pixels keep their color, transparent ones are white whatever their hidden color, others are between."""
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [100, 0, 200, 128]]], np.uint8)
    for data in (encode(pixels, "PNG"), encode(pixels, "WEBP", lossless=True, exact=True), encode(pixels, "TIFF")):
        photo = decode_image(data)
        assert photo.pixels.tolist() == [[[10, 20, 30], [255, 255, 255], [177, 127, 227]]]


@pytest.mark.parametrize(
    ("data", "golden"),
    [
        (
            png(2, 1, 8, 3, b"\0\0\1", PLTE=bytes([0, 0, 0, 100, 0, 200]), tRNS=b"\xff\x80"),
            [[0, 0, 0], [177, 127, 227]],
        ),
        (png(2, 1, 8, 0, b"\0\5\6", tRNS=b"\0\5"), [[255] * 3, [6] * 3]),
        (png(2, 1, 16, 0, _rows([[1000, 1001]], ">u2"), tRNS=struct.pack(">H", 1000)), [[255] * 3, [3] * 3]),
        (png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", tRNS=bytes([0, 1, 0, 2, 0, 3])), [[255] * 3, [4, 5, 6]]),
    ],
    ids=["palette", "grey", "grey 16 bits", "RGB"],
)
def test_fault_09_one_transparent_color_is_white(data: bytes, golden: list[list[int]]) -> None:
    """Transparency that is stated by color is laid on white like any other."""
    assert decode_image(data).pixels.tolist() == [golden]


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """How a stored picture is to be shown (EXIF 2.32, table 6)."""
    turns: dict[int, Pixels] = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }
    return turns[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_fault_10_orientation_is_applied(orientation: int, order: str) -> None:
    """All eight orientations come out upright, pixel for pixel, in both byte orders and all formats that know them."""
    data = exif(orientation, order=order)
    assert np.array_equal(decode_image(encode(PICTURE, "PNG", exif=data)).pixels, _turn(PICTURE, orientation))
    assert np.array_equal(
        decode_image(encode(PICTURE, "WEBP", lossless=True, exif=data)).pixels, _turn(PICTURE, orientation)
    )
    turned = decode_image(encode(PICTURE, "JPEG", exif=data)).pixels
    stored = decode_image(encode(PICTURE, "JPEG")).pixels
    assert np.array_equal(turned, _turn(stored, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fault_10_orientation_of_tiff_is_applied_once(orientation: int) -> None:
    """In TIFF the orientation is a tag of the image itself; it is applied, and not twice."""
    for compression in (None, "tiff_lzw"):
        data = encode(PICTURE, "TIFF", compression=compression, tiffinfo={ORIENTATION: orientation})
        assert np.array_equal(decode_image(data).pixels, _turn(PICTURE, orientation))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {}), ("AVIF", {}), ("MPO", {})],
)
def test_fault_12_of_several_frames_the_first_counts(kind: str, options: dict[str, Any]) -> None:
    """Animations and pages give what their first frame gives alone, and I306."""
    others = [Image.fromarray(picture(seed=seed)).rotate(90 * seed) for seed in (1, 2)]
    photo = decode_image(encode(PICTURE, kind, save_all=True, append_images=others, **options))
    alone = decode_image(encode(PICTURE, "JPEG" if kind == "MPO" else kind, **options))
    # AVIF codes a sequence in another way than a still
    assert np.abs(photo.pixels.astype(int) - alone.pixels).max() <= (40 if kind == "AVIF" else 0)
    assert photo.notices == ("I306",)


def test_fault_12_a_broken_second_page_does_not_cost_the_first() -> None:
    """A TIFF whose second page is nowhere still has its first."""
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    photo = decode_image(tiff(values, next_page=7))
    assert np.array_equal(photo.pixels[..., 0], values)
    assert photo.notices == ("I306",)
