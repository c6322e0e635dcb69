"""Turn the label cells of a table into classes, or into sets of labels, per image."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints.data.class_names import find_class_names
from checkpoints.data.columns import Columns, fractions, truth_of
from checkpoints.data.table_options import NONE, SEPARATORS, TableOptions
from ensemble.card import Activation
from ensemble.errors import DataError, cut_text, enumerate_some
from ensemble.label_file import ClassNames, whole
from ensemble.labels import LabelSpace
from ensemble.text.csv_table import Table
from ensemble.text.plain_numbers import is_count

_MANY = 0.1  # the share of images with several labels from which on repeated rows are meant
_FRACTIONS = 10  # distinct ones of a column up to which they are names of classes, such as half stars


@dataclass(frozen=True, slots=True)
class Labeling:
    """The labels of each image: their indices in ``space``, exactly one where the activation is softmax."""

    space: LabelSpace
    activation: Activation
    of_image: Mapping[str, tuple[int, ...]]
    guesses: tuple[str, ...]
    numbers: str | None = None
    """The column that numbers the classes, beside that of their names."""


@dataclass(slots=True)
class _LabelCells:
    """The labels in each row of a table, as text; ``several`` if a row may have any number of them."""

    rows: list[tuple[str, ...]]
    several: bool
    names: tuple[str, ...] | None = None  # the order of the classes, where the table gives it
    guesses: list[str] = field(default_factory=list)


def read_labels(
    table: Table, columns: Columns, images: Sequence[str], options: TableOptions, names: ClassNames | None
) -> Labeling:
    """Return the labels of ``images``, the image of each row; rows of the same image are joined.

    Whole numbers are the classes of that number where they start at 0 and have few gaps; any others are names.

    Raises:
        DataError: E336 when a cell is not a label or has none, E337 when rows of an image contradict each other or the
            labels do not fit the activation, E340 when a label is none of the given classes, E364 when labels are
            fractions.
    """
    found = _from_columns(table, columns) if len(columns.labels) > 1 else _from_cells(table, columns.labels[0], options)
    joined: dict[str, dict[str, None]] = {}
    for image, tokens in zip(images, found.rows, strict=True):
        joined.setdefault(image, {}).update(dict.fromkeys(tokens))
    activation = _activation(images, found, joined, options)
    if activation == "softmax":
        _require_one_each(table, columns, images, found, joined)
    numbers = None if found.several or names is not None else _find_numbers(table, columns.unused, found)
    space, position = _number(table, found, names)
    of_image = {image: tuple(sorted({position[token] for token in tokens})) for image, tokens in joined.items()}
    return Labeling(space, activation, of_image, tuple(found.guesses), numbers)


def _find_numbers(table: Table, unused: Sequence[str], found: _LabelCells) -> str | None:
    """Return the column that has a number for each class's name, and take the order of the classes from it.

    The numbers are 0 to n - 1 or 1 to n, each that of one name in all rows.
    """
    tokens = [row[0] if row else "" for row in found.rows]
    classes = {*tokens}
    if "" in classes or len(classes) < 2 or len(classes) == len(tokens) or found.names is not None:
        return None
    if all(whole(token) is not None for token in classes):
        return None
    for column in unused:
        pairs = {*zip(tokens, map(whole, table.column(column)), strict=True)}
        of_number = {number: token for token, number in pairs if number is not None}
        if len(pairs) != len(classes) or len(of_number) != len(classes):
            continue
        first = min(of_number)
        if first > 1 or sorted(of_number) != list(range(first, first + len(classes))):
            continue
        found.names = tuple(of_number[number] for number in sorted(of_number))
        if found.names != tuple(sorted(classes)):
            found.guesses.append(f"the classes are in the order of their numbers in column {column!r}")
        return column
    return None


def _from_columns(table: Table, columns: Columns) -> _LabelCells:
    rows: list[list[str]] = [[] for _ in table.rows]
    for name in columns.labels:
        for row, (cell, line) in enumerate(zip(table.column(name), table.lines, strict=True)):
            is_true = truth_of(cell)
            if is_true is None:
                code = "E364" if fractions(table.column(name)) else "E336"
                message = f"{table.path.name}: line {line}: {name!r} is {cell!r}; a label's column has 0 and 1"
                raise DataError(code, message, path=table.path)
            if is_true:
                rows[row].append(name)
    once = all(len(row) == 1 for row in rows)
    found = _LabelCells([tuple(row) for row in rows], several=not once, names=columns.labels)
    if once:
        found.guesses.append(
            "each row has exactly one 1, so an image has one class (--activation sigmoid: any number of labels)"
        )
    return found


def _from_cells(table: Table, column: str, options: TableOptions) -> _LabelCells:
    cells = [cell.strip().strip("\u00a0").strip() for cell in table.column(column)]
    lists = [cell for cell in cells if cell]
    if lists and all(cell.startswith("[") and cell.endswith("]") for cell in lists) and options.separator is None:
        rows = [_items(cell, table, line) for cell, line in zip(cells, table.lines, strict=True)]
        return _LabelCells(rows, several=True, guesses=[f"{column!r} has lists of labels"])
    separator = options.separator or _guess_separator(cells)
    if separator == NONE:
        found = _LabelCells([(cell,) if cell else () for cell in cells], several=False)
        if soft := fractions(cells):
            if len(soft) > _FRACTIONS:
                message = f"{table.path.name}: {column!r} has {len(soft)} different fractions, such as {soft[0]}"
                raise DataError("E364", message, path=table.path)
            found.guesses.append(f"the numbers of {column!r}, such as {soft[0]}, are taken as names of classes")
        half = _recurring(cells, " ")
        if options.separator is None and half is not None and half >= 0.5:
            found.guesses.append(
                f"the cells of {column!r} are one class each, though words recur (--label-separator space: several)"
            )
        return found
    rows = [_split(cell, SEPARATORS[separator]) for cell in cells]
    found = _LabelCells(rows, several=True)
    if options.separator is None:
        found.guesses.append(
            f"the cells of {column!r} have several labels, divided by a {separator} (--label-separator none: one class)"
        )
    return found


def _items(cell: str, table: Table, line: int) -> tuple[str, ...]:
    if not cell:
        return ()
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _split(cell[1:-1].replace("'", "").replace('"', ""), "," if "," in cell else " ")
    if not all(isinstance(item, str | int) for item in value):
        raise DataError(
            "E336", f"{table.path.name}: line {line}: {cut_text(cell, 60)!r} is not a list of labels", path=table.path
        )
    return tuple(str(item) for item in value)


def _split(cell: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(separator) if part.strip())


def _guess_separator(cells: Sequence[str]) -> str:
    """Return the separator whose parts are labels of other cells as well; a text with none of them is one class."""
    for name in ("bar", "semicolon", "comma", "space"):
        recurring = _recurring(cells, SEPARATORS[name])
        if recurring is not None and recurring >= (0.9 if name == "space" else 0.5):
            return name
    return NONE


def _recurring(cells: Sequence[str], separator: str) -> float | None:
    """Return the share of the parts of divided cells that are in another distinct cell too; None if none is divided."""
    distinct = {_split(cell, separator) for cell in cells}
    counts = Counter(part for parts in distinct for part in set(parts))
    divided = {part for parts in distinct if len(parts) > 1 for part in parts}
    if not divided:
        return None
    return sum(counts[part] > 1 for part in divided) / len(divided)


def _activation(
    images: Sequence[str], found: _LabelCells, joined: Mapping[str, Mapping[str, None]], options: TableOptions
) -> Activation:
    if options.activation is not None:
        return options.activation
    if found.several:
        return "sigmoid"
    if len(joined) < len(images):
        several = sum(len(tokens) > 1 for tokens in joined.values())
        if several >= _MANY * len(joined):
            found.guesses.append(
                f"{several:,} of {len(joined):,} images have rows of different labels, so an image has any number"
                " (--activation softmax: one class)"
            )
            return "sigmoid"
    return "softmax"


def _require_one_each(
    table: Table, columns: Columns, images: Sequence[str], found: _LabelCells, joined: Mapping[str, Mapping[str, None]]
) -> None:
    empty = [line for tokens, line in zip(found.rows, table.lines, strict=True) if not tokens]
    if empty:
        some = enumerate_some([str(line) for line in empty])
        names = enumerate_some(list(columns.labels), limit=3)
        raise DataError(
            "E336",
            f"{table.path.name}: {len(empty):,} rows have no label in {names}: line {some}",
            path=table.path,
            hint="fill them in, remove the rows, or, if an image may have no label, add --activation sigmoid",
        )
    odd = {image: tokens for image, tokens in joined.items() if len(tokens) > 1}
    if odd:
        lines: dict[str, list[str]] = {image: [] for image in odd}
        for image, line in zip(images, table.lines, strict=True):
            if image in odd:
                lines[image].append(str(line))
        details = tuple(
            f"{image} (line {', '.join(lines[image])}): {', '.join(tokens)}" for image, tokens in odd.items()
        )
        raise DataError(
            "E337",
            f"{table.path.name}: {len(odd):,} images have several labels: {enumerate_some(list(details), limit=3)}",
            path=table.path,
            hint="keep one row per image; or, if an image may have several labels, add --activation sigmoid",
            details=details,
        )


def _number(table: Table, found: _LabelCells, names: ClassNames | None) -> tuple[LabelSpace, dict[str, int]]:
    """Return the classes, and the class of each text in the cells."""
    tokens = sorted({token for row in found.rows for token in row})
    if not tokens:
        raise DataError("E336", f"{table.path.name}: no image has a label", path=table.path)
    padded = any(token.startswith("0") and is_count(token) and len(token) > 1 for token in tokens)
    numbers = {token: number for token in tokens if not padded and (number := whole(token)) is not None}
    numeric = len(numbers) == len(tokens)
    if found.names is not None and names is None:
        space = LabelSpace.flat(found.names)
        return space, {name: i for i, name in enumerate(found.names)}
    if numeric and names is None:
        return _number_by_value(table.path, numbers, found)
    if names is None:
        return LabelSpace.flat(tokens), {token: i for i, token in enumerate(tokens)}
    by_name = {name: i for i, name in enumerate(names.space.names)}
    position = {token: by_name[token] for token in tokens if token in by_name}
    if numeric and not position:
        position = {token: names.number[number] for token, number in numbers.items() if number in names.number}
    unknown = [token for token in tokens if token not in position]
    if unknown:
        some = enumerate_some(unknown)
        message = f"{table.path.name}: {some}: none of the {len(names.space)} classes"
        raise DataError("E340", message, path=table.path, hint="see --labels, and the spelling in the table")
    return names.space, position


def _number_by_value(path: Path, numbers: Mapping[str, int], found: _LabelCells) -> tuple[LabelSpace, dict[str, int]]:
    named = find_class_names(path.parent, set(numbers.values()))
    if named is not None:
        file, names = named
        found.guesses.append(f"the classes have the names in {file.name}")
        return names.space, {token: names.number[number] for token, number in numbers.items()}
    present = sorted(set(numbers.values()))
    most = present[-1] + 1
    if present[0] == 0 and 2 * len(present) >= most:
        absent = sorted(set(range(most)) - set(present))
        if absent:
            some = enumerate_some([str(number) for number in absent])
            found.guesses.append(f"the classes are 0 to {most - 1}; no image has {some}")
        return LabelSpace.flat(most), dict(numbers)
    found.guesses.append(
        f"the {len(present)} numbers in the labels, {present[0]} to {present[-1]}, are the names of the classes"
    )
    position = {number: i for i, number in enumerate(present)}
    return LabelSpace.flat([str(number) for number in present]), {t: position[n] for t, n in numbers.items()}
