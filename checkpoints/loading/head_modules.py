"""Group the tensors that no body has into layers, and link layers to chains by their widths."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from checkpoints.loading.key_names import COUNTER, natural_key
from ensemble.text.plain_numbers import is_count

# what the matrix of a margin loss is called where it is no torch.nn.Linear
_MATRICES = {"W", "kernel", "weights", "w", "proxies", "prototypes"}
# what the factor of cosines is called
_SCALE = re.compile(r"(.*_)?(s|scale|scaling|sigma|tau|temp|temperature|scale_factor|logit_scale|logits_scale)")
LayerKind = Literal["linear", "batchnorm", "layernorm", "prelu", "gem", "other"]


@dataclass(frozen=True, slots=True, eq=False)
class HeadLayer:
    """The tensors of one layer, by the last part of their names.

    ``margin`` is the name in the checkpoint of a lone matrix that is not called weight, as margin losses have.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    margin: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its tensors in the checkpoint."""
        if self.margin:
            return (self.margin,)
        return tuple(f"{self.name}.{leaf}" if self.name else leaf for leaf in self.tensors)

    def is_copy_of(self, other: HeadLayer) -> bool:
        """Return True for a layer with the same tensors, value by value."""
        return (
            self.tensors.keys() == other.tensors.keys()
            and all(tensor.shape == other.tensors[leaf].shape for leaf, tensor in self.tensors.items())
            and all(torch.equal(tensor, other.tensors[leaf]) for leaf, tensor in self.tensors.items())
        )

    @property
    def kind(self) -> LayerKind:
        """The layer that has tensors of these names and shapes; a layernorm may be another layer of that shape."""
        leaves = {leaf for leaf in self.tensors if f".{leaf}" != COUNTER}
        weight = self.tensors.get("weight")
        if leaves == {"p"} and self._is_exponent():
            return "gem"
        if {"running_mean", "running_var"} <= leaves <= {"weight", "bias", "running_mean", "running_var"}:
            return "batchnorm" if all(self.tensors[leaf].ndim == 1 for leaf in leaves) else "other"
        if weight is None or not leaves <= {"weight", "bias"}:
            return "other"
        if "bias" in leaves and self.tensors["bias"].shape != weight.shape[:1]:
            return "other"
        if weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2:] == (1, 1)):
            return "linear"
        if weight.ndim == 1:
            return "layernorm" if "bias" in leaves else "prelu"
        return "other"

    def _is_exponent(self) -> bool:
        """Return True for a parameter ``p``: any in a pooling's name, else one number of a usual size."""
        values = self.tensors["p"]
        if re.search(r"pool|gem|gap", self.name, re.IGNORECASE):
            return True
        return values.numel() == 1 and values.is_floating_point() and 0.5 <= float(values) <= 20

    @property
    def takes(self) -> int:
        """The number of values that it takes; 0 for one parameter that applies to any number."""
        tensor = self.tensors["weight" if self.kind == "linear" else next(iter(self.tensors))]
        if self.kind == "linear":
            return tensor.shape[1]
        return 0 if tensor.numel() == 1 else tensor.shape[0]

    @property
    def returns(self) -> int:
        """The number of values that a linear layer returns."""
        return self.tensors["weight"].shape[0]

    @property
    def root(self) -> str:
        """Its name without the number in a Sequential, or without its last part if it is inside another module."""
        parent, _, last = self.name.rpartition(".")
        return parent if is_count(last) and parent else self.name

    @property
    def number(self) -> int | None:
        """The number in a Sequential."""
        last = self.name.rpartition(".")[2]
        return int(last) if is_count(last) else None

    def describe(self) -> str:
        """Return its kind and widths, such as ``linear 512 to 64``."""
        return f"linear {self.takes} to {self.returns}" if self.kind == "linear" else f"{self.kind} {self.takes or 1}"


def is_scale(name: str) -> bool:
    """Return True for the name of a number that logits may be multiplied or divided by."""
    return _SCALE.fullmatch(name.rpartition(".")[2].lower()) is not None


def group_layers(tensors: Mapping[str, torch.Tensor], widths: Collection[int] = ()) -> tuple[HeadLayer, ...]:
    """Return the layers in the order of their first tensors.

    A lone matrix ``W`` or ``kernel`` of one of ``widths`` becomes a linear layer of a margin loss: insightface's
    ``kernel`` is (features, classes), the ``W`` of others (classes, features).
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, leaf = key.rpartition(".")
        layers.setdefault(name, {})[leaf] = tensor
    return tuple(_layer(name, parts, widths) for name, parts in layers.items())


def _layer(name: str, parts: Mapping[str, torch.Tensor], widths: Collection[int]) -> HeadLayer:
    scaled = any(is_scale(leaf) and tensor.numel() == 1 for leaf, tensor in parts.items())
    named = _MATRICES | {"weight"} if scaled else _MATRICES
    matrices = {leaf: tensor for leaf, tensor in parts.items() if leaf in named and tensor.ndim == 2}
    if len(matrices) != 1 or not all(tensor.numel() == 1 for leaf, tensor in parts.items() if leaf not in matrices):
        return HeadLayer(name, parts)
    ((leaf, tensor),) = matrices.items()
    rows, columns = tensor.shape
    if columns not in widths and rows not in widths:
        return HeadLayer(name, parts)
    weight = tensor if columns in widths else tensor.T
    return HeadLayer(name, {"weight": weight}, margin=f"{name}.{leaf}" if name else leaf)


def link(layers: Sequence[HeadLayer], widths: Iterable[int]) -> tuple[HeadLayer, ...] | None:
    """Return all ``layers`` in an order in which each takes what the one before returns; None if there is none.

    ``widths`` are those that the first may take. The order of the file is tried first, then that of their numbers;
    then a normalization comes before the linear layer that takes as many values.
    """
    orders = [list(layers), sorted(layers, key=lambda layer: natural_key(layer.name))]
    for width in widths:
        for order in orders:
            if _links(order, width):
                return tuple(order)
        if (found := _link_greedily(layers, width)) is not None:
            return found
    return None


def _links(layers: Iterable[HeadLayer], width: int) -> bool:
    for layer in layers:
        if layer.kind in {"other", "gem"} or layer.takes not in {width, 0}:
            return False
        if layer.kind == "linear":
            width = layer.returns
    return True


def _link_greedily(layers: Sequence[HeadLayer], width: int) -> tuple[HeadLayer, ...] | None:
    rest, chain = list(layers), []
    while rest:
        fitting = [layer for layer in rest if layer.kind not in {"other", "gem"} and layer.takes in {width, 0}]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda layer: layer.kind == "linear")
        rest.remove(chosen)
        chain.append(chosen)
        if chosen.kind == "linear":
            width = chosen.returns
    return tuple(chain)


def has_classifier(chain: Sequence[HeadLayer]) -> bool:
    """Return True if a chain has a linear layer."""
    return any(layer.kind == "linear" for layer in chain)


def fastai_layers(chain: Sequence[HeadLayer]) -> tuple[str, ...] | None:
    """Return all layers of a head that fastai's ``create_head`` made; None for any other (fastai/vision/learner.py).

    Behind the pooling 0 and the flattening 1 are blocks of batch normalization, dropout where its rate is not 0, linear
    layer and ReLU, the last of them without a ReLU and, with ``bn_final``, with one more normalization.
    """
    if len({layer.root for layer in chain}) != 1 or len(chain) < 4 or chain[0].number != 2:
        return None
    wanted: list[str] = []
    for number, (before, layer) in enumerate(zip((None, *chain[:-1]), chain, strict=True)):
        if layer.kind not in {"batchnorm", "linear"} or layer.number is None:
            return None
        step = 0 if before is None or before.number is None else layer.number - before.number
        match before.kind if before is not None else None, layer.kind, step:
            case (None, "batchnorm", _) | ("batchnorm", "linear", 1 | 2):
                wanted.append(layer.kind)
            case "linear", "batchnorm", 2:
                wanted += ["relu", "batchnorm"]
            case "linear", "batchnorm", 1 if number == len(chain) - 1:
                wanted.append("batchnorm")
            case _:
                return None
    return tuple(wanted) if wanted.count("linear") > 1 and wanted[-2:] != ["relu", "batchnorm"] else None


def fold(chain: Sequence[HeadLayer]) -> dict[str, torch.Tensor]:
    """Return weight and bias of the one linear layer that equals linear layers and batch normalizations in a row.

    The epsilon of batch normalization is torch's default, 1e-5.
    """
    first = chain[0].takes
    weight, bias = torch.eye(first, dtype=torch.float64), torch.zeros(first, dtype=torch.float64)
    for layer in chain:
        tensors = {leaf: tensor.detach().double() for leaf, tensor in layer.tensors.items()}
        if layer.kind == "linear":
            matrix = tensors["weight"].flatten(1)
            weight, bias = matrix @ weight, matrix @ bias + tensors.get("bias", torch.zeros(len(matrix)).double())
            continue
        scale = (tensors["running_var"] + 1e-5).rsqrt() * tensors.get("weight", torch.ones(()).double())
        bias = (bias - tensors["running_mean"]) * scale + tensors.get("bias", torch.zeros(()).double())
        weight = weight * scale[:, None]
    return {"weight": weight.float(), "bias": bias.float()}
