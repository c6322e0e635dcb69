"""The images of a training, decoded once and kept in memory at the model's size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from checkpoints.contest import Row
from ensemble.card import Preprocess
from ensemble.codes import CODES
from ensemble.errors import DataError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.images import Pixels, read_photo, resize_image

_THREADS = 4


def load_photos(rows: Sequence[Row], preprocess: Preprocess, *, listener: Listener) -> Pixels:
    """``(N, H, W, 3)`` uint8: every image as the model will see it when predicting.

    Raises:
        DataError: the codes of `ensemble.images.read_photo`; the first one's, with all that fail in ``details``.
    """
    pixels = np.empty((len(rows), *preprocess.size, 3), dtype=np.uint8)

    def load(i: int) -> tuple[str, ...] | DataError:
        try:
            photo = read_photo(rows[i].path)
        except DataError as err:
            return err
        pixels[i] = resize_image(photo.pixels, preprocess)
        return photo.notices

    oddities: dict[str, list[str]] = {}
    faults: list[DataError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for row, found in zip(rows, pool.map(load, range(len(rows))), strict=True):
            if isinstance(found, DataError):
                faults.append(found)
                continue
            for code in found:
                oddities.setdefault(code, []).append(row.id)
    for code, ids in sorted(oddities.items()):
        listener.notice(Notice(code, f"{len(ids):,} images: {CODES[code].cause} ({enumerate_some(ids, limit=3)})"))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        first = faults[0]
        message = f"{len(faults):,} of {len(rows):,} images cannot be read; the first: {first.message}"
        raise DataError(first.code, message, path=first.path, details=tuple(str(fault.message) for fault in faults))
    return pixels
