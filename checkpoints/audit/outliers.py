"""Outliers: images without content, and images unlike all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checkpoints.audit.thumbnails import Thumbnails
from ensemble.arrays import Floats

_CELLS = 8
_NEAREST = 5
_BLOCK = 1024
_BLANK = 2.0  # standard deviation in shades of 0 to 255
_FENCE = 3.0  # quartile distances; 1.5 would list about one in a hundred of normal images
_FEWEST = 20  # images from which quartiles say something


@dataclass(frozen=True, slots=True)
class Outlier:
    """An image of the training set that stands out: its row, a score of 0 to 1, and why."""

    row: int
    score: float
    why: str


def find_outliers(images: Thumbnails) -> tuple[Outlier, ...]:
    """Return images of one shade, of an unusual aspect ratio, or unlike all others, the most unusual first.

    An image is unlike all others where the mean cosine of its thumbnail with the five most similar ones is below the
    first quartile by more than three times the distance of the quartiles.
    """
    rows = np.array([row for row in range(len(images.grey)) if row not in images.faults], dtype=np.intp)
    if not len(rows):
        return ()
    deviation = images.grey[rows].std(axis=(1, 2))
    found = {
        int(rows[k]): Outlier(int(rows[k]), 1.0, "the image has one shade") for k in np.flatnonzero(deviation < _BLANK)
    }
    rest = np.array([row for row in rows if int(row) not in found], dtype=np.intp)
    if len(rest) < _FEWEST:
        return tuple(found.values())
    ratio = np.log(images.sizes[rest, 0] / images.sizes[rest, 1])
    for values, why in (
        (-np.abs(ratio - np.median(ratio)), "the aspect ratio is unusual"),
        (_likeness(images, rest), "the image is unlike all others"),
    ):
        low, high = np.quantile(values, [0.25, 0.75])
        spread = max(float(high - low), 0.02)
        for k in np.flatnonzero(values < low - _FENCE * spread):
            beyond = float((low - values[k]) / spread)
            found.setdefault(int(rest[k]), Outlier(int(rest[k]), 1 - _FENCE / (2 * beyond), why))
    return tuple(sorted(found.values(), key=lambda one: (-one.score, one.row)))


def _likeness(images: Thumbnails, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Floats:
    step = images.grey.shape[1] // _CELLS
    cells = images.grey[rows].reshape(len(rows), _CELLS, step, _CELLS, step).mean(axis=(2, 4)).reshape(len(rows), -1)
    cells = cells - cells.mean(axis=1, keepdims=True)
    cells = (cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    means = []
    for start in range(0, len(rows), _BLOCK):
        block = cells[start : start + _BLOCK]
        cosine = block @ cells.T
        cosine[np.arange(len(block)), np.arange(start, start + len(block))] = -1
        means.append(np.partition(cosine, -_NEAREST, axis=1)[:, -_NEAREST:].mean(axis=1))
    return np.concatenate(means).astype(np.float64)
