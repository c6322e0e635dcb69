"""Metadata: which way is up, as Pillow's exif_transpose finds it, and faults of metadata that cost no pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from ensemble.errors import DataError
from ensemble.images.decode import decode_image
from tests.support.corpus import encode, exif, picture, tiff

PICTURE = picture()
BIG = zlib.compress(bytes(2 << 20))
_APP1 = b"http://ns.adobe.com/xap/1.0/\0"


def xmp(orientation: int, *, as_element: bool = False) -> bytes:
    element, attribute = f"><tiff:Orientation>{orientation}</tiff:Orientation>", f' tiff:Orientation="{orientation}">'
    text = f"<x:xmpmeta><rdf:Description{element if as_element else attribute}</rdf:Description></x:xmpmeta>"
    return text.encode()


def exif_without_orientation() -> bytes:
    """EXIF data that have another tag."""
    data = Image.Exif()
    data[0x010F] = "camera"
    return data.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, last: bool = False, **options: bytes) -> bytes:
    """The picture as a PNG with more chunks: behind the header, or with ``last`` behind the pixels."""
    data = encode(PICTURE, "PNG", **options)
    at = len(data) - 12 if last else 33
    return data[:at] + b"".join(chunks) + data[at:]


def jpeg_with(marker: int, segment: bytes, **options: bytes) -> bytes:
    data = encode(PICTURE, "JPEG", **options)
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", 2 + len(segment)) + segment + data[2:]


def raw_profile(orientation: int) -> bytes:
    """ImageMagick's text of EXIF data in a PNG."""
    data = exif(orientation)
    return b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(data):8d}\n{data.hex()}\n".encode())


ORIENTED: dict[str, Callable[[int], bytes]] = {
    "jpeg xmp": lambda o: jpeg_with(0xE1, _APP1 + xmp(o)),
    "jpeg xmp element": lambda o: jpeg_with(0xE1, _APP1 + xmp(o, as_element=True)),
    "jpeg exif": lambda o: encode(PICTURE, "JPEG", exif=exif(o)),
    "jpeg exif before xmp": lambda o: jpeg_with(0xE1, _APP1 + xmp(3), exif=exif(o)),
    "jpeg exif without the tag": lambda o: jpeg_with(0xE1, _APP1 + xmp(o), exif=exif_without_orientation()),
    "png xmp": lambda o: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o))),
    "png xmp behind": lambda o: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o)), last=True),
    "png raw profile": lambda o: png_with(chunk(b"zTXt", raw_profile(o))),
    "png exif": lambda o: encode(PICTURE, "PNG", exif=exif(o)),
    "webp xmp": lambda o: encode(PICTURE, "WEBP", lossless=True, xmp=xmp(o)),
    "webp exif": lambda o: encode(PICTURE, "WEBP", lossless=True, exif=exif(o)),
    "tiff": lambda o: encode(PICTURE, "TIFF", tiffinfo={274: o}),
    "tiff tag and xmp": lambda o: encode(PICTURE, "TIFF", tiffinfo={274: o, 700: xmp(o)}),
    "tiff xmp": lambda o: encode(PICTURE, "TIFF", tiffinfo={700: xmp(o)}),
    "two frames": lambda o: encode(Image.fromarray(PICTURE), "MPO", save_all=True, exif=exif(o)),
}


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8, 9, 0])
@pytest.mark.parametrize("kind", ORIENTED)
def test_case_13_images_are_turned_as_pillow_turns_them(kind: str, orientation: int) -> None:
    """In whatever place an orientation is written, the pixels are those of ImageOps.exif_transpose."""
    data = ORIENTED[kind](orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decode_image(data).pixels, np.asarray(expected))


def test_the_orientations_of_the_corpus_turn_something() -> None:
    """The files above are no empty claim: 6 turns each of them on its side."""
    for make in ORIENTED.values():
        assert decode_image(make(6)).image.size == (48, 64)


def test_a_raw_profile_that_is_no_hex_is_told() -> None:
    """A damaged text of EXIF data leaves the picture as it is stored, with W305."""
    photo = decode_image(png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz\n")))
    assert photo.notices == ("W305",)
    assert np.array_equal(photo.pixels, PICTURE)


FAULTY = {
    "color profile": chunk(b"iCCP", b"icc\0\0" + BIG),
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + BIG),
    "international text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG),
    "compression of another kind": chunk(b"iCCP", b"icc\0\7" + BIG),
    "short chunks": chunk(b"gAMA", b"\0") + chunk(b"cHRM", b"") + chunk(b"pHYs", b"\0"),
    "many texts": b"".join(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20))) for _ in range(66)),
}


@pytest.mark.parametrize("last", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("kind", FAULTY)
def test_case_08_pixels_are_whole_though_metadata_is_not(kind: str, last: bool) -> None:
    """Metadata that Pillow refuses, before or behind the pixels, costs none of them, and W334 says so."""
    if last and kind in {"color profile", "compression of another kind"}:
        pytest.skip("it must come before the pixels")
    photo = decode_image(png_with(FAULTY[kind], last=last))
    assert np.array_equal(photo.pixels, PICTURE)
    assert photo.notices == ("W334",)


def test_case_08_an_orientation_beside_bad_metadata_is_kept() -> None:
    """The eXIf chunk of a PNG with an oversized text still turns the picture."""
    photo = decode_image(png_with(FAULTY["compressed text"], exif=exif(6)))
    assert photo.image.size == (48, 64)


def test_case_08_transparency_is_no_metadata() -> None:
    """What changes pixels, such as the transparent color, is kept when metadata is left out."""
    plain = png_with(chunk(b"tRNS", struct.pack(">HHH", *map(int, PICTURE[0, 0]))))
    faulty = plain[:33] + FAULTY["compressed text"] + plain[33:]
    assert np.array_equal(decode_image(faulty).pixels, decode_image(plain).pixels)


def test_case_08_damaged_pixels_stay_an_error() -> None:
    """A PNG that lacks pixels is E301 with its own reason, whatever metadata it has."""
    data = png_with(FAULTY["compressed text"])
    for cut in (len(data) - 200, len(data) // 2):
        with pytest.raises(DataError, match="E301"):
            decode_image(data[:cut])


def test_tiff_of_16_bits_may_have_a_white_zero() -> None:
    """A 16-bit grey TIFF that stores white as zero is inverted, as Pillow does it for 8 bits."""
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    normal, inverted = (decode_image(tiff(values, t262=kind)).pixels for kind in (1, 0))
    assert np.array_equal(inverted, 255 - normal)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize(("kind", "form"), [(1, "B3x"), (3, "H2x"), (4, "I"), (6, "b3x"), (8, "h2x"), (9, "i")])
def test_an_orientation_of_another_type_of_whole_numbers_is_applied(order: str, kind: int, form: str) -> None:
    """A LONG of a big-endian file has its value in the last two of four bytes: it was read as 0, upright."""
    byte_order = "<" if order == "II" else ">"
    entry = struct.pack(byte_order + "HHI", 0x0112, kind, 1) + struct.pack(byte_order + form, 6)
    tiff_data = order.encode() + struct.pack(byte_order + "HIH", 42, 8, 1) + entry + bytes(4)
    decoded = decode_image(jpeg_with(0xE1, b"Exif\0\0" + tiff_data)).pixels
    assert np.array_equal(decoded, np.rot90(decode_image(encode(PICTURE, "JPEG")).pixels, -1))
