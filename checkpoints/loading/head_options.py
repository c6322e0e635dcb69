"""The layers of a head as a person names them: ``linear,relu,linear``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ensemble.errors import OptionError
from ensemble.labels import LabelSpace

# the layers that --head-layers may name: those with weights, and those without, which `network` builds
WITH_WEIGHTS = ("linear", "cosine", "batchnorm", "layernorm", "prelu")
WITHOUT_WEIGHTS = (
    *("relu", "relu6", "leakyrelu", "elu", "selu", "gelu", "silu", "mish", "hardswish", "tanh", "sigmoid"),
    *("softplus", "identity"),
)
_OTHER_NAMES = {
    "bn": "batchnorm",
    "bn1d": "batchnorm",
    "batchnorm1d": "batchnorm",
    "ln": "layernorm",
    "fc": "linear",
    "dense": "linear",
    "swish": "silu",
    "lrelu": "leakyrelu",
    "arcface": "cosine",
    "cosface": "cosine",
    "none": "identity",
}
_NOTHING = {"dropout", "dropout1d", "flatten", "squeeze"}


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """The caller's knowledge of the head: its layers, its name, the classes, and names that are no part of it."""

    layers: tuple[str, ...] | None = None
    scale: float = 1.0
    name: str | None = None
    labels: LabelSpace | None = None
    leave_out: tuple[str, ...] = ()


def parse_head_layers(text: str) -> tuple[tuple[str, ...], float]:
    """Return the layers of ``linear,relu,linear`` by their usual names, and the scale of ``cosine:30``.

    Raises:
        OptionError: E204 for a layer that is not known.
    """
    layers, scale = [], 1.0
    for part in text.split(","):
        name, _, number = part.strip().lower().partition(":")
        name = re.sub(r"[^a-z0-9]", "", name)
        name = _OTHER_NAMES.get(name, name)
        if name in _NOTHING:
            continue
        if name not in WITH_WEIGHTS + WITHOUT_WEIGHTS or (number and name != "cosine"):
            known = ", ".join(WITH_WEIGHTS + WITHOUT_WEIGHTS)
            raise OptionError("E204", f"--head-layers: {part.strip()!r} is not known", hint=f"known are {known}")
        if number:
            try:
                scale = float(number)
            except ValueError:
                raise OptionError("E204", f"--head-layers: {number!r} is no scale of a cosine layer") from None
        layers.append(name)
    if not any(name in {"linear", "cosine"} for name in layers):
        raise OptionError("E204", f"--head-layers {text!r} names no linear layer")
    return tuple(layers), scale
