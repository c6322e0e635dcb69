"""Predict a folder of images with a fused file: its predictions are those of one member."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats, Logits
from ensemble.card import Activation, ModelCard, validate_member
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import locked, remove, require_writable
from ensemble.fuse.fused_card import FusedCard
from ensemble.fuse.fused_session import FusedSession, start_fused
from ensemble.fuse.graph import PLAIN_VIEW
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing, list_images
from ensemble.predictions.dataset import Part, part_path, write_complete, write_part
from ensemble.predictions.part_file import SUFFIXES
from ensemble.thread_pool import map_ahead

_TINY = np.finfo(np.float32).tiny  # the smallest probability that has a logarithm


@dataclass(frozen=True, slots=True)
class FusedRun:
    """The predictions of a fused file: their folder and the number of images."""

    folder: Path
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"path": str(self.folder), "images": self.images}

    def __str__(self) -> str:
        return f"{self.folder}  {self.images:,} images"


def predict_fused(
    path: Path,
    images: Path,
    folder: Path,
    *,
    ids: Sequence[str] | None = None,
    boxes: Boxes | None = None,
    threads: int = 1,
    listener: Listener = SILENT,
) -> FusedRun:
    """Write ``folder/<file name>/``: the logarithms of the ensemble's probabilities, log-odds for independent labels.

    They are computed on the CPU, image by image, from the beginning; the next image is decoded meanwhile. The recipe's
    decision is not part of predictions.

    Raises:
        OptionError: E206 when members were trained on face crops and there are no boxes.
        DataError: when an image is missing or cannot be read.
        DeployError: E807 when the file is not a fused one.
        FileError: E701 to E703 for the folder.
    """
    session = start_fused(path.read_bytes(), path, threads=threads)
    if session.card.takes_boxes and boxes is None:
        raise OptionError("E206", f"members of {path.name} were trained on face crops and need face boxes")
    listing = list_images(images, ids, listener=listener)
    target = require_writable(folder / validate_member(path.stem))
    with locked(target):
        for old in sorted(old for suffix in SUFFIXES for old in target.glob(f"*{suffix}")):
            remove(old)
        logits = _logits(session, listing, boxes, path.stem, listener)
        card = card_of_fused(session.card, path)
        part = part_path(target, 0)
        write_part(part, Part(listing.ids, {PLAIN_VIEW: logits}, f"fused {card.checkpoint_sha256}", card))
        write_complete(target, [part], len(listing))
    rule = "the recipe's rule decides in the file's output `class`; ens blend decides by its own rule"
    listener.notice(Notice("I803", f"{target} has probabilities: {rule}"))
    return FusedRun(target, len(listing))


def _logits(session: FusedSession, listing: Listing, boxes: Boxes | None, name: str, listener: Listener) -> Logits:
    faces = boxes.select(listing.ids) if session.card.takes_boxes and boxes is not None else (None,) * len(listing)
    rows: list[Floats] = []
    listener.progress(name, 0, len(listing))
    with closing(map_ahead(lambda path: read_image(path).pixels, listing.paths, workers=1, ahead=2)) as decoded:
        for pixels, face in zip(decoded, faces, strict=True):
            found = session.run(pixels[np.newaxis], [face])
            rows.append(as_logits(found.probabilities[0], session.card.recipe.activation))
            listener.progress(name, len(rows), len(listing))
    return np.array(rows, dtype=np.float32)


def as_logits(probabilities: NDArray[np.float32], activation: Activation) -> Floats:
    """Return the logarithms of probabilities, or the log-odds of independent labels."""
    p = np.maximum(probabilities.astype(np.float64), _TINY)
    return np.log(p) if activation == "softmax" else np.log(p) - np.log(np.maximum(1 - p, _TINY))


def card_of_fused(fused: FusedCard, path: Path) -> ModelCard:
    """Return the card of the predictions; its preprocessing is that of the member with the largest share."""
    strongest = max(fused.members, key=lambda member: member.share)
    return ModelCard(
        member=path.stem,
        arch="fused",
        labels=fused.recipe.labels,
        preprocess=strongest.card.preprocess,
        mean=strongest.card.mean,
        std=strongest.card.std,
        checkpoint_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        activation=fused.recipe.activation,
        sources={"preprocess": f"member {strongest.name}"},
        tools=fused.tools,
    )
