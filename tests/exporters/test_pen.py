"""The pen: shapes land where the pose puts them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from exporters.pen import Pen

BLACK = (0, 0, 0)


def paper(*, tilt: float = 0.0, facing: tuple[float, float] = (0.0, 0.0)) -> tuple[Image.Image, Pen]:
    image = Image.new("RGB", (201, 201), (255, 255, 255))
    return image, Pen(image, center=(100, 100), size=40, tilt=tilt, facing=facing)


def ink(image: Image.Image) -> NDArray[np.float64]:
    """How much ink each pixel has, 0 to 1."""
    return 1 - np.asarray(image.convert("L")) / 255


def middle(image: Image.Image) -> tuple[float, float]:
    """The center of the ink ``(x, y)``, in the head's coordinates."""
    y, x = np.nonzero(ink(image) > 0.5)
    return (x.mean() - 100) / 40, (y.mean() - 100) / 40


def test_a_smooth_outline_through_a_circle_is_round() -> None:
    """Eight points of a circle give its area, where straight lines would lose a tenth."""
    image, pen = paper()
    pen.shape([(math.cos(a), math.sin(a)) for a in np.arange(8) * np.pi / 4], BLACK)
    assert ink(image).sum() / 40**2 == pytest.approx(np.pi, rel=0.04)


def test_halves_mirror_each_other() -> None:
    """An outline given by its right half is symmetrical, and as wide as it is told."""
    image, pen = paper()
    pen.halves([(0, -1), (0.8, -0.4), (0.5, 0.6), (0, 1)], BLACK, wide=1.5)
    drawn = ink(image) > 0.5
    assert (drawn == drawn[:, ::-1]).mean() > 0.995  # polygons are filled pixel by pixel from the left
    assert np.flatnonzero(drawn.any(axis=0)).max() == pytest.approx(100 + 0.8 * 1.5 * 40, abs=4)


@pytest.mark.parametrize("tilt", [0.0, 0.5, -1.2])
def test_a_tilted_head_turns_its_shapes(tilt: float) -> None:
    """A shape at distance 1 stays at distance 1, at the tilt's angle."""
    image, pen = paper(tilt=tilt)
    pen.blob(1, 0, 0.2, 0.2, BLACK)
    assert middle(image) == pytest.approx((math.cos(tilt), math.sin(tilt)), abs=0.02)


def test_a_turned_head_moves_its_middle_and_keeps_its_rim() -> None:
    """Facing aside moves the nose by that much and hair far from it not at all."""
    image, pen = paper(facing=(0.3, -0.1))
    pen.blob(0, 0, 0.05, 0.05, BLACK)
    assert middle(image) == pytest.approx((0.3, -0.1), abs=0.02)
    image, pen = paper(facing=(0.3, -0.1))
    pen.blob(0, 1.8, 0.1, 0.1, BLACK)
    assert middle(image) == pytest.approx((0, 1.8), abs=0.02)


def test_a_line_runs_through_its_points() -> None:
    """A line touches every point it is given, the ends included."""
    image, pen = paper()
    points = [(-1.5, 0.5), (-0.5, -0.8), (0.6, 0.7), (1.7, -0.2)]
    pen.line(points, 0.1, BLACK)
    drawn = ink(image)
    assert all(drawn[round(100 + y * 40), round(100 + x * 40)] > 0.5 for x, y in points)


def test_a_ring_is_empty() -> None:
    """A ring has ink on its rim and none inside."""
    image, pen = paper()
    pen.ring(0, 0, 1, 0.5, 0.1, BLACK)
    drawn = ink(image)
    assert drawn[100, 100] == 0
    assert drawn[100, 140] == drawn[120, 100] == 1


def test_a_fourth_channel_lets_the_paper_through() -> None:
    """Half opaque black on white is grey."""
    image, pen = paper()
    pen.blob(0, 0, 1, 1, (*BLACK, 128))
    assert ink(image)[100, 100] == pytest.approx(0.5, abs=0.01)
