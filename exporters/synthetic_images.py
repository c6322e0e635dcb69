"""Pictures to check an exported model on when no photographs are given.

Noise would be a poor check: it drives every network to the same few answers. These pictures have what photographs
have, large smooth areas, edges of things in front of each other, texture, faces, light from one side and grain, and
they differ in all of it.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ensemble.arrays import Floats, Pixels

COUNT = 24
_SIZES = ((512, 384), (384, 512), (420, 420), (600, 340))
_SKINS = ((250, 214, 186), (228, 178, 138), (176, 124, 88), (104, 70, 50))

Random = np.random.Generator


@functools.cache
def render_pictures(count: int = COUNT) -> tuple[Pixels, ...]:
    """The first ``count`` pictures, ``(H, W, 3)`` uint8 of several shapes; always the same ones."""
    return tuple(_render(seed) for seed in range(count))


def _render(seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    height, width = _SIZES[seed % len(_SIZES)]
    image = Image.fromarray(_scenery(rng, height, width))
    _draw_things(image, rng, count=3 + seed % 7)
    if seed % 3 != 2:
        _draw_face(image, rng, _SKINS[seed // 3 % len(_SKINS)])
    return _expose(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2))), rng)


def _scenery(rng: Random, height: int, width: int) -> Pixels:
    """Clouds between two colours above a striped ground, the light falling from one side."""
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
    """Smooth noise in 0..1 with an amplitude that falls with the frequency, as in photographs."""
    total = np.zeros((height, width))
    for octave in range(1, 7):
        grid = Image.fromarray(rng.random((2**octave, 2**octave)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 2**octave
    spread: Floats = (total - total.min()) / np.ptp(total)
    return spread


def _draw_things(image: Image.Image, rng: Random, *, count: int) -> None:
    """Boxes, discs, shards and wires, each with a soft shadow behind it."""
    pen = ImageDraw.Draw(image, "RGBA")  # colours with an alpha are blended
    for thing in range(count):
        x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
        w, h = rng.uniform(15, 130, 2)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        pen.ellipse((x - w + 8, y - h + 12, x + w + 8, y + h + 12), fill=(0, 0, 0, 50))
        match thing % 4:
            case 0:
                pen.rectangle((x - w, y - h, x + w, y + h), fill=colour, outline=(20, 20, 20), width=2)
            case 1:
                pen.ellipse((x - w, y - h, x + w, y + h), fill=colour)
            case 2:
                corners = rng.uniform(-1, 1, (5, 2)) * (w, h) + (x, y)
                pen.polygon([float(c) for c in corners.ravel()], fill=(*colour, 200))
            case _:
                pen.line((x - w, y - h, x + w, y + h, x + w, y - h), fill=colour, width=int(rng.integers(1, 9)))


def _draw_face(image: Image.Image, rng: Random, skin: tuple[int, int, int]) -> None:
    """A head and shoulders near the middle: hair, two eyes, a nose, and a mouth or something in front of it."""
    pen = ImageDraw.Draw(image, "RGBA")
    size = min(image.size) * rng.uniform(0.14, 0.3)
    x, y = image.width * rng.uniform(0.4, 0.6), image.height * rng.uniform(0.35, 0.55)
    hair, shirt, cover = (
        tuple(int(c) for c in rng.integers(low, high, 3)) for low, high in ((10, 120), (0, 256), (120, 256))
    )

    def oval(dx: float, dy: float, rx: float, ry: float, colour: tuple[int, ...]) -> None:
        cx, cy = x + dx * size, y + dy * size
        pen.ellipse((cx - rx * size, cy - ry * size, cx + rx * size, cy + ry * size), fill=colour)

    oval(0, 2.6, 1.8, 1.3, shirt)
    oval(0, -0.15, 1.15, 1.4 + rng.uniform(0, 0.6), hair)
    oval(0, 0.15, 0.9, 1.25, skin)
    oval(0.45, 0.3, 0.4, 0.9, (0, 0, 0, 30))
    for side in (-0.38, 0.38):
        oval(side, -0.1, 0.17, 0.1, (245, 245, 240))
        oval(side, -0.1, 0.08, 0.09, (40, 28, 20))
        oval(side, -0.33, 0.22, 0.05, hair)
    oval(0.03, 0.25, 0.1, 0.2, (90, 40, 30, 90))
    if rng.random() < 0.5:
        oval(0, 0.75, 0.3, 0.1, (170, 60, 70))
    else:
        oval(0, 0.8, 0.75, 0.55, cover)


def _expose(image: Image.Image, rng: Random) -> Pixels:
    """Too dark, too bright, pale or hard, and grained, as cameras do it."""
    values = (np.asarray(image, dtype=np.float64) / 255) ** rng.uniform(0.6, 1.7)
    values = 0.5 + (values - 0.5) * rng.uniform(0.55, 1.15)
    return _to_pixels(255 * values + rng.normal(0, rng.uniform(0.5, 6), values.shape))


def _to_pixels(values: Floats) -> Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)
