"""Read the ground truth: the class of each image and, if known, the person on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble.arrays import Classes
from ensemble.csv_table import read_table
from ensemble.errors import DataError
from ensemble.events import SILENT, Listener
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The ground truth: ``classes[i]``, ``(N,)``, is the class of image ``ids[i]``, ``persons[i]`` the person on it."""

    ids: tuple[str, ...]
    classes: Classes
    persons: tuple[str, ...] | None
    labels: LabelSpace


def read_truth(path: Path, labels: LabelSpace, *, listener: Listener = SILENT) -> Truth:
    """Read a CSV with the columns ``ImageID``, ``ans`` (a class index of ``labels``) and optionally ``person``.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E313 when an id is repeated, E322 when a column is missing, E330 when an answer is not a class.
    """
    table = read_table(path, listener=listener)
    ids = table.without_duplicates("ImageID")
    known = {str(number): number for number in range(len(labels))}
    answers = table.column("ans")
    for answer, line in zip(answers, table.lines, strict=True):
        if answer not in known:
            raise DataError(
                "E330", f"{path.name}: line {line}: {answer!r} is not a class of 0 to {len(labels) - 1}", path=path
            )
    if not ids:
        raise DataError("E330", f"{path.name}: the ground truth has a header but no rows", path=path)
    persons = table.column("person") if "person" in table.header else None
    if persons is not None and "" in persons:
        line = table.lines[persons.index("")]
        raise DataError(
            "E330", f"{path.name}: line {line}: the person is empty; fill in all or drop the column", path=path
        )
    return Truth(ids, np.array([known[answer] for answer in answers], dtype=np.intp), persons, labels)


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
    return DataError("E330", f"predictions and ground truth are for different images: the prediction set {difference}")


def _truth_mismatch(difference: str) -> DataError:
    return DataError("E330", f"predictions and ground truth are for different images: the ground truth {difference}")
