"""Face detection with MTCNN (Zhang et al. 2016, weights of facenet-pytorch), once for every image: `ens crop`.

`checkpoints.data.face_search` is the search that this detector and `checkpoints.data.retinaface` share.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN

from checkpoints.data.face_search import (
    DetectedFace,
    Detections,
    DetectorInput,
    FoundFaces,
    choose_face,
    read_input,
    search_images,
)
from checkpoints.torch_device import choose_torch_device
from ensemble.arrays import Pixels
from ensemble.errors import DataError, DeviceMemoryError, OptionError
from ensemble.events import SILENT, Listener
from ensemble.images.face_boxes import Box, FoundBy
from ensemble.images.listing import Listing
from ensemble.predict.resumable import Slice
from ensemble.runtime.machine import available_cores
from ensemble.thread_pool import leave

_SMALLEST = 20  # px; MTCNN detects nothing in smaller images
_REDUCED_FROM = 1024  # px of the shorter side; the networks see faces of 48 px, so larger images are halved first
_BATCH = {"cpu": 8, "cuda": 64}

Thresholds = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """The settings of the face detector.

    ``min_face`` is the smallest face as a share of the image's shorter side (at least 20 px): in a portrait the face is
    large, and searching for small ones takes most of the time. ``thresholds`` are the confidence thresholds of MTCNN's
    three networks; its defaults 0.6, 0.7, 0.7 miss many faces behind a mask. ``second`` are those of a second pass, for
    faces of half that size, over the images without a face; None skips it.

    Raises:
        OptionError: E204 when a value is out of range.
    """

    min_face: float = 0.15
    thresholds: Thresholds = (0.5, 0.6, 0.6)
    second: Thresholds | None = (0.4, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not 0.01 <= self.min_face <= 0.9:
            raise OptionError("E204", f"the smallest face must be a share of 0.01 to 0.9, got {self.min_face}")
        for thresholds in (self.thresholds, self.second or self.thresholds):
            if len(thresholds) != 3 or not all(0 < value < 1 for value in thresholds):
                raise OptionError("E204", f"thresholds must be three values between 0 and 1, got {thresholds}")


DEFAULT = DetectorSettings()


def find_faces(
    images: Path | Listing,
    path: Path,
    *,
    settings: DetectorSettings = DEFAULT,
    device: str = "auto",
    workers: int | None = None,
    fresh: bool = False,
    listener: Listener = SILENT,
) -> FoundFaces:
    """Detect the face in every image below ``images`` and write the boxes to ``path``.

    Existing rows are kept if the settings and the size of the image in bytes are the same; ``fresh`` discards them.

    Raises:
        OptionError: E203 when the device is unknown.
        DataError: E3xx when the folder cannot be listed; E326 when some images could not be read: the boxes of all
            others are written, and ``<name>.errors.csv`` lists the rest.
        DeviceError: E601 when CUDA was asked for and torch has none, E602 when its memory is too small.
        FileError: E701 or E702 when the file cannot be written, E704 when it was made with other settings.
        Interrupted: E801 on Ctrl-C or SIGTERM; the boxes so far are kept.
    """
    where = choose_torch_device(device, listener=listener)
    return search_images(
        images,
        path,
        lambda: Detector(settings, where, workers=workers),
        detector="mtcnn",
        origin=_origin(settings),
        fresh=fresh,
        listener=listener,
    )


Decoding = Future[DetectorInput | DataError]


class Detector:
    """MTCNN for images of any size, in batches of equal size; on the CPU each batch runs on one core."""

    def __init__(self, settings: DetectorSettings, device: torch.device, *, workers: int | None = None) -> None:
        self._settings = settings
        self._device = device
        self._workers = workers or available_cores()
        self._threads = torch.get_num_threads()
        self._network = MTCNN(keep_all=True, device=device).eval()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Detector:
        # small networks and batches: one batch per core is faster than all cores on one batch
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._workers, "ens", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            leave(self._pool)
        torch.set_num_threads(self._threads)

    def cut(self, rounds: Iterator[Slice]) -> Iterator[Slice]:
        """Yield what is detected together of each round: on the CPU a few batches per core, which take seconds."""
        size = 4 * self._workers * _BATCH["cpu"] if self._device.type == "cpu" else 0
        for piece in rounds:
            for start in range(0, len(piece.rows), size or len(piece.rows)):
                yield replace(piece, rows=piece.rows[start : start + size] if size else piece.rows)

    def answers(
        self, rounds: Iterator[Slice], listing: Listing
    ) -> Iterator[tuple[Slice, Sequence[DetectedFace | DataError]]]:
        """See `FaceDetector.answers`; a GPU detects while the next round is decoded."""
        for piece, inputs in self.decode_rounds(self.cut(rounds), listing):
            yield piece, self.find(inputs)

    def decode_rounds(self, rounds: Iterator[Slice], listing: Listing) -> Iterator[tuple[Slice, list[Decoding]]]:
        """Yield each round with the decodings of its images, one per row, which are under way.

        For a GPU, the next round is started as well. On the CPU its images would only take the cores of the detection.
        """
        assert self._pool is not None, "use the detector in a with statement"
        pool, ahead = self._pool, 0 if self._device.type == "cpu" else 1
        started = (
            (piece, [pool.submit(read_input, listing.paths[row], _REDUCED_FROM) for row in piece.rows])
            for piece in rounds
        )
        waiting: deque[tuple[Slice, list[Decoding]]] = deque()
        for decodings in started:
            waiting.append(decodings)
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting

    def find(self, decodings: Sequence[Decoding]) -> list[DetectedFace | DataError]:
        """Return the chosen face of each image of `decode_rounds`, or why it could not be read.

        Raises:
            DeviceError: E602 when the device has too little memory for one image.
        """
        inputs = [decoding.result() for decoding in decodings]
        read = {i: image for i, image in enumerate(inputs) if isinstance(image, DetectorInput)}
        settings = self._settings
        first = self._pass(read, settings.thresholds, settings.min_face)
        faceless = {i: image for i, image in read.items() if not len(first[i])}
        second = self._pass(faceless, settings.second, settings.min_face / 2) if settings.second else {}
        results: list[DetectedFace | DataError] = []
        for i, image in enumerate(inputs):
            if isinstance(image, DataError):
                results.append(image)
                continue
            found, by = (first[i], "first") if len(first[i]) else (second.get(i, first[i]), "second")
            chosen = choose_face(found, image.pixels.shape[1], image.pixels.shape[0])
            if chosen is None:
                results.append(DetectedFace(None, None, 0, None, image.size, image.notices))
            else:
                left, top, right, bottom = (float(side) * image.step for side in found[chosen, :4])
                box = Box(left, top, right, bottom)
                by_pass: FoundBy = "first" if by == "first" else "second"
                results.append(
                    DetectedFace(box, float(found[chosen, 4]), len(found), by_pass, image.size, image.notices)
                )
        return results

    def _pass(self, inputs: dict[int, DetectorInput], thresholds: Thresholds, min_face: float) -> dict[int, Detections]:
        """Return ``(faces, 5)`` for each image: left, top, right, bottom, probability."""
        assert self._pool is not None
        found = {i: np.empty((0, 5), np.float32) for i in inputs}
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, image in inputs.items():
            if min(image.pixels.shape[:2]) >= _SMALLEST:
                by_shape[image.pixels.shape].append(i)
        batch = _BATCH[self._device.type]
        groups = [rows[k : k + batch] for rows in by_shape.values() for k in range(0, len(rows), batch)]

        def detect(rows: list[int]) -> list[Detections]:
            pixels = np.stack([inputs[i].pixels for i in rows])
            smallest = max(_SMALLEST, round(min(pixels.shape[1:3]) * min_face))
            network = copy(self._network)  # shallow: the copies share the networks, but not the settings
            network.thresholds, network.min_face_size = list(thresholds), smallest
            return _detect(network, pixels)

        run = self._pool.map if self._device.type == "cpu" else map
        for rows, faces in zip(groups, run(detect, groups), strict=True):
            found.update(zip(rows, faces, strict=True))
        return found


def _detect(network: Any, pixels: Pixels) -> list[Detections]:
    """Return the faces in each of ``(N, H, W, 3)`` as ``(faces, 5)``."""
    try:
        # channels first in memory, viewed as (N, H, W, 3): pooling is 20 % faster, with the same results
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        boxes, probabilities = network.detect(planes.permute(0, 2, 3, 1))
    except (RuntimeError, IndexError, ValueError) as err:
        halves = np.array_split(pixels, 2)
        if isinstance(err, torch.OutOfMemoryError) or "allocate memory" in str(err):
            if len(pixels) == 1:
                message = f"the memory is too small for an image of {pixels.shape[1]}x{pixels.shape[2]} px"
                raise DeviceMemoryError("E602", message) from err
            return [faces for half in halves for faces in _detect(network, half)]
        # MTCNN concatenates an empty list if every candidate is outside the image, and miscounts if some are;
        # any other error, such as that of a device, must not be taken for an image without a face
        if not isinstance(err, IndexError) and "non-empty list" not in str(err):
            raise
        if len(pixels) > 1:
            return [faces for one in pixels for faces in _detect(network, one[None])]
        return [np.empty((0, 5), np.float32)]
    return [_rows(found, sure) for found, sure in zip(boxes, probabilities, strict=True)]


def _rows(found: Any, sure: Any) -> Detections:
    if found is None:
        return np.empty((0, 5), np.float32)
    rows = np.column_stack([np.asarray(found, np.float32), np.asarray(sure, np.float32)])
    real = np.isfinite(rows).all(axis=1) & (rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])
    return rows[real]


def _origin(settings: DetectorSettings) -> str:
    """Return the settings of the detection; the device is left out, as it changes boxes by less than a pixel."""
    return json.dumps(asdict(settings) | {"mtcnn": version("facenet-pytorch")}, sort_keys=True)
