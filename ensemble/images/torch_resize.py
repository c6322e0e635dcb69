"""Resize an image as torchvision resizes a tensor, without torch; its resize of PIL images is Pillow's.

torchvision has two arithmetics for tensors on the CPU:

- in float32: of float tensors (``ToTensor`` before ``Resize``), and of all tensors in ``torchvision.transforms`` before
  version 2. The results are rounded to 8 bits here, and equal torch's rounded ones but for about one value of 10,000,
  which differs by one level;
- in integers, with 8 bits between the two passes: uint8 tensors in ``torchvision.transforms.v2``. Equal in every pixel.

Weights as in ATen's ``UpSampleKernel.cpp``: bilinear is a triangle, bicubic Keys' convolution with a = -0.5 when
antialiased (as Pillow's) and -0.75 when not (as OpenCV's).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Pixels
from ensemble.card import Interpolation
from ensemble.images.taps import Places, Taps, keep_used, make_taps, resize_columns, resize_rows


def resize_as_torch(
    pixels: Pixels, size: tuple[int, int], interpolation: Interpolation, *, antialias: bool, in_integers: bool
) -> Pixels:
    """Resize ``(H, W, C)`` uint8 to ``(*size, C)``: nearest, bilinear or bicubic."""
    (old_height, old_width), (height, width) = pixels.shape[:2], size
    if (old_height, old_width) == size:
        return pixels
    if interpolation == "nearest":
        return pixels[_nearest(old_height, height)][:, _nearest(old_width, width)]
    cubic = interpolation == "bicubic"
    row_taps, row_bits = _taps(old_height, height, cubic, antialias, in_integers)
    column_taps, column_bits = _taps(old_width, width, cubic, antialias, in_integers)
    pixels, row_taps = keep_used(pixels, row_taps)  # few of a large image's rows, unless antialiased
    wide = pixels if old_width == width else _finish(resize_columns(pixels, column_taps), column_bits)
    found = wide if old_height == height else _finish(resize_rows(wide, row_taps), row_bits)
    return found if found.dtype == np.uint8 else np.clip(np.rint(found), 0, 255).astype(np.uint8)


def _finish(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return 8 bits of sums in fixed point; float sums as they are."""
    if not bits:
        return values
    pixels: Pixels = np.clip((values + (1 << (bits - 1))) >> bits, 0, 255).astype(np.uint8)
    return pixels


def _nearest(old: int, new: int) -> Places:
    scale = np.float32(old) / np.float32(new)
    places: Places = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(places, old - 1)


def _kernel(distance: NDArray[np.floating], *, cubic: bool, a: float) -> NDArray[np.floating]:
    if not cubic:
        return np.where(distance < 1, 1 - distance, 0).astype(distance.dtype)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0)).astype(distance.dtype)


def _antialiased_taps(old: int, new: int, cubic: bool, kind: type[np.floating]) -> tuple[Places, NDArray[np.floating]]:
    """Return the pixels that each new one is made of, and their weights, ``(most, new)`` each."""
    scale = kind(old) / kind(new)
    stretch = max(scale, kind(1))
    support = kind(2 if cubic else 1) * stretch
    centers = scale * (np.arange(new, dtype=kind) + kind(0.5))
    first = np.maximum((centers - support + kind(0.5)).astype(np.int64), 0)
    after = np.minimum((centers + support + kind(0.5)).astype(np.int64), old)
    steps = np.arange(int((after - first).max()))[:, None]
    places = first + steps
    distance = np.abs((places.astype(kind) - centers + kind(0.5)) * (kind(1) / stretch))
    weights = np.where(places < after, _kernel(distance, cubic=cubic, a=-0.5), kind(0))
    total = np.zeros(new, kind)
    for row in weights:  # one after the other, as torch adds them
        total = total + row
    return np.minimum(places, old - 1), weights / total


def _plain_taps(old: int, new: int, cubic: bool, kind: type[np.floating]) -> tuple[Places, NDArray[np.floating]]:
    """Return the same without antialiasing: two or four pixels around each new one's center."""
    scale = kind(old) / kind(new)
    centers = scale * (np.arange(new, dtype=kind) + kind(0.5)) - kind(0.5)
    if not cubic:
        centers = np.maximum(centers, kind(0))
    left = np.minimum(np.floor(centers).astype(np.int64), old - 1)
    share = np.clip(centers - left.astype(kind), 0, 1).astype(kind)
    offsets = np.arange(-1, 3) if cubic else np.arange(2)
    distance = np.abs(offsets[:, None].astype(kind) - share)
    return np.clip(left + offsets[:, None], 0, old - 1), _kernel(distance, cubic=cubic, a=-0.75)


@functools.lru_cache(maxsize=512)
def _taps(old: int, new: int, cubic: bool, antialias: bool, in_integers: bool) -> tuple[Taps, int]:
    """Return the weights and their bits: in fixed point as many as keep the largest weight below 2^15, else none."""
    made = _antialiased_taps if antialias else _plain_taps
    if not in_integers:
        return make_taps(*made(old, new, cubic, np.float32), old), 0
    places, weights = made(old, new, cubic, np.float64)
    if not antialias:
        weights = _merge(places, weights)
    bits = 0
    while bits < 22 and int(0.5 + float(weights.max()) * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    scaled = weights * (1 << bits)
    return make_taps(places, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32), old), bits


def _merge(places: Places, weights: NDArray[np.floating]) -> NDArray[np.floating]:
    """Add the weights of a border pixel that several taps were clamped to, before they are rounded."""
    merged = np.array(weights)
    for k in range(len(places) - 1, 0, -1):
        same = places[k] == places[k - 1]
        merged[k - 1] += np.where(same, merged[k], 0)
        merged[k] = np.where(same, 0, merged[k])
    return merged
