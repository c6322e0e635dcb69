"""Lint a submission: report all of its faults in one pass."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from ensemble.errors import FileError, PredictionError
from ensemble.events import SILENT, Listener
from ensemble.labels import LabelSpace
from ensemble.submission.format import Submission, SubmissionFormat, notice_missing, notice_single_class
from ensemble.text_table import render_rows

MEANING = {
    "encoding": "the text is not UTF-8",
    "bom": "the file starts with a byte-order mark, the sample does not",
    "line-ends": "line endings are mixed, or neither LF nor CRLF",
    "quoting": "a quoted cell is not closed; the rest of the file was not read",
    "header": "the first line is not the sample's",
    "blank": "a line is empty",
    "cells": "a row and the header differ in their number of cells",
    "missing": "an image of the sample has no row",
    "extra": "an image is not in the sample",
    "duplicate": "an image has more than one row",
    "order": "an image is in another row than in the sample",
    "spelling": "an id has another Unicode normalization than in the sample",
    "spaces": "a cell has leading or trailing spaces",
    "empty": "an answer is empty",
    "nan": "an answer is NaN, infinite or null",
    "float": "an answer is a number, but not written as a plain integer",
    "text": "an answer is not a number",
    "range": "an answer is not a class",
}
"""All kinds of faults, in the order in which they are reported."""

_NAN = {"none", "null", "na", "n/a", "<na>"}
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault (a key of `MEANING`), how often it occurs, and the first cases with their line numbers."""

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _SubmissionRow:
    line: int
    id: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Inspection:
    """The rows that could be read, and all faults of the file."""

    rows: list[_SubmissionRow]
    faults: tuple[Fault, ...]


_Cases = defaultdict[str, list[str]]
"""The cases of each kind of fault."""


def check_submission(
    path: Path, like: SubmissionFormat | None, labels: LabelSpace, *, listener: Listener = SILENT
) -> tuple[Fault, ...]:
    """Return all faults of a submission, compared with the sample ``like``; without a sample any ids are valid.

    Answers must be plain integers from 0 to C-1. W521 reports a valid submission with one class for all images.

    Raises:
        FileError: E707 when the file cannot be read.
    """
    found = _inspect(path, like, labels)
    if not found.faults:
        notice_single_class([int(row.answer) for row in found.rows], listener)
    return found.faults


def without_missing(
    path: Path, like: SubmissionFormat, labels: LabelSpace, *, listener: Listener = SILENT
) -> SubmissionFormat:
    """Return the sample without the images that have no row in a submission; W534 names them.

    Raises:
        FileError: E707 when the file cannot be read.
    """
    sample_ids = _SampleIds(like.ids)
    present = {sample_ids.match(row.id).id for row in _inspect(path, like, labels).rows}
    missing = [name for name in like.ids if name not in present]
    if missing and present.intersection(like.ids):
        notice_missing(missing, listener)
        return replace(like, ids=tuple(name for name in like.ids if name in present))
    return like


def read_submission(path: Path, labels: LabelSpace, *, like: SubmissionFormat | None = None) -> Submission:
    """Read a valid submission.

    Raises:
        FileError: E707 when the file cannot be read.
        PredictionError: E520 when it has faults; the details list all of them.
    """
    found = _inspect(path, like, labels)
    if found.faults:
        raise invalid_submission(path, found.faults)
    classes = np.array([int(row.answer) for row in found.rows], dtype=np.intp)
    return Submission(tuple(row.id for row in found.rows), classes, labels)


def invalid_submission(path: Path, faults: tuple[Fault, ...]) -> PredictionError:
    """Return the error E520 whose details list the faults."""
    details = tuple(f"{fault.what} ({fault.count:,}): {'; '.join(fault.examples)}" for fault in faults)
    kinds = ", ".join(fault.what for fault in faults)
    return PredictionError(
        "E520",
        f"{path.name} has faults of {len(faults)} kind{'s' * (len(faults) > 1)}: {kinds}",
        path=path,
        details=details,
    )


def render_faults(faults: tuple[Fault, ...]) -> str:
    """Render a table of the faults with counts and meanings, the first cases below each."""
    rows = [(f.what, f.count, MEANING[f.what]) for f in faults]
    header, *lines = render_rows(("fault", "count", "meaning"), rows)
    cases = ("\n".join(f"    {case}" for case in fault.examples) for fault in faults)
    return "\n".join([header, *(f"{line}\n{case}" for line, case in zip(lines, cases, strict=True))]) + "\n"


def _inspect(path: Path, like: SubmissionFormat | None, labels: LabelSpace) -> _Inspection:
    cases: _Cases = defaultdict(list)
    rows = _read_rows(path, like, cases)
    _check_ids(rows, like, cases)
    _check_answers(rows, len(labels), cases)
    faults = (Fault(what, len(cases[what]), tuple(cases[what][:_EXAMPLES])) for what in MEANING if what in cases)
    return _Inspection(rows, tuple(faults))


def _read_rows(path: Path, like: SubmissionFormat | None, cases: _Cases) -> list[_SubmissionRow]:
    """Read the rows as far as possible, and record faults of encoding, line endings, quoting and header."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err
    if data.startswith(b"\xef\xbb\xbf") and not (like and like.bom):
        cases["bom"].append("line 1")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        cases["encoding"].append(f"line {line}: byte 0x{data[err.start]:02x}")
        text = data.decode("utf-8-sig", errors="replace")
    _check_line_ends(text, cases)
    lines = list(_parse(text, cases))
    columns = ("ImageID", "ans") if like is None else like.columns
    return list(_rows(lines, columns, cases))


def _check_line_ends(text: str, cases: _Cases) -> None:
    unquoted = re.sub(r'"[^"]*"', "", text)
    counts = {
        "CRLF": unquoted.count("\r\n"),
        "LF": unquoted.count("\n") - unquoted.count("\r\n"),
        "CR": unquoted.count("\r") - unquoted.count("\r\n"),
    }
    kinds = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    if len(kinds) > 1 or counts["CR"]:
        cases["line-ends"].append(", ".join(kinds))


def _parse(text: str, cases: _Cases) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            else:
                cases["blank"].append(f"line {start}")
            start = reader.line_num + 1
    except csv.Error as err:
        cases["quoting"].append(f"line {start}: {err}")


def _rows(lines: list[tuple[int, list[str]]], columns: tuple[str, str], cases: _Cases) -> Iterator[_SubmissionRow]:
    """Yield the rows below the header; with a wrong header, those that can still be interpreted."""
    header = lines[0][1] if lines else []
    if header != list(columns):
        cases["header"].append(f"line 1: {','.join(header)!r} instead of {','.join(columns)!r}")
    # find the two columns by name, else by position; a first line that ends in a number is data, not a header
    places = (header.index(columns[0]), header.index(columns[1])) if set(columns) <= set(header) else (0, 1)
    headless = bool(header) and _fault_of(header[-1].strip(), None) is None
    for line, cells in islice(lines, 0 if headless else 1, None):
        if len(cells) != len(header):
            cases["cells"].append(f"line {line}: {len(cells)} instead of {len(header)}")
        if len(cells) > max(places):
            yield _SubmissionRow(line, cells[places[0]], cells[places[1]])


def _check_ids(rows: list[_SubmissionRow], like: SubmissionFormat | None, cases: _Cases) -> None:
    sample_ids = _SampleIds(() if like is None else like.ids)
    first_line: dict[str, int] = {}
    for row in rows:
        match = _Match(row.id, None) if like is None else sample_ids.match(row.id)
        if match.fault:
            cases[match.fault].append(f"line {row.line}: {row.id!r}")
        if match.id in first_line:
            cases["duplicate"].append(f"lines {first_line[match.id]} and {row.line}: {match.id}")
        first_line.setdefault(match.id, row.line)
    if like is not None:
        actual = [name for name in first_line if name in sample_ids.exact]
        expected = [name for name in like.ids if name in first_line]
        for name in like.ids:
            if name not in first_line:
                cases["missing"].append(name)
        for name, wanted in zip(actual, expected, strict=True):
            if name != wanted:
                cases["order"].append(f"line {first_line[name]}: {name}, where the sample has {wanted}")


@dataclass(frozen=True, slots=True)
class _Match:
    """The id of the sample that a cell refers to (or the cell itself), and the fault of its spelling, if any."""

    id: str
    fault: str | None


class _SampleIds:
    """The sample's ids, found despite surrounding spaces or another Unicode normalization."""

    def __init__(self, ids: tuple[str, ...]) -> None:
        self.exact = set(ids)
        self._normal = {unicodedata.normalize("NFC", name): name for name in ids}

    def match(self, cell: str) -> _Match:
        """Find the id that a cell refers to."""
        if cell in self.exact:
            return _Match(cell, None)
        if cell.strip() in self.exact:
            return _Match(cell.strip(), "spaces")
        normal = unicodedata.normalize("NFC", cell.strip())
        return _Match(self._normal[normal], "spelling") if normal in self._normal else _Match(cell, "extra")


def _check_answers(rows: list[_SubmissionRow], classes: int, cases: _Cases) -> None:
    for row in rows:
        answer = row.answer.strip()
        if answer != row.answer:
            cases["spaces"].append(f"line {row.line}: {row.answer!r}")
        fault = _fault_of(answer, classes)
        if fault:
            cases[fault].append(f"line {row.line}: {answer!r}")


def _fault_of(answer: str, classes: int | None) -> str | None:
    """Return the fault of an answer, or None; without ``classes`` any integer is valid."""
    if not answer:
        return "empty"
    if answer.lower() in _NAN:
        return "nan"
    # ASCII digits, no leading zero, no plus sign: int() accepts more than other CSV readers do
    if re.fullmatch(r"-?[1-9][0-9]*|0", answer):
        return None if classes is None or (len(answer) < 10 and 0 <= int(answer) < classes) else "range"
    try:
        return "float" if math.isfinite(float(answer)) else "nan"
    except ValueError:
        return "text"
