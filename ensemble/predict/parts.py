"""The parts of a run: which rows each has, which of them are in the folder already, and how one is written.

A part has `PART_ROWS` rows and appears by rename. It says what its rows were computed from, and is used again only by a
run that would compute the same. Images that could not be read have no row in it, whatever becomes of them: that is
decided when all parts are there, and can be decided otherwise without computing anything again.
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
from ensemble.errors import DataError, FileError, PredictionError
from ensemble.events import Listener, Notice
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing
from ensemble.images.views import View
from ensemble.predict.bad_images import OnBadImage, log_prior
from ensemble.predict.crash_note import read_note
from ensemble.predict.pipeline import Answer
from ensemble.predictions.dataset import COMPLETE, FILLED, Part, part_path, read_part, write_complete, write_part
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import ModelFile

PART_ROWS = 256
_ID_BYTES = 64  # of one image's id, generously
_FOOTER_BYTES = 8192  # of a part: its schema, card and checksums
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
    """One model, its folder, the parts it still has to compute, and the files ``stale`` that must go before.

    ``lacks`` are the rows that could not be read, by the part that is there without them, and is done again where it is
    pending; ``doubtful`` are those that a run was at when it died.
    """

    model: ModelFile
    folder: Path
    origins: tuple[str, ...]
    pending: set[int]
    stale: tuple[Path, ...] = ()
    lacks: dict[int, tuple[int, ...]] = field(default_factory=dict)
    doubtful: frozenset[int] = frozenset()
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

    @property
    def lacking(self) -> list[int]:
        """The rows that could not be read."""
        return sorted(row for rows in self.lacks.values() for row in rows)

    def reopen(self, faults: Mapping[int, DataError]) -> None:
        """Do those parts again that lack a row that is not faulty any more, or of which an image changed."""
        for index, rows in list(self.lacks.items()):
            if index in self.pending or not faults.keys() >= set(rows):
                self.pending.add(index)
                del self.lacks[index]

    def clear(self) -> None:
        """Remove what is stale, and what says that the predictions are finished where they are not."""
        finished = (self.folder / COMPLETE, self.folder / FILLED) if self.pending else ()
        for path in (*finished, *self.stale):
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

    The rows that parts lack, and those that a run was at when it died, are to be tried before others are decoded.

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
        member.stale = tuple(found)
        member.doubtful = _doubtful(member, listing)
        return member
    index_of = {path: index for index, path in enumerate(member.paths)}
    for path in found:
        try:
            part = read_part(path)
        except PredictionError as err:
            listener.notice(Notice("W705", f"{err.message}; it is done again", path))
            continue
        origin = json.loads(part.origin)
        _refuse_another_run(home, run, origin)
        if path not in index_of:
            raise FileError("E704", f"{path} is not a part of this run", path=path, hint="move it out of the folder")
        index = index_of[path]
        if origin["missing"]:
            there = set(part.ids)
            member.lacks[index] = tuple(row for row in part_rows(listing, index) if listing.ids[row] not in there)
        if json.dumps(origin | {"missing": 0}) == origins[index]:
            member.pending.discard(index)
        elif not origin["missing"]:
            listener.notice(Notice("W705", f"images of {path.name} changed since; it is done again", path))
    member.doubtful = _doubtful(member, listing)
    return member


def _doubtful(member: Member, listing: Listing) -> frozenset[int]:
    died = read_note(member.folder)
    return frozenset(row for index in member.pending if index in died for row in part_rows(listing, index))


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
    origin = json.loads(member.origins[index])
    missing = sorted(set(part_rows(listing, index)) - set(rows))
    if missing:
        origin["missing"] = len(missing)
        member.lacks[index] = tuple(missing)
    none = {view: np.empty((0, len(member.model.card.labels)), np.float32) for view in origin["views"]}
    per_view = [answer.logits[member.name] for answer in answers if answer.rows]
    logits = {view: np.concatenate([none[view], *(piece[view] for piece in per_view)]) for view in none}
    ids = tuple(listing.ids[row] for row in rows)
    write_part(part_path(member.folder, index), Part(ids, logits, json.dumps(origin), member.model.card))
    member.computed += len(rows)


def bytes_of_rows(members: Sequence[Member], rows: int) -> str:
    """About how much room so many more rows of these members take, for people."""
    views = (len(json.loads(m.origins[0])["views"]) * len(m.model.card.labels) for m in members)
    size = rows * sum(_ID_BYTES + 4 * logits for logits in views) + _FOOTER_BYTES * len(members) * (
        1 + rows // PART_ROWS
    )
    return f"{max(1, -(-size // 2**20)):,} MB"


def finish(member: Member, listing: Listing, on_bad_image: OnBadImage) -> bool:
    """Declare a member's predictions finished, with the rows that they lack filled, or left out and named; with
    ``fail`` they are not finished where rows are lacking. Whether that changes what was declared before.

    Raises:
        FileError: E701 or E702 when a file cannot be written.
    """
    marker, filled = member.folder / COMPLETE, member.folder / FILLED
    lacking = tuple(listing.ids[row] for row in member.lacking)
    before = marker.read_bytes() if marker.is_file() else b""
    if lacking and on_bad_image == "fail":
        files.remove(marker)
        files.remove(filled)
        return bool(before)
    if lacking and on_bad_image == "fill":
        prior = np.tile(log_prior(member.model.card), (len(lacking), 1))
        origin = member.origins[0]
        views = json.loads(origin)["views"]
        write_part(filled, Part(lacking, dict.fromkeys(views, prior), origin, member.model.card, lacking))
        write_complete(member.folder, [*member.paths, filled], len(listing))
    else:
        write_complete(member.folder, member.paths, len(listing) - len(lacking), missing=lacking)
        files.remove(filled)
    return marker.read_bytes() != before
