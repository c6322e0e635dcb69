"""Map torchvision's names of ConvNeXt, MobileNet, RegNet, Swin and ViT to timm's, one to one.

Sources: torchvision/models/{convnext,mobilenetv2,mobilenetv3,regnet,swin_transformer,vision_transformer}.py and the
files of the same names in timm/models. DenseNets have the same names in both. timm keeps other values for Swin v2 (the
biases of queries and values apart), and has no equal of ShuffleNet, SqueezeNet, AlexNet and GoogLeNet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

# MobileNets: the blocks of each stage of timm
_V2_STAGES = (1, 2, 3, 4, 3, 3, 1)
_V3_STAGES = {15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3)}  # large and small, by the number of blocks


def substitute(patterns: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    """Return the names that one of ``patterns`` matches, with its replacement."""
    compiled = [(re.compile(pattern), new) for pattern, new in patterns.items()]
    names = {}
    for key in keys:
        for pattern, new in compiled:
            if pattern.fullmatch(key):
                names[key] = pattern.sub(new, key)
                break
    return names


# ViT

_VIT = {
    r"class_token": "cls_token",
    r"conv_proj\.(\w+)": r"patch_embed.proj.\1",
    r"encoder\.pos_embedding": "pos_embed",
    r"encoder\.ln\.(\w+)": r"norm.\1",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)": r"blocks.\1.attn.qkv.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"heads\.head\.(\w+)": r"head.\1",
}


def rename_vit(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of torchvision's ViT."""
    return substitute(_VIT, keys)


# RegNet

_REGNET = {
    r"stem\.0\.(\w+)": r"stem.conv.\1",
    r"stem\.1\.(\w+)": r"stem.bn.\1",
    r"fc\.(\w+)": r"head.fc.\1",
}
_REGNET_BLOCK = re.compile(r"trunk_output\.block(\d)\.block\d-(\d+)\.(proj|f\.[abc]|f\.se)\.(\w+)\.(\w+)")
_REGNET_LAYERS = {"proj": "downsample", "f.a": "conv1", "f.b": "conv2", "f.c": "conv3", "f.se": "se"}


def rename_regnet(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of torchvision's RegNet."""
    names = {}
    for key in keys:
        if match := _REGNET_BLOCK.fullmatch(key):
            stage, block, layer, part, leaf = match.groups()
            end = {"0": "conv", "1": "bn"}.get(part, part)
            names[key] = f"s{stage}.b{int(block) + 1}.{_REGNET_LAYERS[layer]}.{end}.{leaf}"
        else:
            names |= substitute(_REGNET, [key])
    return names


# ConvNeXt and Swin: stages and what is between them are numbered alternately


def _stage(number: str) -> int:
    return (int(number) - 1) // 2


_CONVNEXT_BLOCK = re.compile(r"features\.(\d+)\.(\d+)\.(?:block\.([0235])\.(\w+)|(layer_scale))")
_CONVNEXT_LAYERS = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}


def _rename_convnext(keys: Iterable[str]) -> dict[str, str]:
    names = {}
    for key in keys:
        if match := _CONVNEXT_BLOCK.fullmatch(key):
            number, block, layer, leaf, scale = match.groups()
            end = "gamma" if scale else f"{_CONVNEXT_LAYERS[layer]}.{leaf}"
            names[key] = f"stages.{_stage(number)}.blocks.{block}.{end}"
        elif match := re.fullmatch(r"features\.([2468])\.([01])\.(\w+)", key):
            names[key] = f"stages.{int(match[1]) // 2}.downsample.{match[2]}.{match[3]}"
        elif match := re.fullmatch(r"features\.0\.([01])\.(\w+)", key):
            names[key] = f"stem.{match[1]}.{match[2]}"
        elif match := re.fullmatch(r"classifier\.([02])\.(\w+)", key):
            names[key] = f"head.{'norm' if match[1] == '0' else 'fc'}.{match[2]}"
    return names


_SWIN_BLOCK = re.compile(r"features\.(\d+)\.(\d+)\.(norm[12]|attn|mlp\.[03])\.(.+)")


def _rename_swin(keys: Iterable[str]) -> dict[str, str]:
    names = {}
    for key in keys:
        if match := _SWIN_BLOCK.fullmatch(key):
            number, block, layer, rest = match.groups()
            layer = {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}.get(layer, layer)
            names[key] = f"layers.{_stage(number)}.blocks.{block}.{layer}.{rest}"
        elif match := re.fullmatch(r"features\.([246])\.(reduction|norm)\.(\w+)", key):
            names[key] = f"layers.{int(match[1]) // 2}.downsample.{match[2]}.{match[3]}"
        elif match := re.fullmatch(r"features\.0\.([02])\.(\w+)", key):
            names[key] = f"patch_embed.{'proj' if match[1] == '0' else 'norm'}.{match[2]}"
        elif match := re.fullmatch(r"(norm|head)\.(\w+)", key):
            names[key] = f"{'norm' if match[1] == 'norm' else 'head.fc'}.{match[2]}"
    return names


# MobileNets: blocks are numbered through

_V2_BLOCK = re.compile(r"features\.(\d+)\.conv\.(\d)\.(?:([01])\.)?(\w+)")
_V3_BLOCK = re.compile(r"features\.(\d+)\.block\.(\d)\.(0|1|fc1|fc2)\.(\w+)")
# the layers of a block by their number, with the convolution and normalization of each in timm
_EXPANDED = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
_NOT_EXPANDED = (("conv_dw", "bn1"), ("conv_pw", "bn2"))


def _places(stages: Iterable[int]) -> list[str]:
    return [f"blocks.{stage}.{block}" for stage, size in enumerate(stages) for block in range(size)]


def _rename_mobilenet_v2(keys: Iterable[str]) -> dict[str, str]:
    names = {}
    places = _places(_V2_STAGES)
    for key in keys:
        if match := _V2_BLOCK.fullmatch(key):
            number, layer, part, leaf = match.groups()
            parts = _NOT_EXPANDED if number == "1" else _EXPANDED
            # the last convolution and its normalization are no pair in a Sequential of their own
            index, is_norm = (int(layer), part == "1") if part else (len(parts) - 1, int(layer) == len(parts))
            if int(number) <= len(places) and index < len(parts):
                names[key] = f"{places[int(number) - 1]}.{parts[index][is_norm]}.{leaf}"
        elif match := re.fullmatch(r"features\.(0|18)\.([01])\.(\w+)", key):
            ends = ("conv_stem", "bn1") if match[1] == "0" else ("conv_head", "bn2")
            names[key] = f"{ends[int(match[2])]}.{match[3]}"
        elif match := re.fullmatch(r"classifier\.1\.(\w+)", key):
            names[key] = f"classifier.{match[1]}"
    return names


def _rename_mobilenet_v3(keys: Iterable[str]) -> dict[str, str]:
    listed = list(keys)
    parts: dict[str, set[str]] = {}
    squeezing: dict[str, str] = {}
    for key in listed:
        if match := _V3_BLOCK.fullmatch(key):
            if match[3].startswith("fc"):
                squeezing[match[1]] = match[2]
            else:
                parts.setdefault(match[1], set()).add(match[2])
    places = _places(_V3_STAGES.get(len(parts), ()))
    names = {}
    for key in listed:
        if (match := _V3_BLOCK.fullmatch(key)) and len(places) == len(parts):
            number, part, layer, leaf = match.groups()
            place = places[int(number) - 1]
            if layer.startswith("fc"):
                names[key] = f"{place}.se.{'conv_reduce' if layer == 'fc1' else 'conv_expand'}.{leaf}"
                continue
            pairs = _EXPANDED if len(parts[number]) == 3 else _NOT_EXPANDED
            index = sorted(parts[number]).index(part)
            names[key] = f"{place}.{pairs[index][int(layer)]}.{leaf}"
        elif match := re.fullmatch(r"features\.(\d+)\.([01])\.(\w+)", key):
            last = f"blocks.{5 if len(parts) == 11 else 6}.0"
            ends = ("conv_stem", "bn1") if match[1] == "0" else (f"{last}.conv", f"{last}.bn1")
            names[key] = f"{ends[int(match[2])]}.{match[3]}"
        elif match := re.fullmatch(r"classifier\.([03])\.(\w+)", key):
            names[key] = f"{'conv_head' if match[1] == '0' else 'classifier'}.{match[2]}"
    return names


_KINDS: tuple[tuple[re.Pattern[str], Callable[[Iterable[str]], dict[str, str]]], ...] = (
    (re.compile(r"features\.\d+\.\d+\.layer_scale"), _rename_convnext),
    (re.compile(r"features\.\d+\.\d+\.attn\.relative_position_bias_table"), _rename_swin),
    (re.compile(r"features\.\d+\.conv\.0\.0\.weight"), _rename_mobilenet_v2),
    (re.compile(r"features\.\d+\.block\.0\.0\.weight"), _rename_mobilenet_v3),
)


def rename_features(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of torchvision's networks that begin with ``features``: ConvNeXt, Swin and MobileNet."""
    listed = list(keys)
    rename = next((rename for pattern, rename in _KINDS if any(map(pattern.fullmatch, listed))), None)
    return {} if rename is None else rename(listed)


def timms_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return timm's shape of a tensor: scales of channels are vectors, and one layer a convolution."""
    if name.endswith(".gamma") and shape[1:] == (1, 1):
        return shape[:1]
    return (*shape, 1, 1) if name == "conv_head.weight" and len(shape) == 2 else shape
