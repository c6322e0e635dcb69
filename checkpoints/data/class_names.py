"""Names for numbered classes: a JSON file as contests give it, a list, or a table of two columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.data.columns import whole
from checkpoints.data.table_file import read_training_table
from ensemble.errors import DataError
from ensemble.labels import LabelSpace, parse_labels
from ensemble.text.json_text import parse_json, read_utf8


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes, and which of them each number in a table means."""

    space: LabelSpace
    number: Mapping[int, int]

    @classmethod
    def of(cls, space: LabelSpace) -> ClassNames:
        """Return a space whose classes are numbered from 0."""
        return cls(space, {i: i for i in range(len(space))})


def parse_class_names(text: str) -> ClassNames:
    """Parse ``--labels``: as `parse_labels`, or a file that maps numbers to names (or names to numbers).

    The file is JSON such as ``{"0": "healthy", "1": "rust"}``, a CSV of two columns, or a text of one name per line.

    Raises:
        DataError: E331 when the file cannot be read or has no names.
    """
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix == ".json" and path.is_file():
        found = names_in_json(path)
        return ClassNames.of(parse_labels(text)) if found is None else found
    if suffix in {".csv", ".tsv"} and path.is_file():
        table = read_training_table(path)
        if len(table.header) != 2:
            message = f"{path.name}: names of classes need two columns, number and name; have {', '.join(table.header)}"
            raise DataError("E331", message, path=path)
        pairs: dict[str, str] = dict(zip(*map(table.column, table.header), strict=True))
        return _from_pairs(pairs) or _from_pairs({name: number for number, name in pairs.items()}) or _fail(path)
    if suffix == ".txt" and path.is_file():
        try:
            text = read_utf8(path)
        except (OSError, ValueError) as err:
            raise DataError("E331", f"{path.name}: not a text of names in UTF-8 ({err})", path=path) from err
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return ClassNames.of(LabelSpace.flat(lines)) if lines else _fail(path)
    return ClassNames.of(parse_labels(text))


def find_class_names(folder: Path, numbers: Collection[int]) -> tuple[Path, ClassNames] | None:
    """Return the one JSON file in a folder that names all of the numbers, such as label_num_to_disease_map.json."""
    fitting = []
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size < 1 << 20:
            found = names_in_json(path)
            if found is not None and set(numbers) <= found.number.keys() and len(found.space) > 1:
                fitting.append((path, found))
    return fitting[0] if len(fitting) == 1 else None


def names_in_json(path: Path) -> ClassNames | None:
    """Return the names of a JSON object of numbers and names, at its top level or under a key, or None."""
    try:
        value = parse_json(read_utf8(path))
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict):
        return None
    for candidate in (value, *(inner for inner in value.values() if isinstance(inner, dict))):
        found = _from_pairs(candidate) or _from_pairs({str(v): k for k, v in candidate.items() if _is_plain(v)})
        if found is not None:
            return found
    return None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


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
