"""Say what a file is that was given in place of a recipe, and what to give instead."""

from __future__ import annotations

import mmap
from pathlib import Path

from ensemble.errors import PredictionError

_FUSED = b"ens.fused"
_TABLES = {".csv", ".tsv", ".xlsx"}
_PREDICTIONS = {".parquet", ".npy", ".npz"}
_WEIGHTS = {".pt", ".pth", ".tar", ".ckpt", ".safetensors", ".bin"}


def refuse_other(path: Path) -> None:
    """Refuse a folder or file that is not a recipe by its name; what may be a damaged recipe passes.

    Raises:
        PredictionError: E518 with what it is.
    """
    found = _describe(path)
    if found is not None:
        what, hint = found
        raise PredictionError("E518", f"{path.name} is {what}, not a recipe", path=path, hint=hint)


def _describe(path: Path) -> tuple[str, str] | None:
    suffix = path.suffix.lower()
    if path.is_dir():
        inside = path / "blend.json"
        return "a folder", f"give the file: {inside}" if inside.is_file() else "give the JSON file of ens blend --save"
    if suffix == ".onnx" and path.is_file():
        if _has_fused_card(path):
            return "a fused ensemble, which has its recipe inside", (
                f"ens predict {path.name}, bench, explain and page take it as it is; others take the recipe that it "
                "was fused from, and its models with --models"
            )
        return "a model", "give it with --models; the recipe is the JSON file of ens blend --save"
    if suffix in _TABLES:
        return (
            "a table",
            "the recipe is the JSON file of ens blend --save; ens check and evaluate take answers",
        )
    if suffix in _PREDICTIONS:
        return "a file of predictions", "ens blend PREDICTIONS --save blend.json makes a recipe of them"
    if suffix in _WEIGHTS:
        return (
            "a checkpoint",
            "ens export makes a model of it, for --models; the recipe is that of ens blend --save",
        )
    return None


def _has_fused_card(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(_FUSED) >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False
