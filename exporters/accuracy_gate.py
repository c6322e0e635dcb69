"""The accuracy gate: a model of lower precision is written only if its answers on real images agree with float32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from exporters.export_steps import NO_STEPS, Arrays, Given, Steps, spans_of

# share of images with the same class as in float32
LEAST_AGREEMENT: Mapping[Precision, float] = {"fp16": 0.995, "int8": 0.98}
# with ground truth macro F1 is the criterion, as changed classes are mostly ones that float32 also gets wrong; the
# agreement is then a coarse second check
LEAST_AGREEMENT_WITH_TRUTH: Mapping[Precision, float] = {"fp16": 0.995, "int8": 0.95}
MOST_F1_LOST = 0.003
MOST_IMAGES = 1000  # that choose and judge
MOST_SPARE = 500  # that judge a second time
MOST_OTHERS = 1000  # whose float32 logits are compared among each other
LEAST_IMAGES = 8
# multiplications of all images together, and the images that there are at least for a large network
_PRODUCTS = {"calibration": (120e9, 64), "choose": (450e9, 250), "gate": (650e9, 350)}
# of what the gate allows, the share that may change on the images that choose: on others it will be more or less
MARGIN = 2 / 3
WIDE_MARGIN = 0.75  # where a second set can judge
_NEAR = 128  # images with a similar distance between the two highest logits
_Z = 1.959964  # of a 95 % interval
_RESAMPLES = 400
# images at a time, and large ones: 16 of 300 px took an EfficientNet-B3 to 4.5 GB, and 4 take a tenth longer than 2 do
_BATCH = 4
_BATCH_LARGE = 2
_LARGE = 2**16  # pixels
_READ = 8  # images


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Real images by id; ``boxes[i]`` is the face in image i, for models with a face crop."""

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    boxes: tuple[Box | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the images to calibrate with, to ``choose`` layers by and to judge by (``gate``).

    ``spare`` judge a second time, when those of ``gate`` refuse a model and so choose the next one; it is empty where
    there are too few images. No image and no person is in two of these sets. ``others`` are further images of people
    who do not judge, some of which calibrate: float32 alone answers for them, which tells how far apart classes are.
    """

    calibration: tuple[int, ...]
    choose: tuple[int, ...]
    gate: tuple[int, ...]
    spare: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    def for_products(self, products: int) -> Split:
        """Return fewer images for a network of many multiplications per image: 1.8 billion take 60 ms of a core."""

        def count(kind: str, given: int) -> int:
            every, least = _PRODUCTS[kind]
            return min(given, max(least, int(every / max(products, 1))))

        # images of a person follow each other in those that calibrate, and not in the others
        number = count("calibration", len(self.calibration))
        spaced = np.linspace(0, len(self.calibration) - 1, number).round().astype(int).tolist() if number else []
        return replace(
            self,
            calibration=tuple(self.calibration[i] for i in spaced),
            choose=self.choose[: count("choose", len(self.choose))],
            gate=self.gate[: count("gate", len(self.gate))],
            spare=self.spare[: count("gate", len(self.spare))],
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A comparison of a model's answers with those of float32, on ``images`` images.

    ``changed`` counts the images with another class; ``f1`` and ``reference_f1`` are macro F1 scores where the ground
    truth is known, and ``lost_interval`` is the 95 % bootstrap interval of what the score loses. ``least`` is the share
    of the answers that must stay; None is that of the precision. ``margin`` is the share of what may change or be lost
    that a safe model does, and ``expected`` the number of changed images that the errors of the logits predict.
    """

    precision: Precision
    images: int
    changed: int
    f1: float | None = None
    reference_f1: float | None = None
    lost_interval: tuple[float, float] | None = None
    least: float | None = None
    margin: float = MARGIN
    expected: float | None = None

    @property
    def may_change(self) -> float:
        """The share of images that may have another class."""
        usual = LEAST_AGREEMENT if self.f1 is None else LEAST_AGREEMENT_WITH_TRUTH
        return 1 - (usual[self.precision] if self.least is None else self.least)

    @property
    def agreement(self) -> float:
        """The share of images with the same class as in float32."""
        return 1 - self.changed / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the agreement (Wilson 1927), each image counted as drawn alone."""
        share, z2 = self.agreement, _Z**2
        middle = (share + z2 / (2 * self.images)) / (1 + z2 / self.images)
        half = _Z * np.sqrt(share * (1 - share) / self.images + z2 / (4 * self.images**2)) / (1 + z2 / self.images)
        return max(0.0, float(middle - half)), min(1.0, float(middle + half))

    @property
    def is_safe(self) -> bool:
        """True if at most the margin of what may change or be lost does: on other images it will be more or less."""
        lost = 0.0 if self.f1 is None or self.reference_f1 is None else self.reference_f1 - self.f1
        changed = self.changed if self.expected is None else self.expected
        few = changed <= round(self.may_change * self.images * self.margin, 6)
        return few and lost <= MOST_F1_LOST * self.margin

    @property
    def faults(self) -> tuple[str, ...]:
        """The figures that are worse than allowed; empty when the model may be used."""
        found = []
        if self.changed > round(self.may_change * self.images, 6):
            found.append(f"another class on {self.changed} of {self.images} images, {self.may_change:.1%} may change")
        if self.f1 is not None and self.reference_f1 is not None and self.reference_f1 - self.f1 > MOST_F1_LOST:
            lost = f"{self.reference_f1:.4f} to {self.f1:.4f}"
            found.append(f"macro F1 falls from {lost}, by more than {MOST_F1_LOST}")
        return tuple(found)

    @property
    def hint(self) -> str | None:
        """Advice for faults that ``--least-agreement`` does not concern; None leaves it to the error's code."""
        if self.changed > round(self.may_change * self.images, 6):
            return None
        return "calibrate on more images, and more typical ones, or export with --precision fp32"

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps."""
        found: dict[str, Any] = {"images": self.images, "agreement": round(self.agreement, 4)}
        found["agreement_interval"] = [round(end, 4) for end in self.interval]
        if self.least is not None:
            found["least_agreement"] = self.least
        if self.f1 is not None and self.reference_f1 is not None:
            found |= {"macro_f1": round(self.f1, 4), "macro_f1_fp32": round(self.reference_f1, 4)}
        if self.lost_interval is not None:
            found["macro_f1_lost_interval"] = [round(end, 4) for end in self.lost_interval]
        return found

    def __str__(self) -> str:
        low, high = self.interval
        text = f"{self.agreement:.1%} of {self.images} answers as in fp32 (95 % interval {low:.1%} to {high:.1%})"
        if self.f1 is not None and self.reference_f1 is not None:
            text += f", macro F1 {self.f1:.4f}, in fp32 {self.reference_f1:.4f}"
        if self.lost_interval is not None:
            text += f" ({self.lost_interval[0]:+.4f} to {self.lost_interval[1]:+.4f} lost)"
        return text


def split_images(
    ids: Sequence[str],
    truth: Truth | None,
    *,
    calibration: int,
    choosing: bool = False,
    persons: Mapping[str, str] | None = None,
    trained: Collection[str] = (),
) -> Split:
    """Split images into a calibration set (``calibration`` or a quarter, at most) and up to 1,000 to evaluate on.

    With a ground truth only the images that it names are evaluated; those that it leaves out calibrate first. With
    ``choosing``, half of the people who are evaluated choose, and the others judge; where there are images for it, a
    third set of up to 500 can judge once more. No person is in two sets: people are those of the truth, else of
    ``persons`` by id. ``trained`` are images that the network was trained on: where enough others are left they judge
    nothing, and calibrate first. The order is that of hashes, so that it depends on the names alone.

    Raises:
        DataError: E330 when the ground truth names images that are missing, E316 when fewer than 8 can judge.
    """
    person = {name: (persons or {}).get(name, name) for name in ids}
    if truth is not None:
        unknown = [name for name in truth.ids if name not in person]
        if unknown:
            raise DataError(
                "E330", f"{len(unknown):,} images of the ground truth are missing: {enumerate_some(unknown)}"
            )
        person = dict(zip(truth.ids, truth.persons or truth.ids, strict=True))
    wanted = min(calibration, len(ids) // 4)
    others = [name for name in ids if name in person and name not in trained]
    if len(others) >= LEAST_IMAGES * (2 if choosing else 1):
        person = {name: person[name] for name in others}
    order = sorted(range(len(ids)), key=lambda i: (ids[i] in person, _hash(person.get(ids[i], "")), _hash(ids[i])))
    first = order[:wanted]
    seen = {person[ids[i]] for i in first if ids[i] in person}
    rest = [i for i in order[wanted:] if ids[i] in person and person[ids[i]] not in seen]
    # ordered by the hash of each id, so that a thousand images cover as many people as possible
    rest = sorted(rest, key=lambda i: _hash(ids[i]))
    sets = 3 if choosing and len(rest) >= MOST_IMAGES + MOST_SPARE else 2
    gate = rest[: MOST_IMAGES + (MOST_SPARE if sets == 3 else 0)]
    least = LEAST_IMAGES * (2 if choosing else 1)
    if len(gate) < least:
        message = f"{len(gate)} of {len(ids)} images are left to judge by; {least} are needed"
        raise DataError("E316", message, hint="give more images: a quarter of them, up to 256, calibrate")
    if not choosing:
        return Split(tuple(first), (), tuple(gate))
    people = [person[ids[i]] for i in gate]
    parts = _split_people(gate, people, sets)
    if sets == 3 and min(map(len, parts)) < MOST_SPARE // 2:
        gate, people = gate[:MOST_IMAGES], people[:MOST_IMAGES]
        parts = _split_people(gate, people, 2)
    if min(map(len, parts)) < LEAST_IMAGES:
        message = f"{len(set(people))} people are too few to choose layers by some and to judge by others"
        raise DataError("E316", message, hint="give images of more people")
    judging = {person[ids[i]] for part in parts[1:] for i in part}
    chosen = {i for part in parts for i in part}
    further = [i for i in order if i not in chosen and ids[i] in person and person[ids[i]] not in judging]
    further = sorted(further, key=lambda i: _hash(ids[i]))[:MOST_OTHERS]
    choose, judges, *spare = (tuple(part) for part in parts)
    return Split(tuple(first), choose, judges, spare[0] if spare else (), tuple(further))


def _split_people(rows: Sequence[int], people: Sequence[str], count: int) -> list[list[int]]:
    """Return the rows in ``count`` parts of about the same size, each with the rows of other people."""
    by_person: dict[str, list[int]] = {}
    for row, who in zip(rows, people, strict=True):
        by_person.setdefault(who, []).append(row)
    parts: list[set[int]] = [set() for _ in range(count)]
    for who in sorted(by_person, key=lambda who: (-len(by_person[who]), _hash(who))):
        min(parts, key=len).update(by_person[who])
    return [[row for row in rows if row in part] for part in parts]


def load_images(
    images: ImageSet,
    places: Sequence[int],
    preprocess: Preprocess,
    *,
    steps: Steps = NO_STEPS,
    listener: Listener = SILENT,
) -> Pixels:
    """Read the images at these indices as the model takes them, ``(N, H, W, 3)`` uint8.

    Raises:
        DataError: when one cannot be read, E354 when its face box was made for another image.
    """

    def load(start: int, stop: int) -> Arrays:
        loaded = np.empty((stop - start, *preprocess.shape), dtype=preprocess.dtype)
        for row, place in enumerate(places[start:stop]):
            box = None if images.boxes is None else images.boxes[place]
            image = read_for(images.paths[place], preprocess).image
            try:
                loaded[row] = prepare_image(image, preprocess, box)
            except DataError as err:
                raise name_image(err, images.paths[place]) from err
            listener.progress("read images", start + row + 1, len(places))
        return {"pixels": loaded}

    if not places:
        return np.empty((0, *preprocess.shape), dtype=preprocess.dtype)
    named = repr([images.ids[place] for place in places])
    return steps.rows("images", (named, repr(preprocess)), spans_of(len(places), _READ), load)["pixels"]


def classes_of(ids: Sequence[str], places: Sequence[int], truth: Truth) -> Classes:
    """Return the true classes ``(N,)`` of the images at these indices."""
    known = dict(zip(truth.ids, truth.classes.tolist(), strict=True))
    return np.array([known[ids[place]] for place in places], dtype=np.intp)


def predict_logits(
    run: Callable[[Pixels], Logits],
    pixels: Pixels,
    *,
    model: Given = "",
    steps: Steps = NO_STEPS,
    stage: str = "evaluate",
    parallel: int = 1,
    listener: Listener = SILENT,
) -> Logits:
    """Return the logits ``(N, C)`` of all images, computed in batches; ``steps`` keeps them as those of ``model``.

    So many batches run in ``parallel``, for a ``run`` that computes on one core.
    """
    batch = _BATCH if pixels.shape[1] * pixels.shape[2] < _LARGE else _BATCH_LARGE
    with ThreadPoolExecutor(parallel) as pool:

        def predict(start: int, stop: int) -> Arrays:
            batches = [pixels[start + first : start + end] for first, end in spans_of(stop - start, batch)]
            found = list(pool.map(run, batches)) if parallel > 1 else [run(one) for one in batches]
            listener.progress(stage, stop, len(pixels))
            return {"logits": np.concatenate(found)}

        return steps.rows("logits", (model, pixels), spans_of(len(pixels), batch * parallel), predict)["logits"]


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
    return Verdict(precision, len(same), changed, f1, reference_f1, _lost_interval(truth, classes, expected, count))


def expect_changes(reference: Logits, found: Logits, others: Logits, *, below: float = 0.0) -> float:
    """Return how many of the images with logits ``(N, C)`` are likely to have another class: more precise than a count.

    An image keeps its class while the error of the distance between its two highest logits is less than this distance.
    The distances are those of float32 (``reference``) on these images and on ``others`` ``(M, C)``; the errors of
    ``found`` are those of the 128 images with the most similar distances, each with either sign. On 500 images of two
    trained networks the standard deviation of the share was 0.6 to 0.8 of that of a count, and it falls with every
    error that falls, where a few images more or less change by chance. Images whose two highest logits of ``found`` are
    less than ``below`` apart have the class of float32.
    """
    finite = np.isfinite(found).all(axis=1)
    count = int(np.count_nonzero(finite))
    lost = len(found) - count
    if count == 0 or reference.shape[1] < 2:
        return float(lost)
    expected, given = reference[finite].astype(np.float64), found[finite].astype(np.float64)
    first, second = np.argsort(-expected, axis=1, kind="stable")[:, :2].T
    rows = np.arange(count)
    distance = expected[rows, first] - expected[rows, second]
    error = np.abs(given[rows, first] - given[rows, second] - distance)
    order = np.argsort(distance, kind="stable")
    near = min(_NEAR, count)
    windows = np.lib.stride_tricks.sliding_window_view(error[order], near)
    highest = np.sort(others.astype(np.float64), axis=1)
    wanted = np.concatenate([distance, highest[:, -1] - highest[:, -2]])
    place = np.searchsorted(distance[order], wanted)
    larger = windows[(place - near // 2).clip(0, count - near)] > wanted[:, np.newaxis] + below
    return lost + float(larger.mean(axis=1).mean() / 2) * count


def _lost_interval(truth: Classes, classes: Classes, expected: Classes, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the macro F1 that is lost, by the percentiles of a bootstrap over the images."""
    generator = np.random.default_rng(0)
    lost = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(0, len(truth), len(truth))
        scores = [
            float(macro_f1(confusion_matrix(truth[drawn], answers[drawn], classes=count)))
            for answers in (expected, classes)
        ]
        lost.append(scores[0] - scores[1])
    low, high = np.percentile(lost, (2.5, 97.5))
    return float(low), float(high)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
