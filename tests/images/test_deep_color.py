"""Colors of 16 bits in PNG and TIFF files: every bit is read, whatever Pillow keeps of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ensemble.card import FaceCrop, Preprocess
from ensemble.errors import DataError
from ensemble.images.decode import convert_image, decode_image
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


def tiff(values: Deep, order: str, *, deflate: bool, ink: bool = False) -> bytes:
    """A TIFF of 16 bits per channel in one strip, by the specification; four are RGBA, or with ``ink`` CMYK."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    alpha = channels == 4 and not ink
    count = 9 + alpha
    at = 8 + 2 + 12 * count + 4
    entries = [(256, width), (257, height), (258, at), (259, 8 if deflate else 1), (262, 5 if ink else 2)]
    entries += [(273, at + 2 * channels), (277, channels), (278, height), (279, len(pixels))] + [(338, 2)] * alpha
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


def planar_tiff(
    values: NDArray[np.generic], *, order: Literal["<", ">"] = "<", photometric: int = 2, sample_format: int = 1
) -> bytes:
    """An uncompressed TIFF whose channels are stored one after the other (PlanarConfiguration 2)."""
    height, width, channels = values.shape
    bits, kind = 8 * values.dtype.itemsize, values.dtype.newbyteorder(order)
    planes = [np.ascontiguousarray(values[..., c]).astype(kind).tobytes() for c in range(channels)]
    starts = [8 + sum(map(len, planes[:c])) for c in range(channels)]
    lists = {258: ("H", [bits] * channels), 273: ("I", starts), 279: ("I", list(map(len, planes)))}
    if sample_format != 1:
        lists[339] = ("H", [sample_format] * channels)
    if channels == 4 and photometric == 2:
        lists[338] = ("H", [2])
    one = {256: ("H", [width]), 257: ("H", [height]), 259: ("H", [1]), 262: ("H", [photometric])}
    one |= {277: ("H", [channels]), 278: ("H", [height]), 284: ("H", [2])}
    entries, more, at = b"", b"", 8 + sum(map(len, planes))
    tags = sorted((one | lists).items())
    behind = at + 2 + 12 * len(tags) + 4
    for tag, (form, numbers) in tags:
        packed = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place, more = struct.pack(order + "I", behind + len(more)), more + packed
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[form], len(numbers)) + place
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, at)
    return head + b"".join(planes) + struct.pack(order + "H", len(tags)) + entries + bytes(4) + more


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_channels_of_16_bits_that_are_stored_one_after_the_other(order: Literal["<", ">"], channels: int) -> None:
    """Pillow takes 8 bits per value from such a file, a mixture of high and low bytes of half of the picture."""
    values = drawn(channels)
    data = planar_tiff(values, order=order)
    assert np.array_equal(decode_planes(data, channels).image, values.astype(np.float32))
    values[..., 3:] = 65535
    data = planar_tiff(values, order=order)
    assert np.array_equal(decode_image(data).pixels, values[..., :3] >> 8)
    assert np.array_equal(convert_image(Image.open(io.BytesIO(data))).pixels, values[..., :3] >> 8)


def test_channels_of_8_bits_that_are_stored_one_after_the_other() -> None:
    """They are as they were."""
    values = drawn(3).astype(np.uint8)
    assert np.array_equal(decode_image(planar_tiff(values)).pixels, values)


def test_what_pillow_cannot_take_apart_is_refused() -> None:
    """CMYK of 16 bits in planes, and signed numbers of 8 bits, which would be read as unsigned ones."""
    with pytest.raises(DataError, match="one after the other") as caught:
        decode_image(planar_tiff(drawn(4), photometric=5))
    assert caught.value.code == "E309"
    with pytest.raises(DataError, match="signed") as caught:
        decode_image(planar_tiff(drawn(1).astype(np.uint8), photometric=1, sample_format=2))
    assert caught.value.code == "E309"
