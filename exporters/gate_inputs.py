"""Read the ground truth that int8 and float16 are judged by and split the images, before an export of minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble.arrays import Classes
from ensemble.card import ModelCard
from ensemble.events import Listener
from ensemble.predictions.truth import Truth, read_truth
from exporters.accuracy_gate import ImageSet, Split, classes_of, split_images
from exporters.training_record import Familiar, Trained, TrainingRecord, tell_familiar, training_record

CALIBRATION = 256  # images of int8, at most


@dataclass(frozen=True, slots=True, eq=False)
class GateInputs:
    """Images that calibrate, choose and judge a model, and what is known of them."""

    images: ImageSet
    split: Split
    truth: Truth | None
    record: TrainingRecord

    def tell_judges(self, card: ModelCard, listener: Listener, *, again: bool = False) -> Familiar:
        """Say whose images judge the model, or judge it ``again``, and return their numbers."""
        split = self.split
        seen = self.record.count([self.images.ids[place] for place in (split.spare if again else split.gate)])
        chosen_on = len(split.choose) + (len(split.gate) if again else 0)
        known = self.record.is_found
        tell_familiar(card.member, card.precision, seen, is_recorded=known, chosen_on=chosen_on, listener=listener)
        return seen

    def classes(self, places: tuple[int, ...]) -> Classes | None:
        """Return the true classes of images by their places; None without a ground truth."""
        return None if self.truth is None else classes_of(self.images.ids, places, self.truth)


def read_gate(
    checkpoint: Trained, card: ModelCard, images: ImageSet | None, truth: Path | None, listener: Listener
) -> GateInputs | None:
    """Return what int8, or float16 with a ground truth, is judged by; None for other models.

    Raises:
        EnsError: as `read_truth` and `split_images`.
    """
    is_int8 = card.precision == "int8"
    if images is None or (truth is None and not is_int8):
        return None
    known = None if truth is None else read_truth(truth, card.labels, listener=listener)
    record = training_record(checkpoint, images.ids)
    if is_int8:
        persons, trained = record.persons, record.trained
        split = split_images(
            images.ids, known, calibration=CALIBRATION, choosing=True, persons=persons, trained=trained
        )
    else:
        split = split_images(images.ids, known, calibration=0)
    return GateInputs(images, split, known, record)
