"""One exported model as a Python function: images in, labels and probabilities out, nothing written.

    model = ensemble.load("r18.onnx")
    model("cat.jpg").label

The pixels and the logits are those of `ens predict`; for folders of images, resuming and several models there is
`ensemble.predict.predict`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ensemble.arrays import Logits
from ensemble.blend.pooling import pool
from ensemble.card import ModelCard, Preprocess
from ensemble.errors import DataError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.decode import DecodedImage, convert_image
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import prepare_image
from ensemble.images.planes import DecodedPlanes, planes_of, read_for
from ensemble.images.views import View, parse_views
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import read_model
from ensemble.runtime.run_device import choose_run_device
from ensemble.runtime.session import Session, start_session

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.number]
AnyImage = TypeVar("AnyImage", bound=ImageLike)

_BATCH = 16  # images decoded and computed at once; the logits do not depend on it
_EXPECTED = "a path, a PIL image, or a uint8 RGB array of shape (height, width, 3)"


class NotGiven(Enum):
    """The default of ``box``, because None is an image without a face."""

    NOT_GIVEN = "not given"


NOT_GIVEN = NotGiven.NOT_GIVEN


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The result for one image.

    ``label`` is the most probable class and ``axes`` its value on each axis of the label space, such as ``{"mask":
    "worn", "gender": "male", "age": "under 30"}``. ``probabilities`` has every class by name and sums to one.
    ``logits[view]`` is ``(C,)``, in the order of ``probabilities``. ``notices`` are the codes of everything unusual
    about the image, see `ens explain-error`.
    """

    label: str
    probabilities: Mapping[str, float]
    axes: Mapping[str, str]
    logits: Mapping[str, Logits]
    notices: tuple[str, ...] = ()


def load(path: str | os.PathLike[str], *, device: str = "auto", threads: int = 1, listener: Listener = SILENT) -> Model:
    """Read, check and start a model that `ens export` wrote.

    ``device`` is one that ``ens predict --device`` takes. On the CPU a call computes on ``threads`` cores. With the
    default of one, the logits are bit for bit those of `ens predict`, and several threads may call the model at once.

    Raises:
        OptionError: E203 when the device is not known, E204 when it is several GPUs.
        FileError, ModelError, DeviceError: see `read_model`, `choose_run_device` and `start_session`.
    """
    file = read_model(Path(path))
    where = choose_run_device(device, [file], listener=listener)
    if where.others:
        raise OptionError("E204", f"one model runs on one GPU, got {where}", hint=f"name one of them: {where.each[0]}")
    return Model(start_session(file, device=where, threads=threads, listener=listener), listener)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A started model; call it with an image or a list of images."""

    session: Session = field(repr=False)
    listener: Listener = field(default=SILENT, repr=False)

    @property
    def card(self) -> ModelCard:
        """The model's own description: its name, classes, preprocessing and checks."""
        return self.session.card

    @property
    def device(self) -> Device:
        """The device that it runs on."""
        return self.session.device

    @overload
    def __call__(
        self, images: ImageLike, *, box: Box | NotGiven | None = ..., views: str | Sequence[View] = ...
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        images: list[AnyImage] | tuple[AnyImage, ...],
        *,
        box: Sequence[Box | None] | NotGiven = ...,
        views: str | Sequence[View] = ...,
    ) -> list[Prediction]: ...

    def __call__(
        self,
        images: ImageLike | list[AnyImage] | tuple[AnyImage, ...],
        *,
        box: Box | Sequence[Box | None] | NotGiven | None = NOT_GIVEN,
        views: str | Sequence[View] = "identity",
    ) -> Prediction | list[Prediction]:
        """Predict one image, or each of a list.

        An image is a path, a PIL image (any mode; its EXIF orientation is applied) or a uint8 RGB array ``(H, W, 3)``,
        upright. A model of the file's own channels takes their arrays, ``(H, W, channels)`` or ``(channels, H, W)`` of
        any real numbers. The order of an array's channels cannot be checked: OpenCV reads BGR, which
        ``array[..., ::-1]`` makes RGB.

        A model of face crops needs ``box``, the face in the upright image in px, or None where there is no face (the
        card's fallback is cropped); for a list of images, a list of them. ``views`` are test-time augmentations such as
        ``"hflip"``, see `parse_views`; their probabilities are averaged.

        Raises:
            DataError: E329 when a value is not such an image; E3xx when an image cannot be read or decoded.
            OptionError: E201 when a view does not fit the model, E204 when there is not one box per image, E206 when
                the model needs a box and there is none.
            DeviceError: see `Session.run`.
        """
        chosen = parse_views(views) if isinstance(views, str) else tuple(views)
        for view in chosen:
            view.require_fits(self.card.preprocess.size, self.card.labels, member=self.card.member)
        if isinstance(images, list | tuple):
            return list(self._predict(images, self._boxes(box, len(images)), chosen))
        (prediction,) = self._predict([images], self._boxes(box if box is NOT_GIVEN else [box], 1), chosen)
        return prediction

    def _boxes(self, boxes: object, count: int) -> Sequence[Box | None]:
        """Return one box per image; None for all if the model was not trained on face crops.

        Raises:
            OptionError: E204 when there is not one box per image, E206 when the model needs boxes and there are none.
        """
        crops = self.card.preprocess.face is not None
        if boxes is NOT_GIVEN and crops:
            raise OptionError(
                "E206",
                f"{self.card.member} was trained on face crops and needs box=",
                hint="give box=ensemble.Box(left, top, right, bottom) in px of the upright image, or box=None if the "
                "image has no face; for a list of images, a list of these",
            )
        if boxes is not NOT_GIVEN:
            boxes = _require_boxes(boxes, count)
            if crops:
                return boxes
            self.listener.notice(Notice("I352", f"{self.card.member} does not use face boxes"))
        return [None] * count

    def _predict(
        self, images: Sequence[object], boxes: Sequence[Box | None], views: Sequence[View]
    ) -> Iterator[Prediction]:
        for start in range(0, len(images), _BATCH):
            decoded = [
                _decode(image, place, self.card.preprocess)
                for place, image in enumerate(images[start : start + _BATCH], start)
            ]
            pixels = np.stack(
                [
                    prepare_image(one.image, self.card.preprocess, box)
                    for one, box in zip(decoded, boxes[start : start + _BATCH], strict=True)
                ]
            )
            logits = {
                view.name: view.restore(self.session.run(view.apply(pixels)), self.card.labels, member=self.card.member)
                for view in views
            }
            # in the order of their names, as in a blend
            pooled = pool((logits[name] for name in sorted(logits)), [1] * len(logits))
            for row, image in enumerate(decoded):
                found = {name: values[row].copy() for name, values in logits.items()}
                yield _prediction(self.card, np.exp(pooled[row]), found, image.notices)


def _prediction(
    card: ModelCard, probabilities: Sequence[float], logits: Mapping[str, Logits], notices: tuple[str, ...]
) -> Prediction:
    names, best = card.labels.names, int(np.argmax(probabilities))
    axes = {axis.name: axis.values[int(card.labels.along(axis.name, best))] for axis in card.labels.axes}
    by_name = dict(zip(names, map(float, probabilities), strict=True))
    return Prediction(names[best], by_name, axes, logits, notices)


def _decode(image: object, place: int, preprocess: Preprocess) -> DecodedImage | DecodedPlanes:
    """Decode a path, convert a PIL image, or check an array, which is image number ``place`` of a call.

    Raises:
        DataError: E329 when it is something else; see `read_image` and `convert_image`.
    """
    if isinstance(image, str | os.PathLike):
        return read_for(Path(image), preprocess)
    if preprocess.kept:
        if isinstance(image, Image.Image):
            image = np.asarray(image)
        if not isinstance(image, np.ndarray):
            raise DataError("E329", f"image {place}: expected a path or an array, got {type(image).__name__}")
        try:
            return planes_of(image, preprocess.planes)
        except DataError as err:
            raise DataError(err.code, f"image {place}: {err.message}", hint=err.hint) from err
    if isinstance(image, Image.Image):
        return convert_image(image)
    expected = f"image {place}: expected {_EXPECTED}"
    if not isinstance(image, np.ndarray):
        raise DataError("E329", f"{expected}, got {type(image).__name__}")
    expected += f", got an array of {image.dtype} and shape {image.shape}"
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError("E329", expected, hint=_hint_for_shape(image.shape))
    if image.dtype != np.uint8:
        hint = (
            "for values of 0 to 1: (array * 255).round().astype(numpy.uint8); for 0 to 255: array.astype(numpy.uint8)"
        )
        raise DataError("E329", expected, hint=hint)
    return convert_image(Image.fromarray(image))


def _hint_for_shape(shape: tuple[int, ...]) -> str | None:
    match shape:
        case (_, _) | (_, _, 1):
            return "repeat a grey array three times: numpy.stack([grey] * 3, axis=-1)"
        case (_, _, 4):
            return "drop the alpha channel, array[..., :3], or give a PIL image, which is composited on white"
        case (3, _, _):
            return "put the channels last: array.transpose(1, 2, 0)"
        case (_, _, _, _):
            return "give a list of arrays instead of a batch: list(array)"
    return None


def _require_boxes(boxes: object, count: int) -> Sequence[Box | None]:
    """Return ``boxes`` if they are one per image.

    Raises:
        OptionError: E204 when they are not.
    """
    if not isinstance(boxes, Sequence) or len(boxes) != count or not all(isinstance(box, Box | None) for box in boxes):
        got = ", ".join(type(box).__name__ for box in boxes) if isinstance(boxes, Sequence) else type(boxes).__name__
        raise OptionError("E204", f"box: expected one ensemble.Box or None per image ({count}), got {got or 'none'}")
    return boxes
