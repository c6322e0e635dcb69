"""Resize a decoded image to a model's input, as timm and torchvision do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.card import Preprocess
from ensemble.images.decode import MAX_ASPECT

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def plain_preprocess(preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing with unused settings at their defaults: models with equal results share one resize."""
    targets = tuple(math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    return replace(
        preprocess,
        fill=preprocess.fill if preprocess.resize == "pad" else Preprocess(preprocess.size).fill,
        crop_pct=1.0 if targets == preprocess.size else preprocess.crop_pct,
    )


def resize_image(image: Image.Image | Pixels, preprocess: Preprocess) -> Pixels:
    """Resize and cut one decoded RGB image, ``(H, W, 3)`` as an array, to ``(*preprocess.size, 3)``, see `Preprocess`.

    Sides are rounded as torchvision and timm round them, so that a model trained there sees the same pixels here
    (timm's crop modes ``squash``, ``center`` and, for ``pad``, ``border``). One exception: of an image more than 20
    times as long as the cut that ``center`` makes of it, the far ends go first, since scaling them fills the memory.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    height, width = preprocess.size
    if preprocess.resize == "center":
        image = _without_far_ends(image, preprocess)
    inner = _inner_size(image.height, image.width, preprocess)
    if inner != (image.height, image.width):
        image = image.resize((inner[1], inner[0]), _RESAMPLING[preprocess.interpolation])
    if inner != (height, width):
        top, left = _offset(inner[0], height), _offset(inner[1], width)
        canvas = Image.new("RGB", (width, height), preprocess.fill)
        canvas.paste(image, (-left, -top))
        image = canvas
    return np.asarray(image)


def _inner_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Return the image's size ``(height, width)`` after resizing and before the cut to ``preprocess.size``."""
    target = tuple(math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    if preprocess.resize == "squash":
        return target[0], target[1]
    if preprocess.resize == "center" and target[0] == target[1]:
        # torchvision's Resize(int): the shorter side exactly, the longer one cut off to a whole pixel
        short, long = min(height, width), max(height, width)
        longer = int(target[0] * long / short)
        return (longer, target[0]) if height > width else (target[0], longer)
    ratios = (height / target[0], width / target[1])
    ratio = min(ratios) if preprocess.resize == "center" else max(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _offset(inner: int, outer: int) -> int:
    """Return where a cut of ``outer`` px begins in ``inner`` px, negative for padding; rounded as torchvision does."""
    return round((inner - outer) / 2) if inner > outer else -((outer - inner) // 2)


def _without_far_ends(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    width, height = image.size
    aspect = preprocess.size[0] / preprocess.size[1]
    top = max(0, height - math.ceil(MAX_ASPECT * width * aspect)) // 2
    left = max(0, width - math.ceil(MAX_ASPECT * height / aspect)) // 2
    return image.crop((left, top, width - left, height - top)) if top or left else image
