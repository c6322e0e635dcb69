"""Matching by id: rows are never matched by position."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import EnsError, enumerate_some, show_spaces
from ensemble.events import SILENT, Listener, Notice
from ensemble.text.csv_table import Table
from ensemble.text.unicode_text import compose

_ID_COLUMNS = (
    *("imageid", "id", "image", "imagename", "imagefile", "filename", "fileid", "file", "filepath", "imagepath"),
    *("img", "imgid", "imgname", "imgpath", "imgfile", "idcode", "rowid", "isicid", "path", "fname", "photoid"),
)
"""Names of columns of ids, in the order in which they are looked for, without case, spaces and punctuation."""

_IMAGE_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|jfif|pjpeg|png|apng|bmp|dib|gif|tiff?|webp|avif|heic|heif|jp2|mpo|ppm|pgm|npy|npz|dcm|nii|h5|wav|ogg|mp4)$",
    re.IGNORECASE,
)


def find_id_column(table: Table, *, named: str | None = None, listener: Listener = SILENT) -> str:
    """Return the name of the column of ids: the one that is named, one with a usual name, or with a notice the first.

    Raises:
        DataError: E322 when the table lacks the column that is named.
    """
    if named is not None:
        return table.header[table.place(named)]
    found = usual_id_column(table.header)
    if found is not None:
        return _column_of_images(table, found, listener)
    if len(table.header) > 1:
        first = show_spaces(table.header[0])
        listener.notice(Notice("I382", f"{table.path.name}: the ids are taken from the first column, {first}"))
    return table.header[0]


def _column_of_images(table: Table, found: str, listener: Listener) -> str:
    """Return the column of ids by its name, or another one that is called so too if the first has the answers.

    A table with the columns Image and Id may have the image in the former and an animal in the latter: its ids repeat,
    or have no suffix where the images have one.
    """
    others = [name for name in table.header if name != found and usual_id_column([name]) is not None]
    if not table.rows or not others:
        return found
    cells = table.column(found)
    repeats, bare = len(set(cells)) < len(cells), not any(map(has_image_suffix, cells))
    for name in others:
        images = table.column(name)
        if "" in images or len(set(images)) < len(images):
            continue
        if repeats or (bare and all(map(has_image_suffix, images))):
            shown, other = show_spaces(name), show_spaces(found)
            message = f"{table.path.name}: the ids are taken from the column {shown}, and {other} is not one of ids"
            listener.notice(Notice("I382", message))
            return name
    return found


def usual_id_column(header: Sequence[str]) -> str | None:
    """Return the column that is called as columns of ids usually are, if there is one."""
    by_name = {re.sub(r"[\W_]", "", name).lower(): name for name in reversed(header)}
    return next((by_name[name] for name in _ID_COLUMNS if name in by_name), None)


@dataclass(frozen=True, slots=True)
class _IdReading:
    """A way to compare ids that are not spelled alike: those with equal keys are the same."""

    what: str
    key: Callable[[str], str]
    drops_suffix: bool = False
    drops_folder: bool = False


def tidy_id(name: str) -> str:
    """Return an id in composed Unicode with ``/`` between folders, without ``./`` and surrounding blanks.

    Of a URL the query and the fragment are no part of the id.
    """
    text = without_query(compose(name).replace("\\", "/").strip(" \t\r\n\v\f\xa0\u200b\ufeff\u3000"))
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return text


def without_query(name: str) -> str:
    """Return a URL up to its query or fragment; any other name as it is."""
    return re.split(r"[?#]", name, maxsplit=1)[0] if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) else name


def has_image_suffix(name: str) -> bool:
    """Return True if an id ends in the suffix of an image file."""
    return _IMAGE_SUFFIX.search(tidy_id(name)) is not None


def _without_suffix(name: str) -> str:
    return _IMAGE_SUFFIX.sub("", tidy_id(name))


def _basename(name: str) -> str:
    return os.path.basename(tidy_id(name))


COMPARISONS = (
    _IdReading("without surrounding spaces and ./", tidy_id),
    _IdReading("without the suffix", _without_suffix, drops_suffix=True),
    _IdReading("without the folder", _basename, drops_folder=True),
    _IdReading("without folder and suffix", lambda name: _basename(_without_suffix(name)), True, True),
)
"""How ids are compared that are not spelled alike, from the strictest on."""


def join_rows(
    wanted: Sequence[str],
    found: Sequence[str],
    *,
    complain: Callable[[str], EnsError],
    listener: Listener = SILENT,
) -> NDArray[np.intp]:
    """Return row numbers ``r`` such that ``found[r[i]]`` is the id ``wanted[i]``; both contain the same ids, each once.

    Ids that are equal after Unicode normalization (macOS decomposes file names) are the same id, with a notice. So are
    those that differ only in surrounding spaces, ``./``, their folder, or in that only one side has suffixes, if no two
    ids become one by that.

    Raises:
        EnsError: the error that ``complain`` returns for the difference, which reads "lacks 2 of 30 ids: ...".
    """
    for ids in (wanted, found):
        if len(set(ids)) != len(ids):
            raise complain(f"lists {len(ids) - len(set(ids)):,} ids more than once")
    row = {name: i for i, name in enumerate(found)}
    if row.keys() == set(wanted):
        return np.array([row[name] for name in wanted], dtype=np.intp)
    normal = {_nfc(name): i for name, i in row.items()}
    # where two names become one they cannot be told apart: then only the exact spelling counts
    if len(normal) == len(wanted) == len(found) and normal.keys() == {_nfc(name) for name in wanted}:
        changed = sum(name not in row for name in wanted)
        listener.notice(Notice("I310", f"{changed:,} names matched only after Unicode normalization"))
        return np.array([normal[_nfc(name)] for name in wanted], dtype=np.intp)
    loose = _join_loosely(wanted, found, listener)
    if loose is None:
        raise complain(_difference(wanted, found))
    return loose


def find_rows(
    wanted: Sequence[str],
    found: Sequence[str],
    *,
    complain: Callable[[str], EnsError],
    listener: Listener = SILENT,
) -> NDArray[np.intp]:
    """Return row numbers as `join_rows`, where ``found`` may have other ids besides, and ``wanted`` repeat one.

    Raises:
        EnsError: the error that ``complain`` returns for the difference, which reads "lacks 2 of 30 ids: ...".
    """
    distinct = list(dict.fromkeys(wanted))
    for one in (_IdReading("exactly", str), *COMPARISONS):
        by_key = {one.key(name): i for i, name in enumerate(found)}
        keys = [one.key(name) for name in distinct]
        if len(by_key) == len(found) and len(set(keys)) == len(keys) and by_key.keys() >= set(keys):
            notice_loose(distinct, [found[by_key[k]] for k in keys], one.what, listener)
            return np.array([by_key[one.key(name)] for name in wanted], dtype=np.intp)
    lacking = sorted(set(distinct) - set(found))
    raise complain(f"lacks {len(lacking):,} of {len(distinct):,} ids: {enumerate_some(lacking)}")


def _join_loosely(wanted: Sequence[str], found: Sequence[str], listener: Listener) -> NDArray[np.intp] | None:
    """Join ids that are not spelled alike by the strictest reading under which both sides have the same ids."""
    if len(wanted) != len(found) or not wanted:
        return None
    # 001.png and 001.jpg are two images: a suffix is left out only where the other side has none
    bare = not any(map(has_image_suffix, wanted)) or not any(map(has_image_suffix, found))
    for reading in COMPARISONS:
        if reading.drops_suffix and not bare:
            continue
        by_key = {reading.key(name): i for i, name in enumerate(found)}
        keys = [reading.key(name) for name in wanted]
        if len(by_key) == len(found) and len(set(keys)) == len(keys) and by_key.keys() == set(keys):
            rows = np.array([by_key[key] for key in keys], dtype=np.intp)
            notice_loose(list(wanted), [found[row] for row in rows.tolist()], reading.what, listener)
            return rows
    return None


def notice_loose(wanted: Sequence[str], found: Sequence[str], what: str, listener: Listener) -> None:
    """Say how many ids matched despite another spelling, with an example (I381)."""
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a != b]
    if pairs:
        example = " is ".join(map(show_spaces, pairs[0]))
        listener.notice(Notice("I381", f"{len(pairs):,} ids matched {what}: {example}"))


def without_ids(ids: Sequence[str], left_out: Collection[str]) -> tuple[str, ...]:
    """Return the ids that are not left out, regardless of Unicode normalization, suffix and folder."""
    if not left_out:
        return tuple(ids)
    for key in (_nfc, *(reading.key for reading in COMPARISONS)):
        gone, present = {key(name) for name in left_out}, {key(name) for name in ids}
        if gone <= present and len(present) == len(ids):
            return tuple(name for name in ids if key(name) not in gone)
    gone = {_nfc(name) for name in left_out}
    return tuple(name for name in ids if _nfc(name) not in gone)


def _nfc(name: str) -> str:
    return compose(name)


def _difference(wanted: Sequence[str], found: Sequence[str]) -> str:
    lacking = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    parts = []
    if lacking:
        parts.append(f"lacks {len(lacking):,} of {len(wanted):,} ids: {enumerate_some(lacking)}")
    if extra:
        parts.append(f"has {len(extra):,} others: {enumerate_some(extra)}")
    bare = {_without_zeros(name) for name in wanted}
    if len(bare) == len(set(wanted)) and bare == {_without_zeros(name) for name in found}:
        parts.append("they are the same numbers without leading zeros, which spreadsheets drop: write the ids as text")
    return "; ".join(parts)


def _without_zeros(name: str) -> str:
    return re.sub(r"^0+(?=[0-9]+$)", "", _basename(_without_suffix(name)))
