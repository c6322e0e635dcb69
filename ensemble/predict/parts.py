"""The parts of `predict`: the store of one member's predictions, with one file per `PART_ROWS` images.

Images that could not be read have no row in a part, whatever becomes of them: ``on_bad_image`` is applied when all
parts are there (see `PartStore.finish`), so that another choice in a later run computes nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble import files
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing
from ensemble.images.views import View
from ensemble.predict.bad_images import OnBadImage, log_prior
from ensemble.predict.fingerprint import Fingerprint, Origin, library_versions
from ensemble.predict.pipeline import Answer
from ensemble.predict.resumable import Slice
from ensemble.predict.slice_folder import SliceFolder
from ensemble.predictions.dataset import COMPLETE, FILLED, Part, read_part, write_complete, write_part
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import ModelFile

PART_ROWS = 256
_ID_BYTES = 64  # of one image's id, generously
_FOOTER_BYTES = 8192  # of a part: its schema, card and checksums


class PartStore(SliceFolder[Answer, Part]):
    """The parts of one member in ``folder/<member>/``.

    ``computed`` counts the rows that this run has written; ``decisions`` say how its model ran, where it did.
    """

    prefix = "part"

    def __init__(self, model: ModelFile, folder: Path, run: Fingerprint, listing: Listing) -> None:
        super().__init__(folder / model.card.member, run, listing, size=PART_ROWS)
        self.model = model
        self.computed = 0
        self.decisions: Mapping[str, str] = {}
        self._views: list[str] = run.values["views"]

    @property
    def name(self) -> str:
        """The member's name."""
        return self.model.card.member

    @property
    def filled(self) -> Path:
        """The file of the rows whose images could not be read, written or not."""
        return (self.folder / FILLED).with_suffix(self.suffix)

    def read(self, path: Path) -> Part:
        """See `SliceFolder.read`."""
        return read_part(path)

    def write(self, piece: Slice, answers: Sequence[Answer]) -> None:
        """Write a part without the rows that could not be read; see `Store.write`."""
        part = self._join(piece, answers)
        there = set(part.ids)
        missing = tuple(row for row in piece.rows if self.listing.ids[row] not in there)
        if missing:
            self.lacks[piece.index] = missing
        write_part(self.path(piece.index), replace(part, origin=self._origin(piece, missing=len(missing))))
        files.remove(self.early_path(piece.index))
        self.computed += sum(len(answer.rows) for answer in answers)

    def write_early(self, piece: Slice, answers: Sequence[Answer]) -> None:
        """See `Store.write_early`."""
        write_part(self.early_path(piece.index), self._join(piece, answers), sync=False)

    def _join(self, piece: Slice, answers: Sequence[Answer]) -> Part:
        """Return the rows of the answers and those that the slice holds, in the order of the listing."""
        rows = [row for answer in answers for row in answer.rows]
        none = {view: np.empty((0, len(self.model.card.labels)), np.float32) for view in self._views}
        per_view = [answer.logits[self.name] for answer in answers if answer.rows]
        early = self.early(piece)
        if early is not None:
            row_of = {self.listing.ids[row]: row for row in piece.held}
            chosen = [i for i, name in enumerate(early.ids) if name in row_of]
            rows = [row_of[early.ids[i]] for i in chosen] + rows
            per_view = [{view: early.logits[view][chosen] for view in none}, *per_view]
        order = np.argsort(rows, kind="stable")
        logits = {view: np.concatenate([none[view], *(one[view] for one in per_view)])[order] for view in none}
        ids = tuple(self.listing.ids[rows[i]] for i in order)
        return Part(ids, logits, self._origin(piece, missing=0), self.model.card)

    def bytes_of(self, rows: int) -> int:
        """See `Store.bytes_of`."""
        logits = 4 * len(self._views) * len(self.model.card.labels)
        return rows * (_ID_BYTES + logits) + _FOOTER_BYTES * (1 + rows // PART_ROWS)

    def clear(self) -> None:
        """Remove the stale files, and while parts are pending also what says that the predictions are finished."""
        if self.pending:
            files.remove(self.folder / COMPLETE)
            files.remove(self.filled)
        super().clear()

    def finish(self, on_bad_image: OnBadImage) -> bool:
        """Mark the predictions as finished and return whether that changes what was marked before.

        The rows whose images could not be read are filled with the class prior or left out and named. With ``fail`` the
        predictions are not finished while there are such rows.

        Raises:
            FileError: E701 or E702 when a file cannot be written.
        """
        marker, filled = self.folder / COMPLETE, self.filled
        paths = [self.path(piece.index) for piece in self.slices]
        rows, lacking = len(self.listing), tuple(self.listing.ids[row] for row in self.lacking)
        before = marker.read_bytes() if marker.is_file() else b""
        if lacking and on_bad_image == "fail":
            files.remove(marker)
            files.remove(filled)
            return bool(before)
        if lacking and on_bad_image == "fill":
            prior = np.tile(log_prior(self.model.card), (len(lacking), 1))
            origin = self._origin(self.slices[0], missing=0)
            write_part(filled, Part(lacking, dict.fromkeys(self._views, prior), origin, self.model.card, lacking))
            write_complete(self.folder, [*paths, filled], rows)
        else:
            write_complete(self.folder, paths, rows - len(lacking), missing=lacking)
            files.remove(filled)
        return marker.read_bytes() != before

    def _origin(self, piece: Slice, *, missing: int) -> str:
        return Origin(self.run, piece.sizes, missing).to_json()


def fingerprint_of(
    model: ModelFile, listing: Listing, views: Sequence[View], device: Device, boxes: Boxes | None
) -> Fingerprint:
    """Return the fingerprint of one member's predictions."""
    values = {
        "model": model.sha256,
        "views": [view.name for view in views],
        "ids": listing.sha256,
        "provider": device.provider,
        "versions": library_versions(),
    }
    if boxes is not None and model.card.preprocess.face is not None:
        values["boxes"] = boxes.sha256
    return Fingerprint(values)
