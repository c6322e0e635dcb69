"""Render the images that an exported model is verified on when no photographs are given.

Noise would be a poor check: on it every network gives the same few answers. These images have the properties of
photographs (large smooth areas, occlusion edges, texture, faces, directional light, grain), and differ in all of them.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ensemble.arrays import Floats, Pixels
from exporters.pen import Pen
from exporters.synthetic_faces import Random, draw_head, make_person

COUNT = 24
_SIZES = ((512, 384), (384, 512), (420, 420), (600, 340))


@functools.cache
def render_pictures(count: int = COUNT) -> tuple[Pixels, ...]:
    """Return the first ``count`` images, ``(H, W, 3)`` uint8 of several shapes; always the same ones."""
    return tuple(_render(seed) for seed in range(count))


def _render(seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    height, width = _SIZES[seed % len(_SIZES)]
    image = Image.fromarray(_scenery(rng, height, width))
    _draw_things(image, rng, count=3 + seed % 7)
    if seed % 3 != 2:
        _draw_face(image, rng)
    return _expose(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2))), rng)


def _scenery(rng: Random, height: int, width: int) -> Pixels:
    """Draw clouds between two colors above a striped ground, lit from one side."""
    sky, far, ground = rng.uniform(20, 245, (3, 3))
    clouds = _clouds(rng, height, width)[:, :, None]
    picture = sky * clouds + far * (1 - clouds)
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    below = down > rng.uniform(0.5, 0.9) + 0.1 * np.sin(across * rng.uniform(2, 9))
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(8, 60)
    stripes = 0.75 + 0.25 * np.sin(2 * np.pi * frequency * (across * np.cos(angle) + down * np.sin(angle)))
    picture = np.where(below[:, :, None], ground * stripes[:, :, None], picture)
    light = 1 + rng.uniform(-0.5, 0.5) * (across - 0.5) + rng.uniform(-0.5, 0.5) * (down - 0.5)
    return _to_pixels(picture * light[:, :, None])


def _clouds(rng: Random, height: int, width: int) -> Floats:
    """Return smooth noise in 0..1 whose amplitude falls with the frequency, as in photographs."""
    total = np.zeros((height, width))
    for octave in range(1, 7):
        grid = Image.fromarray(rng.random((2**octave, 2**octave)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 2**octave
    spread: Floats = (total - total.min()) / np.ptp(total)
    return spread


def _draw_things(image: Image.Image, rng: Random, *, count: int) -> None:
    """Draw boxes, discs, shards and wires, each with a soft shadow behind it."""
    pen = ImageDraw.Draw(image, "RGBA")  # colors with an alpha are blended
    for thing in range(count):
        x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
        w, h = rng.uniform(15, 130, 2)
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        pen.ellipse((x - w + 8, y - h + 12, x + w + 8, y + h + 12), fill=(0, 0, 0, 50))
        match thing % 4:
            case 0:
                pen.rectangle((x - w, y - h, x + w, y + h), fill=color, outline=(20, 20, 20), width=2)
            case 1:
                pen.ellipse((x - w, y - h, x + w, y + h), fill=color)
            case 2:
                corners = rng.uniform(-1, 1, (5, 2)) * (w, h) + (x, y)
                pen.polygon([float(c) for c in corners.ravel()], fill=(*color, 200))
            case _:
                pen.line((x - w, y - h, x + w, y + h, x + w, y - h), fill=color, width=int(rng.integers(1, 9)))


def _draw_face(image: Image.Image, rng: Random) -> None:
    """Draw a head and shoulders near the middle, with or without a mask, in front of what is there."""
    person = make_person(gender=int(rng.integers(2)), age=int(rng.integers(18, 61)), rng=rng)
    pen = Pen(
        image,
        center=(image.width * rng.uniform(0.4, 0.6), image.height * rng.uniform(0.35, 0.55)),
        size=min(image.size) * rng.uniform(0.14, 0.3),
        tilt=rng.normal(0, 0.07),
        facing=(rng.normal(0, 0.08), rng.normal(0, 0.05)),
    )
    draw_head(pen, person, mask=int(rng.integers(3)), rng=rng)


def _expose(image: Image.Image, rng: Random) -> Pixels:
    """Change exposure and contrast and add grain, as cameras do."""
    values = (np.asarray(image, dtype=np.float64) / 255) ** rng.uniform(0.6, 1.7)
    values = 0.5 + (values - 0.5) * rng.uniform(0.55, 1.15)
    return _to_pixels(255 * values + rng.normal(0, rng.uniform(0.5, 6), values.shape))


def _to_pixels(values: Floats) -> Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)
