"""The normalization of images whose own channels are kept, measured on the training images where no option names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from checkpoints.training.settings import TrainSettings
from ensemble.errors import OptionError
from ensemble.events import Listener, Notice
from ensemble.images.planes import DecodedPlanes, read_for, scale_of

_MEASURED = 256
"""Images, spread over the training images, that scale, mean and std are measured on."""
_UNSET = TrainSettings("")


def fit_own_channels(
    settings: TrainSettings, paths: Sequence[Path], *, scale: str | None, listener: Listener
) -> TrainSettings:
    """Return the settings with scale, mean and std for channels that are kept as they are stored; others are unchanged.

    Where no option gives them, the scale is the range of 8 or 16 bits, or 0 to 1 for floating-point numbers, and mean
    and std are those of up to 256 images; I561 says so. The default augmentation is none, which I562 says: the policies
    are for photographs in 8 bits.

    Raises:
        OptionError: E204 when mean and std do not have one value per channel, E209 when the augmentation is a policy
            for RGB.
        DataError: the codes of `ensemble.images.planes.decode_planes`.
    """
    if not settings.preprocess.kept:
        return settings
    channels, scale_given = settings.preprocess.planes, scale is not None
    if settings.augment == _UNSET.augment:
        message = (
            "no augmentation: the policies are for RGB in 8 bits; --augment flip mirrors, a TOML file names others"
        )
        listener.notice(Notice("I562", message))
        settings = replace(settings, augment="none")
    if settings.augment in {"light", "strong"}:
        raise OptionError(
            "E209",
            f"--augment {settings.augment} is for RGB in 8 bits, and --channels {channels} keeps the file's values",
            hint="--augment none, flip, or a TOML file of transforms that take float32 of any range",
        )
    measures = settings.mean == _UNSET.mean or settings.std == _UNSET.std
    if measures or not scale_given:
        chosen = np.linspace(0, len(paths) - 1, min(len(paths), _MEASURED)).round().astype(int).tolist()
        images = [read_for(paths[place], settings.preprocess) for place in chosen]
        planes = [one for one in images if isinstance(one, DecodedPlanes)]
        settings = _measured(settings, planes, scale_given=scale_given, listener=listener)
    if not len(settings.mean) == len(settings.std) == channels:
        raise OptionError("E204", f"--channels {channels} needs {channels} values of --mean and --std each")
    return settings


def _measured(
    settings: TrainSettings, images: Sequence[DecodedPlanes], *, scale_given: bool, listener: Listener
) -> TrainSettings:
    found = []
    if not scale_given:
        kinds = sorted({one.kind for one in images})
        scale = scale_of(kinds) or (0.0, 1.0)
        settings = replace(settings, preprocess=replace(settings.preprocess, scale=scale))
        found.append(f"--scale {scale[0]:g},{scale[1]:g} ({', '.join(kinds)})")
    low, high = settings.preprocess.scale
    each = np.array([((one.image.astype(np.float64) - low) / (high - low)).mean(axis=(0, 1)) for one in images])
    squares = np.array(
        [(((one.image.astype(np.float64) - low) / (high - low)) ** 2).mean(axis=(0, 1)) for one in images]
    )
    mean = each.mean(axis=0)
    std = np.sqrt(np.maximum(squares.mean(axis=0) - mean**2, 0))
    if settings.mean == _UNSET.mean:
        settings = replace(settings, mean=tuple(float(f"{value:.4g}") for value in mean))
        found.append(f"--mean {','.join(f'{value:g}' for value in settings.mean)}")
    if settings.std == _UNSET.std:
        # a channel that never changes carries nothing, and is left as it is
        settings = replace(settings, std=tuple(float(f"{value:.4g}") if value > 1e-9 else 1.0 for value in std))
        found.append(f"--std {','.join(f'{value:g}' for value in settings.std)}")
    listener.notice(Notice("I561", f"measured on {len(images)} training images: {' '.join(found)}"))
    return settings
