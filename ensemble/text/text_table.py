"""Plain-text tables that fit the terminal: long text is wrapped, and columns without room follow below."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

from ensemble.text.unicode_text import compose

TableCell = str | float | None
_GAP = 2
_NARROWEST = 24  # a column is not wrapped below this width


def render_columns(header: Sequence[str], rows: Sequence[Sequence[TableCell]], *, width: int | None = None) -> str:
    """Return aligned columns under a header, text to the left and numbers to the right; fractions have four digits.

    ``width`` defaults to that of the terminal (or ``COLUMNS``), and to 80 without a terminal. Nothing is
    cut off: text is wrapped between words, and columns for which there is no room follow below, beside the first column
    again. A word that is wider than its share of the line, such as a path, sticks out.
    """
    width = width or terminal_width()
    blocks = [
        render_rows([header[i] for i in block], [[row[i] for i in block] for row in rows], width=width)
        for block in _blocks(header, rows, width)
    ]
    return "\n".join("".join(f"{line}\n" for line in block) for block in blocks)


def render_rows(
    header: Sequence[str], rows: Sequence[Sequence[TableCell]], *, width: int | None = None
) -> tuple[str, ...]:
    """Return the header and each row as in `render_columns`, each of one line or more; columns stay side by side."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    widths = _fit(cells, width or terminal_width())
    return tuple(_render_row(line, widths, right) for line in cells)


def terminal_width() -> int:
    """Return the columns of the terminal that the output goes to, or ``COLUMNS``, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def text_width(text: str) -> int:
    """Return how many columns of a terminal a text takes: Korean, Chinese and Japanese characters take two."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in compose(text)
    )


def _blocks(header: Sequence[str], rows: Sequence[Sequence[TableCell]], width: int) -> list[list[int]]:
    """Return the columns of each block: the first one in all of them, then as many as fit when they are wrapped."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    least = [min(_natural(column), max(_NARROWEST, _longest_word(column))) for column in zip(*cells, strict=True)]
    blocks = [[0]]
    for i in range(1, len(header)):
        taken = sum(least[j] + _GAP for j in blocks[-1])
        if len(blocks[-1]) > 1 and taken + least[i] > width:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks


def _fit(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the columns' widths: the widest columns of text give way until all fit, or nothing more can be wrapped."""
    columns = list(zip(*cells, strict=True))
    widths = [_natural(column) for column in columns]
    least = [max(_NARROWEST, _longest_word(column)) for column in columns]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        if widths[widest] <= least[widest]:
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def _natural(column: Sequence[str]) -> int:
    return max(map(text_width, column))


def _longest_word(column: Sequence[str]) -> int:
    return max((text_width(word) for cell in column for word in _words(cell)), default=0)


def _words(cell: str) -> list[str]:
    """Return the parts between which a cell may be wrapped; an interval such as ``[0.78, 0.84]`` is one."""
    words: list[str] = []
    for word in cell.split(" "):
        if words and words[-1].count("[") > words[-1].count("]"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def _render_row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    wrapped = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for i in range(max(map(len, wrapped))):
        parts = [lines_of[i] if i < len(lines_of) else "" for lines_of in wrapped]
        padded = [
            " " * (w - text_width(part)) + part if r else part + " " * (w - text_width(part))
            for part, w, r in zip(parts, widths, right, strict=True)
        ]
        lines.append((" " * _GAP).join(padded).rstrip())
    return "\n".join(lines)


def _wrap(cell: str, width: int) -> list[str]:
    if text_width(cell) <= width:
        return [cell]
    lines: list[str] = []
    for word in _words(cell):
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def wrap_text(text: str, *, indent: str = "", width: int | None = None) -> str:
    """Return a paragraph in lines that fit the terminal, broken between words only, each after ``indent``."""
    return textwrap.fill(
        text,
        width or terminal_width(),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _text(cell: TableCell) -> str:
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}" if isinstance(cell, float) else cell
