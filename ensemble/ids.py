"""Matching by id: rows are never matched by position."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import EnsError, enumerate_some
from ensemble.events import SILENT, Listener, Notice


def join_rows(
    wanted: Sequence[str],
    found: Sequence[str],
    *,
    complain: Callable[[str], EnsError],
    listener: Listener = SILENT,
) -> NDArray[np.intp]:
    """Return row numbers ``r`` such that ``found[r[i]]`` is the id ``wanted[i]``; both contain the same ids, each once.

    Ids that are equal after Unicode normalization (macOS decomposes file names) are the same id, with a notice.

    Raises:
        EnsError: the error that ``complain`` returns for the difference, which reads "lacks 2 of 30 ids: ...".
    """
    for ids in (wanted, found):
        if len(set(ids)) != len(ids):
            raise complain(f"lists {len(ids) - len(set(ids)):,} ids more than once")
    row = {name: i for i, name in enumerate(found)}
    if row.keys() != set(wanted):
        normal = {_nfc(name): i for name, i in row.items()}
        # where two names become one they cannot be told apart: then only the exact spelling counts
        if len(normal) == len(wanted) == len(found) and normal.keys() == {_nfc(name) for name in wanted}:
            changed = sum(name not in row for name in wanted)
            listener.notice(Notice("I310", f"{changed:,} names matched only after Unicode normalization"))
            return np.array([normal[_nfc(name)] for name in wanted], dtype=np.intp)
        raise complain(_difference(wanted, found))
    return np.array([row[name] for name in wanted], dtype=np.intp)


def without_ids(ids: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    """Return the ids that are not left out, regardless of Unicode normalization."""
    gone = {_nfc(name) for name in left_out}
    return tuple(name for name in ids if _nfc(name) not in gone)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _difference(wanted: Sequence[str], found: Sequence[str]) -> str:
    lacking = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    parts = []
    if lacking:
        parts.append(f"lacks {len(lacking):,} of {len(wanted):,} ids: {enumerate_some(lacking)}")
    if extra:
        parts.append(f"has {len(extra):,} others: {enumerate_some(extra)}")
    return "; ".join(parts)
