"""Decide before the first export what the members are called, and say what would be exported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.loading.container import format_size
from checkpoints.loading.hub import find_named
from checkpoints.loading.key_names import COUNTER
from checkpoints.loading.outline import NeedsTorchError, Outline, outline_checkpoint
from checkpoints.loading.read import Content, read_content, stored_card
from checkpoints.loading.state_dicts import is_tensor, key_text
from checkpoints.loading.timm_tables import default_config, row_of
from ensemble.card import ModelCard, NearTies, Quantization
from ensemble.errors import ModelError, enumerate_some
from ensemble.events import Listener, Notice, Recorder
from ensemble.runtime.openvino import openvino_version
from ensemble.text.text_table import render_columns
from exporters.accuracy_gate import ImageSet, Split
from exporters.gate_inputs import read_gate
from exporters.make_card import ExportOptions, TimmDefaults, describe_settings, make_card, member_of

if TYPE_CHECKING:
    import torch

    from checkpoints.loading.open import Checkpoint
    from checkpoints.loading.open_options import OpenOptions

_CONTAINERS = {
    "safetensors": "safetensors",
    "zip": "archive of torch.save",
    "legacy": "torch.save's format before 1.6",
    "plain": "pickle",
    "npz": "numpy's npz",
}


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The images that int8 is calibrated and judged on, or fp16 with ``truth``, the table of their classes."""

    images: ImageSet | None = None
    truth: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """The content of a checkpoint, and the card and file that an export would write.

    ``holds`` are lines about the file; ``fits`` are the architectures of the network's names and shapes. ``tensors``
    and ``parameters`` are the numbers of the network's tensors and values, without the counters of batches.
    ``quantization`` is that of int8, None where only the graph tells; ``near_ties`` is the precision that may answer
    them. ``split`` are the images that calibrate, choose and judge.
    """

    checkpoint: Path
    output: Path
    card: ModelCard
    tensors: int
    parameters: int
    holds: tuple[str, ...] = ()
    fits: tuple[str, ...] = ()
    quantization: Quantization | None = None
    near_ties: NearTies | None = None
    split: Split | None = None

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "precision": self.card.precision,
            "quantization": self.quantization,
            "near_ties": self.near_ties,
            "images": None if self.split is None else _count_images(self.split),
            "holds": list(self.holds),
            "fits": list(self.fits),
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
    paths: Sequence[Path],
    folder: Path,
    options: ExportOptions,
    how: OpenOptions,
    *,
    judged: Judged = Judged(),
    listener: Listener,
) -> list[ExportPlan]:
    """Return what an export of every checkpoint would write; without torch where names and shapes tell.

    Raises:
        EnsError: as `open_checkpoint`, `make_card`, `name_members` and `read_gate`.
    """
    found = find_all(paths)
    names = {} if options.member is not None else name_members(found, stored_members(found), listener)
    plans = []
    for path in found:
        named = replace(options, member=names[path]) if path in names else options
        plans.append(_plan(path, folder, named, how, judged, listener))
    return plans


def _plan(
    path: Path, folder: Path, options: ExportOptions, how: OpenOptions, judged: Judged, listener: Listener
) -> ExportPlan:
    read, heard = Recorder(), Recorder()
    content = read_content(path, with_values=False, listener=read)
    holds = [_describe(content)]
    checkpoint: Outline | Checkpoint
    try:
        if not how.are_simple or (how.arch is not None and row_of(how.arch) is None):
            raise NeedsTorchError("options say what names and shapes do not tell")
        outline = outline_checkpoint(
            content, path, arch=how.arch, weights=how.weights, labels=options.labels, listener=heard
        )
    except NeedsTorchError as err:
        listener.notice(Notice("I485", f"{path.name} is opened with torch: {err}", path))
        checkpoint = how.open(path, listener=listener)
        card = make_card(checkpoint, _build(checkpoint), options)
        sizes = [tensor.numel() for key, tensor in checkpoint.state_dict.items() if not key.endswith(COUNTER)]
        tensors, parameters, fits = len(sizes), sum(sizes), _twins(checkpoint.arch)
    else:
        for notice in (*read.notices, *heard.notices):
            listener.notice(notice)
        checkpoint = outline
        card = make_card(outline, TimmDefaults(default_config(outline.arch)), options)
        tensors, parameters, fits = outline.tensors, outline.parameters, outline.twins
        holds += [*outline.networks, f"head {outline.head.name}: {outline.num_classes} classes"]
        message = f"{path.name} was read without its values: an export also checks them, and the answers"
        listener.notice(Notice("I485", message, path))
    for notice in describe_settings(card, checkpoint):
        listener.notice(notice)
    gate = read_gate(checkpoint, card, judged.images, judged.truth, listener)
    is_int8 = card.precision == "int8"
    quantization = _quantization(card, options) if is_int8 else None
    again = options.near_ties == "fp32" and quantization != "symmetric" and not options.features
    return ExportPlan(
        checkpoint=path,
        output=folder / f"{card.member}.onnx",
        card=card,
        tensors=tensors,
        parameters=parameters,
        holds=tuple(holds),
        fits=fits,
        quantization=quantization,
        near_ties=("fp32" if again else "int8") if is_int8 else None,
        split=None if gate is None else gate.split,
    )


def _quantization(card: ModelCard, options: ExportOptions) -> Quantization | None:
    """Return the quantization of an int8 file; None where the activation functions in its graph decide."""
    if options.quantization is None and (card.preprocess.kept or openvino_version() == "missing"):
        return "asymmetric"
    return options.quantization


def _count_images(split: Split) -> dict[str, int]:
    return {
        "calibrate": len(split.calibration),
        "choose": len(split.choose),
        "judge": len(split.gate),
        "judge again": len(split.spare),
    }


def _describe_precision(plan: ExportPlan) -> list[str]:
    """Return lines that say how the file's precision is reached and what checks it."""
    if plan.card.precision == "fp32":
        return []
    parts: list[str] = [plan.card.precision]
    if plan.near_ties is not None:
        unknown = "openvino if it has activation functions other than ReLU outside of gates, else asymmetric"
        parts.append(f"--quantization {plan.quantization or unknown}")
        parts.append("near ties " + ("in float32 where its check needs it" if plan.near_ties == "fp32" else "in int8"))
    lines = ["; ".join(parts)]
    if plan.split is not None:
        counts = [f"{count:,} {verb}" for verb, count in _count_images(plan.split).items() if count]
        large = " (of a large network for OpenVINO fewer)" if plan.quantization in {None, "openvino"} else ""
        lines.append(f"images: {', '.join(counts)}{large if plan.near_ties is not None else ''}")
    return lines


def _build(checkpoint: Checkpoint) -> torch.nn.Module:
    from checkpoints.loading.open import build_model

    return build_model(checkpoint)


def _twins(arch: str) -> tuple[str, ...]:
    row = row_of(arch.partition(".")[0])
    return row.names if row is not None else (arch,)


def _describe(content: Content) -> str:
    """Return the container, its size, and what is in it beside tensors."""
    files = f" in {len(content.files)} files" if len(content.files) > 1 else ""
    shown = f"{_CONTAINERS[content.container]}, {format_size(content.size)}{files}"
    if not isinstance(content.payload, Mapping):
        return shown
    entries = [key_text(key) for key, value in content.payload.items() if not is_tensor(value)]
    count = len(content.payload) - len(entries)
    parts = [f"{count:,} tensors"] if count else []
    parts += [enumerate_some(entries)] if entries else []
    return f"{shown}: {' and '.join(parts)}"


def render_plan(plans: Sequence[ExportPlan]) -> str:
    """Return what the checkpoints hold, and a table of what would be exported."""
    rows = [
        (
            plan.checkpoint.name,
            plan.card.arch,
            plan.card.weights,
            f"{plan.parameters / 1e6:.1f} M",
            len(plan.card.labels),
            "{}x{}".format(*plan.card.preprocess.size),
            plan.card.precision,
            str(plan.output),
        )
        for plan in plans
    ]
    lines = []
    for plan in plans:
        lines.append(plan.checkpoint.name)
        lines += [f"  holds  {line}" for line in plan.holds]
        lines.append(f"  fits   {', '.join(plan.fits)}")
        lines += [*(f"  makes  {line}" for line in _describe_precision(plan)), ""]
    titles = ("checkpoint", "arch", "weights", "parameters", "classes", "size", "precision", "would write")
    table = render_columns(titles, rows)
    return "\n".join((*lines, table))


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
