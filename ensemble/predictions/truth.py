"""Read the ground truth: the class of each image, or all labels that apply, and if known the person on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.errors import DataError, EnsError, enumerate_some, show_spaces
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import find_id_column, join_rows
from ensemble.labels import LabelSpace
from ensemble.submission.class_names import USUAL_ANSWERS, Mismatch, are_numbers, fold_name, match_columns, nearest
from ensemble.submission.label_cells import find_lists
from ensemble.submission.positive import find_positive
from ensemble.submission.sheet_options import SheetOptions
from ensemble.text.csv_table import Table, read_table
from ensemble.text.plain_numbers import is_count, to_float

_GROUPS = ("person", "person id", "patient", "patient id", "subject", "subject id", "group", "group id")


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The ground truth: ``classes[i]``, ``(N,)``, is the class of image ``ids[i]``, ``persons[i]`` the person on it.

    Where several labels may apply, ``applies`` ``(N, C)`` has them, and ``classes`` the first of each image (0 where
    none applies). ``positive`` is the class that metrics of one of two classes are about, where it is named.
    ``folds[i]`` is the fold that held out image ``ids[i]``, where that is known.
    """

    ids: tuple[str, ...]
    classes: Classes
    persons: tuple[str, ...] | None
    labels: LabelSpace
    applies: NDArray[np.bool_] | None = None
    positive: int | None = None
    folds: tuple[int, ...] | None = None

    @property
    def shares(self) -> Floats:
        """The share ``(C,)`` of images that each class or label applies to."""
        if self.applies is not None:
            return np.asarray(self.applies.mean(axis=0))
        return np.bincount(self.classes, minlength=len(self.labels)) / len(self.ids)


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """The columns of a ground truth, and the positive one of two classes, where the names do not tell them."""

    id_column: str | None = None
    label_column: str | None = None
    positive: str | None = None


NO_COLUMNS = TruthOptions()

SAME_IMAGES = (
    "the ground truth must have the images of the predictions and no others: give a file with the rows of these alone"
)
"""A hint where the images differ."""


def truth_columns(options: SheetOptions) -> TruthOptions:
    """Return what the options of a sheet name: the columns and the class are those of the ground truth as well."""
    return TruthOptions(options.id_column, options.label_column, options.positive)


def read_truth(
    path: Path,
    labels: LabelSpace,
    *,
    options: TruthOptions = NO_COLUMNS,
    independent: bool = False,
    listener: Listener = SILENT,
) -> Truth:
    """Read a CSV of ids and answers: a column of class numbers or names, or one column of 0 and 1 per class.

    The columns are found by usual names, such as ``ImageID`` and ``ans``; a column of persons or other groups is
    called ``person``, ``patient_id``, ``group`` and the like, one of the folds that held the images out ``fold``. With
    ``independent`` labels several may apply to an image: a cell may hold several names, and a row several ones.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E313 when an id is repeated, E322 when a column is missing, E330 when an answer is not a class,
            E364 when answers are fractions.
        PredictionError: E541 when the positive class that is named is none.
    """
    table = read_table(path, listener=listener)
    if {"id", "gender", "age", "path"} <= {fold_name(name) for name in table.header} and options == NO_COLUMNS:
        hint = (
            "give a table of images and classes, such as the truth.csv that ens train writes from this one and its "
            "folders of images"
        )
        raise DataError("E322", f"{path.name} lists people, not images and classes", path=path, hint=hint)
    id_column = find_id_column(table, named=options.id_column, listener=listener)
    ids = table.without_duplicates(id_column)
    if not ids:
        raise DataError("E330", f"{path.name}: the ground truth has a header but no rows", path=path)
    applies = _read_flags(table, id_column, labels, options)
    if applies is None and not independent:
        classes = _read_classes(table, id_column, labels, options)
    else:
        applies = _read_cells(table, id_column, labels, options) if applies is None else applies
        if not independent:
            _require_one_each(table, applies)
        classes = applies.argmax(axis=1).astype(np.intp)
    if not independent and len(labels) > 1 and len(ids) > 1 and (classes == classes[0]).all():
        answer = labels.names[int(classes[0])]
        message = (
            f"{path.name}: all {len(ids):,} images are {answer}, as in a sample submission; scores then mean little"
        )
        listener.notice(Notice("W330", message))
    positive = None if options.positive is None else find_positive(labels.names, "", options.positive)
    return Truth(
        *(ids, classes, _read_groups(table, listener), labels, applies if independent else None, positive),
        folds=_read_folds(table),
    )


def names_several(path: Path, labels: LabelSpace, *, options: TruthOptions = NO_COLUMNS) -> bool | None:
    """Return True if some image of a ground truth has several labels or none, and None if that is not known.

    A ground truth with one label per image may still be of labels that do not exclude each other, and one that cannot
    be read is refused by `read_truth`.
    """
    try:
        found = read_truth(path, labels, options=options, independent=True)
    except EnsError:
        return None
    assert found.applies is not None
    return True if (found.applies.sum(axis=1) != 1).any() else None


def _read_flags(table: Table, id_column: str, labels: LabelSpace, options: TruthOptions) -> NDArray[np.bool_] | None:
    """Return which classes ``(N, C)`` each row names, where each class has a column of 0 and 1; None where not."""
    rest = [name for name in table.header if name != id_column]
    if options.label_column is not None or "ans" in rest:
        return None
    beside = [name for name in rest if fold_name(name) not in (*_GROUPS, *USUAL_ANSWERS, "fold")]
    for columns in (rest, beside):
        match = match_columns(columns, labels.names)
        if not isinstance(match, Mismatch) and len(labels) > 1 and _are_flags(table, columns):
            column_of = dict(zip(match.classes, columns, strict=True))
            ordered = [column_of[label] for label in range(len(labels))]
            return np.stack([np.array([to_float(c) for c in table.column(name)]) > 0.5 for name in ordered], axis=1)
        if not isinstance(match, Mismatch) and (cell := _fraction_in(table, columns)):
            raise DataError("E364", f"{table.path.name}: a column of 0 and 1 per class has {cell!r}", path=table.path)
    return None


def _read_classes(table: Table, id_column: str, labels: LabelSpace, options: TruthOptions) -> Classes:
    """Return the class ``(N,)`` that the cell of each row names."""
    answers = table.column(_answer_column(table, [name for name in table.header if name != id_column], options))
    known = _known_answers(answers, labels)
    for answer, line in zip(answers, table.lines, strict=True):
        if answer not in known:
            raise _not_a_class(table, line, answer, labels)
    return np.array([known[answer] for answer in answers], dtype=np.intp)


def _read_cells(table: Table, id_column: str, labels: LabelSpace, options: TruthOptions) -> NDArray[np.bool_]:
    """Return which labels ``(N, C)`` the cell of each row names."""
    answers = table.column(_answer_column(table, [name for name in table.header if name != id_column], options))
    known = _known_answers(answers, labels)
    applies = np.zeros((len(table.rows), len(labels)), dtype=bool)
    for row, (answer, line) in enumerate(zip(answers, table.lines, strict=True)):
        for part in [answer] if answer in known else _parts(answer):
            if part not in known:
                raise _not_a_class(table, line, part, labels)
            applies[row, known[part]] = True
    return applies


def _are_flags(table: Table, columns: Sequence[str]) -> bool:
    return all(set(map(str.strip, table.column(name))) <= {"0", "1", "0.0", "1.0"} for name in columns)


def _fraction_in(table: Table, columns: Sequence[str]) -> str | None:
    """Return the first cell that is not a whole number, of columns of numbers."""
    try:
        cells = [(cell, to_float(cell)) for name in columns for cell in table.column(name)]
    except ValueError:
        return None
    return next((cell for cell, value in cells if not value.is_integer()), None)


def _answer_column(table: Table, rest: Sequence[str], options: TruthOptions) -> str:
    """Return the column of answers: the one that is named, called as usual, or the only one that is not a group.

    Raises:
        DataError: E322 when there is none, or more than one may be it.
    """
    if options.label_column is not None:
        return table.header[table.place(options.label_column)]
    by_name = {fold_name(name): name for name in reversed(rest)}
    usual = next((by_name[name] for name in USUAL_ANSWERS if name in by_name), None)
    others = [name for name in rest if fold_name(name) not in (*_GROUPS, "fold")]
    if usual is not None or len(others) == 1:
        return usual or others[0]
    raise DataError(
        "E322",
        f'{table.path.name}: column "ans" not found; have: {", ".join(map(show_spaces, table.header))}',
        path=table.path,
        hint=table.hint_about_spaces or "name the column of the classes with --label-column",
    )


def _known_answers(answers: Sequence[str], labels: LabelSpace) -> dict[str, int]:
    """Return the class of each text: names, or class numbers where the classes are not named by other numbers."""
    names = {name: label for label, name in enumerate(labels.names)}
    numbers = {str(label): label for label in range(len(labels))}
    if are_numbers(labels.names) and any(answer in names for answer in answers):
        return names
    return names | numbers if not are_numbers(labels.names) else numbers


def _parts(answer: str) -> list[str]:
    listed = find_lists([answer])
    if listed is not None:
        return listed.split(answer)
    separator = next((mark for mark in (";", ",", "|") if mark in answer), None)
    return [part for part in map(str.strip, answer.split(separator)) if part]


def _not_a_class(table: Table, line: int, answer: str, labels: LabelSpace) -> DataError:
    near = nearest(answer, labels.names)
    meant = f" (did you mean {near!r}?)" if near else ""
    return DataError(
        "E330",
        f"{table.path.name}: line {line}: {answer!r} is not a class of 0 to {len(labels) - 1}{meant}",
        path=table.path,
        hint=f"answers are class numbers or names, such as {enumerate_some(list(labels.names), limit=3)}; "
        "--labels gives the classes",
    )


def _require_one_each(table: Table, applies: NDArray[np.bool_]) -> None:
    counts = applies.sum(axis=1)
    bad = np.flatnonzero(counts != 1)
    if len(bad):
        line = table.lines[int(bad[0])]
        raise DataError(
            "E330",
            f"{table.path.name}: line {line} names {int(counts[bad[0]])} classes, and each image has one",
            path=table.path,
        )


def _read_groups(table: Table, listener: Listener) -> tuple[str, ...] | None:
    """Return the person, or other group, of each row, if a column has it.

    Raises:
        DataError: E330 when one is empty.
    """
    by_name = {fold_name(name): name for name in reversed(table.header)}
    column = next((by_name[name] for name in _GROUPS if name in by_name), None)
    if column is None:
        return None
    if column != "person":
        message = f"{table.path.name}: the column {show_spaces(column)} says which images belong together"
        listener.notice(Notice("I382", message))
    persons = table.column(column)
    if "" in persons:
        line = table.lines[persons.index("")]
        raise DataError(
            "E330",
            f"{table.path.name}: line {line}: the {column} is empty; fill in all or drop the column",
            path=table.path,
        )
    return persons


def _read_folds(table: Table) -> tuple[int, ...] | None:
    """Return the fold of each row, where a column ``fold`` has a whole number in each."""
    column = next((name for name in table.header if fold_name(name) == "fold"), None)
    cells = () if column is None else table.column(column)
    return tuple(map(int, cells)) if cells and all(map(is_count, cells)) else None


def true_classes(ids: Sequence[str], truth: Truth) -> Classes:
    """Return the true class ``(N,)`` of each image in ``ids``.

    Raises:
        DataError: E330 when the ground truth is for other images.
    """
    return truth.classes[join_rows(ids, truth.ids, complain=_truth_mismatch)]


def predictions_mismatch(difference: str) -> DataError:
    """Return the error E330 for predictions of other images than the ground truth.

    ``difference`` is a verb phrase, such as "lacks 2 of 30 ids: ...", about the predictions.
    """
    message = f"predictions and ground truth are for different images: the prediction set {difference}"
    return DataError("E330", message, hint=SAME_IMAGES)


def _truth_mismatch(difference: str) -> DataError:
    message = f"predictions and ground truth are for different images: the ground truth {difference}"
    return DataError("E330", message, hint=SAME_IMAGES)
