"""Read the answers of a valid submission back as classes, probabilities or decisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble.arrays import Floats
from ensemble.labels import LabelSpace
from ensemble.submission.lint_answers import names_in
from ensemble.submission.sheet import AnswerSheet, Submission
from ensemble.text.plain_numbers import to_float


def read_answers(sheet: AnswerSheet, rows: Sequence[tuple[str, tuple[str, ...]]], labels: LabelSpace) -> Submission:
    """Return the answers of rows of id and cells that have no faults, see `check_submission`.

    Names in a ranking get probabilities that halve from one to the next: they have no others.
    """
    ids = tuple(name for name, _ in rows)
    if sheet.rows and sheet.kind != "long":
        image = {key: sheet.ids[row.image] for key, row in zip(sheet.keys, sheet.rows, strict=True)}
        ids = tuple(image[name] for name in ids)
    if sheet.kind in {"number", "name"}:
        known: dict[str, int] = {}  # of many rows with few classes
        for _, (cell, *_) in rows:
            if cell not in known:
                known[cell] = _label(sheet, labels, cell.strip())
        classes = [known[cells[0]] for _, cells in rows]
        return Submission(ids, np.array(classes, dtype=np.intp), labels)
    if sheet.kind == "long":
        return _read_long(sheet, rows, labels)
    if sheet.kind in {"label-cells", "ranking"}:
        return _read_cells(sheet, ids, [names_in(sheet, cells) for _, cells in rows], labels)
    values = np.array([[_value(sheet, cell) for cell in cells] for _, cells in rows], dtype=np.float64)
    values = values.reshape(len(rows), -1)
    found = np.zeros((len(rows), len(labels)))
    if sheet.kind == "probability":
        found[:, sheet.positive or 0] = values[:, 0]
        if len(labels) == 2:
            found[:, 1 - (sheet.positive or 0)] = 1 - values[:, 0]
    else:
        found[:, list(sheet.classes)] = values
    return _of_probabilities(ids, found, labels, sheet)


def _of_probabilities(ids: tuple[str, ...], found: Floats, labels: LabelSpace, sheet: AnswerSheet) -> Submission:
    sums = np.abs(found.sum(axis=1) - 1)
    several = bool((sums > _TOLERANCE).any())
    # decisions with one 1 in each row are classes, where nothing says that several may apply
    one_each = sheet.decisions and not sheet.independent and not several
    independent = (sheet.kind == "label-columns" and not one_each) or (sheet.kind == "long" and several)
    decisions = found > 0.5 if sheet.decisions else None
    return Submission(ids, found.argmax(axis=1), labels, found, decisions, independent)


_TOLERANCE = 1e-2


def _read_long(sheet: AnswerSheet, rows: Sequence[tuple[str, tuple[str, ...]]], labels: LabelSpace) -> Submission:
    place = dict(zip(sheet.keys, sheet.rows, strict=True))
    found = np.zeros((len(sheet.ids), len(labels)))
    for key, cells in rows:
        row = place[key]
        found[row.image, row.label] = _value(sheet, cells[0])
    return _of_probabilities(sheet.ids, found, labels, sheet)


def _read_cells(
    sheet: AnswerSheet, ids: tuple[str, ...], cells: Sequence[Sequence[str]], labels: LabelSpace
) -> Submission:
    named = np.zeros((len(ids), len(labels)), dtype=bool)
    weights = np.zeros((len(ids), len(labels)))
    for row, parts in enumerate(cells):
        for rank, part in enumerate(parts):
            label = _label(sheet, labels, part)
            named[row, label] = True
            weights[row, label] = 0.5**rank
    classes = weights.argmax(axis=1)
    if sheet.kind == "ranking":
        return Submission(ids, classes, labels, weights / weights.sum(axis=1, keepdims=True), ranked=True)
    return Submission(ids, classes, labels, named.astype(np.float64), named, independent=True)


def _label(sheet: AnswerSheet, labels: LabelSpace, text: str) -> int:
    label = sheet.label_of(text, len(labels))
    assert label is not None, "rows without faults name classes"
    return label


def _value(sheet: AnswerSheet, cell: str) -> float:
    return to_float(cell.replace(sheet.decimal, ".")) / sheet.scale
