"""What the first bytes of a file decide: what it is, whether it is all there, which way is up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ensemble.images import formats
from ensemble.images.decode import DecodedImage, decode_image
from tests.support.corpus import encode, exif, outcome, picture, refusal

PICTURE = picture()
ENDED = b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 30}, {"optimize": True}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 33), (40, 40)])
def test_fault_02_a_missing_end_marker_is_told_from_missing_pixels(
    options: dict[str, Any], mode: str, height: int, width: int
) -> None:
    """A JPEG without its end marker has all its pixels; with any less it is E301, or the pixels are still all there."""
    data = encode(Image.fromarray(picture(height, width, seed=height)).convert(mode), "JPEG", **options)
    assert data.endswith(ENDED)
    whole = decode_image(data).pixels
    for missing in range(1, 30):
        found = outcome(data[:-missing])
        if isinstance(found, DecodedImage):
            assert np.array_equal(found.pixels, whole)
        else:
            assert found == "E301"
            assert missing > len(ENDED), "only the end marker is missing"


def test_fault_02_a_missing_end_marker_is_said() -> None:
    """Reading a JPEG without its end marker is a warning of its own, W301."""
    assert decode_image(encode(PICTURE, "JPEG")[:-2]).notices == ("W301",)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
def test_fault_02_what_cannot_be_proven_complete_is_refused(options: dict[str, Any]) -> None:
    """A JPEG of many scans or with restart markers does not pass for complete when cut: more could be missing."""
    data = encode(PICTURE, "JPEG", **options)
    whole = decode_image(data).pixels
    for end in range(len(data) // 4, len(data)):
        found = outcome(data[:end])
        if isinstance(found, DecodedImage):  # Pillow had finished before it missed the end marker
            assert end >= len(data) - len(ENDED)
            assert np.array_equal(found.pixels, whole)
        else:
            assert found == "E301"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<html><body>404 Not Found</body></html>", "<html>"),
        (b"BMW makes cars\n", "BMW"),
        (b"GIF me a break", "GIF me"),
        (bytes(range(256)), r"\x00"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git-LFS"),
    ],
)
def test_fault_05_other_things_are_shown_for_what_they_are(data: bytes, said: str) -> None:
    """What is not an image is E303, and the message shows how it begins."""
    error = refusal(data)
    assert error.code == "E303"
    assert said in error.message


@pytest.mark.parametrize(
    ("data", "orientation"),
    [(exif(0), 1), (exif(9), 1), (exif(6)[6:], 6), (b"Exif\0\0MM\0*\0\0\0\x08\0\0", 1)],
    ids=["zero", "nine", "without prefix", "no entries"],
)
def test_orientation_is_upright_unless_it_says_otherwise(data: bytes, orientation: int) -> None:
    """Values that have no meaning, and EXIF data without the tag, leave the picture as it is."""
    assert formats.orientation_of(data) == orientation


@pytest.mark.parametrize(
    "data",
    [b"Exif\0\0nonsense", exif(6)[:20], b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"],
    ids=["no header", "cut off", "far offset", "too many entries"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_fault_11_broken_exif_costs_no_pixels(data: bytes, kind: str) -> None:
    """Whatever is wrong with the EXIF data, the picture is read as it is stored, and W305 says so."""
    photo = decode_image(encode(PICTURE, kind, exif=data))
    assert np.array_equal(photo.pixels, decode_image(encode(PICTURE, kind)).pixels)
    assert photo.notices == ("W305",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_fault_11_color_profiles_are_ignored(kind: str) -> None:
    """A broken color profile changes neither the pixels nor the notices."""
    photo = decode_image(encode(PICTURE, kind, icc_profile=b"broken" * 9))
    assert np.array_equal(photo.pixels, decode_image(encode(PICTURE, kind)).pixels)
    assert photo.notices == ()


@pytest.mark.parametrize("text", ["GIF89a is the name of a format\n" * 4, "8BPS, the first word\n" * 4])
def test_a_text_that_begins_with_the_letters_of_a_format_is_no_damaged_image(text: str) -> None:
    """GIF and PSD begin with letters, and are followed by bytes that no text has."""
    error = refusal(text.encode())
    assert (error.code, error.message[:24]) == ("E303", "not an image (starts wit")
    assert refusal(encode(PICTURE, "GIF")[:12]).code == "E301"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "EPS"),
        (b"8BPS\0\1", "PSD"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0heic", "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
    ],
)
def test_fault_16_formats_that_are_not_supported_are_named(data: bytes, name: str) -> None:
    """Known formats outside the list are E309 by name, and never called damaged or no image."""
    error = refusal(data + bytes(64))
    assert error.code == "E309"
    assert error.message == f"{name} is not supported"
