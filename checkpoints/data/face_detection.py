"""Find the face in every image once, with MTCNN (Zhang et al. 2016, facenet-pytorch's weights): `ens crop`.

Images are never rewritten: the boxes go to a Parquet file (see `ensemble.images.face_boxes`), and whoever decodes
an image cuts the face out. See `checkpoints.data.face_store` for how a search resumes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray
from PIL import Image

from checkpoints.data.face_store import FaceStore, FoundFaces
from ensemble import files
from ensemble.arrays import Pixels
from ensemble.errors import DataError, DeviceError, DeviceMemoryError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Face, FoundBy
from ensemble.images.listing import Listing, list_images
from ensemble.predict.bad_images import unread, write_errors
from ensemble.predict.resumable import Slice, run_slices
from ensemble.predict.timing import Stopwatch
from ensemble.runtime.machine import available_cores

_SMALLEST = 20  # px; MTCNN's nets see nothing in less
_REDUCED_FROM = 1024  # px of the shorter side; the nets look at faces of 48 px, so large photographs are halved first
_BATCH = {"cpu": 8, "cuda": 64}

Detections = NDArray[np.float32]
Thresholds = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Search:
    """How faces are looked for.

    ``min_face`` is the smallest face as a share of the image's shorter side (never below 20 px): of a portrait the face
    is a large part, and looking for small ones is most of the work. ``thresholds`` are the certainties that MTCNN's
    three nets ask for; its own 0.6, 0.7, 0.7 miss many faces behind a mask. ``second`` are those of another pass, for
    faces of half that size, over the images in which there was none; None leaves it out.

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


DEFAULT = Search()


@dataclass(frozen=True, slots=True)
class Found:
    """A finished search: where the boxes are, and how many images have a face by the first and the second pass."""

    path: Path
    images: int
    first: int
    second: int
    computed: int

    @property
    def without(self) -> int:
        """Images in which no face was found."""
        return self.images - self.first - self.second

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self) | {"path": str(self.path), "without": self.without}

    def render(self) -> str:
        """The counts, for people."""
        share = self.without / self.images
        return (
            f"{self.images:,} images: a face in {self.first:,}, in {self.second:,} more by the second pass; "
            f"none in {self.without:,} ({share:.1%})\n{self.path}"
        )


def find_faces(
    images: Path,
    path: Path,
    *,
    search: Search = DEFAULT,
    device: str = "auto",
    workers: int | None = None,
    fresh: bool = False,
    listener: Listener = SILENT,
) -> Found:
    """Look for the face in every image below ``images`` and write the boxes to ``path``.

    Rows that are there already are kept if they were found in the same way and their image has the same size in bytes;
    ``fresh`` throws them away.

    Raises:
        OptionError: E203 when the device is not known.
        DataError: E3xx when the folder cannot be listed; E326 when some images could not be read: then all others are
            written, and ``<name>.errors.csv`` names the rest.
        DeviceError: E601 when CUDA was asked for and torch has none, E602 when its memory is too small.
        FileError: E701 or E702 when the file cannot be written, E704 when it was found in another way.
        Interrupted: E801 on Ctrl-C or SIGTERM; what was found is kept.
    """
    where = choose_torch_device(device, listener=listener)
    files.require_writable(path.parent)
    listing = list_images(images, listener=listener)
    store = FaceStore(path, _origin(search), listing, fresh=fresh)
    with Detector(search, where, workers=workers) as detector:
        faults = run_slices(
            [store],
            listing,
            lambda rounds: _detect_rounds(detector, listing, rounds),
            stage="crop",
            watch=Stopwatch(),
            crash_notes=False,
            listener=listener,
        )
    store.finish()
    _report(path, listing, faults)
    by = [face.found_by for face in store.faces.values()]
    return Found(path, len(by), by.count("first"), by.count("second"), store.computed)


def _detect_rounds(detector: Detector, listing: Listing, rounds: Iterator[Slice]) -> Generator[FoundFaces, None, None]:
    """Look for the faces of one round after the other."""
    for piece in rounds:
        found = dict(zip(piece.rows, detector.find([listing.paths[row] for row in piece.rows]), strict=True))
        good = {row: one for row, one in found.items() if not isinstance(one, DataError)}
        faces = tuple(
            Face(listing.ids[row], one.box, one.probability, one.faces, one.by, *one.size, listing.sizes[row])
            for row, one in good.items()
        )
        faults = {row: one for row, one in found.items() if isinstance(one, DataError)}
        yield FoundFaces(piece.rows, faces, faults, {row: one.notices for row, one in good.items() if one.notices})


def choose_torch_device(name: str, *, listener: Listener = SILENT) -> torch.device:
    """The device that torch will use: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``; never another than asked for.

    Raises:
        OptionError: E203 when the name is not known.
        DeviceError: E601 when torch does not have it.
    """
    kind, _, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda"} or (index and (kind != "cuda" or not index.isdecimal())):
        raise OptionError("E203", f"{name!r} is not a device", hint="devices: auto, cpu, cuda, cuda:<index>")
    there = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= there:
        message = f"{name} was asked for, but torch {torch.__version__} has {there} GPUs here"
        raise DeviceError("E601", message, hint="install a torch with CUDA, or give --device cpu")
    if kind == "auto" and not there:
        listener.notice(Notice("W601", f"torch {torch.__version__} has no GPU here; the CPU is used"))
    return torch.device(name if kind != "auto" else "cuda" if there else "cpu")


@dataclass(frozen=True, slots=True)
class _One:
    box: Box | None
    probability: float | None
    faces: int
    by: FoundBy | None
    size: tuple[int, int]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Photo:
    """``pixels`` are every ``step``-th of the upright image's, whose ``size`` is ``(width, height)``."""

    pixels: Pixels
    step: int
    size: tuple[int, int]
    notices: tuple[str, ...]


class Detector:
    """MTCNN over images of any sizes: grouped by size, one core a group on the CPU."""

    def __init__(self, search: Search, device: torch.device, *, workers: int | None = None) -> None:
        self._search = search
        self._device = device
        self._workers = workers or available_cores()
        self._threads = torch.get_num_threads()
        self._network = MTCNN(keep_all=True, device=device).eval()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Detector:
        # small nets on small batches: one batch a core is faster than all cores on one batch
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._workers, "ens", initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)

    def find(self, paths: Sequence[Path]) -> list[_One | DataError]:
        """For each file the chosen face, or why it could not be read.

        Raises:
            DeviceError: E602 when the device's memory is too small for one image.
        """
        assert self._pool is not None, "use the detector in a with statement"
        photos = list(self._pool.map(_read, paths))
        read = {i: photo for i, photo in enumerate(photos) if isinstance(photo, _Photo)}
        search = self._search
        first = self._pass(read, search.thresholds, search.min_face)
        faceless = {i: photo for i, photo in read.items() if not len(first[i])}
        second = self._pass(faceless, search.second, search.min_face / 2) if search.second else {}
        results: list[_One | DataError] = []
        for i, photo in enumerate(photos):
            if isinstance(photo, DataError):
                results.append(photo)
                continue
            found, by = (first[i], "first") if len(first[i]) else (second.get(i, first[i]), "second")
            chosen = choose_face(found, photo.pixels.shape[1], photo.pixels.shape[0])
            if chosen is None:
                results.append(_One(None, None, 0, None, photo.size, photo.notices))
            else:
                box = Box(*(float(side) * photo.step for side in found[chosen, :4]))
                by_pass: FoundBy = "first" if by == "first" else "second"
                results.append(_One(box, float(found[chosen, 4]), len(found), by_pass, photo.size, photo.notices))
        return results

    def _pass(self, photos: dict[int, _Photo], thresholds: Thresholds, min_face: float) -> dict[int, Detections]:
        """``(faces, 5)`` for each photo: left, top, right, bottom, probability."""
        assert self._pool is not None
        found = {i: np.empty((0, 5), np.float32) for i in photos}
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, photo in photos.items():
            if min(photo.pixels.shape[:2]) >= _SMALLEST:
                by_shape[photo.pixels.shape].append(i)
        batch = _BATCH[self._device.type]
        groups = [rows[k : k + batch] for rows in by_shape.values() for k in range(0, len(rows), batch)]

        def detect(rows: list[int]) -> list[Detections]:
            pixels = np.stack([photos[i].pixels for i in rows])
            smallest = max(_SMALLEST, round(min(pixels.shape[1:3]) * min_face))
            network = copy(self._network)  # shallow: the nets are shared, the settings its own
            network.thresholds, network.min_face_size = list(thresholds), smallest
            return _detect(network, pixels)

        run = self._pool.map if self._device.type == "cpu" else map
        for rows, faces in zip(groups, run(detect, groups), strict=True):
            found.update(zip(rows, faces, strict=True))
        return found


def choose_face(faces: Detections, width: int, height: int) -> int | None:
    """The row of ``(N, 5)`` with the largest area times probability, of equals the one nearest to the centre."""
    if not len(faces):
        return None
    sides = faces.astype(np.float64)
    worth = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1]) * sides[:, 4]
    away = np.hypot((sides[:, 0] + sides[:, 2] - width) / 2, (sides[:, 1] + sides[:, 3] - height) / 2)
    return int(np.lexsort((away, -worth))[0])


def _detect(network: Any, pixels: Pixels) -> list[Detections]:
    """The faces in each of ``(N, H, W, 3)`` as ``(faces, 5)``."""
    try:
        # planes in memory, still (N, H, W, 3) to look at: pooling them is a fifth faster, the answers are the same
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        boxes, probabilities = network.detect(planes.permute(0, 2, 3, 1))
    except (RuntimeError, IndexError, ValueError) as err:
        halves = np.array_split(pixels, 2)
        if isinstance(err, torch.OutOfMemoryError) or "allocate memory" in str(err):
            if len(pixels) == 1:
                message = f"the memory is too small for an image of {pixels.shape[1]}x{pixels.shape[2]} px"
                raise DeviceMemoryError("E602", message) from err
            return [faces for half in halves for faces in _detect(network, half)]
        # where every candidate lies outside the image MTCNN joins an empty list, and where some do it miscounts;
        # any other error, such as a device's, must not be taken for an image without a face
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


def _read(path: Path) -> _Photo | DataError:
    try:
        photo = read_image(path)
    except DataError as err:
        return err
    height, width = photo.pixels.shape[:2]
    step = 1
    while min(height, width) // step >= _REDUCED_FROM:
        step *= 2
    pixels = photo.pixels if step == 1 else np.asarray(Image.fromarray(photo.pixels).reduce(step))
    return _Photo(pixels, step, (width, height), photo.notices)


def _origin(search: Search) -> str:
    """How the boxes were found; not the device, whose answers differ by less than a pixel."""
    return json.dumps(asdict(search) | {"mtcnn": version("facenet-pytorch")}, sort_keys=True)


def _report(path: Path, listing: Listing, faults: dict[int, DataError]) -> None:
    errors = path.with_suffix(".errors.csv")
    write_errors(errors, listing, faults)
    if faults:
        raise unread(faults, listing, errors, kept=f"all others are in {path}")
