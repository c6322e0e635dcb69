"""FusedCard: the metadata of a fused file, stored as JSON inside it under ``ens.fused``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ensemble.blend.decision_rules import ThresholdRule
from ensemble.blend.recipe import Recipe
from ensemble.card import ModelCard
from ensemble.errors import DeployError, EnsError
from ensemble.fuse.detect import FUSED_KEY
from ensemble.text.input_file import read_input
from ensemble.text.json_text import parse_json
from ensemble.text.json_types import require_field_types, require_type

FUSED_SCHEMA = 1
_KINDS: Mapping[str, Any] = {
    "schema": int,
    "members": tuple[Mapping[str, Any], ...],
    "maps": Mapping[str, Any] | None,
    "license": str | None,
    "checks": Mapping[str, Any],
    "tools": Mapping[str, str],
}
_MEMBER: Mapping[str, Any] = {"name": str, "group": str, "share": float, "sha256": str}


@dataclass(frozen=True, slots=True)
class FusedMember:
    """One member: its name, group and card, the SHA-256 of its file, and its ``share`` of the vote, 0 to 1."""

    name: str
    group: str
    share: float
    sha256: str
    card: ModelCard


@dataclass(frozen=True, slots=True)
class FusedMaps:
    """The class-activation maps of one member: ``size`` is ``(rows, columns)`` over its prepared input."""

    member: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FusedCard:
    """The metadata of a fused file: its recipe, its members, and the comparison with `ens submit`.

    ``checks`` has the number of images and the limits that were met; ``tools`` the versions that wrote the file.
    ``maps`` is None without class-activation maps.
    """

    recipe: Recipe
    members: tuple[FusedMember, ...]
    license: str | None = None
    maps: FusedMaps | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_boxes(self) -> bool:
        """True if a member needs the face in each image."""
        return any(member.card.preprocess.face is not None for member in self.members)

    @property
    def has_thresholds(self) -> bool:
        """True if the file says which labels apply."""
        return isinstance(self.recipe.rule, ThresholdRule)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        labels = self.recipe.labels
        preprocess = {member.name: member.card.preprocess for member in self.members}
        return {
            "schema": FUSED_SCHEMA,
            "labels": list(labels.names),
            "axes": labels.to_dict(),
            "activation": self.recipe.activation,
            "recipe": json.loads(self.recipe.to_json()),
            "members": [
                {
                    "name": member.name,
                    "group": member.group,
                    "share": member.share,
                    "sha256": member.sha256,
                    "card": json.loads(member.card.to_json()),
                }
                for member in self.members
            ],
            "maps": None
            if self.maps is None
            else {
                "member": self.maps.member,
                "preprocess": asdict(preprocess[self.maps.member]),
                "size": list(self.maps.size),
            },
            "license": self.license,
            "checks": self.checks,
            "tools": self.tools,
        }

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys; equal cards give equal text."""
        return json.dumps(self.as_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FusedCard:
        """Read a card from its JSON.

        Raises:
            DeployError: E807 when the text is not a card of a fused file, or is one of a newer schema.
        """
        try:
            value = parse_json(text)
            require_type(value, Mapping[str, Any], "the card")
            require_field_types(value, _KINDS)
            for number, one in enumerate(value["members"]):
                require_field_types(one, _MEMBER, f"members[{number}]")
            require_field_types(value["maps"] or {}, {"member": str, "size": tuple[int, int]}, "maps")
            if value["schema"] != FUSED_SCHEMA:
                raise DeployError("E807", f"its card has schema {value['schema']}; this version reads {FUSED_SCHEMA}")
            members = tuple(
                FusedMember(
                    one["name"],
                    one["group"],
                    one["share"],
                    one["sha256"],
                    ModelCard.from_json(json.dumps(one["card"])),
                )
                for one in value["members"]
            )
            maps = value["maps"]
            return cls(
                Recipe.from_json(json.dumps(value["recipe"])),
                members,
                value["license"],
                None if maps is None else FusedMaps(maps["member"], (maps["size"][0], maps["size"][1])),
                value["checks"],
                value["tools"],
            )
        except DeployError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, EnsError) as err:
            raise DeployError("E807", f"its card is not that of a fused file: {err}") from err


def read_fused_card(path: Path) -> FusedCard:
    """Read the card of a fused file.

    Raises:
        FileError: E707 when the file cannot be read.
        DeployError: E807 when it is not a fused file.
    """
    data = read_input(path)
    return fused_card_of(data, path)


def fused_card_of(data: bytes, path: Path) -> FusedCard:
    """Return the card of a fused file's content; ``path`` is for messages.

    Raises:
        DeployError: E807 when it is not a fused file.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as err:
        raise DeployError("E807", f"{path.name} is not an ONNX file", path=path) from err
    found = [entry.value for entry in model.metadata_props if entry.key == FUSED_KEY]
    if not found:
        raise DeployError("E807", f"{path.name} has no {FUSED_KEY} in its metadata", path=path)
    try:
        return FusedCard.from_json(found[0])
    except DeployError as err:
        raise DeployError("E807", f"{path.name}: {err.message}", path=path) from err
