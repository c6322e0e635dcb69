"""Cells with several names: how they are divided, and lists in brackets such as ``["rust", "scab"]`` or ``[3, 7]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.errors import OptionError
from ensemble.submission.class_names import are_numbers

_SEPARATORS = (" ", ",", ";", "|")
_BRACKETS = ("[]", "()", "{}")
_QUOTES = ('"', "'")


@dataclass(frozen=True, slots=True)
class CellForm:
    """A separator of the names in a cell, the brackets around all of them (two characters), and each one's quotes."""

    separator: str = " "
    brackets: str = ""
    quote: str = ""

    def split(self, cell: str) -> list[str]:
        """Return the names in a cell; a cell without names has none."""
        text = self._inside(cell.strip())
        if not text:
            return []
        if self.quote:
            parts = re.findall(f"{self.quote}[^{self.quote}]*{self.quote}|[^,\\s]+", text)
            return [part.strip(self.quote).strip() for part in parts]
        return [part.strip() for part in text.split(self.separator.strip() or None)]

    def join(self, names: Sequence[str]) -> str:
        """Return the cell of some names."""
        text = self.separator.join(f"{self.quote}{name}{self.quote}" for name in names)
        return f"{self.brackets[:1]}{text}{self.brackets[1:]}"

    def _inside(self, text: str) -> str:
        if not self.brackets or not text.startswith(self.brackets[0]) or not text.endswith(self.brackets[1]):
            return text
        return text[1:-1].strip()


@dataclass(frozen=True, slots=True)
class SampleCells:
    """The names in the cells of a sample, all of them known: their form, spelling, and number per cell.

    ``flags`` says that they are a 0 or 1 for every class in each cell, and no names.
    """

    form: CellForm
    spelling: tuple[str, ...]
    counts: tuple[int, ...]
    repeated: bool
    flags: bool = False


def plain_cells(separator: str | None, spelling: Sequence[str]) -> SampleCells:
    """Return the cells of a sample that has one name in each, or none: by default several are divided by a space."""
    return SampleCells(CellForm(separator or " "), tuple(spelling), (1,), repeated=False)


def split_cells(cells: Sequence[str], names: Sequence[str], separator: str | None) -> SampleCells | None:
    """Split the cells into names or class numbers; None when some part is neither, or nothing is to be split.

    ``separator`` is the only one that is tried, if it is given.
    """
    lists = find_lists(cells)
    forms = _forms(cells, separator) if lists is None else [lists]
    for form in forms:
        parts = [form.split(cell) for cell in cells if cell]
        if not any(parts):
            continue
        for spelling in [names] if are_numbers(names) else [names, ()]:
            known = set(spelling or map(str, range(len(names))))
            if all(part in known for row in parts for part in row):
                repeated = any(len(set(row)) < len(row) for row in parts)
                flags = repeated and all(len(row) == len(names) and set(row) <= {"0", "1"} for row in parts)
                return SampleCells(form, tuple(spelling), tuple(len(row) for row in parts), repeated, flags)
    return None


def find_form(cells: Sequence[str], separator: str | None) -> CellForm:
    """Return the form that cells of any names seem to have."""
    marked = [form for form in _forms(cells, separator) if form.separator.strip()]
    return find_lists(cells) or next(iter([*marked, *_forms(cells, separator)]), CellForm(separator or " "))


def _forms(cells: Sequence[str], separator: str | None) -> list[CellForm]:
    found = []
    for mark in _SEPARATORS if separator is None else (separator,):
        if any(mark in cell for cell in cells):
            used = [cell for cell in cells if mark in cell]
            if mark != " " and separator is None and all(f"{mark} " in cell for cell in used):
                before = " " if all(f" {mark} " in cell for cell in used) else ""
                found.append(CellForm(f"{before}{mark} "))
            else:
                found.append(CellForm(mark))
    return found


def require_separable(cells: SampleCells) -> None:
    """Check that no name has what separates the names in a cell.

    Raises:
        OptionError: E204 when one has.
    """
    mark = cells.form.separator
    mixed = [name for name in cells.spelling if mark.strip(" ") == "" and " " in name]
    mixed += [name for name in cells.spelling if mark.strip() and mark.strip() in name]
    if cells.form.quote:
        mixed = [name for name in cells.spelling if cells.form.quote in name]
    if mixed:
        raise OptionError(
            "E204",
            f"the names in a cell are separated by {mark!r}, which is in the class {mixed[0]!r}",
            hint="name another separator with --sep",
        )


def find_lists(cells: Sequence[str]) -> CellForm | None:
    """Return the form of cells that are all lists in brackets; None where they are not. Empty cells do not count."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    for brackets in _BRACKETS:
        if not filled or not all(c.startswith(brackets[0]) and c.endswith(brackets[1]) and len(c) > 1 for c in filled):
            continue
        inside = [cell[1:-1].strip() for cell in filled]
        quote = next((mark for mark in _QUOTES if all(not text or text.startswith(mark) for text in inside)), "")
        if not any(inside):
            quote = ""
        several = [text for text in inside if "," in text]
        tight = bool(several) and not any(", " in text for text in several)
        plain = not several and not quote and any(" " in text for text in inside)
        return CellForm(" " if plain else "," if tight else ", ", brackets, quote)
    return None
