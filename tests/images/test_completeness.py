"""Images that are well-formed files and lack pixels, and files that cost far more than their size."""

from __future__ import annotations

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ensemble.images import completeness
from ensemble.images.decode import decode_image
from tests.support.corpus import encode, outcome, picture, png, refusal, tiff

PICTURE = picture()
HEIGHT, WIDTH = PICTURE.shape[:2]
END = b"\xff\xd9"


def rows(count: int) -> bytes:
    """The first rows of the picture as a PNG stores them, without a filter."""
    return b"".join(b"\0" + row.tobytes() for row in PICTURE[:count])


@pytest.mark.parametrize("count", [0, 1, HEIGHT // 2, HEIGHT - 1])
def test_a_png_of_too_few_rows_is_damaged(count: int) -> None:
    """Compressed rows that end early and in good order leave Pillow with black rows: E301."""
    assert refusal(png(WIDTH, HEIGHT, 8, 2, rows(count))).code == "E301"
    assert np.array_equal(decode_image(png(WIDTH, HEIGHT, 8, 2, rows(HEIGHT))).pixels, PICTURE)


def test_an_interlaced_png_that_lacks_its_last_pass_is_damaged() -> None:
    """Adam7's passes are counted one by one; the last holds every second row."""
    size = (8, 8)
    shapes = [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)]  # rows and columns of each pass of 8 x 8
    passes = [b"".join(b"\0" + bytes([200] * across) for _ in range(down)) for down, across in shapes]
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 1)

    def interlaced(content: bytes) -> bytes:
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
        framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
        return b"\x89PNG\r\n\x1a\n" + b"".join(framed)

    assert decode_image(interlaced(b"".join(passes))).pixels.min() == 200
    assert refusal(interlaced(b"".join(passes[:-1]))).code == "E301"


def test_a_png_that_is_black_below_is_no_damaged_one() -> None:
    """Black rows are counted before they are doubted, in every mode."""
    pixels = PICTURE.copy()
    pixels[HEIGHT // 2 :] = 0
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"):
        image = Image.fromarray(pixels)
        wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else None
        assert not isinstance(outcome(encode(wide or image.convert(mode), "PNG")), str), mode


def test_a_download_that_left_zeros_is_damaged() -> None:
    """A file of the full size whose second half never came: no checksum of a PNG and no coder's data end in zeros."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for kind, options in (("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {}), ("GIF", {})):
        data = encode(noise, kind, **options)
        half = len(data) // 2
        assert outcome(data[:half] + bytes(len(data) - half)) == "E301", kind


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_whose_end_marker_comes_early_is_damaged(mode: str, options: dict[str, int]) -> None:
    """What libjpeg decodes as grey is missing, with and without restart markers."""
    data = encode(Image.fromarray(PICTURE).convert(mode), "JPEG", **options)
    begin = data.index(b"\xff\xda")
    for share in (0.1, 0.5, 0.8):
        assert outcome(data[: begin + int(share * (len(data) - begin))] + END) == "E301", share
    assert not isinstance(outcome(data), str)


def test_a_jpeg_that_is_grey_below_is_no_damaged_one() -> None:
    """Grey that the encoder wrote is not grey for want of data."""
    pixels = PICTURE.copy()
    pixels[16:] = 128
    for options in ({}, {"restart_marker_rows": 1}, {"progressive": True}):
        assert not isinstance(outcome(encode(pixels, "JPEG", **options)), str)


def test_a_progressive_jpeg_without_its_last_scans_is_damaged() -> None:
    """Scans that refine the picture are counted by coefficient and bit."""
    data = encode(PICTURE, "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        assert outcome(data[:at] + END) == "E301"


def test_a_jpeg_of_thousands_of_scans_is_not_decoded() -> None:
    """Each scan visits every block: E353 comes before the work, whose time it would multiply by a thousand."""
    data = encode(np.full((1000, 2000, 3), 90, np.uint8), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    begin = time.process_time()
    assert refusal(data[:-2] + last * 5000 + END).code == "E353"
    assert time.process_time() - begin < 1
    assert not isinstance(outcome(data[:-2] + last * 20 + END), str)


def test_the_allowed_scans_fall_with_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image may have the scans that encoders write, and no more; a thumbnail's scans are not counted."""
    data = encode(PICTURE, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr(completeness, "_MAX_SCAN_PIXELS", 1)
    thumbnail = encode(PICTURE, "JPEG", progressive=True)
    within = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + data[2:]
    assert not isinstance(outcome(within), str)
    assert outcome(data[:-2] + last * 10 + END) == "E353"


def strips(pieces: list[bytes], **tags: int) -> bytes:
    """A grey TIFF of 8 x 8 px whose strips have two rows each."""
    body = b"".join(pieces)
    places = [8 + sum(map(len, pieces[:i])) for i in range(len(pieces))]
    count, end = len(pieces), 8 + len(body)
    entries = {256: (1, 8), 257: (1, 8), 258: (1, 8), 259: (1, 1), 262: (1, 1), 277: (1, 1), 278: (1, 2)}
    after = end + 2 + 12 * 9 + 4
    entries |= {273: (count, after), 279: (count, after + 4 * count)}
    directory = b"".join(struct.pack("<HHII", tag, 4, *entry) for tag, entry in sorted(entries.items()))
    lists = struct.pack(f"<{2 * count}I", *places, *map(len, pieces))
    return struct.pack("<2sHI", b"II", 42, end) + body + struct.pack("<H", 9) + directory + bytes(4) + lists


def test_a_tiff_of_too_few_or_too_short_strips_is_damaged() -> None:
    """Pillow leaves rows without a strip black, and reads on into the next strip where one is short."""
    whole = [bytes([50 * i] * 16) for i in range(1, 5)]
    assert decode_image(strips(whole)).pixels[-1, -1, 0] == 200
    assert outcome(strips(whole[:3])) == "E301"
    assert outcome(strips([whole[0], whole[1][:5], *whole[2:]])) == "E301"


def test_a_tiff_of_twelve_bits_keeps_its_brightness() -> None:
    """Values up to 4095 are scaled to 255, not to 15."""
    values = np.array([[0, 4095, 2048, 1024]] * 4, np.uint16)
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(4, 4, 2), axis=2).reshape(4, 4, 16)[:, :, 4:]
    packed = np.packbits(bits.reshape(4, -1), axis=1)
    data = tiff(packed, t256=4, t258=12)
    assert decode_image(data).pixels[0, :, 0].tolist() == [0, 255, 128, 64]


def test_a_tiff_of_sixteen_bits_whose_white_is_zero_is_inverted() -> None:
    """PhotometricInterpretation 0 is applied in the 16-bit mode too."""
    values = np.array([[0, 65535, 0x8000, 0x4000]] * 4, "<u2")
    assert decode_image(tiff(values, t262=0)).pixels[0, :, 0].tolist() == [255, 0, 127, 191]


@pytest.mark.parametrize("chunks", [{}, {"tRNS": b"\0\1"}])
def test_a_png_without_its_palette_is_damaged(chunks: dict[str, bytes]) -> None:
    """Numbers of colors without colors, with and without transparency: E301."""
    assert outcome(png(8, 8, 8, 3, b"".join(b"\0" + bytes(range(8)) for _ in range(8)), **chunks)) == "E301"


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_a_block_of_zeros_at_the_end_of_plain_pixels_is_said(kind: str) -> None:
    """The file has its full size, and what never came begins at a block: black, and nothing else tells."""
    whole = encode(np.full((64, 64, 3), 200, dtype=np.uint8), kind)
    cut = whole[:6144] + b"\0" * (len(whole) - 6144)
    assert decode_image(whole).notices == ()
    assert decode_image(cut).notices == ("W358",)


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_a_picture_that_is_black_at_the_end_of_its_file_is_not_said(kind: str) -> None:
    """A black edge begins at a row and not at a block; RLE and other coded pixels are not looked at."""
    pixels = np.full((64, 64, 3), 200, dtype=np.uint8)
    pixels[:33] = pixels[31:] = 0
    pixels[30:34] = 200
    assert decode_image(encode(pixels, kind)).notices == ()
    packed = {"compression": "packbits"} if kind == "TIFF" else {}
    assert not packed or decode_image(encode(np.zeros((64, 64, 3), dtype=np.uint8), kind, **packed)).notices == ()
