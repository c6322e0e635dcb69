"""Pseudo-labels: confident predictions on unlabeled images, used as ground truth in training.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import NO_CLASS, Row
from ensemble.arrays import Floats
from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe
from ensemble.errors import DataError, OptionError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import list_images
from ensemble.labels import LabelSpace
from ensemble.predictions.read_members import read_members


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Pseudo-labeled images, which are added to the training part of every fold, and their face boxes."""

    rows: tuple[Row, ...]
    boxes: Boxes | None = None


@dataclass(frozen=True, slots=True)
class PseudoLabelSource:
    """Predictions of the images in a folder, and which of them to use.

    ``min_confidence`` is the smallest probability of a predicted class, ``max_share`` the largest share of
    pseudo-labeled images in the training part of a fold.

    Raises:
        OptionError: E204 when a confidence or share is out of range.
    """

    predictions: tuple[Path, ...]
    images: Path
    min_confidence: float = 0.95
    max_share: float = 0.5
    boxes: Boxes | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_confidence <= 1 or not 0 < self.max_share < 1:
            raise OptionError(
                "E204",
                f"--min-confidence must be above 0 and up to 1, --max-share above 0 and below 1, "
                f"got {self.min_confidence} and {self.max_share}",
            )


def read_pseudo_labels(
    source: PseudoLabelSource,
    rows: Sequence[Row],
    folds: Folds,
    labels: LabelSpace,
    *,
    listener: Listener = SILENT,
) -> PseudoLabels:
    """Return the images whose most probable class has ``min_confidence`` or more in the blend of the predictions.

    Where an image may have several labels, it has those of at least one half, and its confidence is that of its least
    certain label.

    Views, folds and members are averaged as `ens blend` does. ``rows`` are the labeled images, which the folds split.
    The most confident images are used, as many as ``max_share`` allows in the smallest training part.

    Raises:
        OptionError: E204 when no image is left.
        PredictionError: the codes of `read_members` and `blend`; E501 when their classes differ from ``labels``.
        DataError: E346 when one of the images is in ``rows``; the codes of `list_images`.
    """
    members = read_members(source.predictions, labels)
    blended = blend(members, make_recipe(members), listener=listener)
    columns = labels.permutation(blended.labels, owner=members[0].member)
    probabilities = blended.probabilities[:, columns]
    several = blended.independent
    if several != any(row.present is not None for row in rows):
        kinds = ("any number of labels", "one class") if several else ("one class", "any number of labels")
        raise PredictionError("E501", f"the predictions are of {kinds[0]} per image, the training data has {kinds[1]}")
    confidence = np.maximum(probabilities, 1 - probabilities).min(axis=1) if several else probabilities.max(axis=1)
    smallest = min(int(np.count_nonzero(~folds.holdout(rows, fold))) for fold in range(folds.count))
    most = int(source.max_share / (1 - source.max_share) * smallest)
    # a stable sort: the first by name wins on ties
    chosen = [i for i in np.argsort(-confidence, kind="stable") if confidence[i] >= source.min_confidence]
    left_out = len(chosen[most:])
    taken = sorted(chosen[:most])
    if not chosen:
        raise OptionError(
            "E204",
            f"no prediction has a confidence of {source.min_confidence} or more; the highest is {confidence.max():.4f}",
            hint="lower --min-confidence, or leave out --pseudo",
        )
    if not taken:
        raise OptionError("E204", f"--max-share {source.max_share} allows no image in a fold of {smallest}")
    # without a listener: the images that are not listed are below the threshold, or beyond the share
    listing = list_images(source.images, [blended.ids[i] for i in taken])
    require_new(listing.paths, rows)
    found = tuple(
        _row(name, path, probabilities[i], several=several)
        for i, name, path in zip(taken, listing.ids, listing.paths, strict=True)
    )
    _report(found, labels, len(blended), left_out, listener)
    return PseudoLabels(found, source.boxes)


def _row(name: str, path: Path, probabilities: Floats, *, several: bool) -> Row:
    person = f"unlabeled {name}"
    if several:
        present = tuple(np.flatnonzero(probabilities >= 0.5).tolist())
        return Row(name, person, None, None, None, NO_CLASS, path, present=present)
    return Row(name, person, None, None, None, int(probabilities.argmax()), path)


def require_new(paths: Sequence[Path], rows: Sequence[Row]) -> None:
    """Check that no unlabeled image is a training image.

    Raises:
        DataError: E346 when one is.
    """
    known = {os.path.realpath(row.path) for row in rows}
    odd = [path for path in paths if os.path.realpath(path) in known]
    if odd:
        some = enumerate_some([str(path) for path in odd])
        raise DataError("E346", f"{len(odd):,} of the pseudo-labeled images are training images: {some}")


def _report(rows: Sequence[Row], labels: LabelSpace, count: int, left_out: int, listener: Listener) -> None:
    message = f"{len(rows):,} of {count:,} predicted images are used in training, labeled with the predicted class"
    listener.notice(Notice("W347", message))
    predicted = [label for row in rows for label in ((row.label,) if row.present is None else row.present)]
    counts = np.bincount(predicted, minlength=len(labels))
    each = ", ".join(f"{name}: {n:,}" for name, n in zip(labels.names, counts.tolist(), strict=True))
    more = f"; {left_out:,} more were confident enough, but exceed --max-share" if left_out else ""
    listener.notice(Notice("I348", f"pseudo-labels by class: {each}{more}"))
