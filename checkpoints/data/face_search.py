"""The search for faces that all detectors share: rounds of images, the choice of a face, the file and its errors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checkpoints.data.face_store import FaceStore, RoundFaces
from ensemble import files
from ensemble.arrays import Pixels
from ensemble.errors import DataError
from ensemble.events import Listener
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Face, FoundBy
from ensemble.images.listing import Listing, list_images
from ensemble.predict.bad_images import unread, write_errors
from ensemble.predict.resumable import Slice, run_slices
from ensemble.predict.timing import Stopwatch

Detections = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DetectedFace:
    """The chosen face of an image of ``size`` ``(width, height)`` px, among ``faces``; no box where there is none."""

    box: Box | None
    probability: float | None
    faces: int
    by: FoundBy | None
    size: tuple[int, int]
    notices: tuple[str, ...]


class FaceDetector(Protocol):
    """A detector, as the search uses it."""

    def answers(
        self, rounds: Iterator[Slice], listing: Listing
    ) -> Iterator[tuple[Slice, Sequence[DetectedFace | DataError]]]:
        """Yield pieces of the rounds with the face of each of their images, or why the image could not be read."""


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """The file of boxes, and the number of images with a face found by the first and the second pass."""

    path: Path
    detector: str
    images: int
    first: int
    second: int
    computed: int

    @property
    def without(self) -> int:
        """The number of images without a face."""
        return self.images - self.first - self.second

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self) | {"path": str(self.path), "without": self.without}

    def render(self) -> str:
        """Return the counts as text."""
        share = self.without / self.images
        return (
            f"{self.images:,} images: a face in {self.first:,}, in {self.second:,} more by the second pass; "
            f"none in {self.without:,} ({share:.1%})\n{self.path}"
        )


def search_images(
    images: Path | Listing,
    path: Path,
    start: Callable[[], AbstractContextManager[FaceDetector]],
    *,
    detector: str,
    origin: str,
    fresh: bool,
    listener: Listener,
) -> FoundFaces:
    """Detect the face in every image below the folder ``images``, or of a list, and write the boxes to ``path``.

    ``start`` makes the detector, whose name and settings ``origin`` records: rows of an earlier run with the same
    origin are kept if the size of the image in bytes is the same, unless ``fresh``.

    Raises:
        DataError: E3xx when the folder cannot be listed; E326 when some images could not be read: the boxes of all
            others are written, and ``<name>.errors.csv`` lists the rest.
        FileError: E701 or E702 when the file cannot be written, E704 when it was made with other settings.
        Interrupted: E801 on Ctrl-C or SIGTERM; the boxes so far are kept.
    """
    files.require_writable(path.parent)
    listing = images if isinstance(images, Listing) else list_images(images, listener=listener)
    store = FaceStore(path, origin, listing, fresh=fresh)
    with start() as finder:
        faults = run_slices(
            [store],
            listing,
            lambda rounds: _detect_rounds(finder, listing, rounds),
            stage="crop",
            watch=Stopwatch(),
            crash_notes=False,
            listener=listener,
        )
    store.finish()
    errors = path.with_suffix(".errors.csv")
    write_errors(errors, listing, faults)
    if faults:
        raise unread(faults, listing, errors, kept=f"all others are in {path}")
    by = [face.found_by for face in store.faces.values()]
    return FoundFaces(path, detector, len(by), by.count("first"), by.count("second"), store.computed)


def _detect_rounds(
    detector: FaceDetector, listing: Listing, rounds: Iterator[Slice]
) -> Generator[RoundFaces, None, None]:
    for piece, answers in detector.answers(rounds, listing):
        found = dict(zip(piece.rows, answers, strict=True))
        good = {row: one for row, one in found.items() if not isinstance(one, DataError)}
        faces = tuple(
            Face(listing.ids[row], one.box, one.probability, one.faces, one.by, *one.size, listing.sizes[row])
            for row, one in good.items()
        )
        faults = {row: one for row, one in found.items() if isinstance(one, DataError)}
        yield RoundFaces(piece.rows, faces, faults, {row: one.notices for row, one in good.items() if one.notices})


def choose_face(faces: Detections, width: int, height: int) -> int | None:
    """Return the row of ``(N, 5)`` with the largest area times probability; the nearest to the center wins on ties."""
    if not len(faces):
        return None
    sides = faces.astype(np.float64)
    score = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1]) * sides[:, 4]
    distance = np.hypot((sides[:, 0] + sides[:, 2] - width) / 2, (sides[:, 1] + sides[:, 3] - height) / 2)
    return int(np.lexsort((distance, -score))[0])


@dataclass(frozen=True, slots=True, eq=False)
class DetectorInput:
    """The upright image reduced by the factor ``step``; ``size`` is its original ``(width, height)``."""

    pixels: Pixels
    step: int
    size: tuple[int, int]
    notices: tuple[str, ...]


def read_input(path: Path, reduced_from: int) -> DetectorInput | DataError:
    """Read an image, halved until its shorter side is below ``reduced_from`` px; or return why it cannot be read."""
    try:
        image = read_image(path)
    except DataError as err:
        return err
    height, width = image.pixels.shape[:2]
    step = 1
    while min(height, width) // step >= reduced_from:
        step *= 2
    pixels = image.pixels if step == 1 else np.asarray(Image.fromarray(image.pixels).reduce(step))
    return DetectorInput(pixels, step, (width, height), image.notices)
