"""Write the tables of timm's architectures that `checkpoints.loading` reads.

    python -m tests.harness.timm_tables

Run it after a change of timm's version. ``timm_architectures.csv`` has a row per set of names and shapes, and the
architectures that share it; ``timm_configs.csv`` has what timm resizes and normalizes with by default, and the names
that timm has given up. pytest does not collect this file.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models import get_deprecated_models, get_pretrained_cfg

import checkpoints.loading
from checkpoints.loading.architectures import Architecture, describe
from checkpoints.loading.timm_tables import digest_of

FOLDER = Path(next(iter(checkpoints.loading.__path__)))


@dataclass(frozen=True, slots=True)
class _Row:
    values: int
    first_conv: str
    classifier: str
    tops: str
    digest: str


def _row(architecture: Architecture) -> _Row:
    body = architecture.body
    first = (architecture.first_conv or "").removesuffix(".weight")
    return _Row(
        values=sum(shape.numel() for shape in body.values()),
        first_conv=first if f"{first}.weight" in body else "",
        classifier=" ".join(architecture.classifier),
        tops=" ".join(dict.fromkeys(key.partition(".")[0] for key in body)),
        digest=digest_of({key: tuple(shape) for key, shape in body.items()}),
    )


def write_architectures(names: Sequence[str]) -> None:
    """Write the table of names and shapes."""
    rows: dict[_Row, list[str]] = {}
    features: dict[_Row, str] = {}
    for number, name in enumerate(names):
        architecture = describe(name)
        row = _row(architecture)
        rows.setdefault(row, []).append(name)
        features[row] = features.get(row) or str(architecture.features or "")
        if number % 100 == 0:
            sys.stdout.write(f"{number} of {len(names)}\n")
            sys.stdout.flush()
    header = ("names", "values", "first_conv", "classifier", "tops", "features", "digest")
    _write(
        "timm_architectures.csv",
        header,
        (
            (" ".join(twins), str(row.values), row.first_conv, row.classifier, row.tops, features[row], row.digest)
            for row, twins in ((row, sort_twins(twins)) for row, twins in rows.items())
        ),
    )


def sort_twins(names: Iterable[str]) -> list[str]:
    """Put the plain name first: that of the paper, before copies of a pretraining, before rare variants."""

    def rank(name: str) -> tuple[bool, bool, list[tuple[int, str]]]:
        rare = re.search(r"blur|_aa_|resnetaa|nextaa|_pruned", name) is not None
        parts = re.findall(r"\d+|\D+", name)
        return (
            rare,
            re.match(r"tf_|deit", name) is not None,
            [(int(p), "") if p.isdecimal() else (-1, p) for p in parts],
        )

    return sorted(names, key=rank)


def write_configs(names: Sequence[str]) -> None:
    """Write the table of preprocessing by architecture, and of deprecated names; ``size`` is height and width."""
    rows: list[tuple[str, ...]] = [("timm", timm.__version__, "", "", "", "", "", "")]
    for name in names:
        config = get_pretrained_cfg(name, allow_unregistered=True)
        if config is not None:
            values = (config.interpolation, config.crop_pct, config.crop_mode)
            mean, std = (" ".join(map(str, numbers)) for numbers in (config.mean, config.std))
            size = " ".join(map(str, config.input_size[1:]))
            rows.append((name, "", size, *map(str, values), mean, std))
    rows += [(old, str(new), "", "", "", "", "", "") for old, new in sorted(get_deprecated_models().items())]
    _write("timm_configs.csv", ("name", "now", "size", "interpolation", "crop_pct", "crop_mode", "mean", "std"), rows)


def _write(name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    FOLDER.joinpath(name).write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    known = timm.list_models()
    write_configs(known)
    write_architectures(known)
