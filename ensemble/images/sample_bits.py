"""Pixels of 16 bits that hold numbers of fewer: cameras, microscopes and depth sensors have 10 to 14 bits.

Shifted by eight bits like others, they would be nearly black. Where the file names the bits, they are scaled by these:
an ``sBIT`` chunk of a PNG, though its writer should have scaled them, and the tag MaxSampleValue of a TIFF where it is
that of a whole number of bits; elsewhere it is the brightest pixel of one image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ensemble.images.deep_color import open_low_bytes

DARK = "W369"
"""The code of a 16-bit image that uses a quarter of the range, the darkest one, where nothing tells its bits.

Where white is zero in a file, its numbers may also be in the lowest quarter, so that all is nearly white: a blank
page, or numbers of 10 to 14 bits.
"""
_QUARTER = 1 << 14
_BLANK = 1 << 9  # below it is the noise of a white page whose zero is white
_STRIP = 4_000_000  # pixels
_PNG = b"\x89PNG\r\n\x1a\n"


def grey_to_eight_bits(image: Image.Image, data: bytes | None, notices: list[str]) -> Image.Image:
    """Return a 16-bit grey image that is loaded as 8-bit grey; ``data`` are those of its file, if it comes from one."""
    values: NDArray[np.uint16] = np.asarray(image)
    told, bits = _told_bits(data, image), 16
    top, rest = int(values.max()), int(np.bitwise_or.reduce(values, axis=None))
    white_zero = is_white_zero(image)
    lightest = 65535 - int(values.min()) if white_zero else top
    if _is_packed_12(image):
        bits = 12
    elif told is not None and _fits(top, told) and _has_low_bits(rest, told):
        bits = told
    elif (0 < lightest < _QUARTER or (white_zero and _BLANK < top < _QUARTER)) and not _is_scaled(rest, told):
        notices.append(DARK)
    grey = (values >> (bits - 8)).astype(np.uint8)
    if white_zero:
        grey = 255 - grey
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def colors_to_eight_bits(image: Image.Image, data: bytes | None, notices: list[str]) -> Image.Image:
    """Return an image of 16-bit colors, of which Pillow has loaded the high bytes, with the bits that its values have.

    Most images are returned as they are, and all of CMYK: its numbers are of ink, so that low ones are light.
    """
    if image.mode == "CMYK":
        return image
    told = _told_bits(data, image)
    if _top_of(image) >= (_QUARTER if told is None else 1 << told) >> 8:
        return image
    low = None if data is None else open_low_bytes(data)
    if low is None:
        if _top_of(image) > 0:
            notices.append(DARK)
        return image
    colors = slice(0, len(image.getbands()) - ("A" in image.getbands()))
    top, rest = 0, 0
    for _, deep in _strips(image, *low):
        top = max(top, int(deep[..., colors].max()))
        rest |= int(np.bitwise_or.reduce(deep[..., colors], axis=None))
    if told is None or not _fits(top, told) or not _has_low_bits(rest, told):
        if 0 < top < _QUARTER and not _is_scaled(rest, told):
            notices.append(DARK)
        return image
    opacity = max(_highest(image)[colors.stop :], default=0)
    alpha = 8 if opacity >= 1 << (told - 8) else told - 8
    found = low[0]  # each strip is read before it is written: a third image would be 256 MB
    for place, deep in _strips(image, *low):
        deep[..., colors] >>= told - 8
        deep[..., colors.stop :] >>= alpha
        found.paste(Image.fromarray(deep.astype(np.uint8)), place)
    found.info = image.info
    return found


def is_white_zero(image: Image.Image) -> bool:
    """Return whether a TIFF stores white as zero (PhotometricInterpretation 0), which Pillow inverts in 8 bits only."""
    return getattr(image, "tag_v2", {}).get(262) == 0


def _strips(
    image: Image.Image, low: Image.Image, part: slice | None
) -> Iterator[tuple[tuple[int, int, int, int], NDArray[np.uint16]]]:
    """Yield strips of rows: where they are, and their 16-bit values ``(rows, W, C)``."""
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        place = (0, top, image.width, min(image.height, top + rows))
        deep = np.asarray(image.crop(place)).astype(np.uint16)
        deep <<= 8
        halves = np.asarray(low.crop(place))
        if part is not None:  # grey with alpha, which Pillow holds as three equal colors and alpha
            halves = halves[..., part][..., [0] * (deep.shape[-1] - 1) + [1]]
        deep |= halves
        yield place, deep


def _top_of(image: Image.Image) -> int:
    """Return the highest high byte of the colors."""
    return max(high for high, band in zip(_highest(image), image.getbands(), strict=True) if band != "A")


def _highest(image: Image.Image) -> list[int]:
    """Return the highest value of each band of an image of several."""
    return [int(high) for _, high in cast("tuple[tuple[int, int], ...]", image.getextrema())]


def _fits(top: int, told: int | None) -> bool:
    return told is not None and top < 1 << told


def _has_low_bits(values: int, told: int) -> bool:
    """Return whether any value has bits below those that a number of so many bits has once it is scaled to 16."""
    return values & ((1 << (16 - told)) - 1) != 0


def _is_scaled(values: int, told: int | None) -> bool:
    """Return whether a file names its bits and has scaled them to 16: what is dark then is the picture."""
    return told is not None and not _has_low_bits(values, told)


def _told_bits(data: bytes | None, image: Image.Image) -> int | None:
    """Return the number of bits, 8 to 15, that a file says its numbers have; None if it says nothing of the kind."""
    if data is not None and data.startswith(_PNG):
        bits = _png_bits(data)
    else:
        most = getattr(image, "tag_v2", {}).get(281, 0)  # MaxSampleValue
        most = max(most, default=0) if isinstance(most, tuple) else most
        bits = int(most).bit_length() if isinstance(most, int) and most & (most + 1) == 0 else 0
    return bits if 8 <= bits < 16 else None


def _png_bits(data: bytes) -> int:
    """Return the bits of the colors in a PNG's ``sBIT``, which is before the pixels; 0 without it."""
    at = len(_PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + min(length, 4)]
        if kind == b"IDAT":
            return 0
        if kind == b"sBIT":
            return max(body[: 3 if len(body) >= 3 else 1], default=0)
        at += 12 + length
    return 0


def _is_packed_12(image: Image.Image) -> bool:
    """Return whether a TIFF has 12 bits per value, which Pillow opens in its 16-bit mode without scaling them."""
    return tuple(getattr(image, "tag_v2", {}).get(258, ())) == (12,)
