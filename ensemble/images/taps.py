"""Resizing as a sparse matrix per axis: each row has the weights of the old pixels that make one new pixel.

scipy adds a row's products one after the other, in its order, which is that of the libraries that are followed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
"""Indices of old pixels, ``(most, new)``: column i has those of new pixel i."""

Taps = Any
"""A sparse matrix ``(new, old)``; scipy has no types."""


def make_taps(places: Places, weights: NDArray[Any], old: int) -> Taps:
    """Return the matrix of ``weights`` ``(most, new)`` at ``places``; weights of zero are left out."""
    used = (weights != 0).T
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    entries = (weights.T[used], places.T[used].astype(np.int32), ends.astype(np.int32))
    from scipy.sparse import csr_array  # half a second, which runs without it need not wait for

    return csr_array(entries, shape=(weights.shape[1], old))


def keep_used(pixels: NDArray[Any], rows: Taps) -> tuple[NDArray[Any], Taps]:
    """Return the rows of ``(old, W, C)`` that are used, and the taps of these."""
    used = np.unique(rows.indices)
    if len(used) == len(pixels):
        return pixels, rows
    places = np.searchsorted(used, rows.indices)
    shape = (rows.shape[0], len(used))
    from scipy.sparse import csr_array

    return pixels[used], csr_array((rows.data, places, rows.indptr), shape=shape)


def resize_columns(pixels: NDArray[Any], taps: Taps) -> NDArray[Any]:
    """Return ``(H, new, C)``, in the type of the weights, of ``(H, old, C)``."""
    height, old, channels = pixels.shape
    by_column = np.ascontiguousarray(pixels.transpose(1, 0, 2)).reshape(old, height * channels)
    found = taps @ by_column.astype(taps.dtype)
    return np.ascontiguousarray(found.reshape(-1, height, channels).transpose(1, 0, 2))


def resize_rows(pixels: NDArray[Any], taps: Taps) -> NDArray[Any]:
    """Return ``(new, W, C)``, in the type of the weights, of ``(old, W, C)``."""
    old, width, channels = pixels.shape
    by_row = np.ascontiguousarray(pixels).reshape(old, width * channels)
    found: NDArray[Any] = (taps @ by_row.astype(taps.dtype, copy=False)).reshape(-1, width, channels)
    return found
