"""The same networks under other libraries' names, mapped one to one to timm's.

Sources: torchvision/models/{resnet,efficientnet}.py; lukemelas/EfficientNet-PyTorch efficientnet_pytorch/model.py;
huggingface/transformers models/{resnet,efficientnet}/modeling_*.py; open-mmlab/mmpretrain
mmpretrain/models/backbones/efficientnet.py; `transformer_layouts` has more. Heads are found by
`checkpoints.loading.heads`, whatever their names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from checkpoints.loading.timm_tables import usual_name
from checkpoints.loading.torchvision_layouts import rename_features, rename_regnet, rename_vit, timms_shape
from checkpoints.loading.torchvision_names import rename_efficientnet
from checkpoints.loading.transformer_layouts import (
    convnext_shape,
    rename_convnext,
    rename_hf_beit,
    rename_hf_resnet,
    rename_hf_swin,
    rename_hf_vit,
    rename_mmpretrain_swin,
    rename_mmpretrain_vit,
    reorder_patch_merging,
)
from ensemble.text.plain_numbers import is_count

if TYPE_CHECKING:
    import torch

# libraries that have the plain variants only
_PLAIN_ONLY = {"efficientnet_pytorch", "transformers", "mmpretrain", "torchvision"}
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_DEPTHS = (1.0, 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1, 3.6, 5.3)  # b0 to b8 and l2; b1 and b2 have the same blocks
# sides of the images for which efficientnet_pytorch fixes its padding, efficientnet_pytorch/utils.py
_SIDES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600, "b8": 672, "l2": 800}
_ALWAYS_EVEN = 1024

Names = dict[str, str]
Tensors: TypeAlias = "Mapping[str, torch.Tensor]"


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of one library: ``anchors`` are those of its first weight, ``rename`` maps them to timm's.

    ``accepts`` is False for architectures that the library does not have, although the shapes are the same.
    ``shape`` returns timm's shape of a tensor by timm's name, ``reorder`` its values in timm's order.
    ``padded_for`` is the side of the images for which the library fixes its padding; None where it has timm's.
    """

    name: str
    anchors: tuple[str, ...]
    rename: Callable[[Tensors], Names]
    accepts: Callable[[str], bool] = lambda _: True
    padded_for: Callable[[str], int | None] = lambda _: None
    changes: str = ""
    shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda _, shape: shape
    reorder: Callable[[str, torch.Tensor], torch.Tensor] | None = None

    def shaped(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in timm's shape and order."""
        wanted = self.shape(name, tuple(tensor.shape))
        tensor = tensor if wanted == tuple(tensor.shape) else tensor.reshape(wanted)
        return tensor if self.reorder is None else self.reorder(name, tensor)

    def accepted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of several architectures of the same shapes that the library can have."""
        return tuple(name for name in names if self.accepts(name)) or names

    def usual(self, names: tuple[str, ...]) -> str | None:
        """Return the one of several architectures that a network of this library is; None if that is not known."""
        plain = usual_name(names)
        if plain is not None or self.name not in _PLAIN_ONLY:
            return plain
        return min(names, key=len)


def _is_tensorflows(arch: str) -> bool:
    return arch.startswith("tf_efficientnet_")


def _is_not_tensorflows(arch: str) -> bool:
    return not arch.startswith("tf_") and "blur" not in arch


def _default_side(arch: str) -> int | None:
    match = re.match(r"tf_efficientnet_(b\d|l2)", arch)
    return _SIDES[match[1]] if match else None


# EfficientNets whose blocks are numbered through

_PARTS = {  # timm's names of the layers, in blocks that do not and that do expand their channels
    False: {"dw": "conv_dw", "bn_dw": "bn1", "project": "conv_pw", "bn_project": "bn2"},
    True: {
        "expand": "conv_pw",
        "bn_expand": "bn1",
        "dw": "conv_dw",
        "bn_dw": "bn2",
        "project": "conv_pwl",
        "bn_project": "bn3",
    },
}
_SQUEEZE = {"reduce": "se.conv_reduce", "widen": "se.conv_expand"}
_ENDS = {"stem": "conv_stem", "bn_stem": "bn1", "top": "conv_head", "bn_top": "bn2"}


@dataclass(frozen=True, slots=True)
class _BlockLayer:
    """A layer of an EfficientNet: ``block`` counts through all stages, None for stem and top."""

    role: str
    leaf: str
    block: int | None = None


def _rename_numbered_blocks(parts: Mapping[str, _BlockLayer]) -> Names:
    """Map layers to timm's names by the number of blocks, which tells how many each stage has."""
    blocks = 1 + max((part.block for part in parts.values() if part.block is not None), default=-1)
    stages = next((sizes for depth in _DEPTHS if sum(sizes := _stage_sizes(depth)) == blocks), None)
    if stages is None:
        return {}
    places = [(stage, block) for stage, size in enumerate(stages) for block in range(size)]
    expanding = {part.block for part in parts.values() if part.role == "expand"}
    names = {}
    for key, part in parts.items():
        if part.block is None:
            names[key] = f"{_ENDS[part.role]}.{part.leaf}"
            continue
        stage, block = places[part.block]
        name = _SQUEEZE.get(part.role) or _PARTS[part.block in expanding].get(part.role)
        if name is not None:
            names[key] = f"blocks.{stage}.{block}.{name}.{part.leaf}"
    return names


def _stage_sizes(depth: float) -> tuple[int, ...]:
    return tuple(math.ceil(depth * repeats) for repeats in _REPEATS)


def _matcher(ends: Mapping[str, str], blocks: str, roles: Mapping[str, str]) -> Callable[[Tensors], Names]:
    """Return a renaming for names such as ``<blocks>.<number>.<layer>.<leaf>``."""
    pattern = re.compile(rf"{blocks}\.(\d+)\.(.+)\.(\w+)")

    def rename(tensors: Tensors) -> Names:
        parts = {}
        for key in tensors:
            layer, _, leaf = key.rpartition(".")
            if layer in ends:
                parts[key] = _BlockLayer(ends[layer], leaf)
            elif (match := pattern.fullmatch(key)) and match[2] in roles:
                parts[key] = _BlockLayer(roles[match[2]], match[3], int(match[1]))
        return _rename_numbered_blocks(parts)

    return rename


_rename_efficientnet_pytorch = _matcher(
    {"_conv_stem": "stem", "_bn0": "bn_stem", "_conv_head": "top", "_bn1": "bn_top"},
    "_blocks",
    {
        "_expand_conv": "expand",
        "_bn0": "bn_expand",
        "_depthwise_conv": "dw",
        "_bn1": "bn_dw",
        "_se_reduce": "reduce",
        "_se_expand": "widen",
        "_project_conv": "project",
        "_bn2": "bn_project",
    },
)
_rename_hf_efficientnet = _matcher(
    {
        "embeddings.convolution": "stem",
        "embeddings.batchnorm": "bn_stem",
        "encoder.top_conv": "top",
        "encoder.top_bn": "bn_top",
    },
    r"encoder\.blocks",
    {
        "expansion.expand_conv": "expand",
        "expansion.expand_bn": "bn_expand",
        "depthwise_conv.depthwise_conv": "dw",
        "depthwise_conv.depthwise_norm": "bn_dw",
        "squeeze_excite.reduce": "reduce",
        "squeeze_excite.expand": "widen",
        "projection.project_conv": "project",
        "projection.project_bn": "bn_project",
    },
)
_MM_ROLES = {
    "expand_conv.conv": "expand",
    "expand_conv.bn": "bn_expand",
    "depthwise_conv.conv": "dw",
    "depthwise_conv.bn": "bn_dw",
    "se.conv1.conv": "reduce",
    "se.conv2.conv": "widen",
    "linear_conv.conv": "project",
    "linear_conv.bn": "bn_project",
}


def _rename_mmpretrain_efficientnet(tensors: Tensors) -> Names:
    """Map ``layers.<stage>.<block>.*``, where a stage of mmpretrain can be two of timm's."""
    matches = {key: re.fullmatch(r"layers\.(\d+)\.(\d+)\.(.+)\.(\w+)", key) for key in tensors}
    places = sorted({(int(m[1]), int(m[2])) for m in matches.values() if m and m[3] in _MM_ROLES})
    last = max((int(key.split(".")[1]) for key in tensors if re.match(r"layers\.\d+\.", key)), default=0)
    parts = {}
    for key, match in matches.items():
        layer, _, leaf = key.rpartition(".")
        ends = {
            "layers.0.conv": "stem",
            "layers.0.bn": "bn_stem",
            f"layers.{last}.conv": "top",
            f"layers.{last}.bn": "bn_top",
        }
        if match and match[3] in _MM_ROLES:
            parts[key] = _BlockLayer(_MM_ROLES[match[3]], leaf, places.index((int(match[1]), int(match[2]))))
        elif layer in ends:
            parts[key] = _BlockLayer(ends[layer], leaf)
    return _rename_numbered_blocks(parts)


# ResNets whose stem, and perhaps whose stages, were put into a Sequential


def _rename_grouped_resnet(tensors: Tensors) -> Names:
    """Map ``layer0`` or ``stem`` to ``conv1`` and ``bn1``, and a list of four stages to ``layer1`` to ``layer4``."""
    names = {}
    for key in tensors:
        if match := re.fullmatch(r"(layer0|stem)\.(0|conv1?)\.weight", key):
            names[key] = "conv1.weight"
        elif match := re.fullmatch(r"(layer0|stem)\.(1|bn1?|norm1?)\.(\w+)", key):
            names[key] = f"bn1.{match[3]}"
        elif match := re.fullmatch(r"(stages|layers|blocks|body)\.([0-3])\.(\d+\..+)", key):
            names[key] = f"layer{int(match[2]) + 1}.{match[3]}"
        else:
            names[key] = key
    return names


# torchvision


def _rename_torchvision(tensors: Tensors) -> Names:
    return rename_efficientnet(list(tensors))


def _rename_numbered_torchvision(tensors: Tensors) -> Names:
    """Map ``nn.Sequential(*efficientnet.children())``, whose first child are the features."""
    longer = {f"features.{key.removeprefix('0.')}": key for key in tensors if key.startswith("0.")}
    return {longer[key]: name for key, name in rename_efficientnet(list(longer)).items()}


# any network whose children were put into a Sequential


def number_children(children: Sequence[str], tensors: Tensors) -> Names:
    """Map the numbers of ``nn.Sequential(*network.children())`` to the names of the children."""
    names = {}
    for key in tensors:
        number, dot, rest = key.partition(".")
        if dot and is_count(number) and int(number) < len(children):
            names[key] = f"{children[int(number)]}.{rest}"
    return names


def _keep(tensors: Tensors) -> Names:
    return {key: key for key in tensors}


TIMM = Layout("timm", (), _keep)
LAYOUTS = (
    Layout(
        "torchvision",
        ("features.0.0.weight",),
        _rename_torchvision,
        _is_not_tensorflows,
        changes="features.* to conv_stem, blocks.* and conv_head",
    ),
    Layout(
        "torchvision",
        ("0.0.0.weight",),
        _rename_numbered_torchvision,
        _is_not_tensorflows,
        changes="0.* to conv_stem, blocks.* and conv_head",
    ),
    Layout(
        "torchvision",
        ("features.0.0.weight",),
        rename_features,
        _is_not_tensorflows,
        changes="features.* to timm's stem, stages, layers or blocks",
        shape=timms_shape,
    ),
    Layout(
        "torchvision",
        ("conv_proj.weight",),
        rename_vit,
        changes="conv_proj and encoder.* to patch_embed and blocks.*",
    ),
    Layout(
        "torchvision",
        ("stem.0.weight",),
        rename_regnet,
        changes="trunk_output.* to s1.* to s4.*",
    ),
    Layout(
        "efficientnet_pytorch",
        ("_conv_stem.weight",),
        _rename_efficientnet_pytorch,
        _is_tensorflows,
        _default_side,
        changes="_conv_stem, _blocks.* and _conv_head to conv_stem, blocks.* and conv_head",
    ),
    Layout(
        "transformers",
        ("embedder.embedder.convolution.weight",),
        rename_hf_resnet,
        changes="embedder.* and encoder.stages.* to conv1, bn1 and layer1 to layer4",
    ),
    Layout(
        "transformers",
        ("embeddings.convolution.weight",),
        _rename_hf_efficientnet,
        _is_tensorflows,
        lambda _: _ALWAYS_EVEN,  # it pads as for even sides, whatever they are
        changes="embeddings.* and encoder.* to conv_stem, blocks.* and conv_head",
    ),
    Layout(
        "transformers",
        ("embeddings.patch_embeddings.projection.weight",),
        rename_hf_vit,
        changes="embeddings.* and encoder.layer.* to patch_embed and blocks.*",
    ),
    Layout(
        "transformers",
        ("embeddings.patch_embeddings.projection.weight",),
        rename_hf_swin,
        changes="embeddings.* and encoder.layers.* to patch_embed and layers.*",
    ),
    Layout(
        "transformers",
        ("embeddings.patch_embeddings.projection.weight",),
        rename_hf_beit,
        changes="embeddings.* and the layers to patch_embed and blocks.*",
    ),
    Layout(
        "transformers",
        ("embeddings.patch_embeddings.weight",),
        rename_convnext,
        changes="embeddings.* and encoder.stages.* to stem and stages.*",
        shape=convnext_shape,
    ),
    Layout(
        "facebookresearch/ConvNeXt or mmpretrain",
        ("downsample_layers.0.0.weight",),
        rename_convnext,
        changes="downsample_layers.* and stages.* to stem and stages.*",
        shape=convnext_shape,
    ),
    Layout(
        "mmpretrain",
        ("patch_embed.projection.weight",),
        rename_mmpretrain_vit,
        changes="layers.* to blocks.*",
    ),
    Layout(
        "mmpretrain",
        ("patch_embed.projection.weight",),
        rename_mmpretrain_swin,
        changes="stages.* to layers.*, with the channels of the patch merging in timm's order",
        reorder=reorder_patch_merging,
    ),
    Layout(
        "nn.Sequential",
        ("layer0.0.weight", "stem.0.weight", "stem.conv.weight", "stem.conv1.weight"),
        _rename_grouped_resnet,
        changes="the stem and the stages to conv1, bn1 and layer1 to layer4",
    ),
    Layout(
        "mmpretrain",
        ("layers.0.conv.weight",),
        _rename_mmpretrain_efficientnet,
        _is_tensorflows,
        changes="layers.* to conv_stem, blocks.* and conv_head",
    ),
)
