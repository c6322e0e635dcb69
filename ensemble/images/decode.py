"""The one image path: read, decode, orient, resize, crop. Training, parity checks and prediction all use it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.errors import DataError
from ensemble.images import formats
from ensemble.images.storage import RemoteImage

MAX_PIXELS = 64_000_000
_KIND_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
}
SUFFIXES = frozenset(_KIND_OF_SUFFIX)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # MPO is opened by the JPEG reader
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OUT_OF_MEMORY = "out of memory"  # in the text of an OSError of Pillow's decoders
_MIN_SIDE = 8
MAX_ASPECT = 20
# what could follow a JPEG that breaks off: one or two of these can look like the end by chance, eight do not
_TAILS = tuple(bytes([byte]) * 4096 for byte in (0x5A, 0xA5, 0xE6, 0x99, 0xB4, 0x6D, 0xD3, 0x2B))
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """A decoded image: upright RGB of 8 bits, as Pillow keeps it; ``notices`` are codes of what was odd."""

    image: Image.Image
    notices: tuple[str, ...] = ()

    @property
    def pixels(self) -> Pixels:
        """``(H, W, 3)`` uint8, read-only; made anew at every call."""
        return np.asarray(self.image)


def read_image(path: Path | RemoteImage, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read and decode one file, or one image in storage, see `read_file` and `decode_file`.

    Raises:
        DataError: the codes of both.
    """
    return decode_file(read_file(path), path, max_pixels=max_pixels)


def read_file(path: Path | RemoteImage) -> bytes:
    """The bytes of one image.

    Raises:
        DataError: E318 when it may not be read, E319 when it changes meanwhile, E320 when it is not a regular file,
            E321 when the path is too long, E314 when it is gone.
    """
    if isinstance(path, RemoteImage):
        return path.read_bytes()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a FIFO would block for ever
            raise DataError("E320", f"{path.name}: not a regular file", path=path)
        with open(path, "rb") as f:
            before = os.fstat(f.fileno())
            data = f.read()
            after = os.fstat(f.fileno())
    except OSError as err:
        raise read_error(err, path) from err
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError("E319", f"{path.name}: changed while being read", path=path)
    return data


def decode_file(data: bytes, path: Path | RemoteImage, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode what `read_file` read from ``path``, see `decode_image`.

    Raises:
        DataError: the codes of `decode_image`.
    """
    try:
        photo = decode_image(data, max_pixels=max_pixels)
    except DataError as err:
        place = None if isinstance(path, RemoteImage) else path
        raise DataError(err.code, f"{path.name}: {err.message}", hint=err.hint, path=place) from err
    # a row of a table may have a number for a name
    if not path.suffix or _KIND_OF_SUFFIX.get(path.suffix.lower()) == formats.kind_of(data):
        return photo
    return DecodedImage(photo.image, (*photo.notices, "I304"))


def read_error(err: OSError, path: Path) -> DataError:
    """The error for a file or folder of images that the system does not let us read."""
    if err.errno in {errno.EACCES, errno.EPERM}:
        return DataError("E318", f"{path.name}: permission denied", path=path)
    if err.errno == errno.ENAMETOOLONG:
        return DataError("E321", f"{path.name[:40]}...: the path is too long", path=path)
    if err.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
        return DataError("E314", f"{path.name}: the file is missing, or a link that leads nowhere", path=path)
    return DataError(
        "E319",
        f"{path.name}: cannot be read: {err.strerror or err}",
        hint="check the disk or the network share, then run the command again",
        path=path,
    )


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image to upright 8-bit RGB.

    The content decides the format, not the name. Transparent pixels are laid on white; 16-bit grey keeps its upper
    eight bits; CMYK, palette and grey become RGB; EXIF orientation is applied; of several frames the first is taken.
    Colour profiles are ignored. A JPEG that is damaged in its middle decodes without complaint: no decoder sees that.

    Raises:
        DataError: E301 truncated or damaged, E302 empty, E303 not an image, E307 more than ``max_pixels``, E309 not
            supported.
        MemoryError: when there is too little memory to decode it.
    """
    if not data:
        raise DataError("E302", "the file is empty")
    notices: list[str] = []
    with _quiet_pillow():
        image = _open(data, max_pixels)
        try:
            if getattr(image, "is_animated", False):
                notices.append("I306")
            image.load()
        except MemoryError:
            raise  # that may be the machine's fault, and nothing is known about the image
        except Exception as err:
            if _OUT_OF_MEMORY in str(err):
                raise MemoryError from err
            # Pillow's readers let exceptions of every kind through on damaged files; all mean the same to the user
            ended = _without_end_marker(data)
            if ended is None:
                raise DataError("E301", f"the image is truncated or damaged: {err or type(err).__name__}") from err
            image = ended
            notices.append("W301")
        if min(image.size) < _MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
            notices.append("W308")
        pixels = _to_rgb(image)
    try:
        # TIFF keeps its orientation elsewhere, and Pillow has applied it
        turn = _UPRIGHT.get(formats.orientation_of(image.info["exif"])) if image.info.get("exif") else None
    except ValueError:
        notices.append("W305")
        turn = None
    return DecodedImage(pixels if turn is None else pixels.transpose(turn), tuple(notices))


def count_pixels(path: Path | RemoteImage) -> int:
    """How many pixels an image's header promises; 0 where it cannot be read."""
    try:
        source = io.BytesIO(path.read_bytes()) if isinstance(path, RemoteImage) else path
        with _quiet_pillow(), Image.open(source, formats=_FORMATS) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - whoever decodes the file says what is wrong with it
        return 0


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only: nothing is decoded before the size is known."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as err:
        # Pillow's own limit, which max_pixels does not raise
        raise DataError("E307", f"too large to open: {str(err).partition(',')[0]}", hint="make it smaller") from err
    except MemoryError:
        raise
    except Exception as err:
        raise formats.why_unreadable(data) from err
    width, height = image.size
    if width * height > max_pixels:
        raise DataError("E307", f"{width}x{height} = {width * height / 1e6:.1f} MP exceeds {max_pixels / 1e6:g} MP")
    if width * height == 0:
        raise DataError("E301", f"the image is damaged: its size is {width}x{height}")
    return image


def _without_end_marker(data: bytes) -> Image.Image | None:
    """The image when only a JPEG's end marker is missing; None when pixels are missing too.

    The pixels are complete when it does not matter what would have followed.
    """
    if formats.kind_of(data) != "JPEG" or not formats.is_one_unbroken_scan(data):
        return None
    begun = data[:-1] if data.endswith(b"\xff") else data  # half of the marker
    try:
        ended = _continued(begun, b"")
        pixels = np.asarray(ended)
        complete = all(np.array_equal(pixels, np.asarray(_continued(begun, tail))) for tail in _TAILS)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - not to be had either way; the first failure is what is reported
        return None
    return ended if complete else None


def _continued(jpeg: bytes, tail: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg + tail + b"\xff\xd9"), formats=("JPEG",))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips everything above 255 to white
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in {"I", "F"}:
        raise DataError("E309", "32-bit integer and floating-point pixels are not supported: their range is unknown")
    try:
        if image.has_transparency_data:
            shown = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", shown.size, _WHITE), shown).convert("RGB")
        return image.convert("RGB")
    except ValueError as err:
        raise DataError("E309", f"{image.mode} pixels are not supported: {err}") from err


_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_quiet_lock = threading.Lock()
_quiet_threads = 0


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """While any thread is inside, Pillow's warnings are not shown; what matters in them is a notice or an error here.

    `warnings.catch_warnings` restores the filters of whichever thread came first, so it cannot be used in threads.
    """
    global _quiet_threads
    filters = cast("list[Any]", warnings.filters)
    with _quiet_lock:
        _quiet_threads += 1
        if _PILLOW_FILTER not in filters:
            filters.insert(0, _PILLOW_FILTER)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_threads -= 1
            if _quiet_threads == 0:
                with contextlib.suppress(ValueError):
                    cast("list[Any]", warnings.filters).remove(_PILLOW_FILTER)
