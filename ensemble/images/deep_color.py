"""Colors of 16 bits, which Pillow decodes to 8: it is asked for the high bytes first, and for the low ones then.

Pillow's decoders of PNG and TIFF hand each row to an unpacker, which a name such as ``RGB;16B`` selects: it keeps the
first byte of each big-endian number. ``RGB;16L``, that of little-endian numbers, keeps the second (Unpack.c of Pillow:
``unpackRGB16B`` and ``unpackRGB16L``). Grey with alpha has four bytes, which are those of RGBA in 8 bits.
"""

from __future__ import annotations

import io
import re
import sys
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ensemble.errors import DataError

_OTHER = {"L": "B", "B": "L"}
_NATIVE = "L" if sys.byteorder == "little" else "B"
_COLORS = re.compile(r"(RGB|RGBA);16([LBN])")
_DEEP = re.compile(r"(RGB[AX]*|LA|CMYK);16[LBN]")


def read_deep_colors(data: bytes) -> NDArray[np.uint16] | None:
    """Return the values ``(H, W, 2 to 4)`` of a PNG or TIFF file of 16 bits per channel, not turned; None for others.

    ``data`` are those of a file that Pillow decodes.
    """
    high = _read_bytes(data, low=False)
    if high is None:
        return None
    deep = high.astype(np.uint16)
    del high
    deep <<= 8
    low = _read_bytes(data, low=True)
    assert low is not None, "the same file has both halves"
    deep |= low
    return deep


def open_low_bytes(data: bytes) -> tuple[Image.Image, slice | None] | None:
    """Return an image, not loaded yet, of the low bytes of what `read_deep_colors` reads; None for others.

    Of grey with alpha, its bands are both bytes of either, and the slice is that of the low ones.
    """
    image = _open(data)
    if widen_planes(image, low_bytes=True):
        return image, None
    name = _unpacker(image)
    if name == "LA;16B":
        return _unpacked_by(image, "RGBA"), slice(1, None, 2)
    found = _COLORS.fullmatch(name)
    if found is None:
        return None
    mode, order = found.group(1), found.group(2)
    return _unpacked_by(image, f"{mode};16{_OTHER[_NATIVE if order == 'N' else order]}"), None


def is_deep(image: Image.Image) -> bool:
    """Return whether an image that is not loaded yet has colors of 16 bits, of which Pillow keeps the high bytes."""
    tags = getattr(image, "tag_v2", {})
    planes = tags.get(284) == 2 and max(tags.get(258, (8,))) == 16 and image.mode in {"RGB", "RGBA"}
    return planes or _DEEP.fullmatch(_unpacker(image)) is not None


def _read_bytes(data: bytes, *, low: bool) -> NDArray[np.uint8] | None:
    image = _open(data)
    if widen_planes(image):
        return _load_planes(data, low_bytes=low)
    name = _unpacker(image)
    if name == "LA;16B":
        return _load(data, "RGBA")[..., int(low) :: 2]
    found = _COLORS.fullmatch(name)
    if found is None:
        return None
    mode, order = found.group(1), found.group(2)
    order = _NATIVE if order == "N" else order
    return _load(data, f"{mode};16{_OTHER[order] if low else order}")


def widen_planes(image: Image.Image, *, low_bytes: bool = False) -> bool:
    """Let Pillow take 16 bits per value from an uncompressed TIFF that stores its channels one after the other.

    Pillow takes 8 bits per value from these, which gives the upper half of the picture, twice as high and mixed with
    the low bytes. Returns whether ``image``, which is not loaded yet, is such a file; of each value the high byte is
    kept, or with ``low_bytes`` the low one.

    Raises:
        DataError: E309 when Pillow cannot: CMYK.
    """
    tags = getattr(image, "tag_v2", None)
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if tags is None or tags.get(284) != 2 or max(tags.get(258, (8,))) != 16:
        return False
    if any(tile.codec_name != "raw" for tile in tiles) or len(image.getbands()) == 1:
        return False
    if image.mode not in {"RGB", "RGBA"}:
        raise DataError("E309", f"16-bit {image.mode} whose channels are stored one after the other is not supported")
    assert isinstance(image, ImageFile.ImageFile)
    order = "L" if tags.prefix == b"II" else "B"
    order = _OTHER[order] if low_bytes else order
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])) if isinstance(tile.args, tuple) else tile
        for tile in tiles
    ]
    return True


def mend_tiff(image: Image.Image) -> None:
    """Let Pillow read a TIFF that it would misread, or refuse it; ``image``, of any format, is not loaded yet.

    Raises:
        DataError: E309 as `require_unsigned` and `widen_planes`.
    """
    require_unsigned(image)
    widen_planes(image)


_SIGNED = 2  # of the tag SampleFormat (339)


def require_unsigned(image: Image.Image) -> None:
    """Refuse a TIFF of signed 8-bit numbers, which Pillow takes for unsigned ones: -1 would be white, and 0 black.

    Raises:
        DataError: E309.
    """
    if image.mode in {"L", "LA", "RGB", "RGBA", "CMYK"} and _SIGNED in getattr(image, "tag_v2", {}).get(339, ()):
        raise DataError("E309", "signed integer pixels are not supported: their range is unknown")


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data))


def _unpacker(image: Image.Image) -> str:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) and image.format in {"PNG", "TIFF"} else []
    names = {tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0]) for tile in tiles}
    return names.pop() if len(names) == 1 else ""


def _load(data: bytes, unpacker: str) -> NDArray[np.uint8]:
    """Return the bytes ``(H, W, C)`` that an unpacker keeps."""
    image = _unpacked_by(_open(data), unpacker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(image)


def _unpacked_by(image: Image.Image, unpacker: str) -> Image.Image:
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [
        tile._replace(args=unpacker if isinstance(tile.args, str) else (unpacker, *(tile.args or ())[1:]))
        for tile in image.tile
    ]
    return image


def _load_planes(data: bytes, *, low_bytes: bool) -> NDArray[np.uint8]:
    image = _open(data)
    widen_planes(image, low_bytes=low_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(image)
