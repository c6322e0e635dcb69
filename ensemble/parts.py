"""The parts of a run: which rows each has, which of them are in the folder already, and how one is written.

A part has `PART_ROWS` rows and appears by rename. It says what its rows were computed from, and is used again only by a
run that would compute the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL

from ensemble import files
from ensemble.boxes import Boxes
from ensemble.devices import Device
from ensemble.errors import FileError, PredictionError
from ensemble.events import Listener, Notice
from ensemble.listing import Listing
from ensemble.model_file import ModelFile
from ensemble.pipeline import Answer
from ensemble.predictions import COMPLETE, Part, part_path, read_part, write_part
from ensemble.tta import View

PART_ROWS = 256
_DIFFERENCES = {
    "model": "model file",
    "views": "views",
    "ids": "image list",
    "boxes": "face boxes",
    "provider": "device",
    "versions": "versions of onnxruntime or Pillow",
}


@dataclass(slots=True)
class Member:
    """One model, its folder, the parts it still has to compute, and the files ``stale`` that must go before."""

    model: ModelFile
    folder: Path
    origins: tuple[str, ...]
    pending: set[int]
    stale: tuple[Path, ...] = ()
    computed: int = 0
    decisions: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The member's name."""
        return self.model.card.member

    @property
    def paths(self) -> list[Path]:
        """Where each part stands, or will."""
        return [part_path(self.folder, index) for index in range(len(self.origins))]

    def clear(self) -> None:
        """Remove what is stale."""
        for path in self.stale:
            files.remove(path)


def part_rows(listing: Listing, index: int) -> range:
    """The rows of part ``index``; the last part may have fewer than the others."""
    return range(index * PART_ROWS, min((index + 1) * PART_ROWS, len(listing)))


def resume(
    model: ModelFile,
    folder: Path,
    run: Mapping[str, Any],
    listing: Listing,
    *,
    fresh: bool,
    listener: Listener,
) -> Member:
    """Find out which parts are there already, or with ``fresh``, are to go; nothing is changed yet.

    Raises:
        FileError: E704 when the folder holds another run.
    """
    home = folder / model.card.member
    origins = []
    for start in range(0, len(listing), PART_ROWS):
        sizes = ",".join(map(str, listing.sizes[start : start + PART_ROWS]))
        origins.append(json.dumps({**run, "sizes": hashlib.sha256(sizes.encode()).hexdigest(), "missing": 0}))
    member = Member(model, home, tuple(origins), set(range(len(origins))))
    found = sorted(home.glob("part-*.parquet"))
    if fresh:
        member.stale = (home / COMPLETE, *found)
        return member
    index_of = {path: index for index, path in enumerate(member.paths)}
    for path in found:
        try:
            origin = read_part(path)[0].origin
        except PredictionError as err:
            listener.notice(Notice("W705", f"{err.message}; it is done again", path))
            continue
        _refuse_another_run(home, run, json.loads(origin))
        if path not in index_of:
            raise FileError("E704", f"{path} is not a part of this run", path=path, hint="move it out of the folder")
        if origin == origins[index_of[path]]:
            member.pending.discard(index_of[path])
        elif not json.loads(origin)["missing"]:
            listener.notice(Notice("W705", f"images of {path.name} changed since; it is done again", path))
    if member.pending:
        member.stale = (home / COMPLETE,)
    return member


def run_of(
    model: ModelFile, listing: Listing, views: Sequence[View], device: Device, boxes: Boxes | None
) -> dict[str, Any]:
    """What a part's rows are computed from; parts of another run are never mixed with them."""
    run = {
        "model": model.sha256,
        "views": [view.name for view in views],
        "ids": listing.sha256,
        "provider": device.provider,
        "versions": f"onnxruntime {onnxruntime.__version__}, Pillow {PIL.__version__}",
    }
    if boxes is not None and model.card.preprocess.face is not None:
        run["boxes"] = boxes.sha256
    return run


def _refuse_another_run(folder: Path, run: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    differing = [name for key, name in _DIFFERENCES.items() if run.get(key) != found.get(key)]
    if differing:
        raise FileError("E704", f"{folder} holds another run: other {' and '.join(differing)}", path=folder)


def write_answers(member: Member, index: int, answers: Sequence[Answer], listing: Listing) -> None:
    """Write one member's part from the answers that make it up, without the rows that could not be read.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    rows = [row for answer in answers for row in answer.rows]
    missing = len(part_rows(listing, index)) - len(rows)
    origin = member.origins[index]
    if missing:
        origin = json.dumps(json.loads(origin) | {"missing": missing})
    if rows:
        per_view = [answer.logits[member.name] for answer in answers if answer.rows]
        logits = {view: np.concatenate([piece[view] for piece in per_view]) for view in per_view[0]}
        ids = tuple(listing.ids[row] for row in rows)
        write_part(part_path(member.folder, index), Part(ids, logits, origin), member.model.card)
    member.computed += len(rows)
