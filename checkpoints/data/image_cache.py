"""The images of a training, decoded once and kept in memory at the model's size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.mask_contest import Row
from ensemble.arrays import Pixels
from ensemble.card import FaceCrop, Preprocess
from ensemble.errors import DataError
from ensemble.events import SILENT, Listener
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Face
from ensemble.images.face_crop import prepare_image
from ensemble.predict.bad_images import tell_oddities

_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """``pixels`` ``(N, H, W, 3)`` uint8: every image as the model will see it when predicting.

    To learn from, row i is ``fallback[instead[i]]`` where that is not negative: the same image cut as if no face had
    been found in it.
    """

    pixels: Pixels
    fallback: Pixels
    instead: NDArray[np.int64]


def fallback_crop(faces: Sequence[Face], margin: float) -> FaceCrop:
    """The face crop whose fallback is the median of the crops found, so that a missing box looks like any other."""
    shares = []
    for face in faces:
        if face.box is not None and min(face.width, face.height) > 0:
            box, shorter = face.box, min(face.width, face.height)
            side = max(box.right - box.left, box.bottom - box.top) * (1 + 2 * margin) / shorter
            x, y = (box.left + box.right) / 2 / face.width, (box.top + box.bottom) / 2 / face.height
            shares.append((x, y, min(1.0, side)))
    if not shares:
        return FaceCrop(margin, (0.5, 0.5, 1.0))
    x, y, side = np.clip(np.median(np.array(shares), axis=0), 0.001, 1).round(4).tolist()
    return FaceCrop(margin, (x, y, side))


def load_photos(
    rows: Sequence[Row],
    preprocess: Preprocess,
    *,
    boxes: Sequence[Box | None] | None = None,
    fallback_share: float = 0.0,
    seed: int = 0,
    listener: Listener = SILENT,
) -> Photos:
    """Decode the rows' images; ``boxes[i]`` is the face in row i, for a preprocessing with a face crop.

    The share ``fallback_share`` of the images with a face, drawn by ``seed``, is there a second time with the fallback
    crop.

    Raises:
        DataError: the codes of `ensemble.images.decode.read_image`; the first one's, with all that fail in ``details``.
    """
    faces = boxes if boxes is not None else [None] * len(rows)
    instead = _draw_fallbacks(faces, fallback_share, seed)
    pixels = np.empty((len(rows), *preprocess.size, 3), dtype=np.uint8)
    fallback = np.empty((int(instead.max(initial=-1)) + 1, *preprocess.size, 3), dtype=np.uint8)

    def load(i: int) -> tuple[str, ...] | DataError:
        try:
            photo = read_image(rows[i].path)
        except DataError as err:
            return err
        pixels[i] = prepare_image(photo.pixels, preprocess, faces[i])
        if instead[i] >= 0:
            fallback[instead[i]] = prepare_image(photo.pixels, preprocess, None)
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
    tell_oddities(oddities, listener)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        first = faults[0]
        message = f"{len(faults):,} of {len(rows):,} images cannot be read; the first: {first.message}"
        raise DataError(first.code, message, path=first.path, details=tuple(str(fault.message) for fault in faults))
    return Photos(pixels, fallback, instead)


def _draw_fallbacks(boxes: Sequence[Box | None], share: float, seed: int) -> NDArray[np.int64]:
    """``(N,)``: -1, or the number of the drawn image."""
    drawn = np.random.default_rng(seed).random(len(boxes)) < share
    drawn &= np.array([box is not None for box in boxes], dtype=np.bool_)
    return np.where(drawn, np.cumsum(drawn) - 1, -1).astype(np.int64)
