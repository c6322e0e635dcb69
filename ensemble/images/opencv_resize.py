"""Resize an image as OpenCV's ``cv2.resize`` does, without OpenCV: contest code with albumentations resizes this way.

Nothing is antialiased except by ``area``. OpenCV computes 8-bit images in fixed point, with 11 bits per weight (see
``modules/imgproc/src/resize.cpp``), and so does this module: nearest, bilinear, lanczos (``INTER_LANCZOS4``) and area
equal OpenCV's in every pixel. Its wheels for x86 leave ``INTER_CUBIC`` to Intel's IPP, which computes in float32:
bicubic follows these, and differs from them by one level in about one value of 100,000.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Pixels
from ensemble.card import Interpolation
from ensemble.errors import OptionError
from ensemble.images.taps import Places, Taps, keep_used, make_taps, resize_columns, resize_rows

_BITS = 11
_ONE = 1 << _BITS

TapWeights = NDArray[np.float32]


def resize_as_opencv(pixels: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Resize ``(H, W, C)`` uint8 to ``(*size, C)``.

    Raises:
        OptionError: E204 when OpenCV does not have the interpolation.
    """
    (old_height, old_width), (height, width) = pixels.shape[:2], size
    if (old_height, old_width) == size:
        return pixels
    if interpolation == "nearest":
        return pixels[_nearest(old_height, height)][:, _nearest(old_width, width)]
    across, down = 1.0 / (width / old_width), 1.0 / (height / old_height)
    # OpenCV takes the mean of 2 x 2 pixels for either name, and linear for an enlargement by area
    halved = interpolation == "bilinear" and across == down == 2.0
    if halved or (interpolation == "area" and across >= 1 and down >= 1):
        return _average(pixels, size)
    if interpolation in {"bilinear", "area"}:
        return _linear(pixels, size, by_area=interpolation == "area")
    if interpolation == "bicubic":
        return _to_uint8(_two_passes(pixels, _cubic_taps(old_width, width), _cubic_taps(old_height, height)))
    if interpolation == "lanczos":
        return _lanczos(pixels, size)
    raise OptionError("E204", f"OpenCV has no interpolation {interpolation!r}")


def _nearest(old: int, new: int) -> Places:
    places: Places = np.floor(np.arange(new) * (1.0 / (new / old))).astype(np.int64)
    return np.minimum(places, old - 1)


def _positions(old: int, new: int) -> tuple[Places, TapWeights]:
    """Return the pixel to the left of each new pixel's center, ``(new,)``, and its distance to it, 0 to 1."""
    centers = ((np.arange(new) + 0.5) * (1.0 / (new / old)) - 0.5).astype(np.float32)
    left = np.floor(centers)
    return left.astype(np.int64), centers - left


def _area_positions(old: int, new: int) -> tuple[Places, TapWeights]:
    """Return the same for an enlargement by area."""
    numbers, inverse = np.arange(new), new / old
    left = np.floor(numbers * (1.0 / inverse)).astype(np.int64)
    share = ((numbers + 1) - (left + 1) * inverse).astype(np.float32)
    return left, np.where(share <= 0, np.float32(0), share - np.floor(share)).astype(np.float32)


def _fixed(weights: TapWeights) -> NDArray[np.int32]:
    fixed: NDArray[np.int32] = np.rint(weights * np.float32(_ONE)).astype(np.int32)
    return fixed


@functools.lru_cache(maxsize=256)
def _linear_columns(old: int, new: int, by_area: bool) -> Taps:
    left, share = _area_positions(old, new) if by_area else _positions(old, new)
    share = np.where((left < 0) | (left >= old - 1), np.float32(0), share)
    pair = np.clip(np.stack([left, left + 1]), 0, old - 1)
    return make_taps(pair, _fixed(np.stack([1 - share, share])), old)


@functools.lru_cache(maxsize=256)
def _linear_rows(old: int, new: int, by_area: bool) -> tuple[Places, NDArray[np.int32]]:
    """Return the two rows of each new one and their weights, ``(2, new)`` each; border weights stay as they are."""
    left, share = _area_positions(old, new) if by_area else _positions(old, new)
    return np.clip(np.stack([left, left + 1]), 0, old - 1), _fixed(np.stack([1 - share, share]))


def _linear(pixels: Pixels, size: tuple[int, int], *, by_area: bool) -> Pixels:
    rows, weights = _linear_rows(pixels.shape[0], size[0], by_area)
    used, places = np.unique(rows, return_inverse=True)
    wide = resize_columns(pixels[used], _linear_columns(pixels.shape[1], size[1], by_area))
    wide >>= 4
    first, second = (wide[place] for place in places.reshape(rows.shape))
    # each product is cut to whole quarters before the sum, as OpenCV's 16-bit arithmetic does
    first *= weights[0][:, None, None]
    first >>= 16
    second *= weights[1][:, None, None]
    second >>= 16
    first += second
    first += 2
    first >>= 2
    found: Pixels = first.astype(np.uint8)
    return found


def _cubic_weights(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights ``(4, new)`` of Keys' cubic convolution with a = -0.75."""
    a, other = -0.75, 1 - share
    outer = ((a * (share + 1) - 5 * a) * (share + 1) + 8 * a) * (share + 1) - 4 * a
    first = ((a + 2) * share - (a + 3)) * share * share + 1
    second = ((a + 2) * other - (a + 3)) * other * other + 1
    return np.stack([outer, first, second, 1 - outer - first - second])


@functools.lru_cache(maxsize=256)
def _cubic_taps(old: int, new: int) -> Taps:
    centers = (np.arange(new) + 0.5) * (1.0 / (new / old)) - 0.5
    left = np.floor(centers)
    places = np.clip(left.astype(np.int64) - 1 + np.arange(4)[:, None], 0, old - 1)
    return make_taps(places, _cubic_weights(centers - left).astype(np.float32), old)


@functools.lru_cache(maxsize=256)
def _lanczos_taps(old: int, new: int) -> Taps:
    left, shares = _positions(old, new)
    half = math.sqrt(0.5)
    turns = ((1, 0), (-half, -half), (0, 1), (half, -half), (-1, 0), (half, half), (0, -1), (-half, half))
    weights = np.zeros((8, new), np.float32)
    for i, share in enumerate(shares):
        start = -(float(share) + 3) * math.pi * 0.25
        sine, cosine = math.sin(start), math.cos(start)
        total = np.float32(0)
        for k, (by_sine, by_cosine) in enumerate(turns):
            distance = np.float32(share + np.float32(3) - np.float32(k))
            angle = -float(distance) * math.pi * 0.25
            close = abs(distance) < np.float32(1e-6)
            weights[k, i] = 1e30 if close else (by_sine * sine + by_cosine * cosine) / (angle * angle)
            total = np.float32(total + weights[k, i])
        weights[:, i] *= np.float32(1) / total
    places = np.clip(left - 3 + np.arange(8)[:, None], 0, old - 1)
    return make_taps(places, _fixed(weights).astype(np.int64), old)


def _lanczos(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    columns, rows = (_lanczos_taps(old, new) for old, new in zip(pixels.shape[1::-1], size[::-1], strict=True))
    pixels, rows = keep_used(pixels, rows)
    total = resize_rows(resize_columns(pixels, columns), rows)
    found: Pixels = np.clip((total + (1 << (2 * _BITS - 1))) >> (2 * _BITS), 0, 255).astype(np.uint8)
    return found


@functools.lru_cache(maxsize=256)
def _area_taps(old: int, new: int) -> Taps:
    scale = 1.0 / (new / old)
    found: list[list[tuple[int, float]]] = []
    for i in range(new):
        start = i * scale
        end, cell = start + scale, min(scale, old - start)
        last = min(math.floor(end), old - 1)
        first = min(math.ceil(start), last)
        shares = [(first - 1, (first - start) / cell)] if first - start > 1e-3 else []
        shares += [(j, 1.0 / cell) for j in range(first, last)]
        if end - last > 1e-3:
            shares.append((last, min(end - last, 1.0, cell) / cell))
        found.append(shares)
    places, weights = np.zeros((max(map(len, found)), new), np.int64), np.zeros((max(map(len, found)), new), np.float32)
    for i, shares in enumerate(found):
        for k, (place, weight) in enumerate(shares):
            places[k, i], weights[k, i] = place, weight
    return make_taps(places, weights, old)


def _average(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Average the area below each new pixel; whole numbers of pixels are added as integers."""
    (old_height, old_width), (height, width) = pixels.shape[:2], size
    if old_height % height == old_width % width == 0:
        down, across = old_height // height, old_width // width
        total = pixels.reshape(height, down, width, across, -1).sum(axis=(1, 3), dtype=np.int64)
        if (down, across) == (2, 2):
            found: Pixels = ((total + 2) >> 2).astype(np.uint8)
            return found
        return _to_uint8(total.astype(np.float32) * (np.float32(1) / np.float32(down * across)))
    return _to_uint8(_two_passes(pixels, _area_taps(old_width, width), _area_taps(old_height, height)))


def _two_passes(pixels: Pixels, columns: Taps, rows: Taps) -> NDArray[Any]:
    pixels, rows = keep_used(pixels, rows)
    return resize_rows(resize_columns(pixels, columns), rows)


def _to_uint8(values: NDArray[np.float32]) -> Pixels:
    found: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found
