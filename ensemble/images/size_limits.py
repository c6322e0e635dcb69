"""Bounds on the size of an image, checked by its header: pixels, sides, and the memory that its decoder takes.

A file of a few hundred bytes can hold 64 megapixels of one color. Most decoders take 4 to 10 bytes of memory per pixel;
those that take more are held to 640 MB for small files. The figures are measured peaks of Pillow's decoders.
"""

from __future__ import annotations

from PIL import Image

from ensemble.errors import DamagedImageError, DataError
from ensemble.images.completeness import coefficients_per_pixel

MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535
"""As in a JPEG file. Pillow has a pointer per row, and resizing a list of weights per side."""
_ROOM = 640
"""Bytes of memory for each byte of a file; small files may take as many megabytes."""
_SMALL = 1_000_000
_KEPT = 4  # bytes per pixel of Pillow's RGB
_COSTLY = {"WEBP", "AVIF"}
_SEVERAL = 16
"""Bytes per pixel: WebP's animation decoder has three canvases of RGBA; of AVIF, 9 to 13 were measured with 8 bits, and
planes may have 12."""


def require_size(image: Image.Image, *, data: bytes | None = None, max_pixels: int = MAX_PIXELS) -> None:
    """Check the size of an image that is not decoded yet; ``data`` are those of its file, if it comes from one.

    Raises:
        DataError: E307 when it has too many pixels, too long a side, or would take far more memory than its file.
        DamagedImageError: E301 when it has no pixels.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise DataError("E307", f"{width}x{height} = {width * height / 1e6:.1f} MP exceeds {max_pixels / 1e6:g} MP")
    if max(width, height) > MAX_SIDE:
        raise DataError("E307", f"{width}x{height}: a side exceeds {MAX_SIDE:,} px")
    if width * height == 0:
        raise DamagedImageError("E301", f"the image is damaged: its size is {width}x{height}")
    if data is not None:
        require_room(image.size, _bytes_per_pixel(image, data), len(data), what=str(image.format))


def require_room(size: tuple[int, int], each: float, file_bytes: int, *, what: str) -> None:
    """Check that decoding takes at most 640 MB, or 640 times the file: ``each`` is the bytes per pixel.

    Raises:
        DataError: E307.
    """
    need, pixels = size[0] * size[1] * each, size[0] * size[1]
    if need > _ROOM * max(_SMALL, file_bytes):
        raise DataError(
            "E307",
            f"{size[0]}x{size[1]} = {pixels / 1e6:.1f} MP of {what} in {file_bytes:,} bytes would take up to "
            f"{need / 1e6:,.0f} MB to decode; {_ROOM} MB or {_ROOM} times the file are allowed",
        )


def _bytes_per_pixel(image: Image.Image, data: bytes) -> float:
    if image.format in _COSTLY:
        return _SEVERAL
    if image.format in {"JPEG", "MPO"}:
        return _KEPT + 2 * coefficients_per_pixel(data)
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        # libtiff unpacks a whole strip or tile; planes are unpacked one after the other
        bits = tags.get(258, (1,))
        each = max(bits) if tags.get(284, 1) == 2 else sum(bits)
        rows = tags.get(323, tags.get(278))
        share = min(1.0, rows / image.height) if isinstance(rows, int) else 1.0
        return float(_KEPT + each / 8 * share)
    return _KEPT
