"""The layers of a whole pickled network, which say what its weights do not: activations, strides, pooling."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from checkpoints.loading.head_options import WITHOUT_WEIGHTS
from checkpoints.loading.key_names import without_marks
from checkpoints.loading.pickle_objects import PickledLayer
from checkpoints.loading.pickle_values import InertModule
from checkpoints.loading.state_dicts import key_text
from ensemble.errors import ModelError, enumerate_some

_DEEPEST = 12
_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.|torchao\.|bitsandbytes\.")
# layers that change nothing in evaluation
_IDLE = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout",
         "DropPath", "DropBlock2d", "StochasticDepth", "Flatten", "PatchDropout")  # fmt: skip
_KINDS = {"BatchNorm1d": "batchnorm", "Swish": "silu", "Linear": "linear", "LayerNorm": "layernorm", "PReLU": "prelu",
          "NonDynamicallyQuantizableLinear": "linear"}  # fmt: skip
# settings of activations that are not torch's defaults, with which `network` builds them
_DEFAULTS: Mapping[str, object] = {
    "negative_slope": 0.01,
    "approximate": "none",
    "alpha": 1.0,
    "beta": 1,
    "threshold": 20,
}


def collect_layers(payload: object) -> dict[str, PickledLayer]:
    """Return every module of the whole pickled networks in a checkpoint, by its path without the marks of wrappers."""
    return dict(_search(payload, (), frozenset()))


def _search(value: object, place: tuple[str, ...], above: frozenset[int]) -> Iterator[tuple[str, PickledLayer]]:
    if id(value) in above or len(place) > _DEEPEST:
        return
    above |= {id(value)}
    if isinstance(value, InertModule):
        for name, layer in value.layers.items():
            yield without_marks(".".join((*place, name)) if name else ".".join(place)), layer
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _search(item, (*place, key_text(key)), above)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _search(item, (*place, str(number)), above)


def require_float_layers(layers: Mapping[str, PickledLayer], path: Path) -> None:
    """Check that no layer of a whole pickled network has quantized weights, which are not among its tensors.

    Raises:
        ModelError: E417 when one has.
    """
    found = [name or layer.kind for name, layer in layers.items() if _QUANTIZED.match(layer.type_name)]
    if found:
        raise ModelError(
            "E417",
            f"{path.name} holds quantized layers ({enumerate_some(found)}), which give other answers in another "
            "network",
            hint="export the float weights that were quantized; ens export --precision int8 quantizes them again",
            path=path,
        )


def is_idle(layer: PickledLayer) -> bool:
    """Return True for a layer that returns what it gets in evaluation, such as dropout."""
    return layer.kind in _IDLE


def layers_of_head(
    layers: Mapping[str, PickledLayer], root: str, first: str = "", owned: Collection[str] = ()
) -> tuple[str, ...] | None:
    """Return the layers of the ``nn.Sequential`` at a path as `--head-layers` names them; None where it is none.

    Where one of its layers is ``owned`` by the body, as in torchvision's MobileNetV3, they begin with ``first``.
    A layer that has no name there is given as the name of its class, with a ``?`` in front.
    """
    whole = layers.get(root)
    if whole is None or whole.type_name != "torch.nn.modules.container.Sequential":
        return None
    inner = {name: layer for name, layer in layers.items() if name.startswith(f"{root}.") and layer.is_leaf}
    names = list(inner)
    if first in inner and not inner.keys().isdisjoint(owned):
        names = names[names.index(first) :]
    kept = [inner[name] for name in names if not is_idle(inner[name])]
    if kept and kept[0].kind == "AdaptiveAvgPool2d":
        kept = kept[1:]
    return tuple(_kind(layer) for layer in kept)


def _kind(layer: PickledLayer) -> str:
    usual = all(layer.settings.get(name, value) == value for name, value in _DEFAULTS.items())
    kind = _KINDS.get(layer.kind, layer.kind.lower())
    is_known = kind in {*_KINDS.values(), *WITHOUT_WEIGHTS} and layer.type_name.startswith(("torch.nn.", "timm."))
    if kind in {"batchnorm", "layernorm"}:
        usual = layer.settings.get("eps", 1e-5) == 1e-5
    return kind if usual and is_known else f"?{layer.kind}"


def paths_inside(layers: Mapping[str, PickledLayer], prefix: str) -> dict[str, PickledLayer]:
    """Return the modules of the network at a prefix by their names in it, itself under ``""``."""
    start = prefix.rstrip(".")
    if not start:
        return dict(layers)
    found = {name.removeprefix(f"{start}."): layer for name, layer in layers.items() if name.startswith(f"{start}.")}
    return ({"": layers[start]} if start in layers else {}) | found
