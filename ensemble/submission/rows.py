"""Combine the probabilities of several images into one row: patients, tiles of a picture, frames of a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats
from ensemble.errors import DataError, PredictionError, cut_text
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import find_rows
from ensemble.text.csv_table import read_table
from ensemble.text.plain_numbers import to_float

Combination = Literal["mean", "max", "noisy-or"]
COMBINATIONS: tuple[Combination, ...] = ("mean", "max", "noisy-or")


@dataclass(frozen=True, slots=True, eq=False)
class RowMap:
    """The rows of a submission that are made of several images: image ``images[i]`` is part of row ``rows[i]``.

    ``weights`` ``(M,)`` are those of the parts; ``how`` says how their probabilities are combined.
    """

    images: tuple[str, ...]
    rows: tuple[str, ...]
    weights: Floats
    how: Combination = "mean"

    @property
    def ids(self) -> tuple[str, ...]:
        """The rows, each once."""
        return tuple(dict.fromkeys(self.rows))

    @property
    def distinct_images(self) -> tuple[str, ...]:
        """The images, each once."""
        return tuple(dict.fromkeys(self.images))

    def without(self, missing: Collection[str]) -> RowMap:
        """Return the map without some images; a row of no other images is left out."""
        left_out = set(missing)
        kept = [i for i, name in enumerate(self.images) if name not in left_out]
        images, rows = (tuple(part[i] for i in kept) for part in (self.images, self.rows))
        return RowMap(images, rows, self.weights[kept], self.how)


def read_row_map(path: Path, *, how: Combination = "mean", listener: Listener = SILENT) -> RowMap:
    """Read a CSV with the columns ``image``, ``row`` and, if wanted, ``weight``.

    Raises:
        FileError: E707 when it cannot be read.
        DataError: E322 when it is not a table, E384 when a column is missing, a pair of image and row is repeated, or a
            weight is not valid.
    """
    table = read_table(path, listener=listener)
    header = [name.strip().lower() for name in table.header]
    if not {"image", "row"} <= set(header) <= {"image", "row", "weight"}:
        raise DataError(
            "E384", f"{path.name} has the columns {', '.join(table.header)}, expected image,row[,weight]", path=path
        )
    images, rows = ([cells[header.index(name)] for cells in table.rows] for name in ("image", "row"))
    if not images or "" in images or "" in rows:
        raise DataError("E384", f"{path.name}: no line names an image and a row, or one of them is empty", path=path)
    pairs = list(zip(images, rows, strict=True))
    if len(set(pairs)) < len(pairs):
        first = next(pair for pair, count in Counter(pairs).items() if count > 1)
        raise DataError("E384", f"{path.name}: image {first[0]} is in row {first[1]} more than once", path=path)
    weights = np.ones(len(images))
    if "weight" in header:
        weights = np.array([_weight(cells[header.index("weight")]) for cells in table.rows])
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        row = int(bad[0])
        shown = cut_text(table.rows[row][header.index("weight")], 40)
        raise DataError("E384", f"{path.name}: line {table.lines[row]}: {shown!r} is not a weight", path=path)
    found = RowMap(tuple(images), tuple(rows), weights, how)
    empty = [
        name for name, total in zip(found.ids, _sum(found, weights[:, np.newaxis])[:, 0], strict=True) if not total
    ]
    if empty:
        raise DataError("E384", f"{path.name}: all weights of row {empty[0]} are 0", path=path)
    return found


def _weight(cell: str) -> float:
    try:
        return to_float(cell)
    except ValueError:
        return float("nan")


def combine_rows(
    ids: tuple[str, ...],
    probabilities: Floats,
    row_map: RowMap,
    *,
    positive: int | None = None,
    independent: bool = False,
    listener: Listener = SILENT,
) -> Floats:
    """Return the probabilities ``(R, C)`` of the map's rows, from those ``(N, C)`` of images ``ids``.

    With weights w of a row's images: the mean is ``sum w p / sum w``; the max that of the images of weight above 0; and
    noisy-or ``1 - prod (1 - p) ** w``. Exclusive classes are normalized to sum to one afterwards; of two of which
    one is ``positive``, the other gets the rest.

    Raises:
        PredictionError: E504 when the map has images that were not predicted.
    """
    found = find_rows(
        row_map.images,
        ids,
        complain=lambda d: PredictionError("E504", f"the map of rows has other images than the predictions: these {d}"),
        listener=listener,
    )
    parts, weights = probabilities[found], row_map.weights[:, np.newaxis]
    if row_map.how == "mean":
        combined = _sum(row_map, weights * parts) / _sum(row_map, weights)
    elif row_map.how == "max":
        combined = np.zeros((len(row_map.ids), probabilities.shape[1]))
        np.maximum.at(combined, _places(row_map), np.where(weights > 0, parts, 0))
    else:
        # 1 - p of a certain image is 0, whose logarithm is -inf: its row is certain as well
        with np.errstate(divide="ignore", invalid="ignore"):
            combined = -np.expm1(_sum(row_map, np.where(weights > 0, weights * np.log1p(-np.minimum(parts, 1)), 0)))
    left = len(ids) - len(set(found.tolist()))
    more = f"; {left:,} images are in no row" if left else ""
    listener.notice(
        Notice("I547", f"{len(row_map.images):,} images are combined into {len(combined):,} rows: {row_map.how}{more}")
    )
    if independent:
        return combined
    if positive is not None and combined.shape[1] == 2:
        combined[:, 1 - positive] = 1 - combined[:, positive]
        return combined
    return np.asarray(combined / np.maximum(combined.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))


def _places(row_map: RowMap) -> NDArray[np.intp]:
    place = {name: i for i, name in enumerate(row_map.ids)}
    return np.array([place[name] for name in row_map.rows], dtype=np.intp)


def _sum(row_map: RowMap, parts: Floats) -> Floats:
    """Return the sums ``(R, C)`` of each row's parts ``(M, C)``."""
    total = np.zeros((len(row_map.ids), parts.shape[1]))
    np.add.at(total, _places(row_map), parts)
    return total
