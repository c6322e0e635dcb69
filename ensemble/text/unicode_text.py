"""Unicode normalization in linear time."""

from __future__ import annotations

import unicodedata
from typing import Literal

_SHORT = 1024  # letters; file names have at most 255 bytes
_MOST_MARKS = 64  # combining marks in a row; text of any language has fewer than 30 (UAX 15, stream-safe text)


def compose(text: str, form: Literal["NFC", "NFD", "NFKC"] = "NFC") -> str:
    """Return a text in a normal form; a text with a long run of combining marks as it is.

    Marks are sorted one by one, so that a run of a million takes hours.
    """
    if len(text) > _SHORT and _has_long_run(text):
        return text
    return unicodedata.normalize(form, text)


def _has_long_run(text: str) -> bool:
    run = 0
    for letter in text:
        run = run + 1 if unicodedata.combining(letter) else 0
        if run > _MOST_MARKS:
            return True
    return False
