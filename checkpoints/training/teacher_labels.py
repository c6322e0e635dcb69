"""The labels of a student: a teacher's probabilities of the training images, and of images without labels, per fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.data.mask_contest import NO_CLASS, Row
from checkpoints.training.distillation import Distillation, SoftLabels
from checkpoints.training.pseudo_labels import PseudoLabels, require_new
from ensemble.arrays import Floats
from ensemble.errors import PredictionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import list_images
from ensemble.learn.teacher import Teacher, answer_by_own_models
from ensemble.predictions.dataset import OPTIMISTIC, Predictions, notice_filled


@dataclass(frozen=True, slots=True)
class Unlabeled:
    """Images without labels: the predictions of them by all models of the recipe, their folder and face boxes."""

    predictions: Sequence[Predictions]
    images: Path
    boxes: Boxes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TeacherLabels:
    """Labels of a student beside the true ones, and if its own out-of-fold score is ``optimistic`` by that."""

    soft: SoftLabels
    pseudo: PseudoLabels | None
    optimistic: bool


def teacher_labels(
    teacher: Teacher,
    rows: Sequence[Row],
    how: Distillation,
    *,
    predictions: Sequence[Predictions] = (),
    unlabeled: Unlabeled | None = None,
    listener: Listener = SILENT,
) -> TeacherLabels:
    """Return the teacher's probabilities for the student of each fold.

    With ``predictions`` of the training images by all models, a fold's student learns from the models that held out
    the same images as it does: its out-of-fold predictions are honest. Without them it learns from the out-of-fold
    predictions: these are of models that did not see the image, but have seen the images that the student is scored on
    (W391). Images without labels are always labeled by the models of the fold.

    Raises:
        DataError: E346 when an unlabeled image is a training image, E393 when a group has no model for a fold.
        PredictionError: the codes of `blend`; E501 when images have any number of labels, and predictions one class, or
            the other way round.
    """
    ids = [row.id for row in rows]
    count = len(teacher.recipes)
    if any(one.independent != (teacher.truth.applies is not None) for one in predictions):
        raise PredictionError("E501", "the training data and the predictions differ in how many labels an image has")
    notice_filled([*predictions, *(unlabeled.predictions if unlabeled else ())], listener)
    if predictions:
        labeled = tuple(answer_by_own_models(teacher, predictions, fold, ids) for fold in range(count))
        whose = "by the models that held out the same images as the student"
    else:
        labeled = (teacher.answers.probabilities,) * count
        whose = "out of fold"
        listener.notice(Notice("W391", OPTIMISTIC))
    kind = f"temperature {how.temperature:g}, {how.share:.0%} of the loss"
    listener.notice(Notice("I393", f"{len(ids):,} images have the blend's probabilities {whose}; {kind}"))
    pseudo = None if unlabeled is None else _label(teacher, unlabeled, rows, listener)
    soft = SoftLabels(labeled, None if pseudo is None else pseudo[1], how, optimistic=not predictions)
    return TeacherLabels(soft, None if pseudo is None else pseudo[0], optimistic=not predictions)


def _label(
    teacher: Teacher, unlabeled: Unlabeled, rows: Sequence[Row], listener: Listener
) -> tuple[PseudoLabels, tuple[Floats, ...]]:
    """Return the images without labels, with the class that is most probable in the mean of all folds."""
    used = [one for one in unlabeled.predictions if one.group in teacher.recipe.groups]
    names = sorted({name for one in used for name in one.ids})  # a model that lacks one of them is E504
    every = tuple(
        answer_by_own_models(teacher, unlabeled.predictions, fold, names) for fold in range(len(teacher.recipes))
    )
    mean = np.mean(every, axis=0)
    listing = list_images(unlabeled.images, names, listener=listener)
    require_new(listing.paths, rows)
    several = teacher.truth.applies is not None
    found = []
    for name, path, p in zip(listing.ids, listing.paths, mean, strict=True):
        present = tuple(np.flatnonzero(p >= 0.5).tolist()) if several else None
        label = NO_CLASS if several else int(p.argmax())
        found.append(Row(name, f"unlabeled {name}", None, None, None, label, path, present=present))
    message = f"{len(found):,} images without labels have the probabilities of each fold's own models"
    listener.notice(Notice("I393", message))
    return PseudoLabels(tuple(found), unlabeled.boxes), every
