"""A member to train: its rows, folds and settings, and the images once they are decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.folds import Folds
from checkpoints.data.image_cache import DecodedImages, decode_images
from checkpoints.data.mask_contest import Row
from checkpoints.data.truth_table import labels_of
from checkpoints.training.batches import LabeledImages
from checkpoints.training.distillation import SoftLabels
from checkpoints.training.label_distribution import age_borders, spread_targets
from checkpoints.training.loggers import LoggerKind
from checkpoints.training.pseudo_labels import PseudoLabels
from checkpoints.training.settings import TrainSettings, settings_dict
from ensemble.card import validate_member
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener
from ensemble.images.face_boxes import Boxes


@dataclass(frozen=True, slots=True, eq=False)
class TrainJob:
    """Everything that decides a member's weights, and the folder ``out`` in which it gets a folder of its own.

    ``boxes`` are the faces of the rows, for a preprocessing with a face crop. ``pseudo_labels`` are added to the
    training part of every fold, and never to the hold-out part. A ``teacher`` has probabilities for each fold's
    training part, which are learned from as well as the labels.

    ``folds_file`` is where the folds are kept for all members of ``out``; it is written when the training starts.
    ``repeat`` counts the fold splits of a member that is trained on several: each has a folder of its own in the
    member's, and all write their out-of-fold predictions side by side.

    Raises:
        OptionError: E204 when the member's name, or that of a fold, cannot be the name of a folder, or the seed is out
            of range.
    """

    rows: Sequence[Row]
    folds: Folds
    member: str
    settings: TrainSettings
    out: Path
    seed: int = 0
    boxes: Boxes | None = None
    pseudo_labels: PseudoLabels | None = None
    logger: LoggerKind | None = None
    folds_file: Path | None = None
    repeat: int = 0
    teacher: SoftLabels | None = None

    def __post_init__(self) -> None:
        validate_member(self.member)
        validate_member(self.fold_name(self.folds.count - 1))
        if self.folds_file is not None and self.folder == self.folds_file:
            raise OptionError(
                "E204", f"a member cannot be called {self.member}: its folder would be the file of the folds"
            )
        if not 0 <= self.seed < 2**63:
            raise OptionError("E204", f"--seed must be 0 to 2^63 - 1, got {self.seed}")

    @property
    def folder(self) -> Path:
        """The folder of the fold split: the member's own for the first."""
        return self.member_folder / f"repeat{self.repeat}" if self.repeat else self.member_folder

    @property
    def member_folder(self) -> Path:
        """The member's folder."""
        return self.out / self.member

    def fold_name(self, fold: int) -> str:
        """Return the name of a fold's model."""
        return f"{self.member}_r{self.repeat}_f{fold}" if self.repeat else f"{self.member}_f{fold}"

    def state_path(self, fold: int) -> Path:
        """Return the file with the training state after the last epoch of a fold that is not finished."""
        return self.folder / f"fold{fold}.state"

    def step_state_path(self, fold: int) -> Path:
        """Return the file with the training state within an epoch of a fold that is not finished."""
        return self.folder / f"fold{fold}.step.state"

    def fingerprint(self) -> str:
        """Return all that decides the weights as JSON, with files by their hashes.

        Raises:
            FileError: E707 when one of the files cannot be read.
        """
        people = [(row.id, *_classes(row), self.folds.of_person[row.person]) for row in self.rows]
        value = settings_dict(self.settings) | {
            "seed": self.seed,
            "boxes": None if self.boxes is None else self.boxes.sha256,
            "rows": _hash(people),
        }
        if self.settings.label_distribution:
            value["ages"] = _hash([row.age for row in self.rows])
        if self.repeat:
            value["repeat"] = self.repeat
        if self.pseudo_labels is not None:  # without pseudo-labels the fingerprint is that of earlier versions
            boxes = self.pseudo_labels.boxes
            value["pseudo"] = {
                "boxes": None if boxes is None else boxes.sha256,
                "rows": _hash([(row.id, _classes(row)[-1]) for row in self.pseudo_labels.rows]),
            }
        if self.teacher is not None:
            value["teacher"] = self.teacher.fingerprint()
        return json.dumps(value, sort_keys=True)


@dataclass(frozen=True, slots=True, eq=False)
class JobImages:
    """The decoded images of a job: those of its rows, in their order, and the pseudo-labeled ones."""

    labeled: LabeledImages
    pseudo: LabeledImages | None


def load_job_images(job: TrainJob, *, listener: Listener = SILENT) -> JobImages:
    """Decode the images of a job, which all of its folds share.

    Raises:
        OptionError: E206 when there is a face crop and no boxes.
        DataError: E351 when an image has no entry in the boxes; the codes of `decode_images`.
    """
    targets, labels = true_labels(job.rows, job.settings, trained=True), true_labels(job.rows, job.settings)
    borders = age_borders(job.rows, job.settings.labels)
    soft = spread_targets(job.rows, job.settings, borders=borders, listener=listener)
    labeled = LabeledImages(_load(job.rows, job.boxes, job, listener), targets, labels, soft)
    if job.pseudo_labels is None:
        return JobImages(labeled, None)
    predicted = true_labels(job.pseudo_labels.rows, job.settings, trained=True)
    decoded = _load(job.pseudo_labels.rows, job.pseudo_labels.boxes, job, listener)
    soft = spread_targets(job.pseudo_labels.rows, job.settings, borders=borders)
    return JobImages(labeled, LabeledImages(decoded, predicted, predicted, soft))


def _load(rows: Sequence[Row], boxes: Boxes | None, job: TrainJob, listener: Listener) -> DecodedImages:
    settings = job.settings
    if settings.preprocess.face is None:
        return decode_images(rows, settings.preprocess, listener=listener)
    if boxes is None:
        raise OptionError("E206", "training on face crops needs the face boxes of all images")
    return decode_images(
        rows,
        settings.preprocess,
        boxes=boxes.select([row.id for row in rows]),
        fallback_share=settings.fallback_share,
        seed=job.seed,
        listener=listener,
    )


def true_labels(rows: Sequence[Row], settings: TrainSettings, *, trained: bool = False) -> NDArray[np.int64]:
    """Return the classes ``(N,)``, or with several labels per image 0 and 1 as ``(N, L)``; ``trained``: the targets."""
    return labels_of(rows, settings.labels, settings.activation, trained=trained)


def _classes(row: Row) -> tuple[Any, ...]:
    return (row.label, row.target) if row.present is None else (list(row.present),)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
