"""Grey thumbnails of images, and the mean brightness of windows of them, which the search for near-duplicates compares.

A window is ``(left, top, right, bottom)`` in shares of the image's sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ensemble.arrays import Floats
from ensemble.errors import DataError
from ensemble.events import SILENT, Listener
from ensemble.images.decode import read_image
from ensemble.kept_arrays import KeptArrays
from ensemble.runtime.machine import available_cores
from ensemble.thread_pool import thread_pool

SIDE = 64  # px of a thumbnail, whatever the aspect ratio of the image
_CHUNK = 64

Grey = NDArray[np.uint8]
SumTables = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnails:
    """The grey thumbnails ``(N, SIDE, SIDE)`` of images and their sizes ``(N, 2)`` (width, height) in px.

    ``faults`` has the images that could not be read, by row; their thumbnails are black and their sizes zero.
    """

    grey: Grey
    sizes: NDArray[np.int64]
    faults: dict[int, DataError]


def make_thumbnails(
    paths: Sequence[Path],
    *,
    workers: int | None = None,
    kept: KeptArrays | None = None,
    listener: Listener = SILENT,
) -> Thumbnails:
    """Decode every image once, in threads, upright as for training; what is ``kept`` of them is not decoded again."""
    grey = np.zeros((len(paths), SIDE, SIDE), np.uint8)
    sizes = np.zeros((len(paths), 2), np.int64)
    faults: dict[int, DataError] = {}
    with thread_pool(workers or available_cores()) as pool:
        for start in range(0, len(paths), _CHUNK):
            stop = min(start + _CHUNK, len(paths))
            steps = f"grey {start}", f"sizes {start}"
            known = [] if kept is None else [values for values in map(kept.get, steps) if values is not None]
            if len(known) == len(steps):
                grey[start:stop], sizes[start:stop] = known
            else:
                for row, found in enumerate(pool.map(_thumbnail, paths[start:stop]), start):
                    if isinstance(found, DataError):
                        faults[row] = found
                    else:
                        grey[row], sizes[row] = found
                if kept is not None and not any(row >= start for row in faults):  # else it is decoded for its error
                    kept.add(steps[0], grey[start:stop])
                    kept.add(steps[1], sizes[start:stop])
            listener.progress("audit", stop, len(paths))
    return Thumbnails(grey, sizes, faults)


def _thumbnail(path: Path) -> tuple[Grey, tuple[int, int]] | DataError:
    try:
        image = Image.fromarray(read_image(path).pixels).convert("L")
    except DataError as err:
        return err
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)), image.size


def sum_tables(grey: Grey) -> SumTables:
    """Return summed-area tables ``(N, SIDE + 1, SIDE + 1)``: entry ``[y, x]`` sums the pixels above and left.

    float32 holds these whole numbers exactly: the largest is 64 x 64 x 255, below 2 ** 24.
    """
    tables = np.zeros((len(grey), grey.shape[1] + 1, grey.shape[2] + 1), np.float32)
    inner = tables[:, 1:, 1:]
    np.cumsum(grey, axis=1, dtype=np.float32, out=inner)
    np.cumsum(inner, axis=2, out=inner)
    return tables


def window_means(tables: SumTables, rows: NDArray[np.intp], windows: Floats, cells: int) -> Floats:
    """Return ``(M, cells, cells)``: the mean brightness of a grid of cells over window m of the image ``rows[m]``.

    ``windows`` is ``(M, 4)``. Cells end between pixels: a summed-area table is linear within a pixel.
    """
    steps = np.linspace(0, 1, cells + 1)
    side = tables.shape[1] - 1
    x = (windows[:, :1] + (windows[:, 2:3] - windows[:, :1]) * steps) * side
    y = (windows[:, 1:2] + (windows[:, 3:] - windows[:, 1:2]) * steps) * side
    x0, y0 = np.clip(x.astype(np.intp), 0, side - 1), np.clip(y.astype(np.intp), 0, side - 1)
    fx, fy = (x - x0)[:, None, :], (y - y0)[:, :, None]
    image, down, right = rows[:, None, None], y0[:, :, None], x0[:, None, :]
    upper = tables[image, down, right] * (1 - fx) + tables[image, down, right + 1] * fx
    lower = tables[image, down + 1, right] * (1 - fx) + tables[image, down + 1, right + 1] * fx
    corners = upper * (1 - fy) + lower * fy
    sums = corners[:, 1:, 1:] - corners[:, :-1, 1:] - corners[:, 1:, :-1] + corners[:, :-1, :-1]
    area = (np.diff(x, axis=1)[:, None, :]) * (np.diff(y, axis=1)[:, :, None])
    means: Floats = sums / np.maximum(area, 1e-9)
    return means
