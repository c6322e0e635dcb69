"""The ordered axes of the classes and their levels: the values themselves, or years of age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.dataset import Dataset
from checkpoints.data.mask_contest import AGE_GROUPS
from checkpoints.data.truth_table import labels_of
from checkpoints.probe.ordinal_head import Levels
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import MASK18, Axis
from ensemble.ordinal import describe_order


def find_levels(data: Dataset, names: Sequence[str], *, listener: Listener = SILENT) -> dict[str, Levels]:
    """Return the levels of each ordered axis in training: years for the contest's ages, elsewhere the values' order.

    A notice says the order.
    """
    found = {}
    trained = labels_of(data.rows, data.labels, data.activation, trained=True) if names else np.empty(0, dtype=np.int64)
    for axis in data.labels.axes:
        if axis.name not in names:
            continue
        values = np.asarray(data.labels.along(axis.name, trained), dtype=np.int64)
        levels = _years(data, axis, values)
        if levels is None:
            levels, by = Levels(values, np.arange(1, len(axis.values))), "the order of the labels"
        else:
            by = f"years of age, {levels.of_row.min()} to {levels.of_row.max()}"
        found[axis.name] = levels
        listener.notice(Notice("I385", f"{axis.name} is ordered: {describe_order(axis)}; it is learned from {by}"))
    return found


def _years(data: Dataset, axis: Axis, values: NDArray[np.int64]) -> Levels | None:
    """Return the years of the rows, moved into the age that each is trained as; None where a row has no years."""
    if not data.is_contest or axis != MASK18.axes[2] or any(row.age is None for row in data.rows):
        return None
    years = np.array([row.age for row in data.rows], dtype=np.int64)
    first = np.array([years.min(), *AGE_GROUPS])[values]
    last = np.array([*(np.array(AGE_GROUPS) - 1), max(years.max(), AGE_GROUPS[-1])])[values]
    return Levels(np.clip(years, first, last), np.array(AGE_GROUPS))
