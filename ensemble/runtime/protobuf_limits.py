"""Count the messages of an ONNX file in protobuf's wire format, before anything is built from it.

Two bytes can encode an empty message that takes a hundred bytes in memory, and messages can be nested without limit. So
number and depth are counted on the encoded bytes (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor

MAX_BYTES = 2**31 - 1  # protobuf's own limit
MAX_PARTS = 1_000_000  # an EfficientNet-B0 has five thousand
MAX_NODES = 100_000  # an EfficientNet-B0 has 239
MAX_DEPTH = 40  # a network without branches has 7 levels; each branch inside another adds 3


class WireError(Exception):
    """The bytes are not valid protobuf."""


class TooLarge(Exception):
    """The file exceeds a limit; the message says which."""


@dataclass(slots=True)
class MessageCounts:
    """The number of messages in a file, and of those that are nodes of a network."""

    parts: int = 0
    nodes: int = 0


def measure(data: bytes, kind: Descriptor) -> MessageCounts:
    """Count the messages in ``data``, itself a message of ``kind``; stop at the first that exceeds a limit.

    Raises:
        WireError: the bytes are cut off or not protobuf, or a string in them is not UTF-8.
        TooLarge: there are more than `MAX_PARTS` messages, `MAX_NODES` nodes or `MAX_DEPTH` levels.
    """
    counts = MessageCounts()
    _measure(memoryview(data), 0, len(data), kind, 1, counts)
    return counts


def _measure(data: memoryview, at: int, end: int, kind: Descriptor, depth: int, counts: MessageCounts) -> None:
    counts.parts += 1
    counts.nodes += kind.name == "NodeProto"
    if counts.parts > MAX_PARTS:
        raise TooLarge(f"more than {MAX_PARTS:,} parts")
    if counts.nodes > MAX_NODES:
        raise TooLarge(f"more than {MAX_NODES:,} nodes")
    if depth > MAX_DEPTH:
        raise TooLarge(f"parts inside one another, more than {MAX_DEPTH} deep")
    fields = kind.fields_by_number
    while at < end:
        tag, at = read_varint(data, at, end)
        match tag & 7:
            case 0:
                _, at = read_varint(data, at, end)
            case 1:
                at += 8
            case 2:
                size, at = read_varint(data, at, end)
                field = fields.get(tag >> 3)
                if at + size > end:
                    raise WireError
                if field is not None and field.message_type is not None:
                    _measure(data, at, at + size, field.message_type, depth + 1, counts)
                elif field is not None and field.type == field.TYPE_STRING:
                    _require_text(data[at : at + size])
                at += size
            case 5:
                at += 4
            case _:  # groups, which ONNX never used
                raise WireError
    if at != end:
        raise WireError


def _require_text(data: memoryview) -> None:
    """Refuse strings that are not UTF-8: protobuf returns bytes or raises for them, depending on its build."""
    try:
        str(data, "utf-8")
    except UnicodeDecodeError as err:
        raise WireError from err


def read_varint(data: memoryview | bytes, at: int, end: int) -> tuple[int, int]:
    """Return the varint at ``at`` in ``data[:end]``, and the position behind it.

    Raises:
        WireError: it is cut off, or longer than ten bytes.
    """
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError
