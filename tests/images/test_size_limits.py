"""No small file takes much memory: pixels, sides, and what each decoder takes per pixel."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensemble.errors import DataError
from ensemble.images.completeness import coefficients_per_pixel, same_pixels
from ensemble.images.decode import decode_image
from ensemble.images.planes import decode_planes
from ensemble.images.size_limits import MAX_SIDE, require_room
from ensemble.images.taps import resize_columns
from ensemble.images.torch_resize import _taps
from tests.images.test_deep_color import tiff


def blank_png(width: int, height: int, *, depth: int = 8, color: int = 0) -> bytes:
    """A PNG of zeros."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pack, row = zlib.compressobj(1), bytes(1 + width * channels * depth // 8)
    pixels = b"".join([*(pack.compress(row) for _ in range(height)), pack.flush()])
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, name, **options)
    return sink.getvalue()


def test_a_small_webp_is_bounded_by_what_its_decoder_takes() -> None:
    """A WebP of 42 bytes has 64 megapixels, which libwebp and Pillow decode in 1.1 GB."""
    data = encoded(Image.new("RGB", (16000, 2600)), "WEBP", lossless=True, method=0)
    assert len(data) < 1000
    with pytest.raises(DataError, match=r"16000x2600 = 41\.6 MP of WEBP in .* bytes would take up to 666 MB") as caught:
        decode_image(data)
    assert caught.value.code == "E307"


def test_what_an_avif_takes_at_most_is_said_as_that() -> None:
    """Its planes may have 12 bits: one of 8 bits takes less than the message says."""
    data = encoded(Image.new("RGB", (8000, 5100)), "AVIF", speed=10)
    with pytest.raises(DataError, match=r"40\.8 MP of AVIF in .* bytes would take up to 653 MB") as caught:
        decode_image(data)
    assert caught.value.code == "E307"


def test_a_large_file_may_take_more_memory() -> None:
    """The bound is on the memory for each byte: a photograph of 64 megapixels has some megabytes."""
    require_room((8000, 8000), 16, 2_000_000, what="WEBP")
    require_room((8000, 5000), 16, 100, what="WEBP")
    with pytest.raises(DataError, match=r"640 MB or 640 times the file are allowed"):
        require_room((8000, 8000), 16, 1_000_000, what="WEBP")


def test_images_of_one_long_side_are_refused() -> None:
    """One pixel by a million takes a pointer per row in Pillow and a weight per pixel in resizing."""
    assert decode_image(blank_png(MAX_SIDE, 1)).image.size == (MAX_SIDE, 1)
    for size in ((1, MAX_SIDE + 1), (MAX_SIDE + 1, 1)):
        with pytest.raises(DataError, match="a side exceeds 65,535 px") as caught:
            decode_image(blank_png(*size))
        assert caught.value.code == "E307"
    sink = io.BytesIO()
    np.save(sink, np.zeros((1, MAX_SIDE + 1), np.uint8))
    with pytest.raises(DataError, match="65,535 px on a side"):
        decode_planes(sink.getvalue(), 1)


def test_kept_channels_are_bounded_as_floating_point_numbers() -> None:
    """A PNG of 16 bits and four channels takes 36 bytes per pixel, as float32 and while it is resized."""
    with pytest.raises(DataError, match="MP of 4 channels in") as caught:
        decode_planes(blank_png(9000, 2000, depth=16, color=6), 4)
    assert caught.value.code == "E307"


@pytest.mark.parametrize(
    ("mode", "options", "each"),
    [
        ("RGB", {}, 0),
        ("L", {"progressive": True}, 1),
        ("RGB", {"progressive": True, "subsampling": 0}, 3),
        ("RGB", {"progressive": True, "subsampling": 2}, 1.5),
        ("CMYK", {"progressive": True, "subsampling": 0}, 4),
    ],
)
def test_a_progressive_jpeg_keeps_its_coefficients(mode: str, options: dict[str, object], each: float) -> None:
    """libjpeg has all of them in memory until the last scan, two bytes each; of one scan it has a row of blocks."""
    data = encoded(Image.new(mode, (64, 48), "gray" if mode != "CMYK" else 0), "JPEG", **options)
    assert coefficients_per_pixel(data) == each


def test_a_tiff_in_one_strip_is_counted_with_the_strip() -> None:
    """libtiff unpacks a whole strip: 8 bytes per pixel of 16-bit RGBA beside Pillow's image."""
    values = np.zeros((1, 1, 4), np.uint16)
    one = bytearray(tiff(values, "<", deflate=True))
    for tag, value in ((256, 9000), (257, 6500), (278, 6500)):
        at = one.index(struct.pack("<HHI", tag, 4, 1))
        one[at + 8 : at + 12] = struct.pack("<I", value)
    with pytest.raises(DataError, match=r"58\.5 MP of TIFF in .* would take up to 702 MB"):
        decode_image(bytes(one))


@pytest.mark.parametrize("in_integers", [True, False])
def test_columns_are_resized_in_strips_to_the_same_values(monkeypatch: pytest.MonkeyPatch, in_integers: bool) -> None:
    """Every row is computed alone, so that few are floating-point numbers at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 41, 3), dtype=np.uint8)
    taps, _ = _taps(41, 10, True, True, in_integers)
    whole = resize_columns(pixels, taps)
    monkeypatch.setattr("ensemble.images.taps._STRIP", 100)
    strips = resize_columns(pixels, taps)
    assert whole.dtype == strips.dtype
    np.testing.assert_array_equal(whole, strips)


def test_pixels_are_compared_to_the_last_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference in the last row is one, and so is another size."""
    monkeypatch.setattr("ensemble.images.completeness._STRIP", 20)
    image = Image.new("RGB", (10, 7))
    other = image.copy()
    assert same_pixels(image, other)
    other.putpixel((9, 6), (0, 0, 1))
    assert not same_pixels(image, other)
    assert not same_pixels(image, Image.new("RGB", (10, 8)))


_PEAK = """
import sys
from pathlib import Path
from ensemble.card import Preprocess
from ensemble.images.decode import read_image
from ensemble.images.face_crop import prepare_image
found = read_image(Path(sys.argv[1]))
prepare_image(found.image, Preprocess((64, 64), resizer=sys.argv[2]), None)
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[0].split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["rgba", "turned", "dark", "resized"])
def test_64_megapixels_take_less_than_a_gigabyte(tmp_path: Path, kind: str) -> None:
    """Transparent, turned, of 12 bits, and through a resizer that computes in float32."""
    path = tmp_path / "large.png"
    if kind == "rgba":
        path.write_bytes(blank_png(8000, 8000, color=6))
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 6
        Image.new("RGBA", (8000, 8000), (9, 9, 9, 9)).save(path, exif=exif, compress_level=1)
    else:
        path.write_bytes(blank_png(8000, 8000, depth=16 if kind == "dark" else 8, color=2))
    resizer = "torch-antialias" if kind == "resized" else "pillow"
    command = [sys.executable, "-c", _PEAK, str(path), resizer]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 200 < peak < 900
