"""The ground truth: classes, and people where they are known, by image id."""

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
    """The true class ``classes[i]``, ``(N,)``, of each image ``ids[i]``, and the person on it where known."""

    ids: tuple[str, ...]
    classes: Classes
    persons: tuple[str, ...] | None
    labels: LabelSpace


def read_truth(path: Path, labels: LabelSpace, *, listener: Listener = SILENT) -> Truth:
    """Read the columns ``ImageID`` and ``ans`` (a class number of ``labels``), and ``person`` where there is one.

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
        raise DataError("E330", f"{path.name}: the truth has a header and no rows", path=path)
    persons = table.column("person") if "person" in table.header else None
    if persons is not None and "" in persons:
        line = table.lines[persons.index("")]
        raise DataError("E330", f"{path.name}: line {line}: the person is empty; name every one, or none", path=path)
    return Truth(ids, np.array([known[answer] for answer in answers], dtype=np.intp), persons, labels)


def true_classes(ids: Sequence[str], truth: Truth) -> Classes:
    """The true class ``(N,)`` of each image in ``ids``.

    Raises:
        DataError: E330 when the truth is not of just these images.
    """
    return truth.classes[join_rows(ids, truth.ids, complain=not_the_truth)]


def not_the_truth(difference: str) -> DataError:
    """Return the error E330 for a truth of other images; ``difference`` names them."""
    return DataError("E330", f"the truth is of other images than the answers: against it, what is here {difference}")
