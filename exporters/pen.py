"""A pen that draws smooth shapes on an image, in the coordinates of one head in one pose."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from ensemble.arrays import Floats

Color = tuple[int, ...]
Points = Sequence[tuple[float, float]]

_ROUND = np.linspace(0, 2 * np.pi, 25)
_CIRCLE = np.stack([np.cos(_ROUND), np.sin(_ROUND)], axis=1)
_STEP = np.linspace(0, 1, 6, endpoint=False)[:, None]
# Catmull and Rom 1974: a cubic from the second to the third of four points
_SPLINE = _STEP ** np.arange(4) @ [[0, 1, 0, 0], [-0.5, 0, 0.5, 0], [1, -2.5, 2, -0.5], [-0.5, 1.5, -1.5, 0.5]]


class Pen:
    """Draw shapes given in head coordinates: x to the right, y down, origin between the eyes, unit half a face width.

    ``size`` is that unit in pixels and ``center`` the origin in pixels. ``tilt`` is in radians; ``facing`` is how far
    the head turns right and down, in units. Colors may have a fourth channel, the opacity.
    """

    def __init__(
        self, image: Image.Image, *, center: ArrayLike, size: float, tilt: float, facing: tuple[float, float]
    ) -> None:
        self._opaque, self._blending = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")
        self._center = np.asarray(center)
        self._size = size
        self._frame = size * np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        self._facing = facing

    def shape(self, points: Points, color: Color) -> None:
        """Fill a smooth closed outline."""
        self._fill(_curve(points, closed=True), color)

    def halves(self, right: Points, color: Color, *, wide: float = 1.0) -> None:
        """Fill a symmetrical outline given by its right half, from top to bottom."""
        mirrored = [(-x, y) for x, y in right[-2:0:-1]]
        self.shape([(x * wide, y) for x, y in (*right, *mirrored)], color)

    def blob(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """Fill an ellipse."""
        self._fill(_CIRCLE * (rx, ry) + (x, y), color)

    def line(self, points: Points, width: float, color: Color) -> None:
        """Draw a smooth line."""
        self._stroke(_curve(points, closed=False), width, color)

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, color: Color) -> None:
        """Draw the outline of an ellipse."""
        self._stroke(_CIRCLE * (rx, ry) + (x, y), width, color)

    def _fill(self, points: Floats, color: Color) -> None:
        self._brush(color).polygon(self._place(points), fill=color)

    def _stroke(self, points: Floats, width: float, color: Color) -> None:
        self._brush(color).line(self._place(points), fill=color, width=max(1, round(width * self._size)))

    def _brush(self, color: Color) -> ImageDraw.ImageDraw:
        return self._opaque if len(color) == 3 else self._blending  # blending takes three times as long

    def _place(self, points: Floats) -> list[float]:
        # turning the head shifts its center more than its outline
        near = np.maximum(0, 1 - np.einsum("nd,nd->n", points, points) / 2.2)[:, None]
        placed: list[float] = ((points + near * self._facing) @ self._frame + self._center).ravel().tolist()
        return placed


def _curve(points: Points, *, closed: bool) -> Floats:
    """Return a smooth curve through ``n`` points, about ``(6 * n, 2)``; a closed one returns to the first."""
    curve: Floats = _spline(len(points), closed) @ np.asarray(points)
    return curve


@functools.cache
def _spline(n: int, closed: bool) -> Floats:
    """Return the matrix that maps ``n`` points to their curve."""
    pieces = n if closed else n - 1
    matrix = np.zeros((pieces, len(_STEP), n))
    for piece in range(pieces):
        for k in range(4):
            at = piece + k - 1
            matrix[piece, :, at % n if closed else min(max(at, 0), n - 1)] += _SPLINE[:, k]
    curve = matrix.reshape(-1, n)
    return curve if closed else np.vstack([curve, np.eye(n)[-1]])  # an open curve ends in the last point
