"""Merge weights that a training keeps in parts: pruned, normalized by their length, with low-rank updates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from checkpoints.loading.lora import LoraScale, merge_lora, restore_saved_modules
from ensemble.errors import ModelError

_PARAMETRIZED = re.compile(r"(?P<layer>.*?)\.?parametrizations\.(?P<leaf>\w+)\.(?P<part>original[01]?|\d+\..+)")
_QUERY = re.compile(r"(.*\.)?attention\.((attention|self)\.query|q_proj)\.(weight|bias)")
_PARTS = {"query": ("query", "key", "value"), "q_proj": ("q_proj", "k_proj", "v_proj")}
_QUANTIZED = re.compile(r".*(\.|^)(_packed_params(\._packed_params|\.dtype)?|zero_point|quant_state.*|qweight|SCB)")


@dataclass(slots=True)
class Merged:
    """Tensors with every weight whole, and one sentence per kind of merge."""

    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)


def merge_parts(tensors: Mapping[str, torch.Tensor], path: Path, *, scale: LoraScale | None = None) -> Merged:
    """Return the weights as the network uses them.

    - ``weight_orig * weight_mask``: torch.nn.utils.prune
    - ``weight_g * weight_v / |weight_v|``: weight_norm, also as ``parametrizations.weight.original0`` and ``1``
    - ``weight_orig / (u W v)``: spectral_norm
    - ``weight + scale * B @ A``: LoRA, whose ``scale`` no tensor tells
    - queries, keys and values of transformers' attention, which timm keeps in one tensor

    Raises:
        ModelError: E417 for quantized weights, and for parts that cannot be merged.
    """
    quantized = next((key for key in tensors if _QUANTIZED.fullmatch(key)), None)
    if quantized is not None:
        raise ModelError(
            "E417",
            f"{path.name} holds quantized weights ({quantized})",
            hint="save the float32 weights that were quantized, and export them with --precision int8",
            path=path,
        )
    merged = Merged(dict(tensors))
    _merge_parametrizations(merged, path)
    _merge_pruned(merged)
    _merge_weight_norm(merged)
    _merge_spectral_norm(merged, path)
    merged.tensors, notes = restore_saved_modules(merged.tensors, path)
    merged.tensors, more = merge_lora(merged.tensors, scale, path)
    merged.notes += notes + more
    _join_attention(merged)
    return merged


def _join_attention(merged: Merged) -> None:
    """Join ``query``, ``key`` and ``value`` of transformers' ViT, DeiT, BEiT and Swin to ``qkv`` (modeling_vit.py)."""
    first = [key for key in merged.tensors if _QUERY.fullmatch(key)]
    count = 0
    for key in first:
        layer, leaf = key.rsplit(".", 1)
        start, _, first_part = layer.rpartition(".")
        names = [f"{start}.{part}.{leaf}" for part in _PARTS[first_part]]
        found = [merged.tensors[name] for name in names if name in merged.tensors]
        if len(found) == 3 and len({tensor.shape for tensor in found}) == 1:
            _put(merged, key, f"{start}.qkv.{leaf}", torch.cat(found), set(names))
            count += 1
    if count:
        merged.notes.append(f"queries, keys and values were joined in {count} tensors")


def _put(merged: Merged, at: str, name: str, value: torch.Tensor, parts: set[str]) -> None:
    """Put ``value`` under ``name`` where ``at`` stood, and take ``parts`` away: the order of layers is kept."""
    merged.tensors = {
        (name if key == at else key): (value if key == at else tensor)
        for key, tensor in merged.tensors.items()
        if key == at or key not in parts
    }


def _merge_pruned(merged: Merged) -> None:
    masked = [key for key in merged.tensors if key.endswith("_mask") and f"{key[:-5]}_orig" in merged.tensors]
    for mask in masked:
        name = mask[:-5]
        value = merged.tensors[f"{name}_orig"] * merged.tensors[mask]
        _put(merged, f"{name}_orig", name, value, {mask})
    if masked:
        merged.notes.append(f"{len(masked)} pruned tensors were merged with their masks")


def _merge_weight_norm(merged: Merged) -> None:
    lengths = [key for key in merged.tensors if key.endswith("_g") and f"{key[:-2]}_v" in merged.tensors]
    for key in lengths:
        name = key[:-2]
        value = torch._weight_norm(merged.tensors[f"{name}_v"], merged.tensors[key], _norm_axis(merged.tensors[key]))
        _put(merged, key, name, value, {f"{name}_v"})
    if lengths:
        merged.notes.append(f"{len(lengths)} tensors of weight_norm were merged")


def _norm_axis(length: torch.Tensor) -> int:
    return next((axis for axis, side in enumerate(length.shape) if side != 1), 0)


def _merge_spectral_norm(merged: Merged, path: Path) -> None:
    names = [key[:-2] for key in merged.tensors if key.endswith("_u") and f"{key[:-2]}_orig" in merged.tensors]
    for name in names:
        weight = merged.tensors[f"{name}_orig"]
        if f"{name}_v" not in merged.tensors:
            raise ModelError("E417", f"{path.name}: {name} is of an old spectral_norm, without its vector v", path=path)
        u, v = merged.tensors[f"{name}_u"], merged.tensors[f"{name}_v"]
        sides = sorted({weight.flatten(1).shape, weight.transpose(0, 1).flatten(1).shape})
        if (len(u), len(v)) == weight.flatten(1).shape:
            matrix = weight.flatten(1)
        elif (len(u), len(v)) in {tuple(side) for side in sides}:  # of a transposed convolution
            matrix = weight.transpose(0, 1).flatten(1)
        else:
            raise ModelError("E417", f"{path.name}: {name} does not fit its spectral_norm", path=path)
        _put(merged, f"{name}_orig", name, weight / torch.dot(u, matrix @ v), {f"{name}_u", f"{name}_v"})
    if names:
        merged.notes.append(f"{len(names)} tensors of spectral_norm were merged")


def _merge_parametrizations(merged: Merged, path: Path) -> None:
    """Give torch.nn.utils.parametrizations the names of the older functions, which `merge_parts` then merges."""
    found = {key: match for key in merged.tensors if (match := _PARAMETRIZED.fullmatch(key))}
    layers: dict[str, dict[str, str]] = {}
    for key, match in found.items():
        whole = ".".join(filter(None, (match["layer"], match["leaf"])))
        layers.setdefault(whole, {})[match["part"]] = key
    names: dict[str, str] = {}
    for whole, parts in layers.items():
        kinds = set(parts)
        if kinds == {"original0", "original1"}:
            names |= {parts["original0"]: f"{whole}_g", parts["original1"]: f"{whole}_v"}
        elif kinds == {"original", "0._u", "0._v"}:
            new = {"original": "_orig", "0._u": "_u", "0._v": "_v"}
            names |= {parts[part]: f"{whole}{ending}" for part, ending in new.items()}
        elif kinds == {"original", "0.mask"}:
            names |= {parts["original"]: f"{whole}_orig", parts["0.mask"]: f"{whole}_mask"}
        else:
            raise ModelError(
                "E417",
                f"{path.name}: {whole} has a parametrization that only code can compute ({', '.join(sorted(kinds))})",
                hint="call torch.nn.utils.parametrize.remove_parametrizations before saving the state dict",
                path=path,
            )
    if names:
        merged.tensors = {names.get(key, key): tensor for key, tensor in merged.tensors.items()}
