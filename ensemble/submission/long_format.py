"""Samples with one row per image and class: the class is at the end of the id, or in a column of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensemble.submission.class_names import are_numbers, fold_name
from ensemble.submission.columns_beside import is_answer_column
from ensemble.submission.sheet import LongRow
from ensemble.text.csv_table import Table

_SEPARATOR = re.compile(r"[_\-:/|. #@]+")


@dataclass(frozen=True, slots=True)
class LongRows:
    """The rows of a sample, the images in the order of their first row, and the place of the column of answers."""

    ids: tuple[str, ...]
    rows: tuple[LongRow, ...]
    answer_place: int


def find_long_rows(
    table: Table, id_place: int, rest: Sequence[int], names: Sequence[str], *, asked: bool
) -> LongRows | None:
    """Return the rows if each is of one image and one class, and every image has each class once; None otherwise.

    Of more than three columns, the one of the answers is known by its name, such as ``probability``.

    Classes that are named by numbers may as well be the number of a frame or a view: an id that ends in one counts only
    if the format was ``asked`` for, or its column is called so, as ImageId_ClassId is.
    """
    if len(rest) == 1:
        asked = asked or re.search("class|label", fold_name(table.header[id_place])) is not None
        classes = None if are_numbers(names) and not asked else _by_name(names)
        if asked and not are_numbers(names):
            classes = {str(label): label for label in range(len(names))} | _by_name(names)
        if classes is None or len(names) < 2:
            return None
        split = []
        for row in table.rows:
            split.append(_split(row[id_place], classes))
            if split[-1] is None:  # of a million ids the first one tells
                return None
        return _gather(table, split, rest[0], len(names))
    classes = _by_name(names)
    if not are_numbers(names):
        classes = {str(label): label for label in range(len(names))} | classes
    for place in rest:
        labels = [classes.get(fold_name(row[place])) for row in table.rows]
        for image in () if None in labels else (id_place, *rest):
            # beside the image, its class and the answer there may be a number of the row and other columns
            others = [other for other in (id_place, *rest) if other not in {place, image}]
            answers = others if len(rest) == 2 else [other for other in others if is_answer_column(table, other)]
            if image == place or len(answers) != 1 or (image != id_place and len(rest) == 2):
                continue
            split = [(row[image], label) for row, label in zip(table.rows, labels, strict=True) if label is not None]
            found = _gather(table, split, answers[0], len(names))
            if found is not None:
                return found
    return None


def _by_name(names: Sequence[str]) -> dict[str, int]:
    return {fold_name(name): label for label, name in enumerate(names)}


def _split(cell: str, classes: Mapping[str, int]) -> tuple[str, int] | None:
    """Split an id into image and class; where several splits are possible the longest class counts."""
    for separator in _SEPARATOR.finditer(cell):
        label = classes.get(fold_name(cell[separator.end() :]))
        if label is not None and separator.start() > 0:
            return cell[: separator.start()], label
    return None


def _gather(table: Table, split: Sequence[tuple[str, int] | None], answer_place: int, classes: int) -> LongRows | None:
    known = [pair for pair in split if pair is not None]
    images = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in known))}
    if len(known) != len(split) or len(set(known)) != len(known) or len(known) != len(images) * classes:
        return None
    rows = tuple(LongRow(cells, images[name], label) for cells, (name, label) in zip(table.rows, known, strict=True))
    return LongRows(tuple(images), rows, answer_place)
