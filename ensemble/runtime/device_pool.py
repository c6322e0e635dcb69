"""The images of a chunk on a GPU, of which each run takes some rows and one view: gathered there, not on the host.

Early exit runs pass after pass on fewer and fewer images. They are copied to the device once; a pass brings the numbers
of its rows and, for a view that only moves pixels, the table of its source pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Pixels
from ensemble.card import Preprocess
from ensemble.images.views import View
from ensemble.runtime import io_binding
from ensemble.runtime.device import Device
from ensemble.runtime.fused_views import POOL, ROWS, SOURCES, pixel_sources
from ensemble.runtime.io_binding import CUDA_LOCK, BoundSession, OutputBuffer
from ensemble.runtime.parity import PICTURES


class DevicePool:
    """The pixels of up to ``size`` images per preprocessing, and what the next run takes of them.

    It stands in for `DeviceBuffers` in `run_models`.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.size = max(size, PICTURES)
        self.page_locked = False
        self.users: WeakSet[BoundSession] = WeakSet()
        self.outputs = OutputBuffer(device)
        self._values: dict[tuple[Hashable, ...], Any] = {}
        self._loaded: dict[Preprocess, Pixels] = {}
        self._made: set[tuple[Preprocess, str]] = set()
        self._chosen: dict[Preprocess, tuple[View, NDArray[np.intp]]] = {}

    def load(self, pixels: Mapping[Preprocess, Pixels]) -> None:
        """Copy the images of a chunk, ``(n, H, W, 3)`` uint8 each, to the device."""
        self._loaded = dict(pixels)
        self._made.clear()
        self._chosen.clear()
        for preprocess, images in pixels.items():
            self._copy((preprocess, "identity"), images, self.size)

    def choose(self, preprocess: Preprocess, view: View, rows: NDArray[np.intp]) -> None:
        """Let the next run take these rows in this view; views that compute pixels are made on the host, once."""
        self._chosen[preprocess] = (view, rows)
        size = preprocess.size
        table = pixel_sources(view, size)
        if table is None and (preprocess, view.name) not in self._made:
            self._copy((preprocess, view.name), view.apply(self._loaded[preprocess]), self.size)
            self._made.add((preprocess, view.name))
        key = (size, "sources", view.name)
        if key not in self._values:
            flat = np.arange(size[0] * size[1]) if table is None else table.reshape(-1)
            self._copy(key, flat.astype(np.int64), len(flat))

    def pieces(self, preprocess: Preprocess, *, rows: int) -> list[dict[str, Any]]:
        """Return the inputs of each run over the chosen rows; the last is filled up with its first row."""
        view, chosen = self._chosen[preprocess]
        made = (preprocess, view.name if (preprocess, view.name) in self._made else "identity")
        sources = self._values[preprocess.size, "sources", view.name]
        found = []
        for number, start in enumerate(range(0, len(chosen), rows)):
            piece = chosen[start : start + rows].astype(np.int64)
            key = (preprocess, "rows", rows, number)
            self._copy(key, np.concatenate([piece, np.full(rows - len(piece), piece[0])]), rows)
            found.append({POOL: self._values[made], ROWS: self._values[key], SOURCES: sources})
        return found

    def count(self, preprocess: Preprocess) -> int:
        """Return the number of chosen rows."""
        return len(self._chosen[preprocess][1])

    def close(self) -> None:
        """Free the memory, and the models' bindings to it."""
        for bound in self.users:
            bound.forget()
        self.users.clear()
        self.outputs.clear()
        self._values.clear()
        self._loaded.clear()
        self._chosen.clear()

    def _copy(self, key: tuple[Hashable, ...], array: NDArray[Any], count: int) -> None:
        """Copy an array to the device, padded with zeros to ``count`` rows."""
        with CUDA_LOCK:
            if key not in self._values:
                self._values[key] = io_binding.allocate(self.device, (count, *array.shape[1:]), array.dtype.type)
            if len(array) < count:
                array = np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])
            self._values[key].update_inplace(np.ascontiguousarray(array))
