"""Read and decode images to upright 8-bit RGB. Training, export checks and prediction share this path.

In the order of the data: `read_file` reads the bytes; `decode_image` decodes them, converts the pixels to RGB and
applies the orientation; `read_image` does both. `convert_image` starts from an image that Pillow has opened. The next
step, crop and resize, is `ensemble.images.face_crop.prepare_image`.
"""

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
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.errors import DamagedImageError, DataError, cut_text
from ensemble.images import completeness, formats
from ensemble.images.deep_color import is_deep, mend_tiff
from ensemble.images.metadata import strip_metadata, turn_of
from ensemble.images.on_white import composite_on_white
from ensemble.images.sample_bits import colors_to_eight_bits, grey_to_eight_bits
from ensemble.images.size_limits import MAX_PIXELS, require_size
from ensemble.images.storage import RemoteImage
from ensemble.images.time_limit import LIMIT, run_limited


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An upright 8-bit RGB image, as Pillow holds it; ``notices`` are the codes of everything unusual about it."""

    image: Image.Image
    notices: tuple[str, ...] = ()

    @property
    def pixels(self) -> Pixels:
        """``(H, W, 3)`` uint8, read-only; every call makes a new array."""
        return np.asarray(self.image)


def read_image(path: Path | RemoteImage) -> DecodedImage:
    """Read and decode one image, from a file or from remote storage.

    Raises:
        DataError: the codes of `read_file` and `decode_file`.
    """
    return decode_file(read_file(path), path)


def read_file(path: Path | RemoteImage) -> bytes:
    """Read the encoded bytes of one image.

    Raises:
        DataError: E314 when the file is missing, E318 when it may not be read, E319 when it changes while being read,
            E320 when it is not a regular file, E321 when the path is too long.
    """
    if isinstance(path, RemoteImage):
        return path.read_bytes()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening it: a FIFO would block forever
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


def read_error(err: OSError, path: Path) -> DataError:
    """Return the error to raise when the system refuses to read an image or a folder of images."""
    if err.errno in {errno.EACCES, errno.EPERM}:
        return DataError("E318", f"{path.name}: permission denied", path=path)
    if err.errno == errno.ENAMETOOLONG:
        return DataError("E321", f"{cut_text(path.name, 43)}: the path is too long", path=path)
    if err.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
        return DataError("E314", f"{path.name}: the file is missing, or a link that leads nowhere", path=path)
    return DataError(
        "E319",
        f"{path.name}: cannot be read: {err.strerror or err}",
        hint="check the disk or the network share, then run the command again",
        path=path,
    )


_FORMAT_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".pjpeg": "JPEG",
    ".pjp": "JPEG",
    ".mpo": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".avifs": "AVIF",
}
SUFFIXES = frozenset(_FORMAT_OF_SUFFIX)
ARRAY_SUFFIX = ".npy"
"""Of arrays, for models that take as many channels as a file has: `ensemble.images.planes`."""


def decode_file(data: bytes, path: Path | RemoteImage) -> DecodedImage:
    """Decode what `read_file` read from ``path``; the file's name goes into errors and is compared with the content.

    Raises:
        DataError: the codes of `decode_image`; E356 when decoding takes longer than a minute.
    """
    try:
        decoded = run_limited(partial(decode_image, data))
    except TimeoutError as err:
        place = None if isinstance(path, RemoteImage) else path
        raise DataError("E356", f"{path.name}: decoding takes more than {LIMIT:g} seconds", path=place) from err
    except DataError as err:
        raise name_image(err, path) from err
    # a row of a table may have a number for a name
    if not path.suffix or _FORMAT_OF_SUFFIX.get(path.suffix.lower()) == formats.format_of(data):
        return decoded
    return DecodedImage(decoded.image, (*decoded.notices, "I304"))


def name_image(err: DataError, path: Path | RemoteImage) -> DataError:
    """Return the error with the image's name before its message."""
    place = None if isinstance(path, RemoteImage) else path
    return DataError(err.code, f"{path.name}: {err.message}", hint=err.hint, path=place)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file's bytes to upright 8-bit RGB.

    The content decides the format, not the name. Transparent pixels are composited on white; 16-bit grey keeps its
    upper eight bits; CMYK, palette and grey become RGB; the orientation in EXIF or XMP is applied; of several frames
    the first is taken. Color profiles are ignored, and metadata that Pillow refuses costs no pixels (W334). A JPEG
    that is damaged in its middle decodes without complaint: no decoder notices.

    Raises:
        DataError: E301 truncated or damaged, E302 empty, E303 not an image, E307 more than ``max_pixels``, E309 not
            supported, E353 a JPEG of too many scans.
        MemoryError: when there is too little memory to decode it.
    """
    _require_content(data)
    with _quiet_pillow():
        try:
            return _decode(data, max_pixels)
        except DamagedImageError as err:
            bare = strip_metadata(data)
            if bare is None:
                raise
            try:
                found = _decode(bare, max_pixels)
            except DataError:
                raise err from None
            return DecodedImage(found.image, (*found.notices, "W334"))


def _require_content(data: bytes) -> None:
    if not data:
        raise DataError("E302", "the file is empty")


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, list[str]]:
    """Decode an image file's bytes to the pixels that it stores, not turned; with the codes of what is unusual.

    Raises:
        DataError: E301, E302, E303, E307 and E309 as `decode_image`.
    """
    _require_content(data)
    with _quiet_pillow():
        return _load(data, max_pixels)[:2]


def _decode(data: bytes, max_pixels: int) -> DecodedImage:
    image, notices, deep = _load(data, max_pixels)
    if deep:
        with _decoding():
            image = colors_to_eight_bits(image, data, notices)
    turn = _turn_and_shape(image, notices)
    rgb = _to_rgb(image, data, notices)
    del image  # before there is a third copy of the pixels
    return DecodedImage(rgb if turn is None else rgb.transpose(turn), tuple(notices))


def _load(data: bytes, max_pixels: int) -> tuple[Image.Image, list[str], bool]:
    """Return the image, codes of what is unusual, and whether its colors have 16 bits in the file."""
    image = _open(data)
    require_size(image, data=data, max_pixels=max_pixels)
    deep = is_deep(image)
    mend_tiff(image)
    if image.format in {"JPEG", "MPO"}:
        completeness.require_few_scans(data, image.width * image.height)
    notices: list[str] = []
    try:
        with _decoding():
            if getattr(image, "is_animated", False):
                notices.append("I306")
            image.load()
    except DataError:
        ended = _without_end_marker(data)
        if ended is None:
            raise
        image = ended
        notices.append("W301")
    else:
        with _decoding():
            fault = completeness.find_fault(data, image)
        if fault is not None:
            raise DamagedImageError("E301", f"the image is truncated or damaged: {fault}")
        notices += completeness.odd_end(data, image)
    return image, notices, deep


def convert_image(image: Image.Image) -> DecodedImage:
    """Convert an image that Pillow has opened to upright 8-bit RGB, by the rules of `decode_image`.

    Of several frames the current one is taken. ``image`` itself is loaded, but not changed.

    Raises:
        DataError: E301 truncated or damaged, E307 more than `MAX_PIXELS`, E309 not supported.
        MemoryError: when there is too little memory to decode it.
    """
    with _quiet_pillow():
        require_size(image)
        deep = is_deep(image)
        mend_tiff(image)
        notices: list[str] = []
        with _decoding():
            image.load()
            if deep:
                image = colors_to_eight_bits(image, None, notices)
        turn = _turn_and_shape(image, notices)
        rgb = _to_rgb(image, None, notices)
        return DecodedImage(rgb if turn is None else rgb.transpose(turn), tuple(notices))


_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # Pillow's JPEG reader opens MPO too


def _open(data: bytes) -> Image.Image:
    """Read the header only: nothing is decoded before the size is known."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as err:
        # Pillow's own limit, which max_pixels does not raise
        raise DataError("E307", f"too large to open: {str(err).partition(',')[0]}", hint="make it smaller") from err
    except MemoryError:
        raise
    except Exception as err:
        raise formats.why_unreadable(data) from err


_OUT_OF_MEMORY = "out of memory"  # in the text of an OSError of Pillow's decoders


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turn an exception of any kind into E301, except for too little memory."""
    try:
        yield
    except MemoryError:
        raise  # the machine may be at fault; nothing is known about the image
    except Exception as err:
        if _OUT_OF_MEMORY in str(err):
            raise MemoryError from err
        # on damaged files Pillow's readers raise exceptions of every kind; all mean the same to the user
        raise DamagedImageError("E301", f"the image is truncated or damaged: {err or type(err).__name__}") from err


# possible continuations of a truncated JPEG: one or two of them can look like the end by chance, eight cannot
_TAILS = tuple(bytes([byte]) * 4096 for byte in (0x5A, 0xA5, 0xE6, 0x99, 0xB4, 0x6D, 0xD3, 0x2B))


def _without_end_marker(data: bytes) -> Image.Image | None:
    """Return the image if only a JPEG's end marker is missing, None if pixels are missing too.

    The pixels are complete if they are the same whatever bytes follow.
    """
    if formats.format_of(data) != "JPEG" or not formats.is_one_unbroken_scan(data):
        return None
    begun = data[:-1] if data.endswith(b"\xff") else data  # half of the marker
    try:
        ended = _continued(begun, b"")
        complete = all(completeness.same_pixels(ended, _continued(begun, tail)) for tail in _TAILS)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - it cannot be decoded either way; the first failure is reported
        return None
    return ended if complete else None


def _continued(jpeg: bytes, tail: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg + tail + b"\xff\xd9"), formats=("JPEG",))


MIN_SIDE = 8
MAX_ASPECT = 20


def _turn_and_shape(image: Image.Image, notices: list[str]) -> Image.Transpose | None:
    """Return how a loaded image is turned upright; add the codes of what is unusual to ``notices``."""
    if min(image.size) < MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
        notices.append("W308")
    return turn_of(image, notices)


def _to_rgb(image: Image.Image, data: bytes | None, notices: list[str]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips everything above 255 to white
        return grey_to_eight_bits(image, data, notices).convert("RGB")
    if image.mode in {"I", "F"}:
        raise DataError("E309", "32-bit integer and floating-point pixels are not supported: their range is unknown")
    if image.mode in {"P", "PA"} and image.palette is None:
        raise DamagedImageError("E301", "the image is truncated or damaged: it has no palette")
    try:
        if image.has_transparency_data:
            return composite_on_white(image)
        return image.convert("RGB")
    except ValueError as err:
        raise DataError("E309", f"{image.mode} pixels are not supported: {err}") from err


def read_size(path: Path) -> tuple[int, int] | None:
    """Return width and height by an image's header, not turned upright; None if it cannot be read."""
    try:
        with _quiet_pillow(), Image.open(path, formats=_FORMATS) as image:
            return image.size
    except Exception:  # noqa: BLE001 - decoding the file reports what is wrong with it
        return None


def count_pixels(path: Path | RemoteImage) -> int:
    """Return the number of pixels by an image's header; 0 if it cannot be read."""
    try:
        source = io.BytesIO(path.read_bytes()) if isinstance(path, RemoteImage) else path
        with _quiet_pillow(), Image.open(source, formats=_FORMATS) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - decoding the file reports what is wrong with it
        return 0


_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_quiet_lock = threading.Lock()
_quiet_threads = 0


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Hide Pillow's warnings while any thread is inside; those that matter are notices or errors of ours.

    `warnings.catch_warnings` restores the filters of whichever thread came first, so threads cannot use it.
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
