"""JSON from users and files, with a limit on its size: a name that is given twice is an error, not the last value."""

from __future__ import annotations

import collections
import json
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble.errors import cut_text

MAX_BYTES = 256 * 2**20
"""Of a JSON file; a recipe of a million weights has 20 MB."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, gives a name of an object twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as err:
        raise ValueError("the JSON is nested too deeply") from err


def read_utf8(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Return the text of a file in UTF-8, with or without a BOM.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file, not UTF-8, or has more than ``limit`` bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # before opening it: a FIFO would block forever
        raise ValueError(f"{path.name} is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path.name} has {status.st_size:,} bytes; {limit:,} are allowed")
    return path.read_text(encoding="utf-8-sig")


def require_names(value: Any, what: str, *, known: Collection[str] | None = None, needed: Collection[str] = ()) -> None:
    """Check that a JSON value is an object with the names ``needed``, and where ``known`` is given with no others.

    Raises:
        ValueError: with ``what`` the value is, and the first name that is missing or unknown.
    """
    if not isinstance(value, Mapping):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{what} must be an object, not {kind}")  # noqa: TRY004 - as every other fault of a JSON text
    for name in needed:
        if name not in value:
            raise ValueError(f"{what} lacks {name!r}")
    for name in value:
        if known is not None and name not in known:
            raise ValueError(f"{what} has the unknown name {cut_text(name, 60)!r}")


def require_no_flags(value: Any, *, besides: Collection[str] = ()) -> None:
    """Check that true and false stand nowhere in a JSON value but under the names ``besides``.

    Python takes true for the number 1: a weight, a size or a version that is true would be read as 1.

    Raises:
        ValueError: one stands elsewhere.
    """
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        place, one = left.pop()
        if isinstance(one, bool):
            message = f"{cut_text(place, 80) or 'the value'} is {str(one).lower()}, which is neither a number nor text"
            raise ValueError(message)  # noqa: TRY004 - as every other fault of a JSON text
        if isinstance(one, Mapping):
            left += [(f"{place}.{name}".lstrip("."), inner) for name, inner in one.items() if name not in besides]
        elif isinstance(one, list):
            left += [(place, inner) for inner in one if isinstance(inner, bool | Mapping | list)]


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {cut_text(twice, 60)!r} is given twice")
    return value
