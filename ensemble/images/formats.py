"""Read an image file's format, EXIF orientation and JPEG scan layout from its bytes, without decoding pixels."""

from __future__ import annotations

import struct

from ensemble.errors import DamagedImageError, DataError
from ensemble.text.text_bytes import is_plain_text

_UNSUPPORTED = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS\0", "PSD"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II*\x00\x10\x00\x00\x00CR", "CR2 (raw)"),
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_ORIENTATION = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""Types of whole numbers in EXIF data. The standard has a SHORT (3) for the orientation; some programs write others."""
HEAD = 64
"""How many of a file's first bytes `format_of` needs."""
_RAW = "3fr arw cr2 dcr dng erf iiq kdc mef mos nef nrw orf pef raf rw2 sr2 srw"
NOT_DECODED = frozenset(f".{name}" for name in f"{_RAW} ndpi scn svs".split())
"""Suffixes of camera raw files and slide scans: they begin like a TIFF file, but Pillow finds only a thumbnail."""


def format_of(data: bytes) -> str | None:
    """Return the supported format by its magic bytes, under Pillow's name; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in {b"avif", b"avis"}:
        return "AVIF"
    # two letters prove little: the size of BMP's second header must be a small number
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0":
        return "BMP"
    return None


def why_unreadable(data: bytes) -> DataError:
    """Return the error for content that Pillow does not open.

    E301 if it begins like a supported image, E309 for a known format that is not supported, E303 for anything else.
    """
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, name in _UNSUPPORTED:
        if head.lower().startswith(magic.lower()):
            return DataError("E309", f"{name} is not supported")
    if head.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in data[:4096]:
        return DataError("E309", "SVG is not supported")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return DataError("E309", "HEIC is not supported")
    if head.startswith(b"version https://git-lfs"):
        return DataError("E303", "a Git-LFS pointer, not the image itself", hint="run git lfs pull")
    kind = format_of(data)
    if kind is not None and (len(data) < HEAD or not is_plain_text(data)):  # a cut-off GIF may be letters only
        return DamagedImageError(
            "E301",
            f"the {kind} header is damaged, cut off or of a rare kind",
            hint="copy or download the file again; if that does not help, convert it to an 8-bit JPEG or PNG",
        )
    text = head[:24].decode("ascii", "backslashreplace")
    return DataError("E303", f"not an image (starts with {text!r})")


def orientation_of(exif: bytes) -> int:
    """Return the orientation in raw EXIF data, 1 to 8; 1 (upright) if the tag is absent or out of range.

    Raises:
        ValueError: as `orientation_tag`.
    """
    found = orientation_tag(exif)
    return found if found is not None and 1 <= found <= 8 else 1


def orientation_tag(exif: bytes) -> int | None:
    """Return the value of the orientation tag in raw EXIF data; None if the tag is absent.

    Only the first directory's tag 0x0112 is read (EXIF 2.32, section 4.6.4), so that damage elsewhere does no harm.

    Raises:
        ValueError: the data is not EXIF, or ends before the directory does.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise ValueError("not EXIF data")
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for i in range(count):
            tag, kind = struct.unpack_from(order + "HH6x", tiff, start + 2 + 12 * i)[:2]
            if tag == _ORIENTATION:
                # a single value is in the first of the entry's last four bytes, as many as its type has
                (value,) = struct.unpack_from(order + _NUMBERS.get(kind, "H"), tiff, start + 10 + 12 * i)
                return int(value)
    except struct.error as err:
        raise ValueError("the EXIF data is cut off") from err
    return None


def is_one_unbroken_scan(data: bytes) -> bool:
    """Return whether a JPEG's pixels are one run of bits, in which a missing piece changes everything after it.

    This holds for one sequential scan of all components without restart markers. A progressive JPEG can lack a whole
    scan, and one with restart markers a whole interval, and the rest would still look complete.
    """
    at, components = 2, 0
    while data[at : at + 1] == b"\xff" and len(data) >= at + 4:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in {0xC0, 0xC1}:  # SOF0, SOF1: sequential
            components = body[5] if len(body) > 5 else 0
        elif marker == 0xDD and any(body):  # DRI: restart markers follow
            return False
        elif marker == 0xDA:  # SOS: the scan begins
            return components > 0 and body[:1] == bytes([components])
        at += 2 + length
    return False
