"""Smooth predictions over the rows of one file: segments of a recording, frames of a clip, slices of a scan.

The rows of a file are found by their ids: ``soundscape_5``, ``soundscape_10`` are two rows of ``soundscape``, in the
order of their numbers. Or a table has a column of groups, and one of their order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats
from ensemble.errors import OptionError, PredictionError, cut_text, enumerate_some, show_spaces
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import find_rows
from ensemble.text.patterns import match_all
from ensemble.text.plain_numbers import to_float

Edges = Literal["nearest", "shrink", "zero", "reflect"]
IDS = r"(.*?)[_-]?(\d+(?:\.\d+)?)(?:\.[A-Za-z]\w*)?"
"""The default pattern of ids: a file, and a number at the end, before a suffix if there is one."""
MAX_WEIGHT = 1e12
"""Of a kernel: far beyond meaningful values, far below overflow."""
_KERNEL = "give an odd number of weights, such as --smooth 0.1,0.2,0.4,0.2,0.1"
_PATTERN_HINT = (
    "give a pattern of ids with two groups, the file and the number: --smooth-ids '(.*)_(\\d+)', or a table of groups: "
    "--smooth-table"
)


@dataclass(frozen=True, slots=True)
class RowTable:
    """The group of each of ``ids``, and its place in it, from the columns ``group`` and ``order`` of a table.

    Without an ``order`` the places are those of the rows in the table.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    places: tuple[float, ...]
    group: str
    order: str | None


def needs_table(group: str) -> OptionError:
    """Return the error E204 for a recipe whose groups are those of a table that is not given."""
    return OptionError(
        "E204",
        f"the recipe smooths over the rows of each {show_spaces(group)}, a column of a table",
        hint="name the table of these images: --smooth-table FILE of ens blend and ens submit",
    )


@dataclass(frozen=True, slots=True)
class Smoothing:
    """A kernel over neighboring rows of one file: each row becomes the weighted mean of itself and its neighbors.

    ``kernel`` has an odd number of weights, that of the previous rows first; only their proportions matter. ``ids`` is
    a regular expression of a whole id with two groups: the file, and a number by which its rows are ordered. Beyond
    the ends of a file its last row is repeated (``nearest``), the weights are not used (``shrink``), the values are 0
    (``zero``) or mirrored without the last row (``reflect``). With ``group`` the files are the values of that column of
    a ``table``, which is not stored, and the rows are in the ``order`` of another of its columns, or as they are.

    Raises:
        PredictionError: E518 when the kernel, the pattern or the edges are not valid.
    """

    kernel: tuple[float, ...]
    ids: str = IDS
    edges: Edges = "nearest"
    group: str | None = None
    order: str | None = None
    table: RowTable | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        numbers = all(isinstance(weight, int | float) and math.isfinite(weight) for weight in self.kernel)
        if not self.kernel or len(self.kernel) % 2 == 0 or not numbers:
            message = f"a kernel has an odd number of finite weights, got {_some(self.kernel)}"
            raise PredictionError("E518", message, hint=_KERNEL)
        if max(self.kernel) > MAX_WEIGHT:  # their sum must be a number, too
            message = f"a kernel's weights are at most {MAX_WEIGHT:g}, got {max(self.kernel):g}"
            raise PredictionError("E518", message, hint=_KERNEL)
        if min(self.kernel) < 0 or not sum(self.kernel) or not self.kernel[len(self.kernel) // 2]:
            message = "a kernel's weights are not negative, and the middle one is above 0"
            raise PredictionError("E518", message, hint=_KERNEL)
        if self.edges not in get_args(Edges):
            raise PredictionError("E518", f"the edges {self.edges!r} are none of {', '.join(get_args(Edges))}")
        try:
            groups = re.compile(self.ids).groups
        except (re.error, TypeError) as err:
            message = f"the pattern of ids {_clipped(self.ids)} is not valid: {err}"
            raise PredictionError("E518", message, hint=_PATTERN_HINT) from err
        if groups != 2:
            message = f"the pattern of ids {_clipped(self.ids)} needs two groups: the file and the number"
            raise PredictionError("E518", message, hint=_PATTERN_HINT)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; the defaults are left out."""
        value: dict[str, Any] = {"kernel": list(self.kernel)}
        if self.ids != IDS:
            value["ids"] = self.ids
        if self.edges != "nearest":
            value["edges"] = self.edges
        if self.group is not None:
            value["group"] = self.group
        if self.order is not None:
            value["order"] = self.order
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Smoothing:
        """Return the smoothing of a JSON value from `to_json`; an unknown field is a TypeError."""
        fields = dict(value)
        if "table" in fields:
            raise TypeError("a recipe has no table of rows")
        return cls(tuple(fields.pop("kernel")), **fields)


def _some(kernel: Sequence[object]) -> str:
    shown = ", ".join(str(weight)[:20] for weight in kernel[:9])
    return f"[{shown}]" if len(kernel) <= 9 else f"{len(kernel):,}: [{shown}, ...]"


def _clipped(pattern: object) -> str:
    text = str(pattern)
    return repr(cut_text(text, 80))


def smooth_rows(values: Floats, ids: Sequence[str], smoothing: Smoothing, *, listener: Listener = SILENT) -> Floats:
    """Return values ``(N, C)`` smoothed over the rows of each file.

    Raises:
        OptionError: E204 when the files are those of a table that is not given.
        PredictionError: E504 when an id has no file and number, or two rows of a file have the same number, or ids are
            not in the table.
    """
    files = _files_of(ids, smoothing) if smoothing.group is None else rows_in_table(ids, smoothing, listener)
    kernel = np.array(smoothing.kernel, dtype=np.float64) / math.fsum(smoothing.kernel)
    out = np.empty_like(values)
    for rows in files.values():
        out[rows] = _smooth(values[rows], kernel, smoothing.edges)
    sizes = [len(rows) for rows in files.values()]
    if max(sizes) < 2:
        raise PredictionError(
            "E504",
            f"no file has two rows to be smoothed over: {next(iter(files))!r} of {ids[0]!r} has one",
            hint=_PATTERN_HINT if smoothing.group is None else "name a column of groups with several rows each",
        )
    message = f"{len(ids):,} rows are smoothed within {len(files):,} files of {min(sizes)} to {max(sizes)} rows"
    listener.notice(Notice("I550", f"{message}, such as {enumerate_some(list(files), limit=2)}"))
    return out


def _files_of(ids: Sequence[str], smoothing: Smoothing) -> dict[str, NDArray[np.intp]]:
    """Return the rows of each file in their order."""
    try:
        matches = match_all(smoothing.ids, ids)
    except TimeoutError as err:
        message = f"the pattern of ids {_clipped(smoothing.ids)} cannot be tried on {len(ids):,} ids: {err}"
        raise PredictionError("E518", message, hint=_PATTERN_HINT) from err
    found: dict[str, list[tuple[float, int]]] = {}
    for row, (name, groups) in enumerate(zip(ids, matches, strict=True)):
        file, number = groups or (None, None)
        place = _place(number)
        if place is None or file is None:
            raise PredictionError(
                "E504",
                f"the id {_clipped(name)} has no file and number, by the pattern {_clipped(smoothing.ids)}",
                hint=_PATTERN_HINT,
            )
        found.setdefault(file, []).append((place, row))
    return _in_order(found)


def _place(number: str | None) -> float | None:
    try:
        return None if number is None else to_float(number)
    except ValueError:
        return None


def rows_in_table(ids: Sequence[str], smoothing: Smoothing, listener: Listener) -> dict[str, NDArray[np.intp]]:
    """Return the rows of each file in their order, by a table."""
    assert smoothing.group is not None
    table = smoothing.table
    if table is None:
        raise needs_table(smoothing.group)

    def complain(difference: str) -> PredictionError:
        return PredictionError("E504", f"the table of rows to be smoothed {difference}")

    rows = find_rows(ids, table.ids, complain=complain, listener=listener)
    found: dict[str, list[tuple[float, int]]] = {}
    for row, place in enumerate(rows.tolist()):
        found.setdefault(table.groups[place], []).append((table.places[place], row))
    return _in_order(found)


def _in_order(found: Mapping[str, list[tuple[float, int]]]) -> dict[str, NDArray[np.intp]]:
    for file, rows in found.items():
        if len({place for place, _ in rows}) < len(rows):
            raise PredictionError("E504", f"two rows of {file!r} have the same number, so they have no order")
    return {file: np.array([row for _, row in sorted(rows)], dtype=np.intp) for file, rows in found.items()}


def _smooth(values: Floats, kernel: Floats, edges: Edges) -> Floats:
    half, count = len(kernel) // 2, len(values)
    place = np.arange(count)[:, np.newaxis] + np.arange(-half, half + 1)
    weights = np.broadcast_to(kernel, place.shape)
    inside = (place >= 0) & (place < count)
    if edges == "reflect" and count > 1:
        period = 2 * (count - 1)
        place = np.abs((place + count - 1) % period - (count - 1))
    if edges in {"shrink", "zero"}:
        weights = weights * inside
    if edges == "shrink":
        weights = weights / weights.sum(axis=1, keepdims=True)
    place = np.clip(place, 0, count - 1)
    total = np.zeros_like(values)
    for step in range(len(kernel)):
        total += weights[:, step, np.newaxis] * values[place[:, step]]
    return total
