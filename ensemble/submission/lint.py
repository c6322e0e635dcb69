"""Check: everything that is wrong with a submission, at once."""

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
    "line-ends": "line ends are mixed, or not those of a text file",
    "quoting": "a quoted cell does not end; what follows it was not read",
    "header": "the first line is not the sample's",
    "blank": "a line is empty",
    "cells": "a row has another number of cells than the header",
    "missing": "an image of the sample has no row",
    "extra": "an image is not in the sample",
    "duplicate": "an image has more than one row",
    "order": "an image stands at another place than in the sample",
    "spelling": "an id is written in another Unicode form than in the sample",
    "spaces": "a cell has spaces around it",
    "empty": "an answer is empty",
    "nan": "an answer is NaN or the like",
    "float": "an answer is a number, but not written as a plain whole one",
    "text": "an answer is not a number",
    "range": "an answer is not a class",
}
"""Every kind of fault, in the order in which they are listed."""

_NAN = {"none", "null", "na", "n/a", "<na>"}
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault (a key of `MEANING`), how often it occurs, and the first cases with their line numbers."""

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    id: str
    answer: str


_Found = defaultdict[str, list[str]]


def check_submission(
    path: Path, like: SubmissionFormat | None, labels: LabelSpace, *, listener: Listener = SILENT
) -> tuple[Fault, ...]:
    """All faults of a submission against the sample ``like``; without one the ids are not compared.

    Answers must be whole numbers of 0 to C-1, written as such. A submission without faults that gives every image the
    same class gets the notice W521.

    Raises:
        FileError: E707 when the file cannot be read.
    """
    rows, faults = _inspect(path, like, labels)
    if not faults:
        notice_single_class([int(row.answer) for row in rows], listener)
    return faults


def without_missing(
    path: Path, like: SubmissionFormat, labels: LabelSpace, *, listener: Listener = SILENT
) -> SubmissionFormat:
    """The sample less the images for which a submission has no row, which W534 names.

    Raises:
        FileError: E707 when the file cannot be read.
    """
    rows, _ = _inspect(path, like, labels)
    meant = _Spellings(like.ids)
    there = {meant.find(row.id)[0] for row in rows}
    missing = [name for name in like.ids if name not in there]
    if missing and there.intersection(like.ids):
        notice_missing(missing, listener)
        return replace(like, ids=tuple(name for name in like.ids if name in there))
    return like


def read_submission(path: Path, labels: LabelSpace, *, like: SubmissionFormat | None = None) -> Submission:
    """Read a submission that has no faults.

    Raises:
        FileError: E707 when the file cannot be read.
        PredictionError: E520 with every fault in its details.
    """
    rows, faults = _inspect(path, like, labels)
    if faults:
        raise invalid(path, faults)
    return Submission(tuple(row.id for row in rows), np.array([int(row.answer) for row in rows], dtype=np.intp), labels)


def invalid(path: Path, faults: tuple[Fault, ...]) -> PredictionError:
    """The error E520 that stands for the faults."""
    details = tuple(f"{fault.what} ({fault.count:,}): {'; '.join(fault.examples)}" for fault in faults)
    kinds = ", ".join(fault.what for fault in faults)
    return PredictionError(
        "E520",
        f"{path.name} has faults of {len(faults)} kind{'s' * (len(faults) > 1)}: {kinds}",
        path=path,
        details=details,
    )


def render_faults(faults: tuple[Fault, ...]) -> str:
    """Each fault with its count and meaning, the first cases below it, for people."""
    rows = [(f.what, f.count, MEANING[f.what]) for f in faults]
    header, *lines = render_rows(("fault", "count", "meaning"), rows)
    cases = ("\n".join(f"    {case}" for case in fault.examples) for fault in faults)
    return "\n".join([header, *(f"{line}\n{case}" for line, case in zip(lines, cases, strict=True))]) + "\n"


def _inspect(path: Path, like: SubmissionFormat | None, labels: LabelSpace) -> tuple[list[_Row], tuple[Fault, ...]]:
    rows, found = _read(path, like)
    _check_ids(rows, like, found)
    _check_answers(rows, len(labels), found)
    faults = (Fault(what, len(found[what]), tuple(found[what][:_EXAMPLES])) for what in MEANING if what in found)
    return rows, tuple(faults)


def _read(path: Path, like: SubmissionFormat | None) -> tuple[list[_Row], _Found]:
    """The rows as far as they can be read, and what was wrong with the file's form."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err
    found: _Found = defaultdict(list)
    if data.startswith(b"\xef\xbb\xbf") and not (like and like.bom):
        found["bom"].append("line 1")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        found["encoding"].append(f"line {line}: byte 0x{data[err.start]:02x}")
        text = data.decode("utf-8-sig", errors="replace")
    _check_line_ends(text, found)
    lines = list(_parse(text, found))
    columns = ("ImageID", "ans") if like is None else like.columns
    return list(_rows(lines, columns, found)), found


def _check_line_ends(text: str, found: _Found) -> None:
    unquoted = re.sub(r'"[^"]*"', "", text)
    counts = {
        "CRLF": unquoted.count("\r\n"),
        "LF": unquoted.count("\n") - unquoted.count("\r\n"),
        "CR": unquoted.count("\r") - unquoted.count("\r\n"),
    }
    kinds = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    if len(kinds) > 1 or counts["CR"]:
        found["line-ends"].append(", ".join(kinds))


def _parse(text: str, found: _Found) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            else:
                found["blank"].append(f"line {start}")
            start = reader.line_num + 1
    except csv.Error as err:
        found["quoting"].append(f"line {start}: {err}")


def _rows(lines: list[tuple[int, list[str]]], columns: tuple[str, str], found: _Found) -> Iterator[_Row]:
    """The rows below the header; where the header is wrong, as much of them as can still be made out."""
    header = lines[0][1] if lines else []
    if header != list(columns):
        found["header"].append(f"line 1: {','.join(header)!r} instead of {','.join(columns)!r}")
    # the two columns by their names, else by their places; a first line that ends in a number is no header
    places = (header.index(columns[0]), header.index(columns[1])) if set(columns) <= set(header) else (0, 1)
    headless = bool(header) and _fault_of(header[-1].strip(), None) is None
    for line, cells in islice(lines, 0 if headless else 1, None):
        if len(cells) != len(header):
            found["cells"].append(f"line {line}: {len(cells)} instead of {len(header)}")
        if len(cells) > max(places):
            yield _Row(line, cells[places[0]], cells[places[1]])


def _check_ids(rows: list[_Row], like: SubmissionFormat | None, found: _Found) -> None:
    meant = _Spellings(() if like is None else like.ids)
    first: dict[str, int] = {}
    for row in rows:
        name, fault = (row.id, None) if like is None else meant.find(row.id)
        if fault:
            found[fault].append(f"line {row.line}: {row.id!r}")
        if name in first:
            found["duplicate"].append(f"lines {first[name]} and {row.line}: {name}")
        first.setdefault(name, row.line)
    if like is not None:
        found_ids = [name for name in first if name in meant.exact]
        expected = [name for name in like.ids if name in first]
        for name in like.ids:
            if name not in first:
                found["missing"].append(name)
        for name, wanted in zip(found_ids, expected, strict=True):
            if name != wanted:
                found["order"].append(f"line {first[name]}: {name}, where the sample has {wanted}")


class _Spellings:
    """The sample's ids, and the ways in which a submission's ids may be meant to be one of them."""

    def __init__(self, ids: tuple[str, ...]) -> None:
        self.exact = set(ids)
        self._normal = {unicodedata.normalize("NFC", name): name for name in ids}

    def find(self, cell: str) -> tuple[str, str | None]:
        """The sample's id that a cell means, and what is wrong with how it is written."""
        if cell in self.exact:
            return cell, None
        if cell.strip() in self.exact:
            return cell.strip(), "spaces"
        normal = unicodedata.normalize("NFC", cell.strip())
        return (self._normal[normal], "spelling") if normal in self._normal else (cell, "extra")


def _check_answers(rows: list[_Row], classes: int, found: _Found) -> None:
    for row in rows:
        answer = row.answer.strip()
        if answer != row.answer:
            found["spaces"].append(f"line {row.line}: {row.answer!r}")
        fault = _fault_of(answer, classes)
        if fault:
            found[fault].append(f"line {row.line}: {answer!r}")


def _fault_of(answer: str, classes: int | None) -> str | None:
    """What is wrong with an answer, if anything; without ``classes`` any whole number will do."""
    if not answer:
        return "empty"
    if answer.lower() in _NAN:
        return "nan"
    # ASCII alone, no leading zero and no plus: what int() takes besides, other readers do not
    if re.fullmatch(r"-?[1-9][0-9]*|0", answer):
        return None if classes is None or (len(answer) < 10 and 0 <= int(answer) < classes) else "range"
    try:
        return "float" if math.isfinite(float(answer)) else "nan"
    except ValueError:
        return "text"
