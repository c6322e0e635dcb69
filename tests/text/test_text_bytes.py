"""Text is told from binary data by its first bytes."""

from __future__ import annotations

import pytest

from ensemble.text.text_bytes import is_plain_text


@pytest.mark.parametrize("data", [b"", b"a\tb\r\n", "é한\u4e2d".encode() * 200, b"PAR1,PK\n", b"\x1b[1mbold"])
def test_text_is_text(data: bytes) -> None:
    """Also where the sample ends within a character, and with the escape sequences of a terminal."""
    assert is_plain_text(data)
    assert is_plain_text(b"x" + data)


@pytest.mark.parametrize(
    "data", [b"PAR1\x15\x04", b"PK\x03\x04", b"GIF89a\x01\0", b"\xff\xd8\xff", b"a\xe9b", b"\x7fELF"]
)
def test_other_bytes_are_not(data: bytes) -> None:
    """Control characters, and bytes that are not UTF-8."""
    assert not is_plain_text(data)
