"""Check the images and the ground truth that int8 and float16 are judged by before the export, which takes minutes."""

from __future__ import annotations

from pathlib import Path

from checkpoints.loading.open import Checkpoint
from ensemble.card import ModelCard
from ensemble.predictions.truth import read_truth
from exporters.accuracy_gate import ImageSet, split_images
from exporters.int8 import CALIBRATION
from exporters.training_record import training_record


def require_judges(checkpoint: Checkpoint, card: ModelCard, images: ImageSet | None, truth: Path | None) -> None:
    """Check that the ground truth can be read and fits the images, and that enough of them are left to judge.

    Raises:
        EnsError: as `read_truth` and `split_images`.
    """
    if images is None or card.precision == "fp32":
        return
    known = None if truth is None else read_truth(truth, card.labels)
    if card.precision == "int8":
        record = training_record(checkpoint, images.ids)
        split_images(
            images.ids,
            known,
            calibration=CALIBRATION,
            choosing=True,
            persons=record.persons,
            trained=record.trained,
        )
    elif known is not None:
        split_images(images.ids, known, calibration=0)
