"""The true labels of training rows as arrays, and as the table that ``--truth`` of `ens blend` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from ensemble.card import Activation
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import Truth


def labels_of(
    rows: Sequence[Row], labels: LabelSpace, activation: Activation, *, trained: bool = False
) -> NDArray[np.int64]:
    """Return the classes ``(N,)``, or with several labels per image 0 and 1 as ``(N, L)``; ``trained``: the targets."""
    if activation == "softmax":
        return np.array([row.target if trained else row.label for row in rows], dtype=np.int64)
    found = np.zeros((len(rows), len(labels)), dtype=np.int64)
    for i, row in enumerate(rows):
        assert row.present is not None, "the rows have several labels each"
        found[i, list(row.present)] = 1
    return found


def training_truth(data: Dataset, folds: Folds | None = None) -> Truth:
    """Return the true classes of the training rows, their people or other groups and, if given, their folds."""
    found = labels_of(data.rows, data.labels, data.activation)
    several = data.activation == "sigmoid"
    classes = found.argmax(axis=1) if several else found
    return Truth(
        tuple(row.id for row in data.rows),
        np.asarray(classes, dtype=np.intp),
        tuple(row.person for row in data.rows),
        data.labels,
        found.astype(bool) if several else None,
        folds=None if folds is None else tuple(folds.of_person[row.person] for row in data.rows),
    )


def truth_table(
    rows: Sequence[Row], labels: LabelSpace, activation: Activation, *, folds: Folds | None = None
) -> bytes:
    """Return a CSV of id, class, person and, if given, fold; of several labels, with a column of 0 and 1 for each."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    of_row = [()] * len(rows) if folds is None else [(folds.of_person[row.person],) for row in rows]
    last = ("person",) if folds is None else ("person", "fold")
    if activation == "sigmoid":
        writer.writerow(("ImageID", *labels.names, *last))
        present = labels_of(rows, labels, activation).tolist()
        writer.writerows(
            (row.id, *found, row.person, *fold) for row, found, fold in zip(rows, present, of_row, strict=True)
        )
    else:
        writer.writerow(("ImageID", "ans", *last))
        writer.writerows((row.id, row.label, row.person, *fold) for row, fold in zip(rows, of_row, strict=True))
    return sink.getvalue().encode()
