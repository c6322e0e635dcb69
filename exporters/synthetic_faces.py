"""Draw synthetic faces: simple drawings of people who never existed, for the toy contest and the verification images.

A `Person` is what stays the same in all images of one person: face, hair, signs of age. `draw` adds what changes with
each image: pose, light, background, clothes, mask. The numbers are coordinates and sizes of the head, see
`exporters.pen`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ensemble.arrays import Pixels
from exporters.pen import Color, Pen, Points

WIDTH, HEIGHT = 96, 128
_DRAWN = 2  # times the size; reducing it afterwards smooths the edges

Random = np.random.Generator
T = TypeVar("T")

_SKINS = ((255, 226, 203), (250, 212, 182), (240, 196, 160), (222, 172, 132), (190, 138, 100), (150, 103, 72))
_HAIRS = ((38, 32, 34), (52, 38, 34), (78, 52, 38), (118, 78, 48), (164, 108, 60), (204, 164, 96))
_DYES = ((226, 110, 140), (98, 124, 196), (240, 214, 130), (90, 178, 168))
_IRISES = ((74, 50, 36), (96, 68, 44), (70, 104, 82), (72, 104, 146))
_SHIRTS = (  # what one likes to wear: under 30, from 30, from 60
    ((226, 104, 92), (250, 190, 84), (116, 196, 140), (96, 176, 226)),
    ((62, 84, 136), (72, 78, 92), (240, 240, 236), (132, 150, 168)),
    ((150, 110, 84), (122, 126, 78), (126, 78, 108), (206, 184, 150)),
)
_MASKS = ((150, 200, 226), (244, 246, 248), (52, 54, 60), (240, 178, 192), (120, 172, 150))
_WALLS = (
    ((250, 226, 202), (242, 192, 160)),
    ((206, 228, 240), (160, 198, 222)),
    ((222, 234, 212), (168, 202, 164)),
    ((232, 220, 240), (196, 176, 216)),
    ((250, 238, 200), (238, 208, 140)),
    ((226, 226, 224), (178, 182, 188)),
)
_INK, _WHITE, _GREY, _GOLD = (48, 36, 36), (252, 252, 250), (216, 214, 214), (246, 206, 92)
_LIPSTICK, _BLUSH, _SHADE = (206, 62, 84), (240, 100, 100), (110, 54, 38)

# right halves of outlines, from the top of the head down
_FACE = ((0.0, -1.18), (0.55, -1.08), (0.9, -0.65), (0.98, 0.0), (0.92, 0.5), (0.7, 0.98), (0.3, 1.27), (0.0, 1.32))
_SHORT = ((0.0, -1.42), (0.62, -1.32), (1.05, -0.8), (1.08, -0.2), (0.98, 0.15), (0.5, 0.4), (0.0, 0.4))
_BOB = ((0.0, -1.42), (0.66, -1.32), (1.12, -0.8), (1.2, 0.0), (1.24, 0.7), (1.05, 1.05), (0.4, 1.1), (0.0, 1.1))
_LONG = ((0.0, -1.42), (0.66, -1.32), (1.12, -0.8), (1.2, 0.1), (1.3, 1.1), (1.25, 2.0), (0.6, 2.25), (0.0, 2.2))
_NECK = ((0.0, 0.8), (0.4, 0.85), (0.4, 1.6), (0.62, 1.78), (0.0, 2.1))
_BODY = ((0.0, 1.72), (0.5, 1.66), (1.3, 1.95), (1.85, 2.35), (2.0, 3.2), (2.0, 4.4), (0.0, 4.4))
_SCARF = ((0.0, 1.1), (0.6, 1.12), (0.85, 1.4), (0.8, 1.9), (0.0, 2.05))
_JAW = ((0.95, 0.35), (0.9, 0.62), (0.7, 1.0), (0.3, 1.31), (0.0, 1.37))
# hair lines across the forehead, from left to right, and the way back over the crown
_SIDE = ((-1.0, 0.05), (-0.86, -0.4), (-0.5, -0.82), (0.1, -0.72), (0.62, -0.62), (0.88, -0.35), (1.0, 0.05))
_BANGS = ((-1.02, 0.2), (-0.84, -0.28), (-0.45, -0.38), (0.0, -0.34), (0.45, -0.38), (0.84, -0.28), (1.02, 0.2))
_MIDDLE = ((-1.04, 0.3), (-0.86, -0.25), (-0.4, -0.68), (0.0, -1.02), (0.4, -0.68), (0.86, -0.25), (1.04, 0.3))
_CROP = ((-1.0, 0.05), (-0.88, -0.5), (-0.5, -0.78), (0.0, -0.74), (0.5, -0.78), (0.88, -0.5), (1.0, 0.05))
_RECEDING = ((-1.0, 0.1), (-0.92, -0.5), (-0.6, -1.04), (0.0, -0.92), (0.6, -1.04), (0.92, -0.5), (1.0, 0.1))
_CROWN = ((1.1, -0.6), (0.66, -1.3), (0.0, -1.42), (-0.66, -1.3), (-1.1, -0.6))
_DOTS = ((-0.5, 0.3), (0.0, 0.25), (0.5, 0.3), (-0.27, 0.52), (0.27, 0.52), (-0.45, 0.72), (0.0, 0.76), (0.45, 0.72))


@dataclass(frozen=True, slots=True)
class Person:
    """The features that all images of a person share; ``streaks`` (of grey), ``lines``, ``beard`` are from 0 to 1."""

    skin: Color
    hair: Color
    back: Points
    fringe: Points
    streaks: float
    bun: bool
    jaw: float
    brow: float
    eye: float
    iris: Color
    lashes: bool
    lips: Color
    lines: float
    beard: float
    glasses: bool
    earrings: bool
    shirts: Sequence[Color]


def make_person(*, gender: int, age: int, rng: Random) -> Person:
    """Return a random person of this gender (0 male, 1 female) and age in years; no feature gives the label away."""
    female = gender == 1
    looks = age + rng.normal(6 if age >= 60 else 0, 3)  # people look older or younger than they are
    skin = _pick(_SKINS, rng)
    hair: Color = _pick(_HAIRS, rng)
    if rng.random() < (0.2 if looks < 30 else 0.01):
        hair = _pick(_DYES, rng)
    elif rng.random() < 0.96:  # the others dye the grey away
        hair = _mix(hair, _GREY, 1 / (1 + math.exp((57 - looks) / 2.5)))
    long = rng.random() < (0.96 if female else 0.04)
    fringes = [_SIDE, _MIDDLE if long else _CROP]
    if looks < 45:
        fringes.append(_BANGS)
    elif not female:
        fringes = [_RECEDING, _RECEDING, _CROP]
    return Person(
        skin=skin,
        hair=hair,
        back=_pick((_BOB, _LONG), rng) if long else _SHORT,
        fringe=_pick(fringes, rng),
        streaks=_between(looks, (28, 0.0), (40, 1.0)) if rng.random() < 0.96 else 0.0,
        bun=long and rng.random() < 0.25,
        jaw=rng.normal(0.93 if female else 1.03, 0.04),
        brow=rng.normal(0.055 if female else 0.1, 0.015),
        eye=_between(looks, (25, 0.12), (60, 0.08)),
        iris=_pick(_IRISES, rng),
        lashes=rng.random() < (0.95 if female else 0.04),
        lips=_mix(skin, _LIPSTICK, rng.uniform(0.35, 0.9) if female else rng.uniform(0.15, 0.35)),
        lines=_between(looks, (26, 0.0), (42, 1.0)),
        beard=rng.uniform(0.4, 1.0) if rng.random() < 0.4 and not female else 0.0,
        glasses=rng.random() < _between(looks, (25, 0.08), (60, 0.5)),
        earrings=rng.random() < (0.5 if female else 0.05),
        shirts=_SHIRTS[0 if looks < 30 else 1 if looks < 60 else 2],
    )


def draw(person: Person, *, mask: int, rng: Random) -> Pixels:
    """Draw one image ``(HEIGHT, WIDTH, 3)`` uint8; ``mask`` is 0 worn, 1 below the nose or mouth, 2 absent."""
    image = _scene(rng)
    pen = Pen(
        image,
        center=(image.width * rng.normal(0.5, 0.025), image.height * rng.normal(0.46, 0.02)),
        size=image.width * rng.uniform(0.28, 0.34),
        tilt=rng.normal(0, 0.07),
        facing=(rng.normal(0, 0.08), rng.normal(0, 0.05)),
    )
    draw_head(pen, person, mask=mask, rng=rng)
    return _expose(image.reduce(_DRAWN), rng)


def draw_head(pen: Pen, person: Person, *, mask: int, rng: Random) -> None:
    """Draw head and shoulders in front of what the pen's image shows; ``mask`` is that of `draw`."""
    _draw_body(pen, person, rng)
    _draw_face(pen, person, rng)
    if mask == 0:
        _draw_mask(pen, 0.2, rng)
    elif mask == 1:
        _draw_mask(pen, 0.62 if rng.random() < 0.6 else 1.02, rng)
    pen.shape((*person.fringe, *_CROWN), person.hair)
    pen.line(((-0.66, -0.98), (-0.3, -1.18), (0.1, -1.22)), 0.08, (*_mix(person.hair, _WHITE, 0.5), 90))
    for side in (-1, 1):
        pen.blob(side * 0.98, -0.42, 0.13, 0.36, (*_GREY, round(150 * person.streaks)))


def _draw_body(pen: Pen, person: Person, rng: Random) -> None:
    dark = _mix(person.skin, _SHADE, 0.25)
    if person.bun:
        pen.blob(0, -1.5, 0.42, 0.38, _mix(person.hair, _INK, 0.15))
    pen.halves(person.back, _mix(person.hair, _INK, 0.2))
    pen.halves(_BODY, _pick(person.shirts if rng.random() < 0.75 else _pick(_SHIRTS, rng), rng))
    pen.halves(_NECK, dark)
    for side in (-1, 1):
        pen.blob(side * 0.99, 0.14, 0.14, 0.24, person.skin)
        pen.blob(side * 1.0, 0.14, 0.07, 0.14, dark)
        if person.earrings:
            pen.blob(side * 1.02, 0.44, 0.07, 0.07, _GOLD)
    if rng.random() < 0.07:  # to be taken for a mask
        pen.halves(_SCARF, _pick(_MASKS, rng))


def _draw_face(pen: Pen, person: Person, rng: Random) -> None:
    pen.halves([(x * (person.jaw if y > 0.4 else 1), y) for x, y in _FACE], person.skin)
    for side in (-1, 1):
        pen.blob(side * 0.58, 0.52, 0.22, 0.15, (*_BLUSH, round(100 * (1 - person.lines))))
    if person.beard:
        _draw_beard(pen, person)
    _draw_wrinkles(pen, person)
    dark = _mix(person.skin, _SHADE, 0.4)
    pen.line(((0.05, 0.1), (0.13, 0.42), (0.0, 0.53), (-0.11, 0.46)), 0.05, dark)
    gaze, open_ = rng.normal(0, 0.025), person.eye * rng.uniform(0.85, 1.05)
    for side in (-1, 1):
        _draw_eye(pen, person, side, gaze=gaze, half=open_)
    _draw_mouth(pen, person, smile=rng.uniform(-0.02, 0.14))


def _draw_eye(pen: Pen, person: Person, side: int, *, gaze: float, half: float) -> None:
    x = side * 0.41
    pen.blob(x, 0, 0.18, half, _WHITE)
    pen.blob(x + gaze, 0, 0.085, min(0.1, half), person.iris)
    pen.blob(x + gaze, 0, 0.045, 0.05, _INK)
    pen.blob(x + gaze + 0.03, -0.035, 0.025, 0.025, _WHITE)
    lid = ((x - 0.19, 0.03), (x - 0.1, -half), (x + 0.1, -half), (x + 0.19, 0.03))
    pen.line(lid, 0.065 if person.lashes else 0.04, _INK)
    if person.lashes:
        pen.line(((x + side * 0.17, 0.0), (x + side * 0.23, -0.06), (x + side * 0.27, -0.12)), 0.05, _INK)
    brow = ((x - side * 0.18, -0.22), (x, -0.3), (x + side * 0.2, -0.24))
    pen.line(brow, person.brow, _mix(person.hair, _INK, 0.35))
    if person.glasses:
        pen.ring(x, 0.02, 0.29, 0.24, 0.04, _INK)
        pen.line(((side * 0.12, 0.0), (side * 0.06, -0.03), (0.0, -0.03)), 0.04, _INK)
        pen.line(((side * 0.7, 0.0), (side * 0.84, -0.02), (side * 0.98, 0.0)), 0.04, _INK)


def _draw_mouth(pen: Pen, person: Person, *, smile: float) -> None:
    corner, lip = 0.84 - smile / 2, 0.86 + smile
    if smile > 0.07:
        pen.shape(((-0.3, corner), (0, corner + 0.04), (0.3, corner), (0, lip + 0.1)), person.lips)
        pen.shape(((-0.22, corner + 0.03), (0, corner + 0.05), (0.22, corner + 0.03), (0, lip + 0.02)), _WHITE)
    else:
        pen.shape(((-0.26, corner), (-0.08, 0.79), (0.08, 0.79), (0.26, corner), (0, lip + 0.08)), person.lips)
        pen.line(((-0.26, corner), (0, lip), (0.26, corner)), 0.03, _mix(person.lips, _INK, 0.4))


def _draw_beard(pen: Pen, person: Person) -> None:
    outer = [(x * person.jaw, y) for x, y in _JAW]
    inner = [(0.78, 0.5), (0.38, 0.66), (0.0, 0.62)]
    right, left = [*inner[::-1], *outer], [(-x, y) for x, y in [*outer[-2::-1], *inner[:2]]]
    pen.shape([*right, *left], (*person.hair, round(255 * person.beard)))


def _draw_wrinkles(pen: Pen, person: Person) -> None:
    color = (*_mix(person.skin, _SHADE, 0.6), round(240 * person.lines))
    pen.line(((-0.42, -0.6), (0, -0.65), (0.42, -0.6)), 0.055, color)
    pen.line(((-0.34, -0.46), (0, -0.5), (0.34, -0.46)), 0.055, color)
    for side in (-1, 1):
        pen.line(((side * 0.22, 0.5), (side * 0.36, 0.64), (side * 0.4, 0.82)), 0.05, color)
        pen.line(((side * 0.26, 0.2), (side * 0.42, 0.25), (side * 0.56, 0.18)), 0.05, color)
        for end in (-0.07, 0.04, 0.15):
            pen.line(((side * 0.66, 0.02), (side * 0.74, (0.02 + end) / 2), (side * 0.83, end)), 0.045, color)


def _draw_mask(pen: Pen, top: float, rng: Random) -> None:
    """Draw a mask from ``top`` (0.2 is the bridge of the nose) to below the chin."""
    color = _pick(_MASKS, rng)
    fold = _mix(color, (40, 50, 70), 0.22)
    end = 1.4 + 0.25 * top
    low = end - 0.28
    for side in (-1, 1):
        pen.line(((side * 0.8, top + 0.12), (side * 0.93, 0.16), (side * 1.0, 0.02)), 0.035, fold)
        pen.line(((side * 0.72, low), (side * 0.95, 0.55), (side * 1.02, 0.3)), 0.035, fold)
    right = ((0.0, top - 0.06), (0.35, top), (0.86, top + 0.12), (0.84, (top + low) / 2), (0.62, low), (0.0, end))
    pen.halves(right, color, wide=0.82 if top > 1 else 1)
    match _pick(("pleats", "pleats", "seam", "dots"), rng):
        case "pleats":
            for share in (0.3, 0.5, 0.7):
                y = top + share * (end - top)
                pen.line(((-0.72, y - 0.04), (0, y + 0.05), (0.72, y - 0.04)), 0.03, fold)
        case "seam":
            pen.line(((0, top - 0.03), (0.03, (top + end) / 2), (0, end - 0.03)), 0.03, fold)
        case "dots":
            for x, share in _DOTS:
                pen.blob(x, top + share * (end - top), 0.06, 0.06, fold)


def _scene(rng: Random) -> Image.Image:
    """Draw a blurred background: lights, book shelves, hills in the sun, or a room with a window."""
    wall, shade = _pick(_WALLS, rng)
    small = Image.new("RGB", (24, 32), wall)
    brush = ImageDraw.Draw(small, "RGBA")
    match _pick(("lights", "shelves", "hills", "room"), rng):
        case "lights":
            for x, y, r in rng.uniform((0, 0, 1.5), (24, 32, 4), (7, 3)).tolist():
                brush.ellipse((x - r, y - r, x + r, y + r), fill=(*shade, 170))
        case "shelves":
            for y in range(3, 32, 8):
                brush.rectangle((0, y + 6, 24, y + 7), fill=shade)
                for x in range(0, 24, 3):
                    book = _pick(_pick(_SHIRTS, rng), rng)
                    brush.rectangle((x, y + int(rng.integers(3)), x + 1, y + 5), fill=(*book, 130))
        case "hills":
            brush.ellipse((16, 2, 22, 8), fill=(255, 244, 200, 230))
            brush.ellipse((-14, 16, 16, 50), fill=shade)
            brush.ellipse((8, 19, 44, 54), fill=_mix(shade, (60, 90, 80), 0.25))
        case "room":
            brush.rectangle((0, 22, 24, 32), fill=shade)
            brush.rectangle((2, 3, 9, 13), fill=(*_WHITE, 150))
    blurred = small.filter(ImageFilter.GaussianBlur(0.7))
    return blurred.resize((WIDTH * _DRAWN, HEIGHT * _DRAWN), Image.Resampling.BILINEAR)


def _expose(image: Image.Image, rng: Random) -> Pixels:
    """Add light from one side, a color cast and sensor noise."""
    angle = rng.uniform(0, 2 * np.pi)
    across, down = np.linspace(-1, 1, WIDTH) * math.cos(angle), np.linspace(-1, 1, HEIGHT) * math.sin(angle)
    light = rng.uniform(0.78, 1.06) + rng.uniform(0, 0.2) * (down[:, None] + across)
    tinted = (light[..., None] * rng.normal(1, 0.03, 3)).astype(np.float32)
    noise = rng.standard_normal((HEIGHT, WIDTH, 3), np.float32)
    return np.clip(np.asarray(image) * tinted + rng.uniform(2, 7) * noise, 0, 255).astype(np.uint8)


def _pick(options: Sequence[T], rng: Random) -> T:
    return options[int(rng.integers(len(options)))]


def _mix(one: Color, other: Color, share: float) -> Color:
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def _between(x: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    """Interpolate linearly between two points ``(x, y)``, constant outside them."""
    return float(np.interp(x, (low[0], high[0]), (low[1], high[1])))
