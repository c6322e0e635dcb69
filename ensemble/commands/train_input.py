"""The options of `ens train` about the network's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.card import Channels, Interpolation, Preprocess, Resize, Resizer


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The preprocessing of images for the model."""

    size: str = "224"
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"
    resizer: Resizer = "pillow"
    channels: Channels = "rgb"
    scale: str | None = None

    def preprocess(self) -> Preprocess:
        """Return the preprocessing, without a face crop."""
        from ensemble.card import Preprocess, parse_size
        from ensemble.channel_values import parse_scale

        own = Preprocess(
            parse_size(self.size), self.resize, self.interpolation, resizer=self.resizer, channels=self.channels
        )
        return own if self.scale is None else replace(own, scale=parse_scale(self.scale))


def channel_values(option: str) -> Callable[[str], tuple[float, ...]]:
    """Return the parser of an option that takes one number per channel."""

    def convert(text: str) -> tuple[float, ...]:
        from ensemble.channel_values import parse_channel_values

        return parse_channel_values(text, option)

    return convert
