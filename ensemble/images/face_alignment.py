"""Turn a face upright by its five points, as networks that recognize faces were trained to see it.

`arcface`: the square of 112 px that ArcFace, SFace and their kin take, with eyes, nose and corners of the mouth at
    fixed places (insightface, ``face_align.arcface_dst``).
`dlib`: the square of dlib's ``get_face_chip_details``, whose margin is dlib's ``padding`` (0.25 for its face
    recognition, 0.2 for its age and gender networks). dlib finds other points than RetinaFace: the two squares are
    related by the centers of the eyes, at (0.753, 0.221) and (0.227, 0.221) of dlib's square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ensemble.card import Align, FaceCrop
from ensemble.errors import DataError, enumerate_some
from ensemble.images.face_boxes import Box

# right eye, left eye, nose, right and left corner of the mouth, px of ArcFace's square
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# center x, center y and side of each square, in px of ArcFace's
_SQUARES: Mapping[Align, tuple[float, float, float]] = {"arcface": (56.0, 56.0, 112.0), "dlib": (56.58, 70.29, 67.06)}


@dataclass(frozen=True, slots=True)
class _Square:
    """An upright square in an image: its first corner, and the way along its upper side, as complex px."""

    start: complex
    along: complex


def align_face(image: Image.Image, crop: FaceCrop, box: Box) -> Image.Image:
    """Return the upright square around the face, at the scale of the photograph; beyond its border it is black.

    The square is placed by the rotation, scale and shift that take the template to the points with least squares.

    Raises:
        DataError: E380 when the box has no points.
    """
    square = _find_square(crop, box)
    pixels = max(1, min(round(abs(square.along)), max(image.size)))
    step, start = square.along / pixels, square.start
    matrix = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
    return image.transform((pixels, pixels), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def center_and_side(crop: FaceCrop, box: Box) -> tuple[float, float, float]:
    """Return the center x and y and the side of the square around the face, px.

    Raises:
        DataError: E380 when the box has no points.
    """
    square = _find_square(crop, box)
    center = square.start + square.along * (1 + 1j) / 2
    return center.real, center.imag, abs(square.along)


def square_in_template(crop: FaceCrop) -> tuple[float, float, float]:
    """Return the center x and y and the side of an aligned crop's square, in px of ArcFace's square of 112 px."""
    assert crop.align is not None, "faces are aligned for a card that says how"
    center_x, center_y, side = _SQUARES[crop.align]
    return center_x, center_y, side * (1 + 2 * crop.margin)


def require_points(crop: FaceCrop | None, ids: Sequence[str], boxes: Sequence[Box | None]) -> None:
    """Refuse faces without points for a crop that aligns them, before anything is computed.

    Raises:
        DataError: E380 when a face has none, or all of its points are in one place.
    """
    if crop is None or crop.align is None:
        return
    without = [name for name, box in zip(ids, boxes, strict=True) if box is not None and box.points is None]
    if without:
        message = f"{len(without):,} of {len(ids):,} faces have no points to align them by: {enumerate_some(without)}"
        raise DataError("E380", message)
    narrow = [name for name, box in zip(ids, boxes, strict=True) if box is not None and _is_one_place(box)]
    if narrow:
        message = (
            f"the points of {len(narrow):,} of {len(ids):,} faces are all within a pixel: {enumerate_some(narrow)}"
        )
        hint = "the boxes were changed after ens crop, which gives the eyes, the nose and the corners of the mouth"
        raise DataError("E380", message, hint=hint)


def _is_one_place(box: Box) -> bool:
    """Return whether all points of a face are within one pixel: they tell neither its size nor its direction."""
    points = np.array(box.points).reshape(-1, 2)
    return bool((np.ptp(points, axis=0) < 1).all())


def _find_square(crop: FaceCrop, box: Box) -> _Square:
    if box.points is None:
        raise DataError("E380", "the face has a box, and no points to align it by")
    center_x, center_y, side = square_in_template(crop)
    # with points as complex numbers, a rotation with a scale is one factor
    template, found = _TEMPLATE @ (1, 1j), np.reshape(box.points, (-1, 2)) @ (1, 1j)
    around = template - template.mean()
    factor = complex(around.conj() @ (found - found.mean()) / (around.conj() @ around).real)
    start = found.mean() + factor * (complex(center_x - side / 2, center_y - side / 2) - template.mean())
    return _Square(complex(start), factor * side)
