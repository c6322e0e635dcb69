"""Tell text from binary data, where the first letters of a text are those of a binary format."""

from __future__ import annotations

_CONTROL = frozenset(range(0x20)) - frozenset(b"\t\n\v\f\r\x1a\x1b") | {0x7F}
_SAMPLE = 512


def is_plain_text(data: bytes) -> bool:
    """Return whether the first 512 bytes are UTF-8 without control characters, which binary formats begin with.

    A character that is cut off at the end of the bytes does not count.
    """
    head = data[:_SAMPLE]
    if not _CONTROL.isdisjoint(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as err:
        return err.reason == "unexpected end of data" and err.start > len(head) - 4
    return True
