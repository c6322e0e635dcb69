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

_OTHER = {"L": "B", "B": "L"}
_NATIVE = "L" if sys.byteorder == "little" else "B"
_COLORS = re.compile(r"(RGB|RGBA);16([LBN])")


def read_deep_colors(data: bytes) -> NDArray[np.uint16] | None:
    """Return the values ``(H, W, 2 to 4)`` of a PNG or TIFF file of 16 bits per channel, not turned; None for others.

    ``data`` are those of a file that Pillow decodes.
    """
    name = _unpacker(_open(data))
    if name == "LA;16B":
        parts = _load(data, "RGBA").astype(np.uint16)
        return np.asarray(parts[..., 0::2] << 8 | parts[..., 1::2], dtype=np.uint16)
    found = _COLORS.fullmatch(name)
    if found is None:
        return None
    mode, order = found.group(1), found.group(2)
    order = _NATIVE if order == "N" else order
    high, low = (_load(data, f"{mode};16{one}").astype(np.uint16) for one in (order, _OTHER[order]))
    return np.asarray(high << 8 | low, dtype=np.uint16)


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
    image = _open(data)
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [
        tile._replace(args=unpacker if isinstance(tile.args, str) else (unpacker, *(tile.args or ())[1:]))
        for tile in image.tile
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(image)
