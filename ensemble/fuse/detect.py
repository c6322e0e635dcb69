"""Tell a fused file from a member's model, without what blending needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from ensemble.runtime.protobuf_limits import WireError, read_varint

FUSED_KEY = "ens.fused"  # of the card in the file's metadata
_METADATA, _KEY = 14, 1  # fields of ModelProto and StringStringEntryProto in onnx.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def is_fused(path: Path) -> bool:
    """Return True if a file has the card of a fused file in its metadata; False also for what is not an ONNX file.

    The weights are passed over, so that asking costs a few reads whatever the size of the file.
    """
    if not path.is_file():
        return False
    key = FUSED_KEY.encode()
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return any(
            name == key
            for start, end in _fields(file, 0, size, _METADATA)
            for first, last in _fields(file, start, end, _KEY)
            for name in [_read(file, first, min(last, first + len(key) + 1))]
        )


def _fields(file: BinaryIO, start: int, end: int, wanted: int) -> list[tuple[int, int]]:
    """Return where the contents of the fields ``wanted`` of a message lie; damage ends the list."""
    found: list[tuple[int, int]] = []
    place = start
    while place < end:
        head = _read(file, place, min(end, place + 20))
        try:
            tag, used = read_varint(head, 0, len(head))
            kind = tag & 7
            if kind == _BYTES:
                length, used = read_varint(head, used, len(head))
                if tag >> 3 == wanted and place + used + length <= end:
                    found.append((place + used, place + used + length))
                place += used + length
            elif kind == _VARINT:
                place += read_varint(head, used, len(head))[1]
            elif kind in {_FIXED32, _FIXED64}:
                place += used + (4 if kind == _FIXED32 else 8)
            else:
                break
        except WireError:
            break
    return found


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
