"""Augmentation: albumentations policies per image; CutMix, MixUp and random erasing per batch.

All randomness is derived from the seed, the epoch and the image or batch.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing

from checkpoints.training.setting_words import read_transforms
from ensemble.arrays import Pixels
from ensemble.errors import OptionError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # on import it checks for updates over the network

DEFAULT: tuple[Mapping[str, Any], ...] = (
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "scale": [0.9, 1.1], "translate_percent": [-0.06, 0.06], "rotate": [-15, 15], "p": 0.5},
    {"name": "HueSaturationValue", "hue_shift_limit": 10, "sat_shift_limit": 20, "val_shift_limit": 20, "p": 0.5},
    {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5},
    {"name": "GaussNoise", "std_range": [0.012, 0.028], "p": 0.3},
)
# for few people: a network overfits to a thousand faces within a few epochs
STRONG: tuple[Mapping[str, Any], ...] = (
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "scale": [0.85, 1.2], "translate_percent": [-0.08, 0.08], "rotate": [-15, 15], "p": 0.9},
    {"name": "HueSaturationValue", "hue_shift_limit": 20, "sat_shift_limit": 30, "val_shift_limit": 20, "p": 0.5},
    {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.7},
    {"name": "ToGray", "p": 0.15},
    {"name": "GaussNoise", "std_range": [0.01, 0.04], "p": 0.3},
    {"name": "GaussianBlur", "sigma_limit": [0.5, 3.0], "p": 0.2},
    {
        "name": "CoarseDropout",
        "num_holes_range": [1, 2],
        "hole_height_range": [0.1, 0.2],
        "hole_width_range": [0.1, 0.2],
        "p": 0.4,
    },
)
_POLICIES = {"default": DEFAULT, "strong": STRONG}


class Simple:
    """Flip half of the images and, if ``light``, change the brightness by up to 20 % and the color a little.

    In numpy alone: albumentations would be the bottleneck of a network that trains in seconds.
    """

    def __init__(self, *, light: bool) -> None:
        self._light = light

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """Augment ``(H, W, 3)`` uint8 pixels; the same seed always gives the same result."""
        rng = np.random.default_rng(seed)
        images = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        if not self._light:
            return images
        factors = rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.05, 3)
        lit: Pixels = np.minimum(images * factors.astype(np.float32) + np.float32(0.5), 255).astype(np.uint8)
        return lit


class Policy:
    """A list of albumentations transforms by name and parameters, seeded per image.

    Raises:
        OptionError: E204 when a transform or parameter is unknown, albumentations warns, or the size would change.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns about parameters that it ignores
            import albumentations

            self._compose: Any = albumentations.Compose([_build(albumentations, t) for t in transforms], seed=0)
        if self._compose(image=np.zeros((40, 24, 3), dtype=np.uint8))["image"].shape != (40, 24, 3):
            raise OptionError("E204", "an augmentation changes the image size", hint="remove resizing and cropping")

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """Augment ``(H, W, 3)`` uint8 pixels; the same seed always gives the same result."""
        # Compose.set_random_seed(seed) seeds all transforms alike: their first draw, which decides whether a transform
        # is applied, would be the same, and nearly half of all images would get none of the transforms
        for number, transform in enumerate(self._compose.transforms):
            transform.set_random_seed(image_seed(seed, number))
        found: Pixels = self._compose(image=pixels)["image"]
        return found


def parse_policy(text: str) -> Policy | Simple | None:
    """Parse ``none``, ``flip``, ``light``, ``default``, ``strong`` or the path of a TOML file.

    The file has ``[[transform]]`` tables with ``name`` and the parameters of albumentations.

    Raises:
        OptionError: E204 when the file cannot be read, or as `Policy` does.
    """
    if text == "none":
        return None
    if text in {"flip", "light"}:
        return Simple(light=text == "light")
    if text in _POLICIES:
        return Policy(_POLICIES[text])
    return Policy(read_transforms(text))


def image_seed(seed: int, epoch: int, *image: int) -> int:
    """Return the seed of an image in an epoch, which depends neither on the order nor on the number of workers."""
    return int(np.random.SeedSequence((seed, epoch, *image)).generate_state(1)[0])


def cutmix(
    images: torch.Tensor, targets: torch.Tensor, *, half: bool, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a rectangle of another image of the batch into each image, and mix the targets by area.

    ``images`` is ``(B, 3, H, W)``, ``targets`` ``(B, C)``. The rectangle is that of Yun et al. 2019, "CutMix", with a
    uniformly drawn area; ``half`` pastes the left or the right half instead, which keeps a face whole.
    """
    height, width = images.shape[2:]
    order = torch.randperm(len(images), generator=generator)
    if half:
        left = int(torch.randint(2, (1,), generator=generator)) * (width // 2)
        rows, columns = slice(0, height), slice(left, left + width // 2)
    else:
        share, y, x = torch.rand(3, generator=generator).tolist()
        tall, wide = height * share**0.5, width * share**0.5
        rows = slice(max(0, round(y * height - tall / 2)), min(height, round(y * height + tall / 2)))
        columns = slice(max(0, round(x * width - wide / 2)), min(width, round(x * width + wide / 2)))
    order = order.to(images.device)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[order][:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, (1 - area) * targets + area * targets[order]


def mixup(
    images: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``m x_i + (1 - m) x_j`` of images ``(B, 3, H, W)`` and targets ``(B, C)``, ``m ~ Beta(alpha, alpha)``.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; one ``m`` per batch, as in the authors' code.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    share = float(np.random.default_rng(_draw_seed(generator)).beta(alpha, alpha))
    return share * images + (1 - share) * images[order], share * targets + (1 - share) * targets[order]


def erase(images: torch.Tensor, *, share: float, generator: torch.Generator) -> torch.Tensor:
    """Set a rectangle in a ``share`` of the normalized images ``(B, 3, H, W)`` to 0, the mean color.

    Zhong et al. 2020, "Random Erasing Data Augmentation", in timm's implementation: 2 % to a third of the area.
    """
    state = random.getstate()  # timm draws from Python's global generator; the caller's state is restored
    random.seed(_draw_seed(generator))
    try:
        erasing: Any = RandomErasing
        erased: torch.Tensor = erasing(share, mode="const", device=images.device)(images.clone())
    finally:
        random.setstate(state)
    return erased


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))


def _build(albumentations: Any, transform: Mapping[str, Any]) -> Any:
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in transform.items() if k != "name"}
    name = transform["name"]
    kind = getattr(albumentations, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, albumentations.BasicTransform):
        raise OptionError("E204", f"albumentations has no transform {name!r}")
    try:
        return kind(**parameters)
    except (Warning, ValueError, TypeError) as err:
        raise OptionError("E204", f"{name}: {str(err).partition(chr(10))[0]}") from err
