"""The metadata of a checkpoint with that of the files beside it, as Hugging Face's folders have them."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints.loading.metadata import Metadata, read_metadata
from checkpoints.loading.state_dicts import Claim

_BESIDE = ("config.json", "preprocessor_config.json")
_USUAL_NAMES = {
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
}
_LARGEST = 5_000_000


def read_all_metadata(payload: object, path: Path) -> Metadata:
    """Return the metadata in a checkpoint and in ``config.json`` and ``preprocessor_config.json`` beside it.

    The files beside it are read for a folder, and for the names that Hugging Face's libraries write.
    """
    folder = path if path.is_dir() else path.parent if path.name in _USUAL_NAMES else None
    beside = {} if folder is None else {name: value for name in _BESIDE if (value := _read(folder / name)) is not None}
    return read_metadata({**beside, **payload} if isinstance(payload, dict) else beside or payload)


def claims_of(metadata: Metadata) -> tuple[Claim, ...]:
    """Return the architectures that the metadata names, without the prefixes of hubs and of other libraries."""
    claims = []
    for found in metadata.archs:
        name = found.value.removeprefix("hf-hub:").removeprefix("hf_hub:")
        for prefix in ("timm/", "tu-", "timm-"):
            name = name.removeprefix(prefix)
        claims.append(Claim(name, found.place))
    return tuple(claims)


def _read(path: Path) -> object:
    try:
        if path.stat().st_size > _LARGEST:
            return None
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value
