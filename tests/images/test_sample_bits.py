"""16-bit pixels of fewer bits: scaled where the file says so, told where it does not, and others as ever."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from ensemble.images.decode import convert_image, decode_image
from ensemble.images.planes import decode_planes
from ensemble.images.sample_bits import DARK
from tests.images.test_deep_color import png, tiff

RNG = np.random.default_rng(1)


def with_sbit(data: bytes, bits: int, channels: int) -> bytes:
    """The PNG with the chunk that names the bits of its numbers."""
    body = b"sBIT" + bytes([bits] * channels)
    return data[:33] + struct.pack(">I", channels) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def grey_tiff(values: NDArray[np.uint16], **tags: Any) -> bytes:
    """A 16-bit grey TIFF with more tags, by number after the letter t."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[int(name[1:])] = value
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, "TIFF", tiffinfo=info)
    return sink.getvalue()


def cmyk_tiff(value: int) -> bytes:
    """A 16-bit CMYK TIFF of one number."""
    data = tiff(np.full((11, 9, 4), value, np.uint16), "<", deflate=False, ink=True)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "CMYK"
    return data


def drawn(bits: int, channels: int) -> NDArray[np.uint16]:
    """Values of so many bits, the highest one among them; the fourth channel is opaque in the same bits."""
    values = RNG.integers(0, 1 << bits, (11, 9, channels), dtype=np.uint16)
    values[0, 0] = (1 << bits) - 1
    return values


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_scaled_by_its_sbit(bits: int, channels: int) -> None:
    """Numbers of 10 bits become those of 8 as a camera's own software shows them: its white is white."""
    values = drawn(bits, channels)
    found = decode_image(with_sbit(png(values), bits, channels))
    assert found.notices == ()
    np.testing.assert_array_equal(found.pixels, np.broadcast_to(values >> (bits - 8), (11, 9, 3)))


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("is_scaled", [True, False])
def test_opacity_of_as_many_bits(channels: int, is_scaled: bool) -> None:
    """Opaque is 65535, or the highest number of as many bits as the colors; the colors shine through neither."""
    values = drawn(12, channels)
    values[..., -1] = 65535 if is_scaled else 4095
    found = decode_image(with_sbit(png(values), 12, channels)).pixels
    np.testing.assert_array_equal(found, np.broadcast_to(values[..., :-1] >> 4, (11, 9, 3)))


def test_scaled_numbers_stay_as_they_are() -> None:
    """A writer that follows the specification scales to 16 bits and names the bits of before, of dark pictures too."""
    for channels in (1, 3):
        values = np.asarray(drawn(12, channels) << 4, np.uint16)
        for one in (values, np.asarray(values & 0x0FF0, np.uint16)):
            found = decode_image(with_sbit(png(one), 12, channels))
            assert found.notices == ()
            np.testing.assert_array_equal(found.pixels, np.broadcast_to(one >> 8, (11, 9, 3)))
    dark = np.asarray(drawn(8, 1)[..., 0] << 4, np.uint16)
    for data in (grey_tiff(dark, t281=4095), grey_tiff(65520 - dark, t281=4095, t262=0)):
        assert decode_image(data).notices == ()
    brighter = drawn(16, 3)
    found = decode_image(with_sbit(png(brighter), 10, 3))
    assert found.notices == ()
    np.testing.assert_array_equal(found.pixels, brighter >> 8)


@pytest.mark.parametrize(("most", "bits"), [(1023, 10), (4095, 12), (16383, 14)])
def test_a_tiff_is_scaled_by_the_range_that_it_names(most: int, bits: int) -> None:
    """MaxSampleValue of a whole number of bits, with white as one or zero."""
    values = drawn(bits, 1)[..., 0]
    found = decode_image(grey_tiff(values, t281=most))
    assert found.notices == ()
    np.testing.assert_array_equal(found.pixels[..., 0], values >> (bits - 8))
    assert np.array_equal(convert_image(Image.open(io.BytesIO(grey_tiff(values, t281=most)))).pixels, found.pixels)
    inverted = decode_image(grey_tiff(values, t281=most, t262=0))
    np.testing.assert_array_equal(inverted.pixels, 255 - found.pixels)


@pytest.mark.parametrize("most", [3000, 65535, 255, 0])
def test_the_brightest_pixel_of_a_tiff_is_no_range(most: int) -> None:
    """3000 is a statistic of one image: scaling by it would make images of one camera unequal."""
    values = drawn(11, 1)[..., 0]
    found = decode_image(grey_tiff(values, t281=most))
    assert found.notices == (DARK,)
    np.testing.assert_array_equal(found.pixels[..., 0], values >> 8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_dark_images_are_told_where_nothing_names_the_bits(channels: int) -> None:
    """Values below a quarter of the range, even of eight bits; not those above, nor a black image."""
    for bits, expected in ((8, (DARK,)), (14, (DARK,)), (15, ())):
        values = drawn(bits, channels)
        if channels in {2, 4}:
            values[..., -1] = 65535
        found = decode_image(png(values))
        assert found.notices == expected
        shown = values[..., : 1 if channels < 3 else 3] >> 8
        np.testing.assert_array_equal(found.pixels, np.broadcast_to(shown, (11, 9, 3)))
    black = np.zeros((11, 9, channels), np.uint16)
    assert decode_image(png(black)).notices == ()


def test_dark_colors_of_a_tiff_are_told() -> None:
    """Both orders of bytes; from Pillow's own image, whose low bytes are gone, where the high ones show it."""
    values = drawn(12, 3)
    for order in ("<", ">"):
        data = tiff(values, order, deflate=True)
        assert decode_image(data).notices == (DARK,)
        assert convert_image(Image.open(io.BytesIO(data))).notices == (DARK,)


def test_what_is_judged_is_the_picture_and_not_the_stored_number() -> None:
    """Where zero is white, and in CMYK, low numbers are light: a blank page is not told, what is decoded dark is."""
    low = np.full((11, 9), 100, np.uint16)
    light = decode_image(grey_tiff(low, t262=0))
    assert (light.pixels.min(), light.notices) == (255, ())
    dark = decode_image(grey_tiff(65535 - low, t262=0))
    assert (dark.pixels.max(), dark.notices) == (0, (DARK,))
    for data in (cmyk_tiff(2000), cmyk_tiff(65535)):
        assert decode_image(data).notices == ()
        assert convert_image(Image.open(io.BytesIO(data))).notices == ()
    assert decode_image(cmyk_tiff(2000)).pixels.min() > 200


def test_eight_bits_and_kept_values_are_not_told() -> None:
    """A dark photograph of 8 bits is dark; a model that takes the values as they are stored has its own scale."""
    sink = io.BytesIO()
    Image.fromarray(np.full((11, 9, 3), 20, np.uint8)).save(sink, "PNG")
    assert decode_image(sink.getvalue()).notices == ()
    for channels in (1, 3):
        kept = decode_planes(with_sbit(png(drawn(12, channels)), 12, channels), channels)
        assert kept.notices == ()
        assert kept.image.max() == 4095


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_white_zero_of_few_bits_is_told_or_scaled(bits: int) -> None:
    """Where white is zero, numbers of few bits would be nearly white: W369, unless MaxSampleValue names the bits."""
    values = drawn(bits, 1)[..., 0]
    silent = decode_image(grey_tiff(values, t262=0))
    assert silent.notices == (DARK,)
    assert silent.pixels.min() >= 191
    told = decode_image(grey_tiff(values, t262=0, t281=(1 << bits) - 1))
    assert told.notices == ()
    np.testing.assert_array_equal(told.pixels[..., 0], 255 - (values >> (bits - 8)))
    whole = decode_image(grey_tiff(np.asarray(values << (16 - bits), np.uint16), t262=0))
    assert whole.notices == ()
