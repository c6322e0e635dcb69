"""Resize a decoded image to a model's input, as timm, torchvision or albumentations do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.card import Preprocess
from ensemble.images.decode import MAX_ASPECT
from ensemble.images.opencv_resize import resize_as_opencv
from ensemble.images.torch_resize import resize_as_torch

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
        channels=preprocess.channels if preprocess.kept else "rgb",  # the graph makes the others
    )


def resize_image(image: Image.Image | Pixels, preprocess: Preprocess) -> Pixels:
    """Resize and cut one decoded RGB image, ``(H, W, 3)`` as an array, to ``(*preprocess.size, 3)``, see `Preprocess`.

    Sides are rounded as torchvision and timm round them, so that a model trained there sees the same pixels here
    (timm's crop modes ``squash``, ``center`` and, for ``pad``, ``border``); with OpenCV's resizer as albumentations
    rounds them (``Resize``, ``SmallestMaxSize`` and ``CenterCrop``, ``LongestMaxSize`` and ``PadIfNeeded``). One
    exception: of an image more than 20 times as long as the cut that ``center`` makes of it, the far ends go first,
    since scaling them fills the memory.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    return np.asarray(resize_with(image, preprocess, fill=preprocess.fill))


def resize_with(image: Image.Image, preprocess: Preprocess, *, fill: tuple[int, ...] | float) -> Image.Image:
    """Resize and cut one image of any mode, as `resize_image` does; ``fill`` has the values of an added border."""
    height, width = preprocess.size
    if preprocess.resize == "center":
        image = _without_far_ends(image, preprocess)
    inner = _inner_size(image.height, image.width, preprocess)
    if inner != (image.height, image.width):
        image = _scale(image, inner, preprocess)
    if inner != (height, width):
        top, left = (_offset(*sides, preprocess) for sides in zip(inner, (height, width), strict=True))
        canvas = Image.new(image.mode, (width, height), fill)
        canvas.paste(image, (-left, -top))
        image = canvas
    return image


def _scale(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    """Resize the whole image to ``size`` (height, width) with the card's resizer."""
    resizer, interpolation = preprocess.resizer, preprocess.interpolation
    if resizer == "pillow":
        return image.resize((size[1], size[0]), _RESAMPLING[interpolation])
    if resizer == "opencv":
        return Image.fromarray(resize_as_opencv(np.asarray(image), size, interpolation))
    antialias, in_integers = resizer.endswith("antialias"), resizer.startswith("torch-uint8")
    resized = resize_as_torch(np.asarray(image), size, interpolation, antialias=antialias, in_integers=in_integers)
    return Image.fromarray(resized)


def _inner_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Return the image's size ``(height, width)`` after resizing and before the cut to ``preprocess.size``."""
    target = tuple(math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    if preprocess.resize == "squash":
        return target[0], target[1]
    if preprocess.resizer == "opencv" and target[0] == target[1]:
        scale = target[0] / (min if preprocess.resize == "center" else max)(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    if preprocess.resize == "center" and target[0] == target[1]:
        # torchvision's Resize(int): the shorter side exactly, the longer one cut off to a whole pixel
        short, long = min(height, width), max(height, width)
        longer = int(target[0] * long / short)
        return (longer, target[0]) if height > width else (target[0], longer)
    ratios = (height / target[0], width / target[1])
    ratio = min(ratios) if preprocess.resize == "center" else max(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _offset(inner: int, outer: int, preprocess: Preprocess) -> int:
    """Return where a cut of ``outer`` px begins in ``inner`` px, negative for padding.

    The middle is rounded as torchvision does, or down with OpenCV's resizer as albumentations does.
    """
    if inner <= outer:
        return -((outer - inner) // 2)
    return (inner - outer) // 2 if preprocess.resizer == "opencv" else round((inner - outer) / 2)


def _without_far_ends(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    width, height = image.size
    aspect = preprocess.size[0] / preprocess.size[1]
    top = max(0, height - math.ceil(MAX_ASPECT * width * aspect)) // 2
    left = max(0, width - math.ceil(MAX_ASPECT * height / aspect)) // 2
    return image.crop((left, top, width - left, height - top)) if top or left else image
