"""Prepare a decoded image for a model: crop or align the face, if the model was trained on faces, then resize."""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.card import FaceCrop, Preprocess
from ensemble.images.face_alignment import align_face
from ensemble.images.face_boxes import Box
from ensemble.images.planes import Planes, resize_planes
from ensemble.images.resize import resize_image


def face_square(height: int, width: int, crop: FaceCrop, box: Box | None) -> tuple[int, int, int, int]:
    """Return the square around the face in an image of ``height`` x ``width`` px: left, top, right, bottom.

    Its side is the box's longer side plus ``crop.margin`` of it at both ends, at most the image's shorter side; it is
    shifted to lie inside the image. Without a face (None) it is the card's fallback.
    """
    shorter = min(height, width)
    if box is None:
        across, down, share = crop.fallback
        x, y, wanted = across * width, down * height, share * shorter
    else:
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        wanted = max(box.right - box.left, box.bottom - box.top) * (1 + 2 * crop.margin)
    side = max(1, round(min(wanted, shorter)))
    left = min(max(round(x - side / 2), 0), width - side)
    top = min(max(round(y - side / 2), 0), height - side)
    return left, top, left + side, top + side


def prepare_image(image: Image.Image | Pixels | Planes, preprocess: Preprocess, box: Box | None) -> Pixels:
    """Crop and resize a decoded RGB image, ``(H, W, 3)`` as an array, to the model's input ``(*preprocess.size, 3)``.

    For a model that takes the file's own channels both are float32, of that many channels. ``box`` is used by models of
    face crops only. An image that Pillow holds takes no detour through an array, which would cost as much as decoding;
    the pixels are the same.

    Raises:
        DataError: E354 when the box was made for another image, E380 when it has no points to align the face by.
    """
    if preprocess.kept:
        assert isinstance(image, np.ndarray), "images of their own channels are arrays"
        planes = image.astype(np.float32, copy=False)
        if preprocess.face is not None:
            height, width = planes.shape[:2]
            if box is not None:
                box.require_fits(width, height)
            left, top, right, bottom = face_square(height, width, preprocess.face, box)
            planes = planes[top:bottom, left:right]
        return cast("Pixels", resize_planes(planes, preprocess))
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if preprocess.face is not None:
        if box is not None:
            box.require_fits(image.width, image.height)
        if box is not None and preprocess.face.align is not None:
            image = align_face(image, preprocess.face, box)
        else:
            image = image.crop(face_square(image.height, image.width, preprocess.face, box))
    return resize_image(image, preprocess)
