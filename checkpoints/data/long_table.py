"""Tables with a row per image and class, turned into one row per image and one column per class."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints.data.columns import is_binary, truth_of
from checkpoints.data.image_match import ImageIndex
from checkpoints.data.table_options import TableOptions
from ensemble.text.csv_table import Table

_MOST = 1000  # classes


@dataclass(frozen=True, slots=True)
class Widened:
    """A table of one row per image; ``classes`` are the columns made, and ``guess`` says from what."""

    table: Table
    image: str
    classes: tuple[str, ...]
    guess: str


def widen_ids(table: Table, index: ImageIndex) -> Widened | None:
    """Widen a table whose ids are ``<image>_<class>`` and whose other column is 0 or 1, or return None."""
    binary = [name for name in table.header if is_binary(table.column(name))]
    others = [name for name in table.header if name not in binary]
    if len(binary) != 1 or not others:
        return None
    for column in others:
        pairs = [cell.strip().rpartition("_")[::2] for cell in table.column(column)]
        images = dict.fromkeys(image for image, _ in pairs)
        if all(image and name for image, name in pairs) and index.count(images) == len(images):
            found = _widen(table, column, pairs, binary[0])
            if found is not None:
                return found
    return None


def widen_rows(table: Table, image: str, options: TableOptions) -> Widened | None:
    """Widen a table of an image, a class and 0 or 1 per row, where each image has every class once, or return None."""
    images = table.column(image)
    if options.label_columns or len(set(images)) == len(images):
        return None
    others = [name for name in table.header if name != image]
    binary = [name for name in others if is_binary(table.column(name))]
    for column in others:
        if len(binary) == 1 and column != binary[0]:
            found = _widen(table, image, list(zip(images, table.column(column), strict=True)), binary[0])
            if found is not None:
                return found
    return None


def _widen(table: Table, column: str, pairs: list[tuple[str, str]], value: str) -> Widened | None:
    images, classes = dict.fromkeys(image for image, _ in pairs), dict.fromkeys(name for _, name in pairs)
    complete = len(set(pairs)) == len(pairs) == len(images) * len(classes)
    if not complete or not 2 <= len(classes) <= _MOST or column in classes:
        return None
    cells = dict(zip(pairs, table.column(value), strict=True))
    rows = tuple((image, *(str(int(bool(truth_of(cells[image, name])))) for name in classes)) for image in images)
    first = {image: line for (image, _), line in reversed(list(zip(pairs, table.lines, strict=True)))}
    wide = Table(table.path, (column, *classes), rows, tuple(first[image] for image in images))
    guess = f"each image has a row per class, {value!r} says if it is present: {len(classes)} labels"
    return Widened(wide, column, tuple(classes), guess)
