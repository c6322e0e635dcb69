"""Find images that end before their last pixel where the decoder does not say so, and JPEGs of too many scans.

Pillow raises for most files that are cut off. It does not where pixels are missing in a well-formed file: a PNG whose
compressed rows end early, a JPEG whose end marker comes early, a TIFF that lists too few strips, and a download of the
full size that has zeros where data never came. The missing pixels are then black or grey.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ensemble.errors import DataError

MAX_SCANS = 100
"""Scans of one JPEG; libtiff has the same limit. Encoders write about ten."""
_MAX_SCAN_PIXELS = 1_000_000_000  # scans x pixels: each scan visits every block of the image
_FREE_SCANS = 16
_PNG_SIGNATURE_SIZE = 8
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0 to SOF15
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ZEROS = 512  # that many zero bytes in a row do not occur at the end of entropy-coded data
_BLOCK = 512  # bytes; blocks of disks and of downloads in pieces are multiples of it
_LEAST_HOLE = 4096  # bytes
_STRIP = 4_000_000  # pixels
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass(frozen=True, slots=True)
class _Scan:
    components: tuple[int, ...]
    first: int
    last: int
    missing_bits: int
    start: int
    """Of its entropy-coded data."""
    end: int


@dataclass(frozen=True, slots=True)
class _Frame:
    """The frame of a JPEG: of ``sampling`` by component, horizontal and vertical."""

    progressive: bool
    height: int
    width: int
    sampling: dict[int, tuple[int, int]]
    restart: int

    @property
    def units(self) -> int:
        """The number of minimum coded units in a scan of all components."""
        across = 8 * max((one[0] for one in self.sampling.values()), default=1)
        down = 8 * max((one[1] for one in self.sampling.values()), default=1)
        if len(self.sampling) == 1:
            across = down = 8
        return -(-self.width // max(1, across)) * -(-self.height // max(1, down))


def require_few_scans(data: bytes, pixels: int) -> None:
    """Refuse a JPEG whose decoding takes far longer than its size lets expect: each scan visits every block.

    Raises:
        DataError: E353.
    """
    frame, scans = _jpeg_layout(data)
    if frame is None:
        return
    allowed = min(MAX_SCANS, max(_FREE_SCANS, _MAX_SCAN_PIXELS // max(1, pixels)))
    count = sum(1 for _ in itertools.islice(scans, allowed + 1))
    if count > allowed:
        raise DataError("E353", f"the JPEG has more than {allowed} scans of {pixels / 1e6:.1f} MP")


def coefficients_per_pixel(data: bytes) -> float:
    """Return how many coefficients per pixel libjpeg keeps until the last scan of a JPEG; 0 for a file of one scan."""
    frame, scans = _jpeg_layout(data)
    first = None if frame is None else next(scans, None)
    if frame is None or first is None or not frame.sampling:
        return 0.0
    if not frame.progressive and len(first.components) == len(frame.sampling):
        return 0.0
    most = max(across for across, _ in frame.sampling.values()) * max(down for _, down in frame.sampling.values())
    return sum(across * down for across, down in frame.sampling.values()) / max(1, most)


def find_fault(data: bytes, image: Image.Image) -> str | None:
    """Return why an image that Pillow has loaded from ``data`` lacks pixels; None if nothing says so."""
    find = _FINDERS.get(str(image.format))
    return None if find is None else find(data, image)


def odd_end(data: bytes, image: Image.Image) -> list[str]:
    """Return W358 where the pixels of an uncompressed image end in zeros from a block of the disk on.

    A file of its full size whose last blocks never came looks so, and so may, rarely, a picture that is black there.
    """
    uncompressed = (image.format == "BMP" and data[30:34] in {b"\0\0\0\0", b"\3\0\0\0"}) or (
        image.format == "TIFF" and getattr(image, "tag_v2", {}).get(259, 1) == 1
    )
    if not uncompressed or any(data[-_LEAST_HOLE:]):
        return []
    begin = len(data.rstrip(b"\0"))
    # data may themselves end in a few zeros before the block
    return ["W358"] if -begin % _BLOCK < _BLOCK // 64 and begin < len(data) - _LEAST_HOLE else []


# JPEG


def _jpeg_layout(data: bytes) -> tuple[_Frame | None, Iterator[_Scan]]:
    """Return the frame and, one after the other, its scans; no frame where there is one scan of all components."""
    walk = _jpeg_segments(data)
    frame: _Frame | None = None
    restart = 0
    for marker, at, body in walk:
        if marker in _FRAMES and len(body) >= 6:
            sampling = {
                body[i]: (body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, min(len(body) - 2, 6 + 3 * body[5]), 3)
            }
            height, width = struct.unpack_from(">HH", body, 1)
            frame = _Frame(marker in _PROGRESSIVE, height, width, sampling, restart)
        elif marker == 0xDD and len(body) >= 2:
            restart = int.from_bytes(body[:2], "big")
        elif marker == 0xDA and frame is not None and body:
            frame = _Frame(frame.progressive, frame.height, frame.width, frame.sampling, restart)
            return frame, _scans(data, itertools.chain([(marker, at, body)], walk))
    return None, iter(())


def _scans(data: bytes, walk: Iterator[tuple[int, int, bytes]]) -> Iterator[_Scan]:
    for marker, at, body in walk:
        count = body[0] if marker == 0xDA and body else 0
        if count and len(body) >= 4 + 2 * count:
            found = _NEXT_MARKER.search(data, at)
            end = len(data) if found is None else found.start()
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            yield _Scan(tuple(body[1 : 1 + 2 * count : 2]), first, last, bits & 15, at, end)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, end and body of each segment until the end of the image, skipping what is between them."""
    at = 2
    while found := _NEXT_MARKER.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:
            return
        if marker == 0x01 or marker == 0xD8:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        yield marker, at + length, data[at + 2 : at + length]
        at += max(2, length)


def _jpeg_fault(data: bytes, image: Image.Image) -> str | None:
    frame, scans = _jpeg_layout(data)
    if frame is None:
        return None
    first = next(scans, None)
    if first is None:
        return None
    if frame.progressive or len(first.components) < len(frame.sampling):
        return _missing_scans(frame, itertools.chain([first], scans))
    if not _ends_in_grey(image):
        return None
    # libjpeg decodes what is missing as zeros, which is grey, and only counts a warning
    restarts = len(_RESTART.findall(data, first.start, first.end))
    if frame.restart and restarts < -(-frame.units // frame.restart) - 1:
        return "its end marker comes before its last pixels"
    for tail in (b"\xa5" * 4096, b"\x6d" * 4096):
        longer = Image.open(io.BytesIO(data[: first.end] + tail + b"\xff\xd9"), formats=("JPEG",))
        if not same_pixels(image, longer):
            return "its end marker comes before its last pixels"
    return None


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Return whether two images have equal pixels. They are compared in strips: whole, arrays double the memory."""
    rows = max(1, _STRIP // max(1, one.width))
    strips = ((0, top, one.width, min(one.height, top + rows)) for top in range(0, one.height, rows))
    return one.size == other.size and all(
        np.array_equal(np.asarray(one.crop(strip)), np.asarray(other.crop(strip))) for strip in strips
    )


def _ends_in_grey(image: Image.Image) -> bool:
    corner = image.getpixel((image.width - 1, image.height - 1))
    values = corner if isinstance(corner, tuple) else (corner,)
    return all(value is not None and 127 <= value <= 128 for value in values)


def _missing_scans(frame: _Frame, scans: Iterator[_Scan]) -> str | None:
    """Tell what the scans of a progressive or non-interleaved JPEG leave out."""
    bits: dict[int, dict[int, int]] = defaultdict(dict)
    for scan in scans:
        for component in scan.components:
            for coefficient in range(scan.first, min(scan.last, 63) + 1):
                bits[component][coefficient] = scan.missing_bits
    for component in frame.sampling:
        known = bits[component]
        if not known or (frame.progressive and (len(known) < 64 or any(known.values()))):
            return "its last scans are missing"
    return None


# PNG


def _png_fault(data: bytes, image: Image.Image) -> str | None:
    parts: list[tuple[int, int]] = []
    header = data[16:29]
    at = _PNG_SIGNATURE_SIZE
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            parts.append((at + 8, min(end, len(data))))
            if end + 4 <= len(data) and zlib.crc32(memoryview(data)[at + 4 : end]) != _unsigned(data, end):
                return "the checksum of its pixels is wrong"
        at = end + 4
    interlaced = header[12:13] == b"\1"
    if not parts or len(header) < 13 or not (interlaced or _ends_in_zeros(image)):
        return None
    wanted = _png_size(header)
    return "its rows end early" if _inflated(data, parts, wanted) < wanted else None


def _unsigned(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _ends_in_zeros(image: Image.Image) -> bool:
    """Return whether the last row is as Pillow leaves rows that never came."""
    return not np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any()


def _png_size(header: bytes) -> int:
    """Return the number of bytes that the header of a PNG lets expect: each row has one byte more, its filter."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _PNG_CHANNELS.get(color, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(down * (1 + -(-across * bits // 8)) for across, down in sizes if across > 0 and down > 0)


def _inflated(data: bytes, parts: list[tuple[int, int]], wanted: int) -> int:
    """Return how many bytes the parts unpack to, counted up to ``wanted``."""
    unpacker, total = zlib.decompressobj(), 0
    try:
        for start, end in parts:
            piece: bytes = data[start:end]
            while piece and total < wanted and not unpacker.eof:
                total += len(unpacker.decompress(piece, 1 << 20))
                piece = unpacker.unconsumed_tail
        while total < wanted and not unpacker.eof and (rest := unpacker.decompress(b"", 1 << 20)):
            total += len(rest)
    except zlib.error:
        return total
    return total


# TIFF, WebP, AVIF


def _tiff_fault(data: bytes, image: Image.Image) -> str | None:
    """Tell which strips or tiles of an uncompressed TIFF are missing; libtiff checks those of compressed ones."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or tags.get(259, 1) != 1:
        return None
    tiled = 324 in tags
    offsets, counts = (tags.get(324), tags.get(325)) if tiled else (tags.get(273), tags.get(279))
    if not isinstance(offsets, tuple):
        return None
    width, height, samples = int(tags[256]), int(tags[257]), int(tags.get(277, 1))
    across, down = (int(tags[322]), int(tags[323])) if tiled else (width, min(height, int(tags.get(278, height))))
    planes = samples if tags.get(284, 1) == 2 else 1
    each = -(-width // max(1, across)) * -(-height // max(1, down))
    if len(offsets) < each * planes:
        return f"it lists {len(offsets):,} of {each * planes:,} strips"
    bits = sum(tags.get(258, (1,))) if planes == 1 else max(tags.get(258, (1,)))
    row = -(-across * bits // 8)
    for i, offset in enumerate(offsets[: each * planes]):
        rows = down if tiled else min(down, height - i % each * down)
        stored = counts[i] if isinstance(counts, tuple) and len(counts) == len(offsets) else 0
        if offset == 0 or offset + rows * row > len(data) or 0 < stored < rows * row:
            return f"strip {i + 1:,} of {each * planes:,} is incomplete"
    return None


def _webp_fault(data: bytes, _: Image.Image) -> str | None:
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data[at : at + 4] in {b"VP8 ", b"VP8L"}:
            return _zeros_at_end(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return None


def _avif_fault(data: bytes, _: Image.Image) -> str | None:
    at = 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if length == 1 and at + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, at + 8)
        if data[at + 4 : at + 8] == b"mdat":
            return _zeros_at_end(data[at : at + length] if length else data[at:])
        if length < 8:
            return None
        at += length
    return None


def _zeros_at_end(coded: bytes) -> str | None:
    return "its data end in zeros" if len(coded) > _ZEROS and not any(coded[-_ZEROS:]) else None


_FINDERS = {
    "JPEG": _jpeg_fault,
    "MPO": _jpeg_fault,
    "PNG": _png_fault,
    "TIFF": _tiff_fault,
    "WEBP": _webp_fault,
    "AVIF": _avif_fault,
}
