"""Decide before the first export what the members are called, and say what would be exported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.loading.hub import find_named
from checkpoints.loading.open import OpenOptions, build_model
from checkpoints.loading.read import stored_card
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.events import Listener, Notice
from ensemble.text_table import render_columns
from exporters.make_card import ExportOptions, describe_settings, make_card, member_of


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The content of a checkpoint, and the card and file that an export would write."""

    checkpoint: Path
    output: Path
    card: ModelCard
    tensors: int
    parameters: int

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "tensors": self.tensors,
            "parameters": self.parameters,
            "card": json.loads(self.card.to_json()),
        }


def find_all(paths: Sequence[Path]) -> list[Path]:
    """Return the files and folders of checkpoints; models of the Hugging Face Hub are downloaded.

    Raises:
        FileError: E707 when a model cannot be downloaded.
    """
    return [find_named(path) for path in paths]


def stored_members(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the member's name of each checkpoint that `ens train` wrote, from its card; the others are left out."""
    cards = {path: stored_card(path) for path in paths}
    return {path: card.member for path, card in cards.items() if card is not None}


def plan_exports(
    paths: Sequence[Path], folder: Path, options: ExportOptions, how: OpenOptions, *, listener: Listener
) -> list[ExportPlan]:
    """Open every checkpoint as an export would, and return what it would write; nothing is written.

    Raises:
        EnsError: as `open_checkpoint`, `make_card` and `name_members`.
    """
    found = find_all(paths)
    names = {} if options.member is not None else name_members(found, stored_members(found), listener)
    plans = []
    for path in found:
        checkpoint = how.open(path, listener=listener)
        named = replace(options, member=names[path]) if path in names else options
        card = make_card(checkpoint, build_model(checkpoint), named)
        for notice in describe_settings(card, checkpoint):
            listener.notice(notice)
        tensors = checkpoint.state_dict
        plans.append(
            ExportPlan(
                checkpoint=path,
                output=folder / f"{card.member}.onnx",
                card=card,
                tensors=len(tensors),
                parameters=sum(tensor.numel() for tensor in tensors.values()),
            )
        )
    return plans


def render_plan(plans: Sequence[ExportPlan]) -> str:
    """Return a table of what would be exported."""
    rows = [
        (
            plan.checkpoint.name,
            plan.card.arch,
            plan.card.weights,
            f"{plan.parameters / 1e6:.1f} M",
            len(plan.card.labels),
            "{}x{}".format(*plan.card.preprocess.size),
            str(plan.output),
        )
        for plan in plans
    ]
    return render_columns(("checkpoint", "arch", "weights", "parameters", "classes", "size", "would write"), rows)


def name_members(paths: Sequence[Path], cards: Mapping[Path, str], listener: Listener) -> dict[Path, str]:
    """Return the names of the members whose files do not name them: those of several files of one name.

    A member is named by its card, of which ``cards`` has the names, else after its file. Files of one name, such as
    ``best.pth`` of several runs, are named after as many of their folders as tell them apart.

    Raises:
        ModelError: E428 when two checkpoints would have the same name, or one is given twice.
    """
    names = {path: cards.get(path) or member_of(path) for path in paths}
    if len(names) < len(paths):
        path = next(path for path, times in Counter(paths).items() if times > 1)
        raise ModelError("E428", f"{path} is given twice", path=path)
    renamed: dict[Path, str] = {}
    common = {name for name, times in Counter(names.values()).items() if times > 1}
    for name in sorted(common):
        group = [path for path in paths if names[path] == name]
        if any(path in cards for path in group):
            listed = " and ".join(str(path) for path in group)
            raise ModelError("E428", f"{listed} would both be the member {name!r}", path=group[-1])
        longer = _with_folders(group)
        listener.notice(Notice("I453", f"members are named after their folders: {', '.join(longer.values())}"))
        names |= longer
        renamed |= longer
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        listed = " and ".join(str(path) for path in paths if names[path] == twice[0])
        raise ModelError("E428", f"{listed} would both be the member {twice[0]!r}")
    return renamed


def _with_folders(paths: Sequence[Path]) -> dict[Path, str]:
    """Return names of the least number of folders that tell the paths apart."""
    whole = {path: path.absolute() for path in paths}
    names: dict[Path, str] = {}
    for count in range(1, max(len(path.parts) for path in whole.values())):
        names = {
            path: member_of(Path("_".join((*full.parent.parts[1:][-count:], full.name))))
            for path, full in whole.items()
        }
        if len(set(names.values())) == len(paths):
            break
    return names
