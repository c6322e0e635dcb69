"""Resizing, crop and normalization of transformers' image processors, from their ``preprocessor_config.json``.

Each class of them reads ``size``, ``crop_pct`` and ``image_std`` in a way of its own
(``image_processing_*.py`` of transformers), which the names of these entries alone do not tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KINDS = ("image_processor_type", "feature_extractor_type")
_SHORTER_SIDE = {"ConvNext", "Levit", "Bit", "CLIP", "MobileNetV1", "MobileNetV2", "PoolFormer", "VideoMAE"}
"""Those that take a ``size`` of one number for the shorter side; others take it for both sides."""
_CONVNEXT_WARPS = 384  # px, from which ConvNextImageProcessor sets both sides and crops nothing
_LEVIT_SCALE = 256 / 224


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """The size, resizing, crop and normalization of an image processor; None where its file does not tell.

    ``size`` is ``(height, width)`` in pixels, ``resize`` a crop mode of timm, ``center`` or ``squash``; ``mean`` and
    ``std`` are for channels in 0..1.
    """

    size: tuple[int, int] | None = None
    resize: str | None = None
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def is_image_processor(value: object) -> bool:
    """Return True for the content of a ``preprocessor_config.json`` of transformers."""
    return isinstance(value, Mapping) and (any(kind in value for kind in _KINDS) or {"do_resize", "size"} <= {*value})


def read_image_processor(config: Mapping[Any, Any]) -> ImageProcessor:
    """Return what an image processor with this configuration does."""
    kind = next((str(config[name]) for name in _KINDS if name in config), "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    size, resize, crop_pct = _resizing(kind, config)
    mean, std = _normalization(kind, config)
    return ImageProcessor(size, resize, crop_pct, mean, std)


def _resizing(kind: str, config: Mapping[Any, Any]) -> tuple[tuple[int, int] | None, str | None, float | None]:
    """Return the size of the network's input, how images are brought to it, and the share of the crop."""
    if config.get("do_resize") is False:
        return None, None, None
    sides, shorter = _sides(config.get("size")), _shorter(kind, config.get("size"))
    if kind == "ConvNext" and shorter is not None:
        if shorter >= _CONVNEXT_WARPS:
            return (shorter, shorter), "squash", 1.0
        share = config.get("crop_pct", 224 / 256)
        return (shorter, shorter), "center", share if _is_share(share) else None
    crop = _sides(config.get("crop_size")) if config.get("do_center_crop") else None
    if shorter is not None:
        inner = int(_LEVIT_SCALE * shorter) if kind == "Levit" else shorter
        if crop is None or crop[0] != crop[1] or crop[0] > inner:
            return crop, None, None
        return crop, "center", crop_share(crop[0], inner)
    if sides is None:
        return crop, None, None
    if crop is None:
        return sides, "squash", 1.0
    if crop[0] > sides[0] or crop[0] * sides[1] != crop[1] * sides[0]:
        return crop, None, None
    return crop, "squash", crop_share(crop[0], sides[0])


def _normalization(kind: str, config: Mapping[Any, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and standard deviation for channels in 0..1, where they are not those that the file names."""
    mean, std = _channels(config.get("image_mean")), _channels(config.get("image_std"))
    normalizes = config.get("do_normalize") is not False
    if kind != "EfficientNet":
        return (None, None) if normalizes else ((0.0,) * 3, (1.0,) * 3)
    if mean is None or std is None or min(std) <= 0:
        return None, None
    # both in turn: (value - mean) / std, and for classification, with include_top, / std
    divisors = [std] * normalizes + [std] * bool(config.get("include_top", True))
    mean = mean if normalizes else (0.0,) * 3
    std = tuple(math.prod(one) for one in zip(*divisors, strict=True)) if divisors else (1.0,) * 3
    if config.get("rescale_offset"):
        factor = config.get("rescale_factor", 1 / 255)
        whole = 255 * factor if isinstance(factor, int | float) and factor > 0 else 2.0
        # a value is whole * channel - 1
        return tuple((1 + one) / whole for one in mean), tuple(one / whole for one in std)
    return mean, std


def _sides(value: object) -> tuple[int, int] | None:
    """Return the height and width of a size that sets both."""
    both = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else (value, value)
    height, width = map(_side, both)
    return None if height is None or width is None else (height, width)


def _shorter(kind: str, value: object) -> int | None:
    """Return the shorter side of a size that sets one."""
    if isinstance(value, Mapping):
        return _side(value.get("shortest_edge"))
    return _side(value) if kind in _SHORTER_SIDE else None


def _side(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= 4096 else None


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.1 <= value <= 1


def crop_share(inner: int, outer: int) -> float | None:
    """Return the share of ``outer`` px that is kept, by which a size of ``inner`` px becomes ``outer`` px exactly."""
    share = inner / outer
    share = share if math.floor(inner / share) == outer else math.nextafter(share, 0)
    return share if _is_share(share) else None


def _channels(value: object) -> tuple[float, ...] | None:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    return tuple(map(float, value)) if all(isinstance(one, int | float) for one in value) else None
