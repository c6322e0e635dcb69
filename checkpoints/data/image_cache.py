"""Training images, decoded once and kept in memory at the input size of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.mask_contest import Row
from ensemble.arrays import Pixels
from ensemble.card import Preprocess
from ensemble.errors import DataError
from ensemble.events import SILENT, Listener
from ensemble.images.decode import name_image
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import prepare_image
from ensemble.images.planes import read_for
from ensemble.predict.bad_images import tell_oddities
from ensemble.thread_pool import thread_pool

_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImages:
    """``pixels`` ``(N, H, W, 3)`` uint8, or of the file's own channels in float32: images as the model gets them.

    In training, image i is ``fallback[fallback_index[i]]`` where the index is not negative: the same image, cropped as
    if no face had been detected.
    """

    pixels: Pixels
    fallback: Pixels
    fallback_index: NDArray[np.int64]


def decode_images(
    rows: Sequence[Row],
    preprocess: Preprocess,
    *,
    boxes: Sequence[Box | None] | None = None,
    fallback_share: float = 0.0,
    seed: int = 0,
    listener: Listener = SILENT,
) -> DecodedImages:
    """Decode the images of the rows; ``boxes[i]`` is the face in row i, for a preprocessing with a face crop.

    A share ``fallback_share`` of the images with a face, drawn with ``seed``, also gets the fallback crop.

    Raises:
        DataError: the code of the first image that `ensemble.images.decode.read_image` refuses, E354 where the box was
            made for another image; all such images are in ``details``.
    """
    faces = boxes if boxes is not None else [None] * len(rows)
    fallback_index = _draw_fallbacks(faces, fallback_share, seed)
    pixels = np.empty((len(rows), *preprocess.shape), dtype=preprocess.dtype)
    fallback = np.empty((int(fallback_index.max(initial=-1)) + 1, *preprocess.shape), dtype=preprocess.dtype)

    def load(i: int) -> tuple[str, ...] | DataError:
        try:
            photo = read_for(rows[i].path, preprocess)
            try:
                pixels[i] = prepare_image(photo.image, preprocess, faces[i])
            except DataError as err:
                raise name_image(err, rows[i].path) from err
        except DataError as err:
            return err
        if fallback_index[i] >= 0:
            fallback[fallback_index[i]] = prepare_image(photo.image, preprocess, None)
        return photo.notices

    oddities: dict[str, list[str]] = {}
    faults: list[DataError] = []
    with thread_pool(_THREADS) as pool:
        for done, (row, found) in enumerate(zip(rows, pool.map(load, range(len(rows))), strict=True), 1):
            listener.progress("decode", done, len(rows))
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
    return DecodedImages(pixels, fallback, fallback_index)


def _draw_fallbacks(boxes: Sequence[Box | None], share: float, seed: int) -> NDArray[np.int64]:
    """Return ``(N,)``: the index of each drawn image among those drawn, and -1 for all others."""
    drawn = np.random.default_rng(seed).random(len(boxes)) < share
    drawn &= np.array([box is not None for box in boxes], dtype=np.bool_)
    return np.where(drawn, np.cumsum(drawn) - 1, -1).astype(np.int64)
