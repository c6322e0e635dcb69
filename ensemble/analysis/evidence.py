"""Draw class-activation maps of the members that contradict each other on an image: where each sees its class."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ensemble.analysis.cam import Classifier, find_classifier
from ensemble.analysis.disagreements import Disagreement
from ensemble.analysis.overlay import overlay_heat
from ensemble.arrays import Pixels
from ensemble.errors import ModelError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.images.decode import read_image
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import list_images
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import FEATURES, LOGITS, ModelFile, find_models, read_model
from ensemble.runtime.session import start_session

_CLASSES = 2
"""The classes with most votes whose evidence is drawn, for each image."""
_SIDE = 144  # px


@dataclass(frozen=True, slots=True)
class EvidenceMap:
    """The map of one member for the class that it predicts, as the content of a JPEG file."""

    member: str
    class_name: str
    picture: bytes


def draw_evidence(
    disagreements: Sequence[Disagreement], images: Path, models: Sequence[Path], *, listener: Listener
) -> dict[str, tuple[EvidenceMap, ...]]:
    """Draw for each image the maps of the two classes with most votes, each by the surest member with a model.

    Models that cannot be explained, and those of face crops, have no maps (I592).

    Raises:
        DataError: E3xx when an image is missing or cannot be read.
        FileError, ModelError, DeviceError: see `find_models`, `read_model` and `start_session`.
    """
    known = _explainable(models, listener)
    wanted: dict[str, list[tuple[str, str]]] = {}
    for one in disagreements:
        for vote in one.votes[:_CLASSES]:
            ranked = sorted(zip(vote.confidences, vote.members, strict=True), reverse=True)
            member = next((name for _, name in ranked if name in known), None)
            if member is not None:
                wanted.setdefault(member, []).append((one.image, vote.class_name))
    ids = [one.image for one in disagreements]
    pixels = {name: read_image(path).pixels for name, path in zip(ids, list_images(images, ids).paths, strict=True)}
    drawn: dict[tuple[str, str], EvidenceMap] = {}
    for member, pairs in wanted.items():
        pictures = _draw(known[member], pairs, pixels)
        drawn |= {pair: EvidenceMap(member, pair[1], picture) for pair, picture in zip(pairs, pictures, strict=True)}
    return {
        one.image: tuple(drawn[key] for vote in one.votes[:_CLASSES] if (key := (one.image, vote.class_name)) in drawn)
        for one in disagreements
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Explainable:
    """A model and the layer that its maps are made of."""

    model: ModelFile
    classifier: Classifier


def _explainable(models: Sequence[Path], listener: Listener) -> dict[str, _Explainable]:
    known, left_out = {}, []
    for path in find_models(models):
        model = read_model(path)
        name = model.card.member
        if model.card.preprocess.face is not None:
            left_out.append(f"{name} (of face crops)")
            continue
        try:
            known[name] = _Explainable(model, find_classifier(model))
        except ModelError as err:
            left_out.append(f"{name} ({err.message})")
    if left_out:
        listener.notice(Notice("I592", f"no evidence maps of {enumerate_some(left_out)}"))
    return known


def _draw(explained: _Explainable, pairs: Sequence[tuple[str, str]], pixels: Mapping[str, Pixels]) -> list[bytes]:
    """Return the pictures of one member for pairs of image and class."""
    card = explained.model.card
    session = start_session(explained.model, threads=available_cores())
    inputs = np.stack([prepare_image(pixels[image], card.preprocess, None) for image, _ in pairs])
    logits, features = (session.run(inputs, output=output) for output in (LOGITS, FEATURES))
    explained.classifier.require_explains(features, logits)
    classes = np.array([card.labels.names.index(name) for _, name in pairs], dtype=np.intp)
    heat = np.maximum(explained.classifier.maps(features, classes), 0)
    scaled = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)
    return [_to_jpeg(overlay_heat(seen, one, _SIDE)) for seen, one in zip(inputs, scaled, strict=True)]


def _to_jpeg(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=78, optimize=True)
    return sink.getvalue()
