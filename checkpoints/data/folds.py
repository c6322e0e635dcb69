"""Folds grouped by person and stratified by class or by label: no person, or other group, is in two folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.data.columns import PEOPLE, Unit
from checkpoints.data.mask_contest import Row
from checkpoints.data.stratify import stratify
from ensemble.arrays import Mask
from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import write_atomic
from ensemble.labels import MASK18, LabelSpace
from ensemble.text.csv_table import read_table
from ensemble.text.plain_numbers import is_count

_HINT = "use fewer folds, or add images of that class"
_HINT_OF_TWO = "two are the fewest: add images of that class, or leave its images out with --fixes and the field drop"
COMPLETE_FOLDS = "the file takes a line for each person, or other group, of the training images: id,fold"


@dataclass(frozen=True, slots=True)
class Folds:
    """The fold in which each person (or other group) is held out: ``of_person[person]`` is 0 to ``count - 1``."""

    count: int
    of_person: Mapping[str, int]

    def holdout(self, rows: Sequence[Row], fold: int) -> Mask:
        """Return the mask ``(N,)`` of the rows that a fold holds out; it is trained on the others."""
        return np.array([self.of_person[row.person] == fold for row in rows], dtype=np.bool_)


def make_folds(
    rows: Sequence[Row],
    *,
    folds: int = 5,
    seed: int,
    labels: LabelSpace = MASK18,
    unit: Unit = PEOPLE,
    listener: Listener = SILENT,
) -> Folds:
    """Split people, or the groups that ``unit`` names, into folds; the same rows and seed give the same, in any order.

    Rows with several labels are stratified over the labels, and a label that is too rare for every fold is a notice.

    Raises:
        OptionError: E204 when there are fewer than two folds.
        DataError: E341 when a class has fewer people than there are folds: some fold would not be scored on it.
    """
    if folds < 2:
        raise OptionError("E204", f"folds must be 2 or more, got {folds}")
    if any(row.present is not None for row in rows):
        return _make_multilabel_folds(rows, folds, seed, labels, unit, listener)
    people: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        people[row.label].add(row.person)
    rarest = min(people, key=lambda label: len(people[label]))
    if len(people[rarest]) < folds:
        raise DataError(
            "E341",
            f"{folds} folds need {folds} {unit.plural} of every class; "
            f"{labels.names[rarest]!r} has {len(people[rarest])}",
            hint=_HINT if folds > 2 else _HINT_OF_TWO,
        )
    ordered = sorted(rows, key=lambda row: row.id)
    classes = [row.label for row in ordered]
    persons = [row.person for row in ordered]
    from sklearn.model_selection import StratifiedGroupKFold  # a second, which those that read folds need not wait for

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    of_person: dict[str, int] = {}
    for fold, (_, held_out) in enumerate(splitter.split(classes, classes, persons)):
        of_person |= {persons[i]: fold for i in held_out.tolist()}
    return Folds(folds, of_person)


def _make_multilabel_folds(
    rows: Sequence[Row], folds: int, seed: int, labels: LabelSpace, unit: Unit, listener: Listener
) -> Folds:
    persons = sorted({row.person for row in rows})
    if len(persons) < folds:
        raise DataError("E341", f"{folds} folds need {folds} {unit.plural}; there are {len(persons)}")
    position = {person: i for i, person in enumerate(persons)}
    counts = np.zeros((len(persons), len(labels)), dtype=np.int64)
    sizes = np.zeros(len(persons), dtype=np.int64)
    for row in rows:
        counts[position[row.person], list(row.present or ())] += 1
        sizes[position[row.person]] += 1
    rare = [i for i, having in enumerate((counts > 0).sum(axis=0).tolist()) if having < folds]
    if rare:
        some = enumerate_some([f"{labels.names[i]} ({int(counts[:, i].sum())})" for i in rare])
        message = f"{len(rare)} labels are on fewer than {folds} {unit.plural}, so some folds hold out none: {some}"
        listener.notice(Notice("W338", message))
    fold = stratify(counts, sizes, folds=folds, seed=seed).tolist()
    return Folds(folds, dict(zip(persons, fold, strict=True)))


def write_folds(path: Path, folds: Folds) -> Path:
    """Write ``id,fold`` with one line per person.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    lines = [f"{person},{fold}\n" for person, fold in sorted(folds.of_person.items())]
    return write_atomic(path, ("id,fold\n" + "".join(lines)).encode())


def read_folds(path: Path, rows: Sequence[Row], *, hint: str = COMPLETE_FOLDS) -> Folds:
    """Read a file of `write_folds`, or another CSV of ``id,fold``, for the people of the rows.

    ``hint`` is that of E341.

    Raises:
        DataError: E313 or E322 when a column is missing or a person occurs twice; E341 when a fold is not a
            number, a number is skipped, or a person of the rows has no fold.
    """
    table = read_table(path)
    pairs = dict(zip(table.without_duplicates("id"), table.column("fold"), strict=True))
    odd = sorted(person for person, fold in pairs.items() if not is_count(fold))
    lost = sorted({row.person for row in rows} - pairs.keys())
    if odd or lost:
        whose, what = (odd, "has no whole number as fold") if odd else (lost, "has no fold")
        raise DataError("E341", f"{path} {what} for {enumerate_some(whose)}", hint=hint, path=path)
    if not pairs:
        raise DataError("E341", f"{path} has no rows", hint=hint, path=path)
    of_person = {person: int(fold) for person, fold in pairs.items()}
    count = max(of_person.values()) + 1
    if count < 2 or len(set(of_person.values())) != count:
        message = f"{path}: folds must be 0, 1, ... without a gap, at least two"
        raise DataError("E341", message, hint=hint, path=path)
    return Folds(count, of_person)
