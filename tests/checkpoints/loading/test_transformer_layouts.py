"""ViT, DeiT, Swin and ConvNeXt under the names of transformers, mmpretrain and their first code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import PatchMerging

from checkpoints.loading.architectures import describe
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.loading.transformer_layouts import (
    rename_hf_beit,
    rename_hf_swin,
    rename_mmpretrain_swin,
    reorder_patch_merging,
)
from ensemble.errors import EnsError
from ensemble.events import Recorder
from tests.support.user_networks import State, prefixed, settle, state_of
from tests.support.weights import save

pytestmark = pytest.mark.slow

# timm's names to another library's, as transformers' convert_*_timm_to_pytorch.py turn them
_VIT_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def split_attention(state: State, start: str) -> State:
    """Split each ``qkv`` into query, key and value below ``start``."""
    parts: State = {}
    for key, tensor in state.items():
        if ".attn.qkv." in key:
            names = [key.replace("attn.qkv", f"{start}.{part}") for part in ("query", "key", "value")]
            parts |= dict(zip(names, tensor.chunk(3), strict=True))
        else:
            parts[key] = tensor
    return parts


def renamed(state: State, patterns: Mapping[str, str]) -> State:
    found = {}
    for key, tensor in state.items():
        name = key
        for pattern, new in patterns.items():
            name = re.sub(f"^{pattern}", new, name)
        found[name] = tensor
    return found


def hf_vit(state: State) -> State:
    blocks = {rf"blocks\.(\d+)\.{re.escape(old)}\.": rf"encoder.layer.\1.{new}." for old, new in _VIT_BLOCK.items()}
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        r"patch_embed\.proj": "embeddings.patch_embeddings.projection",
        r"norm\.": "layernorm.",
        r"blocks\.(\d+)\.attention": r"encoder.layer.\1.attention",
    }
    whole = renamed(split_attention(state, "attention.attention"), blocks | names)
    return {
        key.replace("head.", "classifier.") if key.startswith("head.") else f"vit.{key}": t for key, t in whole.items()
    }


def mm_vit(state: State) -> State:
    names = {
        r"patch_embed\.proj\.": "patch_embed.projection.",
        r"blocks\.(\d+)\.norm(\d)": r"layers.\1.ln\2",
        r"blocks\.(\d+)\.mlp\.fc1": r"layers.\1.ffn.layers.0.0",
        r"blocks\.(\d+)\.mlp\.fc2": r"layers.\1.ffn.layers.1",
        r"blocks\.": "layers.",
        r"norm\.": "ln1.",
    }
    whole = renamed(state, names)
    return {f"head.layers.{k}" if k.startswith("head.") else f"backbone.{k}": tensor for k, tensor in whole.items()}


def convnext(state: State, *, stem: str, last: str, layers: Mapping[str, str], between: str, block: str) -> State:
    names = {
        r"stem\.0\.": f"{stem}.0." if stem.startswith("downsample") else "embeddings.patch_embeddings.",
        r"stem\.1\.": f"{stem}.1." if stem.startswith("downsample") else "embeddings.layernorm.",
        r"stages\.(\d)\.downsample": between,
        r"head\.norm": last,
        r"head\.fc": "head" if stem.startswith("downsample") else "classifier",
        **{rf"stages\.(\d)\.blocks\.(\d+)\.{re.escape(old)}\b": rf"{block}.{new}" for old, new in layers.items()},
    }
    found = {}
    for key, tensor in renamed(state, names).items():
        is_linear = "pw" in key and tensor.ndim == 4
        is_grn = key.endswith(("grn.weight", "grn.bias"))
        shaped = tensor.flatten(1) if is_linear else tensor.reshape(1, 1, 1, -1) if is_grn else tensor
        found[key.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta") if last == "norm" else key] = (
            shaped
        )
    return found


def hf_convnext(state: State) -> State:
    layers = {"conv_dw": "dwconv", "norm": "layernorm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2", "mlp.grn": "grn"}
    return convnext(
        state,
        stem="embeddings",
        last="layernorm",
        layers=layers | {"gamma": "layer_scale_parameter"},
        between=r"encoder.stages.\1.downsampling_layer",
        block=r"encoder.stages.\1.layers.\2",
    )


def first_convnext(state: State) -> State:
    layers = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2", "mlp.grn": "grn", "norm": "norm"}
    return convnext(
        state,
        stem="downsample_layers.0",
        last="norm",
        layers=layers | {"gamma": "gamma"},
        between=r"downsample_layers.\1",
        block=r"stages.\1.\2",
    )


def in_memory(state: State) -> State:
    """Return the names of transformers 5 in memory, which differ from those in the files it writes."""
    names = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    found = {}
    for key, tensor in state.items():
        name = key
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


def hf_beit(state: State) -> State:
    """Return BEiT's names in the files of transformers: keys have no bias, the pooler has the last normalization."""
    whole = {}
    for key, tensor in hf_vit({k: t for k, t in state.items() if not k.endswith(("q_bias", "v_bias"))}).items():
        name = key.replace("vit.", "beit.", 1).replace("beit.fc_norm", "beit.pooler.layernorm")
        name = re.sub(r"beit\.blocks\.(\d+)\.gamma_", r"beit.encoder.layer.\1.lambda_", name)
        table = "attention.attention.relative_position_bias.relative_position_bias_table"
        name = re.sub(
            r"beit\.blocks\.(\d+)\.attn\.relative_position_bias_table", rf"beit.encoder.layer.\1.{table}", name
        )
        whole[name] = tensor
    for key, tensor in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.([qv])_bias", key):
            part = {"q": "query", "v": "value"}[match[2]]
            whole[f"beit.encoder.layer.{match[1]}.attention.attention.{part}.bias"] = tensor
    return whole


LIBRARIES: dict[str, tuple[str, Callable[[State], State]]] = {
    "ViT of transformers": ("test_vit", hf_vit),
    "ViT of transformers 5 in memory": ("test_vit", lambda state: in_memory(hf_vit(state))),
    "ViT of mmpretrain": ("test_vit", mm_vit),
    "ConvNeXt of transformers": ("test_convnext", hf_convnext),
    "ConvNeXt V2 of transformers": ("test_convnext2", hf_convnext),
    "ConvNeXt of its first code": ("test_convnext", first_convnext),
    "ConvNeXt V2 of its first code": ("test_convnext2", first_convnext),
}


def network(arch: str, **options: Any) -> Any:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 64} if "vit" in arch else {}
    return settle(timm.create_model(arch, num_classes=5, **size, **options)).eval()


def assert_equal(path: Path, user: Any, **options: Any) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = build_model(open_checkpoint(path, **options))(images), user(images)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("library", LIBRARIES)
def test_networks_of_other_libraries_give_their_own_logits(tmp_path: Path, library: str) -> None:
    """A network under another library's names opens as timm's equal, with its logits."""
    arch, rename = LIBRARIES[library]
    user = network(arch)
    state = rename(state_of(user))
    assert not state.keys() & {key for key in state_of(user) if key.startswith(("blocks.", "stages.0.blocks"))}
    assert_equal(save(tmp_path / "a.pth", {"model": state}), user, arch=arch)


@pytest.mark.parametrize("rename", [hf_beit, lambda state: in_memory(hf_beit(state))])
def test_every_tensor_of_transformers_beit_has_one_of_timms(rename: Callable[[State], State]) -> None:
    """The names of BEiT are mapped one to one, in files and in memory, but for the parts that are joined to qkv."""
    shapes = {key: torch.empty(1) for key in describe("beit_base_patch16_224").body}
    shapes = {key: tensor.expand(3) if ".attn.qkv." in key else tensor for key, tensor in shapes.items()}
    keys = [re.sub(r"\.(attention\.query|q_proj)\.weight", r".\1.weight", key) for key in rename(shapes)]
    merged = [key for key in keys if not re.search(r"\.(key|value|k_proj|v_proj)\.weight", key)]
    merged = [re.sub(r"attention\.query\.weight|q_proj\.weight", "qkv.weight", key) for key in merged]
    merged = [key.replace("attention.attention.qkv", "attention.attention.qkv").removeprefix("beit.") for key in merged]
    assert set(rename_hf_beit(merged).values()) == set(shapes)


def test_patch_merging_of_mmpretrain_is_reordered() -> None:
    """The weights in ``torch.nn.Unfold``'s order, reordered, do on timm's patches what they did on Unfold's."""
    generator = torch.Generator().manual_seed(0)
    maps, weight = torch.randn(1, 6, 8, 8, generator=generator), torch.randn(5, 24, generator=generator)
    unfolded = torch.nn.Unfold(kernel_size=2, stride=2)(maps).transpose(1, 2)
    merging = PatchMerging(6, norm_layer=torch.nn.Identity)
    merging.reduction = torch.nn.Linear(24, 5, bias=False)
    merging.reduction.weight.data = reorder_patch_merging("layers.1.downsample.reduction.weight", weight)
    found = merging(maps.permute(0, 2, 3, 1)).flatten(1, 2)
    assert torch.allclose(found, unfolded @ weight.T, atol=1e-5)
    affine = torch.randn(24, generator=generator)
    rows = reorder_patch_merging("layers.1.downsample.norm.weight", affine)
    assert torch.equal(
        reorder_patch_merging("layers.1.downsample.x.weight", weight * affine), merging.reduction.weight * rows
    )
    assert reorder_patch_merging("layers.1.blocks.0.norm1.weight", affine) is affine


def test_every_tensor_of_mmpretrain_swin_has_one_of_timms() -> None:
    """The names of mmpretrain's Swin are mapped one to one, as in its swin_transformer.py."""
    body = {key for key in describe("swin_tiny_patch4_window7_224").body if not key.startswith("head.")}
    names = {}
    for key in body:
        name = key.replace("layers.", "stages.", 1).replace("patch_embed.proj", "patch_embed.projection")
        name = (
            name.replace("mlp.fc1", "ffn.layers.0.0")
            .replace("mlp.fc2", "ffn.layers.1")
            .replace(".attn.", ".attn.w_msa.")
        )
        name = re.sub(r"^norm\.", "norm3.", name)
        if match := re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", key):
            name = f"stages.{int(match[1]) - 1}.downsample.{match[2]}"
        names[name] = key
    assert rename_mmpretrain_swin(names) == names


def test_every_tensor_of_transformers_swin_has_one_of_timms() -> None:
    """The names of Swin are mapped one to one: each stage's merging of patches becomes the next stage's first layer."""
    body = {key for key in describe("swin_tiny_patch4_window7_224").body if not key.startswith("head.")}
    block = _VIT_BLOCK | {"attn.qkv": "attention.self.qkv", "attn": "attention.self"}
    names = {}
    for key in body:
        name = key
        if match := re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", key):
            name = f"encoder.layers.{int(match[1]) - 1}.downsample.{match[2]}"
        elif match := re.fullmatch(
            r"layers\.(\d)\.blocks\.(\d+)\.(.+?)\.(weight|bias|relative_position_bias_table)", key
        ):
            name = f"encoder.layers.{match[1]}.blocks.{match[2]}.{block[match[3]]}.{match[4]}"
        elif key.startswith("patch_embed."):
            name = key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection").replace(
                "patch_embed.norm", "embeddings.norm"
            )
        else:
            name = key.replace("norm.", "layernorm.")
        names[name] = key
    assert rename_hf_swin(names) == names


@pytest.mark.parametrize("given", ["test_vit", None])
def test_a_vision_transformer_that_averages_its_tokens_is_told_by_its_names(tmp_path: Path, given: str | None) -> None:
    """MAE's fine-tuning saves ``fc_norm`` and no ``norm``: timm builds such a network with global_pool=avg."""
    user, said = network("test_vit", global_pool="avg"), Recorder()
    content = {"model": state_of(user), "args": {"model": "test_vit", "global_pool": True}}
    path = save(tmp_path / "a.pth", content)
    assert_equal(path, user, arch=given, listener=said)
    assert any("global_pool=avg" in notice.message for notice in said.notices)


def test_images_of_other_channels_are_refused_with_a_sentence(tmp_path: Path) -> None:
    """A network of one channel that is given three raises E451, not an error of torch."""
    user = settle(timm.create_model("test_resnet", num_classes=5, in_chans=1))
    model = build_model(open_checkpoint(save(tmp_path / "a.pth", prefixed("m.", state_of(user))), arch="test_resnet"))
    with pytest.raises(EnsError, match="E451"):
        model(torch.zeros(1, 3, 64, 64))
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 5)
