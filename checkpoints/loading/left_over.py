"""Tell which layers beside a whole network may still be a part of what its training computed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from checkpoints.loading.head_modules import HeadLayer

# names of heads that are trained beside the classifier and not asked for an answer
_AUXILIARY = re.compile(
    r".*(aux|proj|rotation|jigsaw|domain|contrast|simclr|byol|moco|ssl|distill|predictor|decoder|segment|seg_head"
    r"|recon|embed|landmark|bbox).*",
    re.IGNORECASE,
)
# names of layers that change what the head sees
_PART = re.compile(
    r"(.*[._])?(att(n|ention)?|gate|cbam|se|eca|squeeze|excite|excitation|calib\w*|adapter|input\w*|stem)([._\d].*)?",
    re.IGNORECASE,
)


def is_auxiliary(name: str) -> bool:
    """Return True for the usual names of heads that are trained beside the classifier."""
    return _AUXILIARY.fullmatch(name) is not None


def is_scalar(layer: HeadLayer) -> bool:
    """Return True for a single number, such as a temperature."""
    return len(layer.tensors) == 1 and layer.kind == "other" and next(iter(layer.tensors.values())).numel() == 1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The widths of a network: values that its head takes and returns, and the channels of its images."""

    widths: tuple[int, ...]
    outputs: int
    channels: int

    def is_head(self, layer: HeadLayer) -> bool:
        """Return True for a linear layer that takes the features of an image, under no auxiliary name."""
        return (
            layer.kind == "linear"
            and layer.takes in self.widths
            and layer.tensors["weight"].ndim == 2
            and not is_auxiliary(layer.name)
            and _PART.fullmatch(layer.name) is None
        )

    def is_other_task(self, layer: HeadLayer) -> bool:
        """Return True for a head of another task, which takes the features and does not return as many."""
        return self.is_head(layer) and layer.returns != layer.takes

    def may_take_part(self, layer: HeadLayer) -> bool:
        """Return True for a layer outside of a network with its head that may change the input, features or logits."""
        if _PART.fullmatch(layer.name):
            return True
        match layer.kind:
            case "linear":
                makes_images = layer.tensors["weight"].ndim == 4 and layer.returns == self.channels
                return makes_images or layer.takes in (*self.widths, self.outputs)
            case "batchnorm" | "layernorm":
                return layer.takes in (*self.widths, self.outputs, self.channels, 3)
            case "prelu" | "gem":
                return True
        known = {*self.widths, self.outputs}
        return any(
            (tensor.ndim == 4 and tensor.shape[0] == self.channels) or (tensor.ndim == 2 and known & set(tensor.shape))
            for tensor in layer.tensors.values()
        )
