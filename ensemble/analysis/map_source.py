"""Models that answer for images, and say where their evidence for a class is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble.analysis.cam import Classifier, find_classifier
from ensemble.arrays import Classes, Floats, Mask, Pixels
from ensemble.blend.pooling import expit
from ensemble.card import Activation, Preprocess
from ensemble.events import SILENT, Listener
from ensemble.images.face_boxes import Box
from ensemble.labels import LabelSpace
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import FEATURES, LOGITS, ModelFile
from ensemble.runtime.run_device import choose_run_device
from ensemble.runtime.session import Session, start_session


@dataclass(frozen=True, slots=True, eq=False)
class MapInput:
    """An image of the row ``row``: the upright ``photo`` ``(H, W, 3)``, and the face ``box`` in it.

    ``pixels`` ``(h, w, 3)`` is what the map is drawn over, and ``face`` ``(h, w)`` which of them are in the box.
    """

    row: int
    photo: Pixels
    box: Box | None
    pixels: Pixels
    face: Mask | None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The answers for B images: ``probabilities`` ``(B, C)``, the ``predicted`` classes ``(B,)``.

    ``applies`` ``(B, C)`` are the labels that apply, None for one class per image. ``maps`` takes places in the batch
    and classes, both ``(K,)``, and returns class-activation maps ``(K, h, w)``.
    """

    probabilities: Floats
    predicted: Classes
    applies: Mask | None
    maps: Callable[[NDArray[np.intp], NDArray[np.intp]], Floats]


class MapSource(Protocol):
    """A model whose answers are explained; ``name`` and ``device`` are for people."""

    @property
    def name(self) -> str:
        """The name of the model."""

    @property
    def device(self) -> str:
        """The device that it runs on."""

    @property
    def labels(self) -> LabelSpace:
        """The classes, in the order of the columns."""

    @property
    def activation(self) -> Activation:
        """``sigmoid`` if several labels may apply."""

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the images that the maps are drawn over."""

    @property
    def takes_boxes(self) -> bool:
        """True if the model needs the face in each image."""

    def predict(self, inputs: Sequence[MapInput]) -> Evidence:
        """Predict some images."""


@dataclass(frozen=True, slots=True, eq=False)
class MemberMaps:
    """One exported model as a `MapSource`."""

    session: Session
    classifier: Classifier

    @property
    def name(self) -> str:
        """See `MapSource`."""
        return self.session.card.member

    @property
    def device(self) -> str:
        """See `MapSource`."""
        return str(self.session.device)

    @property
    def labels(self) -> LabelSpace:
        """See `MapSource`."""
        return self.session.card.labels

    @property
    def activation(self) -> Activation:
        """See `MapSource`."""
        return self.session.card.activation

    @property
    def preprocess(self) -> Preprocess:
        """See `MapSource`."""
        return self.session.card.preprocess

    @property
    def takes_boxes(self) -> bool:
        """See `MapSource`."""
        return self.preprocess.face is not None

    def predict(self, inputs: Sequence[MapInput]) -> Evidence:
        """Answer for some images.

        Raises:
            ModelError: E432 when the maps do not add up to the logits.
        """
        pixels = np.stack([one.pixels for one in inputs])
        logits, features = (self.session.run(pixels, output=output) for output in (LOGITS, FEATURES))
        self.classifier.require_explains(features, logits)
        predicted = logits.argmax(axis=1)
        exact = logits.astype(np.float64)
        applies: Mask | None = None
        if self.activation == "sigmoid":
            p, applies = expit(exact), logits >= 0
        else:
            p = np.exp(logits - np.logaddexp.reduce(exact, axis=1, keepdims=True))
        return Evidence(p, predicted, applies, lambda places, classes: self.classifier.maps(features[places], classes))


def start_member(model: ModelFile, *, device: str = "auto", listener: Listener = SILENT) -> MemberMaps:
    """Start a model whose classes are to be explained.

    Raises:
        ModelError: E431 without the output ``features``, E432 when the head is not linear.
        OptionError, DeviceError: see `choose_run_device` and `start_session`.
    """
    classifier = find_classifier(model)
    model.card.require_rgb("a map over the image")
    where = choose_run_device(device, [model], listener=listener)
    return MemberMaps(start_session(model, device=where, threads=available_cores()), classifier)
