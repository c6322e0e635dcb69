"""The facts that a page shows about its ensemble, read from the card of the fused model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from ensemble.blend.decision_rules import rule_to_json
from ensemble.errors import DeployError
from ensemble.fuse.fused_card import FusedCard, fused_card_of
from ensemble.fuse.graph import MAPS, MEMBERS

SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class FusedFile:
    """The content of a fused file that a page can run, with its card and the names of its outputs."""

    data: bytes
    card: FusedCard
    outputs: frozenset[str]


def read_fused(data: bytes, path: Path) -> FusedFile:
    """Check that a page can run a fused model; ``path`` is for messages.

    Raises:
        DeployError: E807 when it is not a fused model, E830 when a page cannot run it.
    """
    card = fused_card_of(data, path)
    require_no_faces(card.takes_boxes, path.name)
    outputs = frozenset(value.name for value in onnx.ModelProto.FromString(data).graph.output)
    if MEMBERS not in outputs:
        hint = "fuse it again with ens fuse --members, or give the recipe and --models"
        raise DeployError("E830", f"{path.name} does not give its members' probabilities", hint=hint, path=path)
    return FusedFile(data, card, outputs)


def require_no_faces(takes_boxes: bool, name: str) -> None:
    """Check that no member needs a face box.

    Raises:
        DeployError: E830 when one does.
    """
    if takes_boxes:
        raise DeployError("E830", f"trained on face crops, which a page, without a face detector, cannot cut: {name}")


def page_facts(fused: FusedFile) -> dict[str, Any]:
    """Return the JSON-ready facts that page.js reads: labels, axes, rule, members with their shares, and the map."""
    card, recipe = fused.card, fused.card.recipe
    rule = rule_to_json(recipe.rule)
    maps = card.maps if MAPS in fused.outputs else None
    preprocess = {member.name: member.card.preprocess for member in card.members}
    return {
        "schema": SCHEMA,
        "labels": list(recipe.labels.names),
        "axes": recipe.labels.to_dict()["axes"],
        "activation": recipe.activation,
        "rule": rule if isinstance(rule, str) else rule["name"],
        "members": [
            {
                "name": member.name,
                "share": member.share,
                "arch": member.card.arch,
                "precision": member.card.precision,
            }
            for member in card.members
        ],
        "maps": None if maps is None else {"member": maps.member, "preprocess": asdict(preprocess[maps.member])},
        "license": card.license,
    }
