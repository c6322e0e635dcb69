"""Disputes: the images that members disagree on most, with who says what."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ensemble.arrays import Classes, Floats
from ensemble.blend.blend import Blended
from ensemble.card import Preprocess
from ensemble.images.decode import read_image
from ensemble.images.listing import list_images
from ensemble.images.resize import resize_image
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import Truth, true_classes

_MOST = 12
_THUMBNAIL = Preprocess((144, 144), resize="center")


@dataclass(frozen=True, slots=True)
class Dispute:
    """An image the members disagree on: ``information`` in nats, and who answers which class.

    ``thumbnail`` is a JPEG file's content, ``truth`` the name of the true class where it is known.
    """

    image: str
    information: float
    blend: str
    votes: tuple[tuple[str, tuple[str, ...]], ...]
    truth: str | None
    thumbnail: bytes | None


def find_disputes(
    alone: Mapping[str, Blended], blended: Blended, truth: Truth | None, images: Path | None
) -> tuple[Dispute, ...]:
    """The images about which the members' answers tell most apart: the entropy of their mean less their mean entropy.

    ``alone`` holds each member's own answers to the images of ``blended``, in the same order. The measure is the mutual
    information of Houlsby et al., "Bayesian Active Learning" (arXiv 1112.5745), equation 2.

    Raises:
        DataError: E330 when the truth is of other images, E3xx when a picture is missing or cannot be read.
    """
    labels = blended.labels
    mean = np.zeros_like(blended.probabilities)
    entropy = np.zeros(len(blended))
    for name, one in alone.items():
        p = one.probabilities[:, labels.permutation(one.labels, owner=name)]
        mean += p / len(alone)
        entropy += _entropy(p) / len(alone)
    information = _entropy(mean) - entropy
    filled = set(blended.filled)  # about what could not be read there is no dispute, and no picture
    read = np.array([row for row, name in enumerate(blended.ids) if name not in filled], dtype=np.intp)
    rows = read[np.argsort(-information[read], kind="stable")[:_MOST]].tolist()
    ids = [blended.ids[row] for row in rows]
    true = None if truth is None else true_classes(blended.ids, truth)
    pictures = [None] * len(ids) if images is None else [_thumbnail(path) for path in list_images(images, ids).paths]
    answers = {name: answers_of(one, labels) for name, one in alone.items()}
    disputes = []
    for row, picture in zip(rows, pictures, strict=True):
        votes: dict[str, list[str]] = {}
        for name, classes in answers.items():
            votes.setdefault(labels.names[classes[row]], []).append(name)
        ordered = sorted(votes.items(), key=lambda item: (-len(item[1]), item[0]))
        disputes.append(
            Dispute(
                image=blended.ids[row],
                information=float(information[row]),
                blend=labels.names[blended.classes[row]],
                votes=tuple((name, tuple(who)) for name, who in ordered),
                truth=None if true is None else labels.names[true[row]],
                thumbnail=picture,
            )
        )
    return tuple(disputes)


def answers_of(blended: Blended, labels: LabelSpace) -> Classes:
    """The answers ``(N,)`` as class numbers of ``labels``."""
    columns = labels.permutation(blended.labels, owner="a member")
    return np.asarray(np.argsort(columns)[blended.classes], dtype=np.intp)


def _entropy(p: Floats) -> Floats:
    """The entropy of each row in nats."""
    return np.asarray(-(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=-1))


def _thumbnail(path: Path) -> bytes:
    """A JPEG file's content."""
    sink = io.BytesIO()
    Image.fromarray(resize_image(read_image(path).pixels, _THUMBNAIL)).save(sink, "JPEG", quality=78, optimize=True)
    return sink.getvalue()
