"""Files as they turn up among photographs: odd ones that must be read, and bad ones with the codes they get."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.corpus import encode, exif, headers_only, picture, png, tiff


def odd_files() -> dict[str, bytes]:
    """Files that must be read, by their names."""
    pixels = picture(96, 128, seed=1)
    image, second = Image.fromarray(pixels), Image.fromarray(picture(96, 128, seed=2))
    jpeg = encode(pixels, "JPEG")
    grey = (np.arange(96 * 128, dtype=">u2") * 5).reshape(96, 128)
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    found = {
        "grey-of-16-bits.png": png(128, 96, 16, 0, rows),
        "grey-of-16-bits.tif": tiff(grey),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": encode(pixels, "JPEG", progressive=True),
        "a png.jpg": encode(pixels, "PNG"),
        "without-its-end.jpg": jpeg[:-2],
        "with-more-behind.jpg": jpeg + b"more",
        "with-broken-exif.jpg": encode(pixels, "JPEG", exif=exif(6)[:12]),
        "animated.gif": encode(image, "GIF", save_all=True, append_images=[second]),
        "animated.webp": encode(image, "WEBP", save_all=True, append_images=[second]),
        "animated.png": encode(image, "PNG", save_all=True, append_images=[second]),
        "pages.tif": encode(image, "TIFF", save_all=True, append_images=[second]),
        "plain.bmp": encode(pixels, "BMP"),
        "plain.avif": encode(pixels, "AVIF"),
        "one-pixel.png": encode(pixels[:1, :1], "PNG"),
        "a-line.png": encode(np.repeat(pixels[:, :1], 3, axis=1).repeat(20, axis=0), "PNG"),
        'a "quoted", name.jpg': jpeg,
        "two\nlines.jpg": jpeg,
        "😷.jpg": jpeg,
        "=1+1.jpg": jpeg,
        "folder/below.jpg": jpeg,
        unicodedata.normalize("NFD", "마스크.jpg"): jpeg,
    }
    found |= {f"mode-{mode}.png": encode(image.convert(mode), "PNG") for mode in ("L", "LA", "P", "1", "RGBA")}
    return found | {f"turned-{turn}.jpg": encode(pixels, "JPEG", exif=exif(turn)) for turn in range(2, 9)}


def bad_files() -> dict[str, tuple[str, bytes]]:
    """Files that cannot be read, by their names, each with its code."""
    pixels = picture(96, 128, seed=1)
    jpeg, lossless = encode(pixels, "JPEG"), encode(pixels, "PNG")
    at = lossless.index(b"IDAT") + 40
    found = {
        "half.jpg": ("E301", jpeg[: len(jpeg) // 2]),
        "nearly-whole.jpg": ("E301", jpeg[: len(jpeg) * 9 // 10]),
        "half.png": ("E301", lossless[: len(lossless) // 2]),
        "damaged.png": ("E301", lossless[:at] + b"damaged" + lossless[at + 7 :]),
        "half.webp": ("E301", (webp := encode(pixels, "WEBP"))[: len(webp) // 2]),
        "half.bmp": ("E301", (bmp := encode(pixels, "BMP"))[: len(bmp) // 2]),
        "empty.jpg": ("E302", b""),
        "empty.png": ("E302", b""),
        "a-page.jpg": ("E303", b"<!DOCTYPE html><html><body>quota exceeded</body></html>"),
        "a-pointer.jpg": ("E303", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 76034\n"),
        "a-text.jpg": ("E303", b"to be replaced by the picture\n"),
        "an-archive.jpg": ("E303", b"PK\3\4" + bytes(100)),
        "zeros.jpg": ("E303", bytes(5000)),
        "from-a-phone.jpg": ("E309", b"\0\0\0\x1cftypheic" + bytes(100)),
        "for-a-printer.jpg": ("E309", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        "drawing.jpg": ("E309", b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'),
        "floats.tif": ("E309", tiff(np.ones((8, 8), "<f4"))),
        "integers.tif": ("E309", tiff(np.ones((8, 8), "<i4"))),
    }
    return found | {f"bomb.{suffix}": ("E307", data) for suffix, data in headers_only(60_000, 60_000).items()}


CLOSED = ("closed.jpg", "E318")  # made with mode 000


def refused_lists(root: Path, good: str) -> dict[str, tuple[str, list[str]]]:
    """Put among the images what no run may start with, and give by name the code and the ids that ask for it."""
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "nowhere.jpg").symlink_to("not-there.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "linked").symlink_to(".")
    for form in ("NFC", "NFD"):
        (root / unicodedata.normalize(form, "두 번.jpg")).write_bytes(encode(picture(), "JPEG"))
    return {
        "a folder": ("E320", ["folder.jpg"]),
        "a FIFO": ("E320", ["pipe.jpg"]),
        "a dangling link": ("E314", ["nowhere.jpg"]),
        "a link to itself": ("E314", ["loop.jpg"]),
        "what is missing": ("E314", ["missing.jpg"]),
        "a way out": ("E323", ["../out.jpg"]),
        "an absolute path": ("E323", ["/etc/out.jpg"]),
        "one id twice": ("E313", [good, good]),
        "another case": ("E312", [good.swapcase()]),
        "two of one name": ("E311", [unicodedata.normalize("NFC", "두 번.jpg")]),
    }
