"""The channels of a network's input, made from RGB: in training, in the exported graph and in the benchmark."""

from __future__ import annotations

import torch

from ensemble.card import Channels

# Pillow's mode L in 16 bits, ITU-R 601-2: (19595 R + 38470 G + 7471 B + 2^15) >> 16
_RED, _GREEN, _BLUE, _HALF, _ONE = 19595.0, 38470.0, 7471.0, 2.0**15, 2.0**16


def network_channels(planes: torch.Tensor, channels: Channels) -> torch.Tensor:
    """Return ``(B, planes, H, W)`` float32, 0 to 255, of ``(B, 3, H, W)`` RGB from 0 to 255.

    The file's own channels are returned as they are.

    ``grey`` equals Pillow's ``convert("L")``: every intermediate value is a whole number below 2^24, hence exact.
    """
    planes = planes.to(torch.float32)
    if channels == "rgb" or channels.isdecimal():
        return planes
    red, green, blue = planes[:, 0:1], planes[:, 1:2], planes[:, 2:3]
    if channels == "bgr":
        return torch.cat([blue, green, red], dim=1)
    return torch.floor((_RED * red + _GREEN * green + _BLUE * blue + _HALF) * (1 / _ONE))
