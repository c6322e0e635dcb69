"""Numbers in text from users and files, as other programs read them.

Python's ``int`` and ``float`` also take ``1_0`` (ten), full-width and Arabic digits, which a CSV reader of another
language calls text.
"""

from __future__ import annotations

from ensemble.errors import cut_text


def to_float(text: str) -> float:
    """Return the number in a text, which may be ``nan`` or ``inf``; blanks around it do not count.

    Raises:
        ValueError: the text is not a number in ASCII, or has underscores.
    """
    return float(_plain(text))


def to_int(text: str) -> int:
    """Return the whole number in a text; blanks around it do not count.

    Raises:
        ValueError: the text is not a whole number in ASCII, or has underscores.
    """
    return int(_plain(text))


def is_count(text: str) -> bool:
    """Return whether a text consists of the digits 0 to 9 alone, at most 18 of them."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _plain(text: str) -> str:
    number = text.strip()
    if not number.isascii() or "_" in number:
        raise ValueError(f"could not convert string to a number: {cut_text(text, 60)!r}")
    return number
