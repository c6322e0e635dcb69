"""Compare a whole pickled network, layer by layer, with the architecture that its names and shapes show.

A state dict cannot show strides, activations, pooling or the epsilon of a normalization; a pickled module names the
class and the settings of every layer. Where they are not those of timm's network, the export would answer otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoints.loading.bodies import Body
from checkpoints.loading.layouts import TIMM
from checkpoints.loading.name_notices import ambiguous
from checkpoints.loading.network import ArchOptions, make_network
from checkpoints.loading.pickle_objects import PickledLayer
from checkpoints.loading.pickled_layers import is_idle, layers_of_head, paths_inside
from ensemble.errors import ModelError, enumerate_some

_NORMS = torch.nn.modules.batchnorm._BatchNorm
_OTHER_NAMES = {"swish": "silu", "hardswishme": "hardswish", "hardsigmoidme": "hardsigmoid", "swishme": "silu",
                "gelutanh": "gelu", "hardmishme": "hardmish", "mishme": "mish"}  # fmt: skip
_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "ceil_mode", "count_include_pad",
             "negative_slope", "approximate", "pool_type", "output_size", "num_groups")  # fmt: skip
_CONVOLUTION = ("stride", "dilation", "groups")
_GATES = {"sigmoid", "hardsigmoid", "softmax", "logsoftmax"}
_POOLS = {"avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "token", "map"}
_POOLINGS = ("global_pool", "head.global_pool")
_PLAIN_CONVOLUTION = "torch.nn.modules.conv.Conv2d"
# layers beside a network that leave its logits as they are, or only change them to probabilities
_HARMLESS = re.compile(r".*(Loss|Metric|Accuracy|Criterion)|AdaptiveAvgPool2d|(Log)?Softmax|Sigmoid|Normalize|Resize")
_MOST_TWINS = 8
_LEAST_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class ToldByLayers:
    """The architecture that a pickled network's layers are those of, and its options.

    ``epsilons`` maps names of batch normalizations to what their epsilon is more than that of timm's network.
    """

    arch: str
    options: ArchOptions
    epsilons: Mapping[str, float] = field(default_factory=dict)


def told_by_layers(
    layers: Mapping[str, PickledLayer],
    body: Body,
    names: Sequence[str],
    options: ArchOptions,
    path: Path,
    *,
    is_ordered: bool = True,
) -> ToldByLayers:
    """Return which of several architectures, and which of their options, the layers of a network show.

    Where the layers are those of several, the first is taken; E416 is raised unless ``is_ordered``.

    Raises:
        ModelError: E416, and E450 when the layers are those of none of them.
    """
    fitting: list[ToldByLayers] = []
    inside = paths_inside(layers, body.prefix)
    nearest: tuple[int, str, list[str]] | None = None
    for name in names[:_MOST_TWINS]:
        for more in _options(inside, options):
            try:
                with torch.device("meta"):
                    model = make_network(name, outputs=2, size=body.match.size, arch_options=dict(options) | more)
            except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
                continue  # an architecture without this option
            found = list(_differences(model, layers, inside, body))
            if not found:
                fitting.append(ToldByLayers(name, more, _epsilons(model, layers, body)))
                break
            if nearest is None or len(found) < nearest[0]:
                nearest = (len(found), name, found)
        if fitting and is_ordered:
            break
    if len(fitting) > 1:
        raise ambiguous([one.arch for one in fitting], path)
    if fitting:
        return fitting[0]
    arch, found = (names[0], ["timm cannot build it with these options"]) if nearest is None else nearest[1:]
    raise ModelError(
        "E450",
        f"{path.name} is a whole pickled network with the weights of {arch}, but other layers: {enumerate_some(found)}",
        path=path,
        details=tuple(found),
    )


def _options(inside: Mapping[str, PickledLayer], given: ArchOptions) -> Iterator[dict[str, Any]]:
    """Yield options that may make timm's network the one that was pickled."""
    places = [inside[name].settings for name in (*_POOLINGS, "") if name in inside]
    pools = [value for settings in places for key in ("pool_type", "global_pool") if (value := settings.get(key))]
    pool = {"global_pool": pools[0]} if pools and pools[0] in _POOLS and "global_pool" not in given else {}
    yield {}
    if pool:
        yield pool
    if "output_stride" not in given:
        for stride in (16, 8):
            yield {"output_stride": stride}
            if pool:
                yield {"output_stride": stride} | pool


def _differences(
    model: torch.nn.Module, layers: Mapping[str, PickledLayer], inside: Mapping[str, PickledLayer], body: Body
) -> Iterator[str]:
    built = dict(model.named_modules())
    for name, layer in _with_weights(layers, body):
        own = built.get(name)
        if own is not None:
            yield from _other_weights(name, layer, own)
    root = inside.get("")
    if body.layout is TIMM and root is not None and root.type_name.startswith("timm."):
        yield from _other_modules(built, inside, body)
    else:
        yield from _other_kinds(built, inside, from_torchvision=_is_torchvision(root))


def _is_torchvision(root: PickledLayer | None) -> bool:
    return root is not None and root.type_name.startswith("torchvision.models.resnet.")


def _with_weights(layers: Mapping[str, PickledLayer], body: Body) -> Iterator[tuple[str, PickledLayer]]:
    """Yield timm's name of each module with weights, and the layer that has them."""
    own = tuple(f"{name}." for name in body.match.architecture.classifier)
    for name, key in body.sources.items():
        layer = layers.get(key.rpartition(".")[0])
        if name.endswith(".weight") and layer is not None and not (own and name.startswith(own)):
            yield name.removesuffix(".weight"), layer


def _other_weights(name: str, layer: PickledLayer, own: torch.nn.Module) -> Iterator[str]:
    """Compare a layer with weights, which may be of another library and so of another class."""
    settings = layer.settings
    if isinstance(own, torch.nn.Conv2d):
        for key in (*_CONVOLUTION, *(("padding",) if layer.type_name == _PLAIN_CONVOLUTION == _type_name(own) else ())):
            if key in settings and _pair(settings[key]) != _pair(getattr(own, key)):
                yield f"{name} has {key} {settings[key]}, not {getattr(own, key)}"
    elif isinstance(own, torch.nn.LayerNorm | torch.nn.GroupNorm):
        epsilon = settings.get("eps")
        if isinstance(epsilon, float) and abs(epsilon - own.eps) > _LEAST_EPSILON:
            yield f"{name} has eps {epsilon}, not {own.eps}"


def _other_modules(
    built: Mapping[str, torch.nn.Module], inside: Mapping[str, PickledLayer], body: Body
) -> Iterator[str]:
    """Compare a network of timm's classes module by module; the head is compared by itself."""
    passed = tuple(f"{name}." for name in body.match.architecture.classifier)
    # a body whose pooling was switched off is pooled by a layer behind it
    passed += tuple(f"{name}." for name in _POOLINGS if name in inside and _is_off(inside[name]))
    for name, layer in inside.items():
        own = built.get(name)
        if f"{name}.".startswith(passed):
            continue
        if own is None:
            if layer.is_leaf and not is_idle(layer) and name.rpartition(".")[0] in built:
                yield f"{name} is {layer.kind}"
            continue
        kind, wanted = _plain(layer.kind), _plain(type(own).__name__)
        is_leaf = not any(True for _ in own.children())
        if kind != wanted and (layer.is_leaf or is_leaf) and not (is_idle(layer) and _is_idle(own)):
            yield f"{name or 'the network'} is {layer.kind}, not {type(own).__name__}"
        elif kind == wanted and (layer.is_leaf or name == "" or "pool_type" in layer.settings):
            for key in (*_SETTINGS, "global_pool"):
                mine = getattr(own, key, None)
                theirs = layer.settings.get(key)
                comparable = isinstance(mine, int | float | str | tuple) and isinstance(
                    theirs, int | float | str | tuple
                )
                if comparable and _pair(theirs) != _pair(mine):
                    yield f"{name or 'the network'} has {key} {theirs}, not {mine}"


def _is_off(pooling: PickledLayer) -> bool:
    return pooling.kind == "Identity" or pooling.settings.get("pool_type", "avg") in {"", None}


def _other_kinds(
    built: Mapping[str, torch.nn.Module], inside: Mapping[str, PickledLayer], *, from_torchvision: bool
) -> Iterator[str]:
    """Compare the kinds of layers without weights in networks whose modules have other names."""
    own = {_plain(type(module).__name__) for module in built.values() if "activation" in type(module).__module__}
    theirs = {
        _plain(layer.kind): layer.kind
        for layer in inside.values()
        if layer.type_name.startswith(("torch.nn.modules.activation.", "timm.layers.activations"))
        and layer.kind != "MultiheadAttention"
    }
    for kind, shown in theirs.items():
        if own and kind not in own | _GATES:
            yield f"its activation is {shown}"
    if not from_torchvision:
        return
    keys = ("kernel_size", "stride", "padding")
    pools = Counter(tuple(_pair(getattr(m, key)) for key in keys) for m in built.values() if _is(m, "MaxPool2d"))
    found = Counter(
        tuple(_pair(layer.settings.get(key)) for key in keys) for layer in inside.values() if layer.kind == "MaxPool2d"
    )
    if found != pools:
        yield f"it has {found.total() or 'no'} layers of MaxPool2d, not {pools.total()} of timm's settings"
    if any(layer.kind == "AdaptiveMaxPool2d" for layer in inside.values()):
        yield "it pools by AdaptiveMaxPool2d"


def _epsilons(model: torch.nn.Module, layers: Mapping[str, PickledLayer], body: Body) -> dict[str, float]:
    built = dict(model.named_modules())
    found = {}
    for name, layer in _with_weights(layers, body):
        own, epsilon = built.get(name), layer.settings.get("eps")
        if isinstance(own, _NORMS) and isinstance(epsilon, float) and epsilon != own.eps:
            found[name] = epsilon - own.eps
    return found


def absorb_epsilons(tensors: Mapping[str, torch.Tensor], epsilons: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Add the difference of a batch normalization's epsilon to its running variance, which gives the same network."""
    return {
        key: tensor + epsilons[key.removesuffix(".running_var")]
        if key.endswith(".running_var") and key.removesuffix(".running_var") in epsilons
        else tensor
        for key, tensor in tensors.items()
    }


def require_no_other_layers(
    layers: Mapping[str, PickledLayer], body: Body, names: Sequence[str], leave_out: Sequence[str], path: Path
) -> None:
    """Refuse a pickled network with layers beside its body of which only its code tells the use.

    ``names`` are all tensors of the checkpoint: a layer with weights is found by those.

    Raises:
        ModelError: E450 with the names of the layers.
    """
    start = body.prefix.rstrip(".")
    parts = start.split(".") if start else []
    above = (".".join(parts[:length]) for length in range(len(parts) + 1))
    top = next((name for name in above if name in layers), start)
    if top == start:
        return
    within = f"{top}." if top else ""
    odd = []
    for name, layer in layers.items():
        if not name.startswith(within) or f"{name}.".startswith(f"{start}.") or not layer.is_leaf or is_idle(layer):
            continue
        parent = name.rpartition(".")[0]
        is_used = any(key.startswith(f"{name}.") for key in names) or "linear" in (layers_of_head(layers, parent) or ())
        ignored = any(f".{left}." in f".{name}." for left in leave_out)
        if not is_used and not ignored and _HARMLESS.fullmatch(layer.kind) is None:
            odd.append((name.removeprefix(within), layer.kind))
    if odd:
        shown = ", ".join(f"{name} ({kind})" for name, kind in odd)
        raise ModelError(
            "E450",
            f"{path.name} is a whole pickled network with layers of which only its code tells the use: {shown}",
            hint="if they do not change its answers: --leave-out " + " --leave-out ".join(name for name, _ in odd[:3]),
            path=path,
        )


def _is(module: torch.nn.Module, kind: str) -> bool:
    return type(module).__name__ == kind


def _is_idle(module: torch.nn.Module) -> bool:
    return is_idle(PickledLayer(_type_name(module), {}))


def _type_name(module: torch.nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _plain(kind: str) -> str:
    name = kind.lower()
    return _OTHER_NAMES.get(name, name)


def _pair(value: object) -> object:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value
