"""Image files of every fault, made from pictures that the code draws; nothing binary is stored."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.errors import DataError
from ensemble.images.decode import DecodedImage, decode_image

ORIENTATION = 0x0112


def picture(height: int = 48, width: int = 64, *, seed: int = 0) -> Pixels:
    """A picture ``(H, W, 3)`` without symmetry: slopes, which codecs like, and a patch of noise, which they do not."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 200 // height, columns * 200 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 4, 3), dtype=np.uint8)
    pixels[: len(noise), : noise.shape[1]] = noise
    return pixels


def encode(image: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    """A file's bytes, as Pillow writes them."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG as Pillow cannot write it, of raw ``rows`` (each begins with filter byte 0) and ``chunks`` before them."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)}
    parts |= {name.encode(): data for name, data in chunks.items()}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def tiff(values: NDArray[Any], *, next_page: int = 0, **tags: int) -> bytes:
    """A grey TIFF of any number type and byte order; ``next_page`` is where a reader is told to look for another.

    ``tags`` such as ``t256=60_000`` are set to what is not true.
    """
    height, width = values.shape
    order = ">" if values.dtype.byteorder == ">" else "<"
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    body = values.tobytes()
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    entries |= {279: len(body), 339: sample_format} | {int(tag[1:]): value for tag, value in tags.items()}
    directory = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    start = struct.pack(order + "2sHI", b"MM" if order == ">" else b"II", 42, 8 + len(body))
    return start + body + struct.pack(order + "H", len(entries)) + directory + struct.pack(order + "I", next_page)


def exif(orientation: int, *, order: str = "<", kind: int = 3) -> bytes:
    """EXIF data with the one tag; ``order`` is struct's sign for the byte order."""
    sign = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIH2x", ORIENTATION, kind, 1, orientation)
    return b"Exif\0\0" + sign + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)


def headers_only(width: int, height: int) -> dict[str, bytes]:
    """Files that announce a size and hold no pixels: whoever starts to decode them fails in another way."""
    jpeg = encode(picture(16, 16), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    # VP8L: a signature, then 14 bits for each side less one
    lossless = struct.pack("<Q", 0x2F | min(width - 1, 16_382) << 8 | min(height - 1, 16_382) << 22)[:5] + bytes(9)
    return {
        "jpg": jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :],
        "png": png(width, height, 8, 2, b""),
        "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6),
        "gif": b"GIF89a" + struct.pack("<HHBBB6x", width, height, 128, 0, 0) + struct.pack("<c8xBx", b",", 0) + b";",
        "tif": tiff(np.zeros((1, 1), np.uint8), t256=width, t257=height, t278=height),
        "webp": b"RIFF" + struct.pack("<I4s4sI", 12 + len(lossless), b"WEBP", b"VP8L", len(lossless)) + lossless,
    }


def outcome(data: bytes, **options: Any) -> DecodedImage | str:
    """What becomes of a file: a photo, or the code of the error."""
    try:
        return decode_image(data, **options)
    except DataError as err:
        return err.code


def refusal(data: bytes, **options: Any) -> DataError:
    """The error that a file is refused with."""
    with pytest.raises(DataError) as caught:
        decode_image(data, **options)
    return caught.value
