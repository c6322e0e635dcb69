"""Prepare a decoded image for a model: crop or align the face, if the model was trained on faces, then resize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.card import Align, FaceCrop, Preprocess
from ensemble.errors import OptionError
from ensemble.events import Listener, Notice
from ensemble.images.face_alignment import align_face, center_and_side, require_points
from ensemble.images.face_boxes import Box, Face
from ensemble.images.planes import Planes, resize_planes
from ensemble.images.resize import resize_image

_MARGINS: Mapping[Align | None, float] = {None: 0.2, "arcface": 0.0, "dlib": 0.25}


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


def choose_crop(faces: Sequence[Face] | None, margin: float | None, align: Align | None) -> FaceCrop | None:
    """Return the crop of training with the faces of a boxes file, None without one.

    Without ``margin`` it is 0.2 of the box, or that of the networks that ``align`` is for: 0 for ArcFace's, 0.25 for
    dlib's face recognition.

    Raises:
        OptionError: E204 when there are no faces, and a margin or an alignment is given.
        DataError: E380 when faces are to be aligned and have no points.
    """
    if faces is None:
        if align is not None:
            raise OptionError("E204", "--align needs the points of the faces", hint="give the boxes with --boxes")
        if margin is not None:
            raise OptionError("E204", "--margin is that around a face, and needs its box", hint="give --boxes")
        return None
    return fallback_crop(faces, _MARGINS[align] if margin is None else margin, align)


def tell_faces(faces: Sequence[Face] | None, listener: Listener) -> None:
    """Say what is missing in the faces of a file for the crop of `choose_crop`: sizes of images, or any face (W355)."""
    found = [face for face in faces or () if face.box is not None]
    unsized = sum(min(face.width, face.height) <= 0 for face in found)
    if faces and not found:
        text = f"no face was found in any of {len(faces):,} images: the middle of each is cut"
        listener.notice(Notice("W355", text))
    elif unsized:
        text = f"{unsized:,} of {len(found):,} face boxes do not say how large their images are"
        also = ": an image without a face is cut in its middle, not where faces are" if unsized == len(found) else ""
        listener.notice(Notice("W355", text + also))


def fallback_crop(faces: Sequence[Face], margin: float, align: Align | None = None) -> FaceCrop:
    """Return a face crop whose fallback is the median of the detected faces' crops.

    Raises:
        DataError: E380 when faces are to be aligned and have no points.
    """
    crop = FaceCrop(margin, align=align)
    require_points(crop, [face.id for face in faces], [face.box for face in faces])
    shares = []
    for face in faces:
        if face.box is not None and min(face.width, face.height) > 0:
            box = face.box
            if align is None:
                side = max(box.right - box.left, box.bottom - box.top) * (1 + 2 * margin)
                x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
            else:
                x, y, side = center_and_side(crop, box)
            shares.append((x / face.width, y / face.height, min(1.0, side / min(face.width, face.height))))
    if not shares:
        return crop
    x, y, side = np.clip(np.median(np.array(shares), axis=0), 0.001, 1).round(4).tolist()
    return replace(crop, fallback=(x, y, side))


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
