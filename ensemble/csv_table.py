"""Strict reading and writing of CSV files, with line numbers in every error."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import DataError, FileError
from ensemble.events import SILENT, Listener, Notice


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file: ``header``, and ``rows`` of text cells as long as the header; ``lines`` are their line numbers."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> tuple[str, ...]:
        """Return the cells of a column, as text.

        Raises:
            DataError: E322 when the header lacks the column.
        """
        if name not in self.header:
            raise DataError(
                "E322", f'{self.path.name}: column "{name}" not found; have: {", ".join(self.header)}', path=self.path
            )
        position = self.header.index(name)
        return tuple(row[position] for row in self.rows)

    def without_duplicates(self, name: str) -> tuple[str, ...]:
        """Return the cells of a column, each of which must be unique.

        Raises:
            DataError: E313 when a value is repeated, E322 when one is empty or the header lacks the column.
        """
        cells = self.column(name)
        empty = [line for cell, line in zip(cells, self.lines, strict=True) if not cell]
        if empty:
            raise DataError("E322", f"{self.path.name}: column {name} is empty in line {empty[0]}", path=self.path)
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
    """Read a CSV file in UTF-8 (with or without BOM) or else, with a notice, in cp949; empty lines are skipped.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E322 when it is empty, has no distinct header, or a row has a different number of cells.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err
    return parse_table(data, path, listener=listener)


def parse_table(data: bytes, path: Path, *, listener: Listener = SILENT) -> Table:
    """Parse a CSV file that has been read already, as `read_table`; ``path`` is for the messages.

    Raises:
        DataError: E322, as `read_table`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp949")
        except UnicodeDecodeError as err:
            raise DataError("E322", f"{path.name}: neither UTF-8 nor cp949 text", path=path) from err
        listener.notice(Notice("I328", f"{path.name} is not UTF-8; it was read as cp949", path))
    if "\0" in text:
        raise DataError("E322", f"{path.name}: not a text file", path=path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    try:
        for cells in reader:
            if cells:
                rows.append(tuple(cells))
                lines.append(reader.line_num)
    except csv.Error as err:
        raise DataError("E322", f"{path.name}: line {reader.line_num}: {err}", path=path) from err
    if not rows:
        raise DataError("E322", f"{path.name}: the file is empty", path=path)
    header = rows[0]
    if len(set(header)) != len(header):
        raise DataError("E322", f"{path.name}: a column name is repeated: {', '.join(header)}", path=path)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise DataError(
                "E322", f"{path.name}: line {line} has {len(row)} cells, the header has {len(header)}", path=path
            )
    return Table(path, header, tuple(rows[1:]), tuple(lines[1:]))


FORMULA = ("=", "+", "-", "@")
"""The characters with which a spreadsheet's formula starts."""


def defuse(cell: str) -> str:
    """Return the cell, with an apostrophe before it if a spreadsheet would read it as a formula."""
    return f"'{cell}" if cell.startswith((*FORMULA, "\t", "\r")) else cell


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, newline: str = "\n") -> bytes:
    """Return the bytes of a CSV file in UTF-8, quoted where needed."""
    return "".join(_render_row(row) + newline for row in (header, *rows)).encode()


def _render_row(cells: Sequence[object]) -> str:
    line = io.StringIO(newline="")
    # a writer quotes those line breaks that its own terminator has: so it is both, whichever ends the lines of the file
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n")
