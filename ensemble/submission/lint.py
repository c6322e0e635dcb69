"""Lint a submission: report all of its faults in one pass."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ensemble.errors import ColumnsError, EnsError, FileError, OptionError, PredictionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.submission.lint_answers import answer_faults, looks_like_answers, settle_exclusive, settle_several
from ensemble.submission.read import read_answers
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sample_ids import SampleIds
from ensemble.submission.sheet import AnswerSheet, Submission
from ensemble.submission.sheet_options import NO_OPTIONS, SheetOptions
from ensemble.submission.write import notice_missing, notice_single_class
from ensemble.text.csv_table import split_excel_line
from ensemble.text.input_file import read_input
from ensemble.text.text_table import render_rows

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
    "spelling": "an id is spelled otherwise than in the sample",
    "spaces": "a cell has leading or trailing spaces",
    "empty": "an answer is empty",
    "nan": "an answer is NaN, infinite or null",
    "float": "an answer is a number, but not written as a plain integer",
    "text": "an answer is not a number",
    "range": "an answer is not a class",
    "name": "an answer is not the name of a class",
    "probability": "a probability is below 0 or above 1",
    "sum": "the probabilities of an image do not sum to one",
    "decision": "a decision is neither 0 nor 1",
    "list": "a list of names is not written as in the sample",
    "repeated": "an answer names a class twice",
    "count": "an answer names more classes than those of the sample",
}
"""All kinds of faults, in the order in which they are reported."""

_EXAMPLES = 5
_MOST_LETTERS = 400  # of a header that is shown
_MOST_KNOWN = 100_000  # answers; probabilities differ in every row


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
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Inspection:
    """The rows that could be read, the sheet by which they were read, and all faults of the file."""

    rows: list[_SubmissionRow]
    sheet: AnswerSheet
    faults: tuple[Fault, ...]

    def read(self, labels: LabelSpace) -> Submission:
        """Return the answers of a file without faults."""
        return read_answers(self.sheet, [(row.id, row.answers) for row in self.rows], labels)


_Cases = defaultdict[str, list[str]]
"""The cases of each kind of fault."""


def check_submission(
    path: Path,
    like: AnswerSheet | None,
    labels: LabelSpace,
    *,
    options: SheetOptions = NO_OPTIONS,
    listener: Listener = SILENT,
) -> tuple[Fault, ...]:
    """Return all faults of a submission, compared with the sample's sheet ``like``; see `check_and_read`.

    Raises:
        EnsError: as `check_and_read`.
    """
    return _check(path, like, labels, options, listener).faults


@dataclass(frozen=True, slots=True)
class CheckedSubmission:
    """All ``faults`` of a submission, and its ``answers`` if it has none."""

    faults: tuple[Fault, ...]
    answers: Submission | None


def check_and_read(
    path: Path,
    like: AnswerSheet | None,
    labels: LabelSpace,
    *,
    options: SheetOptions = NO_OPTIONS,
    listener: Listener = SILENT,
) -> CheckedSubmission:
    """Check a submission and read it, for the time of one: it may have millions of rows.

    Without a sample any ids are valid, and the submission itself says, with ``options``, how its answers are written.
    W521 reports a valid submission with one answer for all images.

    Raises:
        FileError: E707 when the file cannot be read.
        PredictionError: E541 when there is no sample, and columns of the submission are not classes.
    """
    found = _check(path, like, labels, options, listener)
    return CheckedSubmission(found.faults, None if found.faults else found.read(labels))


def _check(
    path: Path, like: AnswerSheet | None, labels: LabelSpace, options: SheetOptions, listener: Listener
) -> _Inspection:
    found = _inspect(path, like, labels, options, listener)
    if not found.faults:
        notice_single_class([" ".join(row.answers) for row in found.rows], listener)
    return found


def without_missing(path: Path, like: AnswerSheet, labels: LabelSpace, *, listener: Listener = SILENT) -> AnswerSheet:
    """Return the sheet without the images that have no row in a submission; W534 names them.

    Raises:
        FileError: E707 when the file cannot be read.
    """
    sample_ids = SampleIds(like.keys)
    present = {sample_ids.match(row.id).id for row in _inspect(path, like, labels, NO_OPTIONS).rows}
    missing = [name for name in like.keys if name not in present]
    if not missing or not present.intersection(like.keys):
        return like
    notice_missing(missing, listener)
    if not like.rows:
        return replace(like, ids=tuple(name for name in like.ids if name in present))
    return replace(like, rows=tuple(row for row, key in zip(like.rows, like.keys, strict=True) if key in present))


def read_submission(
    path: Path,
    labels: LabelSpace,
    *,
    like: AnswerSheet | None = None,
    options: SheetOptions = NO_OPTIONS,
    independent: bool | None = None,
    listener: Listener = SILENT,
) -> Submission:
    """Read a valid submission; see `check_submission`.

    Without a sample, ``independent`` says whether several labels may apply to an image, if it is known, and I543 how
    answers are read that could be read otherwise.

    Raises:
        FileError: E707 when the file cannot be read.
        EnsError: as `read_sheet` when there is no sample, and it cannot be told how the submission is written.
        PredictionError: E520 when it has faults; the details list all of them. E541 as `check_submission`.
    """
    found = _inspect(path, like, labels, options, listener, independent=independent)
    if found.faults:
        if like is None and any(fault.what == "header" for fault in found.faults):
            # a comparison with the header of class numbers says nothing about a file with other columns
            read_sheet(path, labels, options=options, independent=independent, is_sample=False)
        raise invalid_submission(path, found.faults)
    return found.read(labels)


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


def own_sheet(
    path: Path,
    labels: LabelSpace,
    options: SheetOptions,
    *,
    independent: bool | None = None,
    listener: Listener = SILENT,
) -> AnswerSheet:
    """Return the sheet by which a submission without a sample is read: its own, or else that of class numbers.

    Raises:
        FileError: E707 when the file cannot be read.
        PredictionError: E541 when columns of the submission are not classes, E565 when two columns have answers.
    """
    try:
        return read_sheet(path, labels, options=options, independent=independent, is_sample=False, listener=listener)
    except (FileError, ColumnsError, OptionError):
        raise
    except EnsError:
        # what is wrong with the file is for the check to report, all at once
        if options.answers is not None:
            raise
        return AnswerSheet(())


def _inspect(
    path: Path,
    like: AnswerSheet | None,
    labels: LabelSpace,
    options: SheetOptions,
    listener: Listener = SILENT,
    *,
    independent: bool | None = None,
) -> _Inspection:
    cases: _Cases = defaultdict(list)
    sheet = own_sheet(path, labels, options, independent=independent, listener=listener) if like is None else like
    rows = _read_rows(path, sheet, labels, cases, bom=like is not None and like.bom)
    if sheet.independent is None and (sheet.constant or sheet.kind == "ranking"):
        settled = settle_several(sheet, labels, [row.answers for row in rows])
        if settled.kind != sheet.kind:
            text = f"its answers have several labels per image, so it is read as {settled.kind}"
            listener.notice(Notice("I543", f"{path.name}: {text} (--answers {sheet.kind} permits one class)"))
        sheet = settled
    if sheet.independent is None and options.kind is None and not independent:
        sheet = settle_exclusive(sheet, [row.answers for row in rows])
    _check_ids(rows, like, cases)
    faultless: set[tuple[str, ...]] = set()  # most rows have the answers of another one
    for row in rows:
        if row.answers in faultless:
            continue
        # of most faults only the number is shown
        suggest = len(cases.get("name", ())) < _EXAMPLES
        found = list(answer_faults(sheet, labels, row.answers, suggest=suggest))
        for fault, case in found:
            cases[fault].append(f"line {row.line}: {case}")
        if not found and len(faultless) < _MOST_KNOWN:
            faultless.add(row.answers)
    faults = (Fault(what, len(cases[what]), tuple(cases[what][:_EXAMPLES])) for what in MEANING if what in cases)
    return _Inspection(rows, sheet, tuple(faults))


def _read_rows(path: Path, sheet: AnswerSheet, labels: LabelSpace, cases: _Cases, *, bom: bool) -> list[_SubmissionRow]:
    """Read the rows as far as possible, and record faults of encoding, line endings, quoting and header."""
    data = read_input(path)
    if data.startswith(b"\xef\xbb\xbf") and not bom:
        cases["bom"].append("line 1")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        cases["encoding"].append(f"line {line}: byte 0x{data[err.start]:02x}")
        text = data.decode("utf-8-sig", errors="replace")
    _check_line_ends(text, cases)
    excel_line, text = split_excel_line(text)
    if excel_line and not (sheet.for_excel and excel_line.strip('"').endswith(sheet.delimiter)):
        where = "which the sample does not have" if not sheet.for_excel else f"the sample's says {sheet.delimiter!r}"
        cases["header"].append(f"line 1: {excel_line!r} is for Excel, {where}")
    lines = _parse(text, sheet.delimiter, cases, first=2 if excel_line else 1)
    return list(_rows(list(lines), sheet, labels, cases))


def _check_line_ends(text: str, cases: _Cases) -> None:
    unquoted = re.sub(r'"[^"]*"', "", text) if '"' in text else text
    counts = {
        "CRLF": unquoted.count("\r\n"),
        "LF": unquoted.count("\n") - unquoted.count("\r\n"),
        "CR": unquoted.count("\r") - unquoted.count("\r\n"),
    }
    kinds = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    if len(kinds) > 1 or counts["CR"]:
        cases["line-ends"].append(", ".join(kinds))


def _parse(text: str, delimiter: str, cases: _Cases, *, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row, of which the ``first`` is in this line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            elif start >= first:
                cases["blank"].append(f"line {start}")
            start = reader.line_num + 1
    except csv.Error as err:
        cases["quoting"].append(f"line {start}: {err}")


def _clipped(line: str) -> str:
    return repr(line) if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]!r}... ({len(line):,} characters)"


def _rows(
    lines: list[tuple[int, list[str]]], sheet: AnswerSheet, labels: LabelSpace, cases: _Cases
) -> Iterator[_SubmissionRow]:
    """Yield the rows below the header; with a wrong header, those that can still be interpreted."""
    header, columns = lines[0][1] if lines else [], sheet.columns
    if header != list(columns):
        comma = sheet.delimiter
        where = f"line {lines[0][0] if lines else 1}"
        cases["header"].append(f"{where}: {_clipped(comma.join(header))} instead of {_clipped(comma.join(columns))}")
    # find the columns by name, else by position; a first line that ends in an answer is data, not a header
    place_of = {name: place for place, name in reversed(list(enumerate(header)))}
    named = set(columns) <= place_of.keys()
    places = [place_of[name] for name in columns] if named else list(range(len(columns)))
    answers = [places[place] for place in sheet.answer_places]
    not_keys = set(answers)
    keys = [place for place in places if place not in not_keys]
    last = max(places)
    headless = not named and bool(header) and looks_like_answers(sheet, labels, header[-len(answers) :])
    for line, cells in islice(lines, 0 if headless else 1, None):
        if len(cells) != len(header):
            cases["cells"].append(f"line {line}: {len(cells)} instead of {len(header)}")
        if len(cells) > last:
            key = sheet.delimiter.join(cells[place] for place in keys)
            yield _SubmissionRow(line, key, tuple(cells[place] for place in answers))


def _check_ids(rows: list[_SubmissionRow], like: AnswerSheet | None, cases: _Cases) -> None:
    wanted = () if like is None else like.keys
    sample_ids = SampleIds(wanted)
    first_line: dict[str, int] = {}
    for row in rows:
        name = row.id
        if like is not None and name not in sample_ids.exact:
            match = sample_ids.match(name)
            if match.fault:
                cases[match.fault].append(f"line {row.line}: {name!r}")
            name = match.id
        if name in first_line:
            cases["duplicate"].append(f"lines {first_line[name]} and {row.line}: {name}")
        first_line.setdefault(name, row.line)
    if like is not None:
        actual = [name for name in first_line if name in sample_ids.exact]
        expected = [name for name in wanted if name in first_line]
        cases_missing = [name for name in wanted if name not in first_line]
        if cases_missing:
            cases["missing"] += cases_missing
        for name, other in zip(actual, expected, strict=True):
            if name != other:
                cases["order"].append(f"line {first_line[name]}: {name}, where the sample has {other}")
