"""Names of classes as people keep them: a list, axes, numbers and names, in JSON, CSV or text; and ``--labels``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.errors import DataError
from ensemble.labels import MASK18, LabelSpace
from ensemble.text.csv_table import read_table
from ensemble.text.json_text import parse_json, read_utf8
from ensemble.text.plain_numbers import is_count

_NUMBERED = re.compile(r"([0-9]{1,9})[ \t:;,]+(\S.*)")  # "0 cat", as Teachable Machine and TensorFlow Lite have it


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes, and which of them each number in a table means."""

    space: LabelSpace
    number: Mapping[int, int]

    @classmethod
    def of(cls, space: LabelSpace) -> ClassNames:
        """Return a space whose classes are numbered from 0."""
        return cls(space, {i: i for i in range(len(space))})


def parse_labels(text: str) -> LabelSpace:
    """Parse ``--labels``, as `parse_class_names`, to a label space: named numbers are in the order of the numbers.

    Raises:
        DataError: E331 when the file cannot be read or is not a label space.
    """
    return parse_class_names(text).space


def parse_class_names(text: str) -> ClassNames:
    """Parse ``--labels``: ``mask18``, a number of classes, or the path of a file.

    The file is a JSON list of names, ``{"axes": [...]}``, or JSON that maps numbers to names or names to numbers, such
    as ``{"0": "healthy", "1": "rust"}``; a CSV of two columns, number and name; or a text of one name per line.

    Raises:
        DataError: E331 when the file cannot be read or has no names.
    """
    if text == "mask18":
        return ClassNames.of(MASK18)
    if is_count(text) and int(text) > 0:
        return ClassNames.of(LabelSpace.flat(int(text)))
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"} and path.is_file():
        table = read_table(path)
        if len(table.header) != 2:
            message = f"{path.name}: names of classes need two columns, number and name; have {', '.join(table.header)}"
            raise DataError("E331", message, path=path)
        pairs: dict[str, str] = dict(zip(*map(table.column, table.header), strict=True))
        return _from_pairs(pairs) or _from_pairs({name: number for number, name in pairs.items()}) or _fail(path)
    if suffix == ".txt" and path.is_file():
        try:
            lines = [line.strip() for line in read_utf8(path).splitlines() if line.strip()]
        except (OSError, ValueError) as err:
            raise DataError("E331", f"{path.name}: not a text of names in UTF-8 ({err})", path=path) from err
        return _from_lines(lines) if lines else _fail(path)
    try:
        value = parse_json(read_utf8(path))
    except (OSError, ValueError) as err:
        raise DataError("E331", f"{text}: not a readable file of class names ({err})", path=path) from err
    return names_in(value) or ClassNames.of(LabelSpace.from_dict(value))


def names_in_json(path: Path) -> ClassNames | None:
    """Return the names of a JSON object of numbers and names, at its top level or under a key, or None."""
    try:
        return names_in(parse_json(read_utf8(path)))
    except (OSError, ValueError):
        return None


def names_in(value: object) -> ClassNames | None:
    """Return the names of an object of numbers and names, at its top level or under a key, or None."""
    if not isinstance(value, dict) or "axes" in value:
        return None
    for candidate in (value, *(inner for inner in value.values() if isinstance(inner, dict))):
        found = _from_pairs(candidate) or _from_pairs({str(v): k for k, v in candidate.items() if _is_plain(v)})
        if found is not None:
            return found
    return None


def whole(cell: str) -> int | None:
    """Return a whole number that may be written as 3.0, as pandas does where cells of a column are missing."""
    found = re.fullmatch(r"([0-9]+)(?:\.0+)?", cell.strip())
    return int(found[1]) if found else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _from_lines(lines: list[str]) -> ClassNames:
    """Return the classes of lines, which may all begin with their numbers, 0 to n - 1."""
    found = [_NUMBERED.fullmatch(line) for line in lines]
    names = [one[2] for one in found if one is not None]
    if [int(one[1]) for one in found if one is not None] == list(range(len(lines))):
        return ClassNames.of(LabelSpace.flat(names))
    return ClassNames.of(LabelSpace.flat(lines))


def _from_pairs(pairs: Mapping[Any, Any]) -> ClassNames | None:
    """Return the classes of a mapping from numbers to names, in the order of the numbers."""
    numbers = {whole(str(key)): name for key, name in pairs.items()}
    names = list(numbers.values())
    if not pairs or None in numbers or len(numbers) < len(pairs):
        return None
    if not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        return None
    ordered = sorted((key, name) for key, name in numbers.items() if key is not None)
    space = LabelSpace.flat([name for _, name in ordered])
    return ClassNames(space, {key: i for i, (key, _) in enumerate(ordered)})


def _fail(path: Path) -> ClassNames:
    raise DataError("E331", f"{path.name} has no numbers with a name each", path=path)
