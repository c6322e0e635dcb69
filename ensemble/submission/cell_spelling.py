"""Other spellings of the classes in a sample's cells: another letter case, TRUE and FALSE, numbers with zeros ahead."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ensemble.labels import LabelSpace
from ensemble.submission.class_names import are_numbers
from ensemble.text.csv_table import Table
from ensemble.text.unicode_text import compose

_CASES: tuple[Callable[[str], str], ...] = (str.lower, str.upper, str.capitalize, str.title)
_BOOLEANS = (
    *(("false", "true"), ("False", "True"), ("FALSE", "TRUE"), ("no", "yes"), ("No", "Yes"), ("NO", "YES")),
    *(("f", "t"), ("F", "T"), ("n", "y"), ("N", "Y")),
)
"""The negative and the positive answer."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """The classes as a sample spells them, in their order, and a word on how; ``signed`` are those of yes and no.

    The first of two ``signed`` names is that of the negative class, whichever that is.
    """

    names: tuple[str, ...]
    how: str
    signed: bool = False


def spellings(names: Sequence[str], parts: Sequence[str]) -> Iterator[Spelling]:
    """Yield the spellings of the classes in which all ``parts``, names in a sample's cells, are classes."""
    found = set(parts)
    for number, case in enumerate(_CASES):
        other = tuple(map(case, names))
        if len(set(other)) < len(other) or not found <= set(other):
            continue
        # common wheat: Common wheat or Common Wheat, where the sample has neither
        rivals = [tuple(map(one, names)) for one in _CASES[number + 1 :]]
        if not any(rival != other and found <= set(rival) for rival in rivals):
            yield Spelling(other, "in another letter case")
    if len(names) == 2:
        for pair in _BOOLEANS:
            if found <= set(pair):
                yield Spelling(pair, f"as {pair[0]} and {pair[1]}", signed=True)
    widths = {len(part) for part in parts}
    if len(widths) == 1 and all(re.fullmatch(r"0[0-9]+", part) or part.isdecimal() for part in parts):
        width = widths.pop()
        numbers = [int(name) for name in names] if are_numbers(names) else list(range(len(names)))
        padded = tuple(f"{number:0{width}}" for number in numbers)
        if any(part.startswith("0") for part in parts) and width > 1 and found <= set(padded):
            yield Spelling(padded, f"as numbers of {width} digits")


def counts_from_one(numbers: Collection[str], classes: int) -> bool:
    """Return True if answers are the numbers of classes counted from 1: none is 0, and one is their number."""
    return str(classes) in numbers and may_count_from_one(numbers, classes)


def may_count_from_one(numbers: Collection[str], classes: int) -> bool:
    """Return True if answers may be the numbers of classes counted from 1: none is 0."""
    filled = [number for number in numbers if number]
    return bool(filled) and all(re.fullmatch(r"[1-9][0-9]{0,8}", n) and int(n) <= classes for n in filled)


def numbers_from_one(classes: int) -> tuple[str, ...]:
    """Return the numbers of classes that are counted from 1."""
    return tuple(str(number + 1) for number in range(classes))


def composed_as(table: Table, labels: LabelSpace) -> LabelSpace:
    """Return the classes in decomposed Unicode, as macOS writes names, if a cell of the sample has one so."""
    decomposed = {compose(name, "NFD") for name in labels.names} - set(labels.names)
    if not decomposed or decomposed.isdisjoint(cell.strip() for row in table.rows for cell in row):
        return labels
    return LabelSpace.flat([compose(name, "NFD") for name in labels.names])
