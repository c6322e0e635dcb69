"""Resizing as a sparse matrix per axis: each row has the weights of the old pixels that make one new pixel.

scipy adds a row's products one after the other, in its order, which is that of the libraries that are followed. Where
it is not installed, as in a Kaggle bundle, numpy adds the same products in the same order, in two to four times the
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
"""Indices of old pixels, ``(most, new)``: column i has those of new pixel i."""

Taps = Any
"""A sparse matrix ``(new, old)``: scipy's, which has no types, or `PlainTaps`."""


@dataclass(frozen=True, slots=True, eq=False)
class PlainTaps:
    """The sparse matrix where scipy is not installed: ``data`` and ``indices`` of row i from ``indptr[i]`` on."""

    data: NDArray[Any]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]
    shape: tuple[int, int]

    @property
    def dtype(self) -> Any:
        """The type of the weights."""
        return self.data.dtype

    def __matmul__(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return ``(new, K)`` of ``(old, K)``: the first product of each row, then the second, and so on."""
        found = np.zeros((self.shape[0], pixels.shape[1]), dtype=np.result_type(self.data, pixels))
        counts = np.diff(self.indptr)
        for number in range(int(counts.max(initial=0))):
            rows = np.flatnonzero(counts > number)
            places = self.indptr[rows] + number
            products = self.data[places, np.newaxis] * pixels[self.indices[places]]
            if len(rows) == len(found):
                found += products
            else:
                found[rows] += products
        return found


def make_taps(places: Places, weights: NDArray[Any], old: int) -> Taps:
    """Return the matrix of ``weights`` ``(most, new)`` at ``places``; weights of zero are left out."""
    used = (weights != 0).T
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    entries = (weights.T[used], places.T[used].astype(np.int32), ends.astype(np.int32))
    return _matrix(*entries, (weights.shape[1], old))


def keep_used(pixels: NDArray[Any], rows: Taps) -> tuple[NDArray[Any], Taps]:
    """Return the rows of ``(old, W, C)`` that are used, and the taps of these."""
    used = np.unique(rows.indices)
    if len(used) == len(pixels):
        return pixels, rows
    places = np.searchsorted(used, rows.indices).astype(np.int32)
    return pixels[used], _matrix(rows.data, places, rows.indptr, (rows.shape[0], len(used)))


_STRIP = 4_000_000  # pixels that are made floating-point numbers at a time


def resize_columns(pixels: NDArray[Any], taps: Taps) -> NDArray[Any]:
    """Return ``(H, new, C)``, in the type of the weights, of ``(H, old, C)``."""
    height, old, channels = pixels.shape
    rows = max(1, _STRIP // max(1, old))
    found = np.empty((height, taps.shape[0], channels), np.result_type(taps.dtype))
    for top in range(0, height, rows):
        strip = pixels[top : top + rows].transpose(1, 0, 2)
        by_column = np.ascontiguousarray(strip, dtype=taps.dtype).reshape(old, -1)
        found[top : top + rows] = (taps @ by_column).reshape(-1, strip.shape[1], channels).transpose(1, 0, 2)
    return found


def resize_rows(pixels: NDArray[Any], taps: Taps) -> NDArray[Any]:
    """Return ``(new, W, C)``, in the type of the weights, of ``(old, W, C)``."""
    old, width, channels = pixels.shape
    by_row = np.ascontiguousarray(pixels).reshape(old, width * channels)
    found: NDArray[Any] = (taps @ by_row.astype(taps.dtype, copy=False)).reshape(-1, width, channels)
    return found


def _matrix(data: NDArray[Any], indices: NDArray[np.int32], indptr: NDArray[np.int32], shape: tuple[int, int]) -> Taps:
    try:
        from scipy.sparse import csr_array  # half a second, which runs without it need not wait for
    except ImportError:
        return PlainTaps(data, indices, indptr, shape)
    return csr_array((data, indices, indptr), shape=shape)
