"""Read the tables of timm's architectures, without torch and timm.

``python -m tests.harness.timm_tables`` writes them for one version of timm, which `table_version` returns.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

# names of rare variants: strided convolutions followed by a blur, or copies of a pretraining
_RARE = re.compile(r".*(blur|_aa_|resnetaa|resnextaa|_pruned).*")


@dataclass(frozen=True, slots=True)
class TableRow:
    """Architectures of the same names and shapes: ``digest`` is that of their bodies, without the classifier.

    ``values`` is the number of values of the body, ``tops`` are the first parts of its names, ``classifier`` the layers
    of the logits and ``first_conv`` the one that takes the image. ``features`` is the number of values that the
    classifier takes; None where there are several classifiers or none.
    """

    names: tuple[str, ...]
    values: int
    first_conv: str | None
    classifier: tuple[str, ...]
    tops: tuple[str, ...]
    features: int | None
    digest: str


def digest_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a digest of names and shapes, in any order."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@functools.cache
def table_rows() -> tuple[TableRow, ...]:
    """Return every row of the table of architectures."""
    return tuple(
        TableRow(
            names=tuple(row["names"].split()),
            values=int(row["values"]),
            first_conv=row["first_conv"] or None,
            classifier=tuple(row["classifier"].split()),
            tops=tuple(row["tops"].split()),
            features=int(row["features"]) if row["features"] else None,
            digest=row["digest"],
        )
        for row in _read("timm_architectures.csv")
    )


@functools.cache
def row_of(arch: str) -> TableRow | None:
    """Return the row of an architecture, by its name without a tag; None if timm does not have it."""
    return next((row for row in table_rows() if arch in row.names), None)


def usual_name(names: Sequence[str]) -> str | None:
    """Return the one of several architectures that most networks of their shapes are; None if none is."""
    plain = [name for name in names if not _RARE.fullmatch(name)]
    return plain[0] if len(plain) == 1 else names[0] if len(names) == 1 else None


def table_version() -> str:
    """Return the version of timm that the tables were made with."""
    return next(row["now"] for row in _read("timm_configs.csv") if row["name"] == "timm")


def is_known_name(name: str) -> bool:
    """Return True for a name of timm's, with or without a tag, also one that timm has given up."""
    return row_of(name.partition(".")[0]) is not None or any(row["name"] == name for row in _configs())


def default_config(arch: str) -> dict[str, Any]:
    """Return what timm resizes and normalizes with by default, by the names of its ``pretrained_cfg``."""
    row = next((row for row in _configs() if row["name"] == arch and row["size"]), None)
    if row is None:
        return {}
    height, width = map(int, row["size"].split())
    return {
        "input_size": (3, height, width),
        "interpolation": row["interpolation"],
        "crop_pct": float(row["crop_pct"]),
        "crop_mode": row["crop_mode"],
        "mean": tuple(map(float, row["mean"].split())),
        "std": tuple(map(float, row["std"].split())),
    }


@functools.cache
def _configs() -> tuple[dict[str, str], ...]:
    return tuple(_read("timm_configs.csv"))


def _read(name: str) -> list[dict[str, str]]:
    text = files("checkpoints.loading").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
