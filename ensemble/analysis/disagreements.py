"""Find the images on which members disagree most, with the votes of the members."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ensemble.arrays import Classes, Floats
from ensemble.blend.blend import Blended
from ensemble.card import Preprocess
from ensemble.images.decode import ARRAY_SUFFIX, read_image
from ensemble.images.listing import list_images
from ensemble.images.resize import resize_image
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import Truth, true_classes

_MOST = 12
_THUMBNAIL = Preprocess((144, 144), resize="center")


@dataclass(frozen=True, slots=True)
class Vote:
    """The members that predict one class for an image, and the probability that each of them gives it."""

    class_name: str
    members: tuple[str, ...]
    confidences: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """The mean of the members' probabilities."""
        return sum(self.confidences) / len(self.confidences)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image on which members disagree: their mutual information in nats, and the votes, most members first.

    ``blend`` is the class that the blend predicts with the probability ``confidence``, ``truth`` the true class where
    it is known, and ``thumbnail`` the content of a JPEG file.
    """

    image: str
    information: float
    blend: str
    confidence: float
    votes: tuple[Vote, ...]
    truth: str | None
    thumbnail: bytes | None


def find_disagreements(
    alone: Mapping[str, Blended], blended: Blended, truth: Truth | None, images: Path | None
) -> tuple[Disagreement, ...]:
    """Return the images with the highest mutual information between members: entropy of the mean less mean entropy.

    ``alone`` holds each member's own predictions for the images of ``blended``, in the same order. See Houlsby et al.,
    "Bayesian Active Learning" (arXiv 1112.5745), equation 2. Images that could not be read are skipped, and of each
    person, as far as they are known (see `person_of`), there is one image.

    Raises:
        DataError: E330 when the ground truth is of other images, E3xx when an image is missing or cannot be read.
    """
    labels = blended.labels
    mean = np.zeros_like(blended.probabilities)
    entropy = np.zeros(len(blended))
    chances: dict[str, Floats] = {}
    for name, one in alone.items():
        p = one.probabilities[:, labels.permutation(one.labels, owner=name)]
        mean += p / len(alone)
        chances[name] = p
        entropy += _entropy(p) / len(alone)
    information = _entropy(mean) - entropy
    filled = set(blended.filled)  # images that could not be read have the same probabilities from all members
    read = np.array([row for row, name in enumerate(blended.ids) if name not in filled], dtype=np.intp)
    person, taken = person_of(blended.ids, truth), dict[str, int]()
    for row in read[np.argsort(-information[read], kind="stable")].tolist():
        taken.setdefault(person[row], row)
    rows = list(taken.values())[:_MOST]
    ids = [blended.ids[row] for row in rows]
    true = None if truth is None else true_classes(blended.ids, truth)
    pictures = make_thumbnails(ids, images)
    predicted = {name: predicted_classes(one, labels) for name, one in alone.items()}
    index = {name: place for place, name in enumerate(labels.names)}
    found = []
    for row, picture in zip(rows, pictures, strict=True):
        votes: dict[str, list[str]] = {}
        for name, classes in predicted.items():
            votes.setdefault(labels.names[classes[row]], []).append(name)
        cast = [
            Vote(name, tuple(members), tuple(float(chances[one][row, index[name]]) for one in members))
            for name, members in votes.items()
        ]
        found.append(
            Disagreement(
                image=blended.ids[row],
                information=float(information[row]),
                blend=labels.names[blended.classes[row]],
                confidence=float(blended.probabilities[row, blended.classes[row]]),
                votes=tuple(sorted(cast, key=lambda vote: (-len(vote.members), -vote.confidence, vote.class_name))),
                truth=None if true is None else labels.names[true[row]],
                thumbnail=picture,
            )
        )
    return tuple(found)


def person_of(ids: Sequence[str], truth: Truth | None) -> list[str]:
    """Return the person on each image: that of the ground truth, else the folder that the image shares with others.

    An image of which neither is known is by itself.
    """
    if truth is not None and truth.persons is not None:
        known = dict(zip(truth.ids, truth.persons, strict=True))
        if all(name in known for name in ids):
            return [known[name] for name in ids]
    folders = [PurePosixPath(name).parent.as_posix() for name in ids]
    shared = Counter(folders)
    return [
        folder if folder != "." and 1 < shared[folder] < len(ids) else name
        for name, folder in zip(ids, folders, strict=True)
    ]


def predicted_classes(blended: Blended, labels: LabelSpace) -> Classes:
    """Return the predicted classes ``(N,)`` as indices into ``labels``."""
    columns = labels.permutation(blended.labels, owner="a member")
    return np.asarray(np.argsort(columns)[blended.classes], dtype=np.intp)


def _entropy(p: Floats) -> Floats:
    """Return the entropy of each row in nats."""
    return np.asarray(-(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=-1))


def make_thumbnails(ids: Sequence[str], images: Path | None) -> list[bytes | None]:
    """Return the content of a small JPEG file for each image, or None for each where there is no folder of them.

    Raises:
        DataError: E3xx when an image is missing or cannot be read.
    """
    if images is None:
        return [None] * len(ids)
    # arrays have no colors to show
    paths = list_images(images, ids).paths
    return [None if path.suffix.lower() == ARRAY_SUFFIX else _thumbnail(path) for path in paths]


def _thumbnail(path: Path) -> bytes:
    """Return the content of a JPEG file."""
    sink = io.BytesIO()
    Image.fromarray(resize_image(read_image(path).pixels, _THUMBNAIL)).save(sink, "JPEG", quality=78, optimize=True)
    return sink.getvalue()
