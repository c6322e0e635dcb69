"""A recipe with toy members, as tests of fused files and bundles need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.card import ModelCard, Preprocess
from ensemble.labels import LabelSpace
from tests.support.toys import card, write_model

LABELS = LabelSpace.from_dict(
    {"axes": [{"name": "a", "values": ["x", "y"]}, {"name": "b", "values": ["left", "right"]}]}
)


def write_members(folder: Path, cards: Sequence[ModelCard] | None = None) -> Path:
    """One linear toy model a card, each with other weights; by default the three members of `toy_recipe`.

    Two of these share their preprocessing, and one has the classes in another order.
    """
    other = LabelSpace.flat(tuple(reversed(LABELS.names)))
    default = [
        card("m0", labels=LABELS),
        card("m1", labels=LABELS),
        replace(card("m2", labels=other), preprocess=Preprocess((18, 18), resize="center", interpolation="bicubic")),
    ]
    for seed, one in enumerate(default if cards is None else cards):
        write_model(folder, one, seed=seed)
    return folder


def toy_recipe(**changes: Any) -> Recipe:
    """Three members in two groups, by default averaged with weights 3 and 1."""
    settings: dict[str, Any] = {
        "pool": parse_pool("linear"),
        "views": {"identity": 1.0},
        "groups": {"big": Group(3.0, {"m0": "0" * 64, "m1": "0" * 64}), "small": Group(1.0, {"m2": "0" * 64})},
        "labels": LABELS,
    }
    return Recipe(**settings | changes)
