"""The metadata of an image: which way is up, and the file without it where it is at fault and the pixels are not."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ensemble.images.formats import orientation_tag

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_JPEG_KEPT = {0xE0, 0xEE}  # JFIF, and Adobe's, which says how colors are stored


def read_orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation, 1 to 8, in the metadata of an image that Pillow has loaded; 1 (upright) if it has none.

    The places and their order are those of Pillow's ``ImageOps.exif_transpose``: EXIF, ImageMagick's text of a PNG,
    and XMP where these do not say it. A TIFF's own tag is not among them: Pillow has applied it.

    Raises:
        ValueError: the EXIF data, or the text that holds it, is damaged.
    """
    exif = info.get("exif")
    if exif is None and "Raw profile type exif" in info:
        exif = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
    found = orientation_tag(exif) if exif else None
    if found is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def strip_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG file without metadata that says nothing about its pixels; None if there is none.

    The orientation is kept where it is in a PNG's eXIf.
    """
    if data.startswith(_PNG_SIGNATURE):
        bare = _strip_png(data)
    elif data.startswith(b"\xff\xd8"):
        bare = _strip_jpeg(data)
    else:
        return None
    return bare if len(bare) < len(data) else None


def _strip_png(data: bytes) -> bytes:
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] in _PNG_KEPT or end > len(data):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _strip_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the pixels begin
            break
        is_metadata = (0xE0 <= marker <= 0xEF or marker == 0xFE) and marker not in _JPEG_KEPT
        if not is_metadata:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])


_TRANSPOSE_OF = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image, notices: list[str]) -> Image.Transpose | None:
    """Return how a loaded image is turned upright; add the code of metadata that cannot be read to ``notices``."""
    try:
        return _TRANSPOSE_OF.get(read_orientation(image.info))
    except ValueError:
        notices.append("W305")
        return None
