"""Strict reading and writing of CSV files, with line numbers in every error."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ensemble.errors import DataError, escape_unseen, show_spaces
from ensemble.events import SILENT, Listener, Notice
from ensemble.text.input_file import read_input
from ensemble.text.text_bytes import is_plain_text

_BINARY = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive, such as .xlsx and .npz",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}
"""The first bytes of files that are given for tables."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file: ``header``, and ``rows`` of text cells as long as the header; ``lines`` are their line numbers.

    One ``for_excel`` has a line before its header, as ``sep=;``.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    delimiter: str = ","
    for_excel: bool = False
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def place(self, name: str) -> int:
        """Return the place of a column; spaces around its name do not count.

        Raises:
            DataError: E322 when the header lacks the column.
        """
        if not self._places:
            for names in (tuple(cell.strip() for cell in self.header), self.header):
                counts = Counter(names)
                self._places.update({one: place for place, one in enumerate(names) if counts[one] == 1})
        if name in self._places:
            return self._places[name]
        have = ", ".join(show_spaces(cell) for cell in self.header)
        message = f'{self.path.name}: column "{escape_unseen(name)}" not found; have: {have}'
        raise DataError("E322", message, hint=self.hint_about_spaces, path=self.path)

    @property
    def hint_about_spaces(self) -> str | None:
        """The advice about a table of one column whose lines all have as many words: its cells are between spaces."""
        words = {len(row[0].split()) for row in (self.header, *self.rows)} if len(self.header) == 1 else {1}
        return _BETWEEN_SPACES if len(words) == 1 and words != {1} else None

    def column(self, name: str) -> tuple[str, ...]:
        """Return the cells of a column, as text.

        Raises:
            DataError: E322 when the header lacks the column.
        """
        position = self.place(name)
        return tuple(row[position] for row in self.rows)

    def with_cells(self, name: str, cells: Sequence[str]) -> Table:
        """Return the table with other cells in a column.

        Raises:
            DataError: E322 when the header lacks the column.
        """
        position = self.place(name)
        rows = zip(self.rows, cells, strict=True)
        return replace(self, rows=tuple((*row[:position], cell, *row[position + 1 :]) for row, cell in rows))

    def without_duplicates(self, name: str) -> tuple[str, ...]:
        """Return the cells of a column, each of which must be unique.

        Raises:
            DataError: E313 when a value is repeated, E322 when one is empty or the header lacks the column.
        """
        cells = self.column(name)
        empty = [line for cell, line in zip(cells, self.lines, strict=True) if not cell]
        if empty:
            blank = [line for row, line in zip(self.rows, self.lines, strict=True) if not any(row)]
            hint = f"give these rows an id; {len(empty):,} {'has' if len(empty) == 1 else 'have'} none"
            if len(blank) == len(empty):
                hint = (
                    f"remove the rows of empty cells, {len(blank):,} in all, which spreadsheets write for blank lines"
                )
            message = f"{self.path.name}: column {show_spaces(name)} is empty in line {empty[0]}"
            raise DataError("E322", message, hint=hint, path=self.path)
        first: dict[str, int] = {}
        repeated: dict[str, list[int]] = {}
        for cell, line in zip(cells, self.lines, strict=True):
            if cell in first:
                repeated.setdefault(cell, [first[cell]]).append(line)
            else:
                first[cell] = line
        if repeated:
            some = [f"{cell} (lines {', '.join(map(str, lines))})" for cell, lines in list(repeated.items())[:5]]
            raise DataError(
                "E313", f"{self.path.name}: {len(repeated)} duplicate ids: {'; '.join(some)}", path=self.path
            )
        return cells


def read_table(path: Path, *, listener: Listener = SILENT) -> Table:
    """Read a CSV file in UTF-8 (with or without BOM), or else, with a notice, in UTF-16 or cp949.

    Cells are separated by commas; or by semicolons, tabs or ``|``, with a notice, if the header has no comma but these,
    or only these divide all lines alike.
    Empty lines are skipped.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E322 when it is empty, has no distinct header, or a row has a different number of cells.
    """
    data = read_input(path)
    return parse_table(data, path, listener=listener)


def parse_table(data: bytes, path: Path, *, headless: bool = False, listener: Listener = SILENT) -> Table:
    """Parse a CSV file that has been read already, as `read_table`; ``path`` is for the messages.

    A ``headless`` table has no header line: its columns are called ``0``, ``1`` and so on.

    Raises:
        DataError: E322, as `read_table`.
    """
    text = _decode(data, path, listener)
    if "\0" in text:
        raise DataError("E322", f"{path.name}: not a text file", hint="save it as CSV in UTF-8", path=path)
    if (kind := _json_kind(text)) is not None:
        option = ", lines=True" if kind != "JSON" else ""
        raise DataError(
            "E322",
            f"{path.name}: it is {kind}, not a table",
            hint=f"write it as CSV: pandas.read_json({path.name!r}{option}).to_csv(..., index=False)",
            path=path,
        )
    excel_line, text = split_excel_line(text)
    if excel_line:
        listener.notice(Notice("I380", f"{path.name}: its first line is for Excel, {excel_line.strip()}", path))
    delimiter = excel_line.strip('"')[-1] if excel_line else delimiter_of(text)
    if delimiter != "," and not excel_line:
        named = {";": "semicolons", "\t": "tabs"}.get(delimiter, repr(delimiter))
        listener.notice(Notice("I380", f"{path.name}: the cells are separated by {named}", path))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    try:
        for cells in reader:
            if cells:
                rows.append(tuple(cells))
                lines.append(reader.line_num)
    except csv.Error as err:
        hint = "see the line in a text editor: a quote that does not end, or a cell of over 100,000 characters"
        if _SPACED.match(text):
            hint = f"{_BETWEEN_SPACES}, as write.csv of R does"
        raise DataError("E322", f"{path.name}: line {reader.line_num}: {err}", hint=hint, path=path) from err
    if not rows:
        raise DataError("E322", f"{path.name}: the file is empty", path=path)
    if headless:
        rows.insert(0, tuple(map(str, range(len(rows[0])))))
        lines.insert(0, 0)
    header = rows[0]
    if len(set(header)) != len(header):
        names = ", ".join(map(show_spaces, header))
        raise DataError("E322", f"{path.name}: a column name is repeated: {names}", path=path)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            message = f"{path.name}: line {line} has {len(row)} cells, the header has {len(header)}"
            is_remark = header[0].startswith("#") and len(header) == 1
            advice = f"remove the remark in line {lines[0] or 1}: the header is the first line" if is_remark else None
            raise DataError("E322", message, hint=advice, path=path)
    return Table(path, header, tuple(rows[1:]), tuple(lines[1:]), delimiter, bool(excel_line))


def _decode(data: bytes, path: Path, listener: Listener) -> str:
    """Return the text of a table, with a notice if it is not UTF-8.

    Raises:
        DataError: E322 when it is not text in a known encoding.
    """
    kind = next((kind for magic, kind in _BINARY.items() if data.startswith(magic)), None)
    if kind is not None and not is_plain_text(data):
        raise DataError("E322", f"{path.name}: it is {kind}, not text", path=path, hint="write the table as CSV")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp949"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "utf-8-sig":
            shown = encoding.upper() if wide else encoding
            listener.notice(Notice("I328", f"{path.name} is not UTF-8; it was read as {shown}", path))
        return text
    hint = "save it as CSV in UTF-8"
    raise DataError("E322", f"{path.name}: neither UTF-8 nor cp949 text", hint=hint, path=path)


def delimiter_of(text: str) -> str:
    """Return the delimiter of a table: a comma, or else the one of ``;``, tab and ``|`` that its header has most of.

    A header that has both, as ``id;grass, dry;leaf``, is divided so that the next lines have as many cells.
    """
    header = next((line for line in text.lstrip("\ufeff").splitlines() if line), "")
    outside = re.sub(r'"(?:[^"]|"")*"', "", header)
    most = max(_DELIMITERS, key=outside.count)
    if most not in outside:
        return ","
    return most if "," not in outside or (_fits(text, most) and not _fits(text, ",")) else ","


def _fits(text: str, delimiter: str) -> bool:
    """Return True if the first lines of a table have as many cells as its header, and more than one."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        counts = {len(cells) for cells in itertools.islice(reader, _FIRST_LINES) if cells}
    except csv.Error:
        return False
    return len(counts) == 1 and counts != {1}


def _json_kind(text: str) -> str | None:
    """Return what JSON a text is that was given for a table; None if it is not JSON."""
    if not re.match(r"\s*(?:\[\s*[\[{\"]|\{\s*\")", text):
        return None
    try:
        json.loads(text.lstrip().splitlines()[0])
    except (ValueError, RecursionError):
        return "JSON"
    return "lines of JSON" if len(text.split("\n", 2)) > 1 and text.split("\n", 2)[1].strip() else "JSON"


def split_excel_line(text: str) -> tuple[str, str]:
    """Return the first line that tells Excel the separator, such as ``sep=;``, and the rest; "" and all without it.

    The rest begins with the line's end, so that lines keep the numbers of an editor.
    """
    found = _SEPARATOR_LINE.match(text)
    return ("", text) if found is None else (found[0], text[found.end() :])


_BETWEEN_SPACES = "its cells are separated by spaces: write it with commas"
_DELIMITERS = (";", "\t", "|")
_FIRST_LINES = 20
_SEPARATOR_LINE = re.compile(r"\"?sep=[,;\t|]\"?(?=[\r\n])", re.IGNORECASE)
_SPACED = re.compile(r'\s*"[^"\r\n]*" +"[^"\r\n]*"')


FORMULA = ("=", "+", "-", "@")
"""The characters with which a spreadsheet's formula starts."""


def defuse(cell: str) -> str:
    """Return the cell, with an apostrophe before it if a spreadsheet would read it as a formula."""
    return f"'{cell}" if cell.startswith((*FORMULA, "\t", "\r")) else cell


def render_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, newline: str = "\n", delimiter: str = ","
) -> bytes:
    """Return the bytes of a CSV file in UTF-8, quoted where needed."""
    return "".join(_render_row(row, delimiter) + newline for row in (header, *rows)).encode()


def _render_row(cells: Sequence[object], delimiter: str) -> str:
    line = io.StringIO(newline="")
    # a writer quotes those line breaks that its own terminator has: so it is both, whichever ends the lines of the file
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n")
