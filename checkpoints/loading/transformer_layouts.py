"""Map the names of ViT, DeiT, BEiT, Swin and ConvNeXt in transformers, mmpretrain and their first code to timm's.

Sources: transformers models/{vit,deit,beit,swin,convnext,convnextv2}/modeling_*.py and their
convert_*_timm_to_pytorch.py; transformers 5 has other names in memory (``layers.*.attention.q_proj``) than in the files
of ``save_pretrained`` (``encoder.layer.*.attention.attention.query``). facebookresearch/ConvNeXt models/convnext.py;
mmpretrain/models/backbones/{vision_transformer,convnext,swin_transformer}.py and models/utils/embed.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from checkpoints.loading.torchvision_layouts import substitute

if TYPE_CHECKING:
    import torch

_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.qkv": "attn.qkv",
    "attention.self.qkv": "attn.qkv",
    "attention.qkv": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VIT = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"layernorm\.(\w+)": r"norm.\1",
}
_BEIT = {
    r"pooler\.layernorm\.(\w+)": r"fc_norm.\1",
    r"(?:encoder\.layer|layers)\.(\d+)\.lambda_([12])": r"blocks.\1.gamma_\2",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?q(?:uery|_proj)\.bias": r"blocks.\1.attn.q_bias",
    r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?v(?:alue|_proj)\.bias": r"blocks.\1.attn.v_bias",
    r"(?:encoder\.layer|layers)\.(\d+)\..*relative_position_bias_table": r"blocks.\1.attn.relative_position_bias_table",
}
_SWIN = {
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"embeddings\.norm\.(\w+)": r"patch_embed.norm.\1",
    r"layernorm\.(\w+)": r"norm.\1",
}
_SWIN_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)\.(\w+)")
_TABLES = (
    "attention.self.relative_position_bias_table",
    "attention.relative_position_bias.relative_position_bias_table",
)


def _blocks(keys: Iterable[str]) -> dict[str, str]:
    names = {}
    for key in keys:
        match = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(\w+)", key)
        if match and match[2] in _BLOCK:
            names[key] = f"blocks.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"
    return names


def rename_hf_vit(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of transformers' ViT and DeiT, whose queries, keys and values were joined."""
    listed = list(keys)
    return substitute(_VIT, listed) | _blocks(listed)


def rename_hf_beit(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of transformers' BEiT, whose keys have no bias and whose pooler averages the tokens."""
    listed = list(keys)
    return substitute(_VIT | _BEIT, listed) | _blocks(listed)


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
            elif f"{layer}.{leaf}" in _TABLES:
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
    """Return timm's shape of the response normalization's weights, which others keep as (1, 1, 1, channels)."""
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


_MM_SWIN = {
    r"patch_embed\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"patch_embed\.norm\.(\w+)": r"patch_embed.norm.\1",
    r"stages\.(\d)\.blocks\.(\d+)\.norm([12])\.(\w+)": r"layers.\1.blocks.\2.norm\3.\4",
    r"stages\.(\d)\.blocks\.(\d+)\.attn\.w_msa\.(qkv|proj)\.(\w+)": r"layers.\1.blocks.\2.attn.\3.\4",
    r"stages\.(\d)\.blocks\.(\d+)\.attn\.w_msa\.(relative_position_bias_table)": r"layers.\1.blocks.\2.attn.\3",
    r"stages\.(\d)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.(\w+)": r"layers.\1.blocks.\2.mlp.fc1.\3",
    r"stages\.(\d)\.blocks\.(\d+)\.ffn\.layers\.1\.(\w+)": r"layers.\1.blocks.\2.mlp.fc2.\3",
    r"norm3\.(\w+)": r"norm.\1",
}


def rename_mmpretrain_swin(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of mmpretrain's Swin: its stages end in the merging of patches with which timm's begin."""
    names = substitute(_MM_SWIN, listed := list(keys))
    for key in listed:
        if match := re.fullmatch(r"stages\.(\d)\.downsample\.(norm|reduction)\.(\w+)", key):
            names[key] = f"layers.{int(match[1]) + 1}.downsample.{match[2]}.{match[3]}"
    return names


def reorder_patch_merging(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the weights of mmpretrain's patch merging, ``torch.nn.Unfold``'s order of channels, in timm's.

    The four pixels of a patch follow each other in every channel there, row by row; timm has all channels of a pixel
    together, column by column.
    """
    if ".downsample." not in name:
        return tensor
    patches = tensor.reshape(*tensor.shape[:-1], tensor.shape[-1] // 4, 2, 2)
    return patches.transpose(-3, -1).reshape(tensor.shape)


def rename_hf_resnet(keys: Iterable[str]) -> dict[str, str]:
    """Map the names of transformers' ResNet."""
    ends = {"convolution": "conv", "normalization": "bn"}
    names = {}
    for key in keys:
        if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", key):
            names[key] = f"{ends[match[1]]}1.{match[2]}"
        elif match := re.fullmatch(
            r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(convolution|normalization)\.(\w+)", key
        ):
            stage, block, number, kind, leaf = match.groups()
            names[key] = f"layer{int(stage) + 1}.{block}.{ends[kind]}{int(number) + 1}.{leaf}"
        elif match := re.fullmatch(
            r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)", key
        ):
            stage, block, kind, leaf = match.groups()
            names[key] = f"layer{int(stage) + 1}.{block}.downsample.{int(kind == 'normalization')}.{leaf}"
    return names
