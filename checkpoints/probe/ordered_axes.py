"""The ordered axes of the classes and their levels: the values themselves, or years of age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.dataset import Dataset
from checkpoints.data.truth_table import labels_of
from checkpoints.probe.ordinal_head import Levels
from ensemble.card import Head
from ensemble.errors import OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import MASK18, Axis

_FIRST_YEARS = (30, 60)  # of the second and third age of the contest


def require_ordered(data: Dataset, head: Head, names: Sequence[str]) -> None:
    """Refuse names that are not those of ordered axes.

    Raises:
        OptionError: E204 when a name is no axis, an axis has two values, or the head or the labels allow no order.
    """
    if not names:
        return
    if data.activation == "sigmoid":
        raise OptionError("E204", "--ordinal is for one class per image; the images have several labels")
    axes = {axis.name: axis for axis in data.labels.axes}
    for name in names:
        if name not in axes:
            hint = f"name one of {enumerate_some(list(axes))}"
            raise OptionError("E204", f"--ordinal {name}: no axis of the labels has this name", hint=hint)
        if len(axes[name].values) < 3:
            message = f"--ordinal {name}: the axis has {len(axes[name].values)} values, which any head orders"
            raise OptionError("E204", message, hint="leave the option out for this axis")
    if head == "flat" and len(axes) > 1:
        message = f"--ordinal {names[0]} needs a head of its own for the axis"
        raise OptionError("E204", message, hint="add --head axes")


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
        listener.notice(Notice("I385", f"{axis.name} is ordered: {' < '.join(axis.values)}; it is learned from {by}"))
    return found


def _years(data: Dataset, axis: Axis, values: NDArray[np.int64]) -> Levels | None:
    """Return the years of the rows, moved into the age that each is trained as; None where a row has no years."""
    if not data.is_contest or axis != MASK18.axes[2] or any(row.age is None for row in data.rows):
        return None
    years = np.array([row.age for row in data.rows], dtype=np.int64)
    first = np.array([years.min(), *_FIRST_YEARS])[values]
    last = np.array([*(np.array(_FIRST_YEARS) - 1), max(years.max(), _FIRST_YEARS[-1])])[values]
    return Levels(np.clip(years, first, last), np.array(_FIRST_YEARS))
