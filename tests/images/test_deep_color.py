"""Colors of 16 bits in PNG and TIFF files: every bit is read, whatever Pillow keeps of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ensemble.card import FaceCrop, Preprocess
from ensemble.errors import DataError
from ensemble.images.deep_color import read_deep_colors
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import face_square, prepare_image
from ensemble.images.planes import decode_for, decode_planes, resize_planes

RNG = np.random.default_rng(0)
_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}
Deep = NDArray[np.uint16]


def drawn(channels: int) -> Deep:
    return RNG.integers(0, 65536, (11, 7, channels), dtype=np.uint16)


def png(values: Deep, *, orientation: int | None = None) -> bytes:
    """A PNG of 16 bits per channel, by the specification: each of the five filters in turn."""
    height, width, channels = values.shape
    raw, step = values.astype(">u2").tobytes(), 2 * channels
    lines, above = b"", bytes(width * step)
    for y in range(height):
        row = raw[y * width * step : (y + 1) * width * step]
        left, corner = bytes(step) + row[:-step], bytes(step) + above[:-step]
        kind = y % 5
        lines += bytes([kind])
        for x, a, b, c in zip(row, left, above, corner, strict=True):
            nearest = min((a, b, c), key=lambda one: abs(a + b - c - one))
            lines += bytes([(x - (0, a, b, (a + b) // 2, nearest)[kind]) & 255])
        above = row

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLORS[channels], 0, 0, 0)
    exif = b""
    if orientation is not None:
        tags = Image.Exif()
        tags[274] = orientation
        exif = chunk(b"eXIf", tags.tobytes()[6:])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + exif + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def tiff(values: Deep, order: str, *, deflate: bool) -> bytes:
    """A TIFF of 16 bits per channel in one strip, by the specification."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    count = 10 if channels == 4 else 9
    at = 8 + 2 + 12 * count + 4
    entries = [(256, width), (257, height), (258, at), (259, 8 if deflate else 1), (262, 2), (273, at + 2 * channels)]
    entries += [(277, channels), (278, height), (279, len(pixels))] + [(338, 2)] * (channels == 4)
    found = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, count)
    for tag, value in entries:
        kind, many = (3, channels) if tag == 258 else (4, 1)
        found += struct.pack(f"{order}HHII", tag, kind, many, value)
    return found + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels) + pixels


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_png_keeps_all_bits_of_its_colors(channels: int) -> None:
    """Grey with alpha, RGB and RGBA, with each filter of a PNG."""
    values = drawn(channels)
    found = decode_planes(png(values), channels)
    np.testing.assert_array_equal(found.image, values)
    assert found.kind == "uint16"


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_a_tiff_keeps_all_bits_of_its_colors(channels: int, order: str, deflate: bool) -> None:
    """Both byte orders, plain and compressed: Pillow's own RGB has the upper eight bits alone."""
    values = drawn(channels)
    found = decode_planes(tiff(values, order, deflate=deflate), channels)
    np.testing.assert_array_equal(found.image, values)


def test_eight_bits_and_grey_are_not_deep() -> None:
    """What Pillow decodes whole is left to it."""
    sink = io.BytesIO()
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(sink, "PNG")
    assert read_deep_colors(sink.getvalue()) is None
    assert read_deep_colors(png(drawn(1))) is None


def test_deep_colors_are_turned_and_become_opaque() -> None:
    """The orientation counts, an RGB image is opaque for a model of four channels, and other channels are refused."""
    values = drawn(3)
    upright = decode_planes(png(values, orientation=6), 3)
    np.testing.assert_array_equal(upright.image, np.rot90(values, -1))
    opaque = decode_planes(png(values), 4)
    assert "I560" in opaque.notices
    np.testing.assert_array_equal(opaque.image[..., 3], 65535)
    with pytest.raises(DataError, match="it has 3 channels"):
        decode_planes(png(values), 1)
    with pytest.raises(DataError, match="it has 2 channels"):
        decode_planes(png(drawn(2)), 3)
    with pytest.raises(DataError, match="damaged"):
        decode_planes(png(values)[:80], 3)


def test_faces_are_cut_from_the_stored_values() -> None:
    """The square around the face is that of RGB images, and its values those of the file."""
    values = RNG.integers(0, 65536, (40, 30, 2), dtype=np.uint16)
    crop = FaceCrop(0.1)
    preprocess = Preprocess((16, 16), channels="2", scale=(0.0, 65535.0), face=crop)
    box = Box(5, 8, 17, 22)
    decoded = decode_for(png(values), Path("a.png"), preprocess).image
    found = prepare_image(decoded, preprocess, box)
    left, top, right, bottom = face_square(40, 30, crop, box)
    expected = resize_planes(values[top:bottom, left:right].astype(np.float32), preprocess)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="face box") as caught:
        prepare_image(decoded, preprocess, Box(500, 8, 510, 20))
    assert caught.value.code == "E354"
