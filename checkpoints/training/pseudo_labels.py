"""Pseudo-labels: confident predictions on unlabelled images, learned as if they were the truth.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe
from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import list_images
from ensemble.labels import LabelSpace
from ensemble.predictions.external import read_members


@dataclass(frozen=True, slots=True)
class Pseudo:
    """Images that the training part of every fold gets besides its own, as rows of nobody, and their face boxes."""

    rows: tuple[Row, ...]
    boxes: Boxes | None = None


def read_pseudo(
    predictions: Sequence[Path],
    images: Path,
    rows: Sequence[Row],
    folds: Folds,
    labels: LabelSpace,
    *,
    min_confidence: float = 0.95,
    max_share: float = 0.5,
    boxes: Boxes | None = None,
    listener: Listener = SILENT,
) -> Pseudo:
    """The images in ``images`` whose likeliest class has ``min_confidence`` or more in the mean of the predictions.

    Views, folds and members are averaged as `ens blend` does. No fold learns from more of them than the share
    ``max_share`` of all its images; the most confident ones are taken. ``rows`` are those that the folds deal.

    Raises:
        OptionError: E204 when a confidence or share is out of range, or leaves no image.
        PredictionError: the codes of `read_members` and `blend`; E501 when the classes are others than ``labels``.
        DataError: E346 when one of the images is trained with already; the codes of `list_images`.
    """
    if not 0 < min_confidence <= 1 or not 0 < max_share < 1:
        raise OptionError(
            "E204",
            f"--min-confidence must be above 0 and up to 1, --max-share above 0 and below 1, "
            f"got {min_confidence} and {max_share}",
        )
    members = read_members(predictions, labels, kind=None)
    blended = blend(members, make_recipe(members), listener=listener)
    columns = labels.permutation(blended.labels, owner=members[0].member)
    probabilities = blended.probabilities[:, columns]
    confidence = probabilities.max(axis=1)
    fewest = min(int(np.count_nonzero(~folds.holdout(rows, fold))) for fold in range(folds.count))
    most = int(max_share / (1 - max_share) * fewest)
    # a stable sort: of equally confident images those first by name
    chosen = [i for i in np.argsort(-confidence, kind="stable") if confidence[i] >= min_confidence]
    left_out = len(chosen[most:])
    taken = sorted(chosen[:most])
    if not chosen:
        raise OptionError(
            "E204",
            f"no prediction has a confidence of {min_confidence} or more, the highest has {confidence.max():.4f}",
            hint="lower --min-confidence, or leave out --pseudo",
        )
    if not taken:
        raise OptionError("E204", f"--max-share {max_share} of a fold with {fewest} images is less than one image")
    listing = list_images(images, [blended.ids[i] for i in taken])  # in silence: most of the others are only in doubt
    _require_new(listing.paths, rows)
    found = tuple(
        Row(name, f"unlabelled {name}", None, None, None, int(probabilities[i].argmax()), path)
        for i, name, path in zip(taken, listing.ids, listing.paths, strict=True)
    )
    _tell(found, labels, len(blended), left_out, listener)
    return Pseudo(found, boxes)


def _require_new(paths: Sequence[Path], rows: Sequence[Row]) -> None:
    known = {row.path.resolve() for row in rows}
    odd = [path for path in paths if path.resolve() in known]
    if odd:
        some = enumerate_some([str(path) for path in odd])
        raise DataError("E346", f"{len(odd):,} of the pseudo-labelled images are training images: {some}")


def _tell(rows: Sequence[Row], labels: LabelSpace, count: int, left_out: int, listener: Listener) -> None:
    listener.notice(Notice("W347", f"{len(rows):,} of {count:,} predicted images are learned with the predicted class"))
    counts = np.bincount([row.label for row in rows], minlength=len(labels))
    each = ", ".join(f"{name}: {n:,}" for name, n in zip(labels.names, counts.tolist(), strict=True))
    more = f"; {left_out:,} more were confident, beyond --max-share" if left_out else ""
    listener.notice(Notice("I348", f"pseudo-labels by class: {each}{more}"))
