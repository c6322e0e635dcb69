"""The accuracy gate: a model of lower precision is written only if its answers on real images agree with float32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.arrays import Classes, Logits, Pixels
from ensemble.card import Precision, Preprocess
from ensemble.errors import DataError, enumerate_some
from ensemble.events import SILENT, Listener
from ensemble.images.decode import name_image
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import prepare_image
from ensemble.images.planes import read_for
from ensemble.metrics import confusion_matrix, macro_f1
from ensemble.predictions.truth import Truth

# share of images with the same class as in float32
LEAST_AGREEMENT: Mapping[Precision, float] = {"fp16": 0.995, "int8": 0.98}
# with ground truth macro F1 is the criterion, as changed classes are mostly ones that float32 also gets wrong; the
# agreement is then a coarse second check
LEAST_AGREEMENT_WITH_TRUTH: Mapping[Precision, float] = {"fp16": 0.995, "int8": 0.95}
MOST_F1_LOST = 0.003
MOST_IMAGES = 1000
LEAST_IMAGES = 8
# peak memory grows with it: 16 images of 300 px took an EfficientNet-B3 to 4.5 GB
_BATCH = 4


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Real images by id; ``boxes[i]`` is the face in image i, for models with a face crop."""

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    boxes: tuple[Box | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the calibration set and of the evaluation set (``gate``); no image or person is in both."""

    calibration: tuple[int, ...]
    gate: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A comparison of a model's answers with those of float32, on ``images`` images.

    ``changed`` counts the images with another class; ``f1`` and ``reference_f1`` are macro F1 scores where the ground
    truth is known.
    """

    precision: Precision
    images: int
    changed: int
    f1: float | None = None
    reference_f1: float | None = None

    @property
    def agreement(self) -> float:
        """The share of images with the same class as in float32."""
        return 1 - self.changed / self.images

    @property
    def faults(self) -> tuple[str, ...]:
        """The figures that are worse than allowed; empty when the model may be used."""
        found = []
        least = (LEAST_AGREEMENT if self.f1 is None else LEAST_AGREEMENT_WITH_TRUTH)[self.precision]
        if self.changed > round((1 - least) * self.images, 6):
            found.append(f"another class on {self.changed} of {self.images} images, {1 - least:.1%} may change")
        if self.f1 is not None and self.reference_f1 is not None and self.reference_f1 - self.f1 > MOST_F1_LOST:
            lost = f"{self.reference_f1:.4f} to {self.f1:.4f}"
            found.append(f"macro F1 falls from {lost}, by more than {MOST_F1_LOST}")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps."""
        found: dict[str, Any] = {"images": self.images, "agreement": round(self.agreement, 4)}
        if self.f1 is not None and self.reference_f1 is not None:
            found |= {"macro_f1": round(self.f1, 4), "macro_f1_fp32": round(self.reference_f1, 4)}
        return found

    def __str__(self) -> str:
        text = f"{self.agreement:.1%} of {self.images} answers as in fp32"
        if self.f1 is not None and self.reference_f1 is not None:
            text += f", macro F1 {self.f1:.4f} against {self.reference_f1:.4f}"
        return text


def split_images(ids: Sequence[str], truth: Truth | None, *, calibration: int) -> Split:
    """Split images into a calibration set (``calibration`` or a quarter, at most) and up to 1,000 to evaluate on.

    With a ground truth only the images that it names are evaluated; those that it leaves out calibrate first. No
    person is on both sides. The order is that of hashes, so that it depends on the names alone.

    Raises:
        DataError: E330 when the ground truth names images that are missing, E316 when fewer than 8 can judge.
    """
    person = dict(zip(ids, ids, strict=True))
    if truth is not None:
        unknown = [name for name in truth.ids if name not in person]
        if unknown:
            raise DataError(
                "E330", f"{len(unknown):,} images of the ground truth are missing: {enumerate_some(unknown)}"
            )
        person = dict(zip(truth.ids, truth.persons or truth.ids, strict=True))
    wanted = min(calibration, len(ids) // 4)
    order = sorted(range(len(ids)), key=lambda i: (ids[i] in person, _hash(person.get(ids[i], "")), _hash(ids[i])))
    first = order[:wanted]
    seen = {person[ids[i]] for i in first if ids[i] in person}
    rest = [i for i in order[wanted:] if ids[i] in person and person[ids[i]] not in seen]
    # ordered by the hash of each id, so that a thousand images cover as many people as possible
    gate = sorted(rest, key=lambda i: _hash(ids[i]))[:MOST_IMAGES]
    if len(gate) < LEAST_IMAGES:
        raise DataError("E316", f"{len(gate)} of {len(ids)} images are left to judge by; {LEAST_IMAGES} are needed")
    return Split(tuple(first), tuple(gate))


def load_images(
    images: ImageSet, places: Sequence[int], preprocess: Preprocess, *, listener: Listener = SILENT
) -> Pixels:
    """Read the images at these indices as the model takes them, ``(N, H, W, 3)`` uint8.

    Raises:
        DataError: when one cannot be read, E354 when its face box was made for another image.
    """
    loaded = np.empty((len(places), *preprocess.shape), dtype=preprocess.dtype)
    for row, place in enumerate(places):
        box = None if images.boxes is None else images.boxes[place]
        image = read_for(images.paths[place], preprocess).image
        try:
            loaded[row] = prepare_image(image, preprocess, box)
        except DataError as err:
            raise name_image(err, images.paths[place]) from err
        listener.progress("read images", row + 1, len(places))
    return loaded


def classes_of(ids: Sequence[str], places: Sequence[int], truth: Truth) -> Classes:
    """Return the true classes ``(N,)`` of the images at these indices."""
    known = dict(zip(truth.ids, truth.classes.tolist(), strict=True))
    return np.array([known[ids[place]] for place in places], dtype=np.intp)


def predict_logits(
    run: Callable[[Pixels], Logits], pixels: Pixels, *, stage: str = "gate", listener: Listener = SILENT
) -> Logits:
    """Return the logits ``(N, C)`` of all images, computed in batches."""
    parts = []
    for start in range(0, len(pixels), _BATCH):
        parts.append(run(pixels[start : start + _BATCH]))
        listener.progress(stage, min(start + _BATCH, len(pixels)), len(pixels))
    return np.concatenate(parts)


def judge(precision: Precision, reference: Logits, found: Logits, truth: Classes | None) -> Verdict:
    """Compare logits ``(N, C)`` with float32's; a row that is not finite counts as another class."""
    expected, classes = reference.argmax(axis=1), found.argmax(axis=1)
    same = (expected == classes) & np.isfinite(found).all(axis=1)
    changed = int(np.count_nonzero(~same))
    if truth is None:
        return Verdict(precision, len(same), changed)
    count = reference.shape[1]
    f1, reference_f1 = (
        float(macro_f1(confusion_matrix(truth, answers, classes=count))) for answers in (classes, expected)
    )
    return Verdict(precision, len(same), changed, f1, reference_f1)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
