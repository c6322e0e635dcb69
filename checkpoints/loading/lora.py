"""Merge low-rank updates into their base weights, where the scale of the updates is known.

Names and scale are peft's: ``<layer>.lora_A.<adapter>.weight`` and ``lora_B``, ``alpha / r`` or ``alpha / sqrt(r)``
(peft/tuners/lora/layer.py, update_layer), conv layers as in get_delta_weight. Layers that were trained whole are under
``modules_to_save`` (peft/utils/other.py), beside their state before.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensemble.errors import ModelError

CONFIG = "adapter_config.json"
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])(\.(?P<adapter>[^.]+?))??(\.weight)?")
_OTHER_KINDS = re.compile(r".*\.(lora_magnitude_vector|lora_embedding_[AB]|lora_E|hada_w\d_[ab]|lokr_w\d)(\..*)?")
_SAVED = re.compile(r"(?P<layer>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>.+)")
_LARGEST, _DEEPEST = 1_000_000, 6


@dataclass(frozen=True, slots=True)
class LoraScale:
    """The scale of LoRA updates: ``alpha`` divided by the rank, or by its root; ``place`` is the entry that says it.

    ``unknown`` is an option that changes the updates in a way that is not merged here.
    """

    alpha: float
    place: str
    by_root: bool = False
    unknown: str = ""

    def of(self, rank: int) -> float:
        """Return the factor of an update of this rank."""
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)


def find_scale(payload: object, path: Path) -> LoraScale | None:
    """Return the scale that the checkpoint, or ``adapter_config.json`` beside it, says."""
    for place, entry in _mappings(payload, "", 0):
        if (scale := _read_scale(entry, place)) is not None:
            return scale
    file = (path if path.is_dir() else path.parent) / CONFIG
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size < _LARGEST else ""
        return _read_scale(json.loads(text), CONFIG)
    except (OSError, ValueError, RecursionError):
        return None


def _mappings(value: object, place: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    yield place, value
    for key, item in value.items():
        yield from _mappings(item, f"{place}.{key}" if place else str(key)[:100], depth + 1)


def _read_scale(entry: object, place: str) -> LoraScale | None:
    if not isinstance(entry, Mapping):
        return None
    alpha = entry.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        return None
    odd = [name for name in ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern") if entry.get(name)]
    shown = f"{place}.lora_alpha" if place else "lora_alpha"
    return LoraScale(float(alpha), shown, by_root=entry.get("use_rslora") is True, unknown=", ".join(odd))


def restore_saved_modules(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors with layers that were trained whole in the place of their earlier state, and a note of it."""
    saved = {key: match for key in tensors if (match := _SAVED.fullmatch(key))}
    adapters = sorted({match["adapter"] for match in saved.values()})
    if len(adapters) > 1:
        raise _several(adapters, path)
    new = {key: f"{match['layer']}.{match['leaf']}" for key, match in saved.items()}
    old = {f"{match['layer']}.original_module.{match['leaf']}" for match in saved.values()}
    kept = {new.get(key, key): tensor for key, tensor in tensors.items() if key not in old}
    layers = sorted({match["layer"] for match in saved.values()})
    return kept, [f"{', '.join(layers)} as trained beside LoRA replaced what was there before"] if layers else []


def merge_lora(
    tensors: Mapping[str, torch.Tensor], scale: LoraScale | None, path: Path
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors with every update ``scale * B @ A`` added to its base weight, and a note of it.

    Raises:
        ModelError: E417 when the base weights or the scale are missing, or the updates are of another kind.
    """
    found: dict[str, dict[str, str]] = {}
    adapters: set[str] = set()
    for key in tensors:
        if match := _LORA.fullmatch(key):
            found.setdefault(match["layer"], {})[match["part"]] = key
            adapters.add(match["adapter"] or "")
    other = next((key for key in tensors if _OTHER_KINDS.fullmatch(key)), None)
    if not found and other is None:
        return dict(tensors), []
    if len(adapters) > 1:
        raise _several(sorted(adapters), path)
    odd = other or (scale.unknown if scale is not None else "")
    if odd:
        raise _unmerged(f"{path.name} holds updates of another kind than plain LoRA ({odd})", path)
    merged, parts = dict(tensors), set()
    for layer, keys in found.items():
        base = next((key for key in (f"{layer}.base_layer.weight", f"{layer}.weight") if key in tensors), None)
        if base is None or keys.keys() != {"A", "B"} or scale is None:
            missing = "its base weights" if base is None else "alpha, which scales them"
            raise _unmerged(f"{path.name} holds LoRA updates, but not {missing}", path)
        down, up, weight = tensors[keys["A"]], tensors[keys["B"]], tensors[base]
        product = up.flatten(1).double() @ down.flatten(1).double() if up[0].numel() == len(down) else None
        if product is None or product.numel() != weight.numel():
            raise _unmerged(f"{path.name}: the updates of {layer} do not fit its weight", path)
        merged[base] = (weight.double() + scale.of(len(down)) * product.reshape(weight.shape)).to(weight.dtype)
        parts |= set(keys.values())
    assert scale is not None, "of every layer"
    kept = {key.replace(".base_layer.", "."): tensor for key, tensor in merged.items() if key not in parts}
    shown = f"{scale.place} = {scale.alpha:g}"
    return kept, [f"{len(found)} LoRA updates were merged into their weights, scaled by {shown}"]


def _several(adapters: list[str], path: Path) -> ModelError:
    return ModelError(
        "E417",
        f"{path.name} holds several LoRA adapters: {', '.join(adapters)}",
        hint="merge the one you mean before saving: model.merge_and_unload()",
        path=path,
    )


def _unmerged(message: str, path: Path) -> ModelError:
    hint = "save the merged network: model.merge_and_unload() of peft, or weight += alpha / r * B @ A"
    return ModelError("E417", message, hint=hint, path=path)
