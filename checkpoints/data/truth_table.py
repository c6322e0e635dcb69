"""The true labels of training rows as arrays, and as the table that ``--truth`` of `ens blend` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.mask_contest import Row
from ensemble.card import Activation
from ensemble.labels import LabelSpace


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


def truth_table(rows: Sequence[Row], labels: LabelSpace, activation: Activation) -> bytes:
    """Return a CSV of id, class and person; or with several labels per image a column of 0 and 1 for each."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    if activation == "sigmoid":
        writer.writerow(("ImageID", *labels.names, "person"))
        present = labels_of(rows, labels, activation).tolist()
        writer.writerows((row.id, *found, row.person) for row, found in zip(rows, present, strict=True))
    else:
        writer.writerow(("ImageID", "ans", "person"))
        writer.writerows((row.id, row.label, row.person) for row in rows)
    return sink.getvalue().encode()
