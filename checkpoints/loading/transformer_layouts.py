"""Map the names of ViT, DeiT, Swin and ConvNeXt in transformers, mmpretrain and their first code to timm's.

Sources: transformers models/{vit,deit,swin,convnext,convnextv2}/modeling_*.py and their convert_*_timm_to_pytorch.py;
facebookresearch/ConvNeXt models/convnext.py; mmpretrain/models/backbones/{vision_transformer,convnext}.py. mmpretrain's
Swin orders the channels of its patch merging otherwise, and is not mapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from checkpoints.loading.torchvision_layouts import substitute

_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.qkv": "attn.qkv",
    "attention.self.qkv": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_VIT = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"layernorm\.(\w+)": r"norm.\1",
}
_SWIN = {
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"embeddings\.norm\.(\w+)": r"patch_embed.norm.\1",
    r"layernorm\.(\w+)": r"norm.\1",
}
_SWIN_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)\.(\w+)")
_TABLE = "attention.self.relative_position_bias_table"


def _blocks(keys: Iterable[str]) -> dict[str, str]:
    names = {}
    for key in keys:
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", key)
        if match and match[2] in _BLOCK:
            names[key] = f"blocks.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"
    return names


def rename_hf_vit(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of transformers' ViT and DeiT, whose queries, keys and values were joined."""
    listed = list(keys)
    return substitute(_VIT, listed) | _blocks(listed)


def rename_hf_swin(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of transformers' Swin: its stages end in the merging of patches with which timm's begin."""
    names = substitute(_SWIN, listed := list(keys))
    for key in listed:
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)", key):
            names[key] = f"layers.{int(match[1]) + 1}.downsample.{match[2]}.{match[3]}"
        elif match := _SWIN_BLOCK.fullmatch(key):
            stage, block, layer, leaf = match.groups()
            start = f"layers.{stage}.blocks.{block}"
            if layer in _BLOCK:
                names[key] = f"{start}.{_BLOCK[layer]}.{leaf}"
            elif f"{layer}.{leaf}" == _TABLE:
                names[key] = f"{start}.attn.relative_position_bias_table"
    return names


_CONVNEXT_LAYERS: Mapping[str, str] = {
    **dict.fromkeys(("dwconv", "depthwise_conv"), "conv_dw"),
    **dict.fromkeys(("norm", "layernorm"), "norm"),
    **dict.fromkeys(("pwconv1", "pointwise_conv1"), "mlp.fc1"),
    **dict.fromkeys(("pwconv2", "pointwise_conv2"), "mlp.fc2"),
    "grn": "mlp.grn",
}
_CONVNEXT_LEAVES = {"gamma": "weight", "beta": "bias"}
_HF_CONVNEXT = {
    r"embeddings\.patch_embeddings\.(\w+)": r"stem.0.\1",
    r"embeddings\.layernorm\.(\w+)": r"stem.1.\1",
    r"encoder\.stages\.(\d)\.downsampling_layer\.([01])\.(\w+)": r"stages.\1.downsample.\2.\3",
    r"layernorm\.(\w+)": r"head.norm.\1",
}
_FIRST_CONVNEXT = {
    r"downsample_layers\.0\.([01])\.(\w+)": r"stem.\1.\2",
    r"downsample_layers\.([123])\.([01])\.(\w+)": r"stages.\1.downsample.\2.\3",
    r"norm3?\.(\w+)": r"head.norm.\1",
    r"head\.(\w+)": r"head.fc.\1",
}
_CONVNEXT_BLOCK = re.compile(r"(?:encoder\.)?stages\.(\d)\.(?:layers\.)?(\d+)\.(?:(\w+)\.)?(\w+)")


def rename_convnext(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of transformers' and mmpretrain's ConvNeXt and of its first code, of both versions."""
    names = substitute(_HF_CONVNEXT | _FIRST_CONVNEXT, listed := list(keys))
    for key in listed:
        match = _CONVNEXT_BLOCK.fullmatch(key)
        if key in names or match is None:
            continue
        stage, block, layer, leaf = match.groups()
        if layer is None and leaf in {"gamma", "layer_scale_parameter"}:
            names[key] = f"stages.{stage}.blocks.{block}.gamma"
        elif layer in _CONVNEXT_LAYERS:
            names[key] = f"stages.{stage}.blocks.{block}.{_CONVNEXT_LAYERS[layer]}.{_CONVNEXT_LEAVES.get(leaf, leaf)}"
    return names


def convnext_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return timm's shape of the response normalisation's weights, which others keep as (1, 1, 1, channels)."""
    return shape[-1:] if ".grn." in name else shape


_MM_VIT = {
    r"(cls_token|pos_embed)": r"\1",
    r"patch_embed\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"layers\.(\d+)\.ln([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"layers\.(\d+)\.attn\.(qkv|proj)\.(\w+)": r"blocks.\1.attn.\2.\3",
    r"layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"layers\.(\d+)\.ffn\.layers\.1\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"ln1\.(\w+)": r"norm.\1",
}


def rename_mmpretrain_vit(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of mmpretrain's ViT."""
    return substitute(_MM_VIT, keys)
