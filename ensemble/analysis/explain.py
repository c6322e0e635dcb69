"""Class-activation maps: where in an image the evidence for its class lies, drawn over what the model sees."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import files
from ensemble.analysis.cam import Classifier, find_classifier
from ensemble.analysis.overlay import COLUMNS, ROWS, draw_pair, draw_sheet, resize_heat, to_png
from ensemble.arrays import Floats, Mask, Pixels
from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import Listing, list_images
from ensemble.labels import LabelSpace
from ensemble.predict.bad_images import ERRORS, tell_oddities, unread, write_errors
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import FEATURES, LOGITS, read_model
from ensemble.runtime.providers import choose_device
from ensemble.runtime.session import Session, start_session

BATCH = 16


@dataclass(frozen=True, slots=True)
class Explained:
    """One image's map: the class it is for, that class's probability and the most probable class.

    ``on_face`` is the share of the map that lies in the face box, None without a box, or without any evidence;
    ``face_area`` is the box's share of the picture.
    """

    image: str
    class_name: str
    probability: float
    predicted: str
    path: Path
    on_face: float | None
    face_area: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Explanations:
    """All maps of one model, and the contact sheets."""

    member: str
    device: str
    images: tuple[Explained, ...]
    sheets: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "member": self.member,
            "device": self.device,
            "images": [one.as_dict() for one in self.images],
            "sheets": [str(path) for path in self.sheets],
        }

    def render(self) -> str:
        """How many there are, how much of them lies on faces where that is known, and the sheets, for people."""
        lines = [f"{len(self.images):,} images as {self.member} sees them, on {self.device}"]
        shares = [(one.on_face, one.face_area) for one in self.images if one.on_face is not None]
        if shares:
            found, area = np.array(shares, dtype=np.float64).mean(axis=0)
            lines.append(
                f"{found:.0%} of the evidence lies on the face, {area:.0%} of the picture ({len(shares):,} with a face)"
            )
        return "\n".join([*lines, *map(str, self.sheets)])


def explain(
    model: Path,
    images: Sequence[Path],
    folder: Path,
    *,
    target: str | None = None,
    boxes: Boxes | None = None,
    device: str = "auto",
    listener: Listener = SILENT,
) -> Explanations:
    """Draw the map of the predicted class, or of the class ``target`` (a name or an index), over each image.

    ``images`` are files and folders. Each gets ``<folder>/<image>.png``, and all together ``sheet-001.png`` and on. A
    map shows what speaks for the class (negative values count as 0), as a share of its own strongest place.

    Raises:
        OptionError: E203 when the device is not known, E204 when the class is not, or when a picture would replace an
            image, E206 when the model needs boxes and there are none.
        DataError: E316 when there are no images, E327 when a name is not valid Unicode, E351 when an image is not in
            ``boxes``; E326 when some could not be read: all others are done, and ``errors.csv`` names the rest.
        ModelError: E431 without the output ``features``, E432 when the head is not linear; see also `read_model`.
        FileError, DeviceError: see `read_model`, `choose_device` and `start_session`; E701 or E702 for the folder.
    """
    read = read_model(model)
    classifier = find_classifier(read)
    chosen = None if target is None else find_class(target, read.card.labels)
    if boxes is None and read.card.preprocess.face is not None:
        raise OptionError("E206", f"{read.card.member} was trained on face crops and needs face boxes")
    listing = list_given(images, listener=listener)
    _require_no_image(folder, listing)
    faces = None if boxes is None else _select_boxes(boxes, listing)
    files.require_writable(folder)
    where = choose_device(device, listener=listener)
    session = start_session(read, device=where, threads=available_cores())
    run = _Run(session, classifier, listing, faces, folder, chosen)
    listener.progress("explain", 0, len(listing))
    for start in range(0, len(listing), BATCH):
        rows = range(start, min(start + BATCH, len(listing)))
        run.explain_rows(rows)
        listener.progress("explain", rows.stop, len(listing))
    run.finish_sheet()
    tell_oddities(run.oddities, listener)
    write_errors(folder / ERRORS, listing, run.faults)
    if run.faults:
        raise unread(run.faults, listing, folder / ERRORS, kept=f"all others are in {folder}")
    return Explanations(read.card.member, str(where), tuple(run.done), tuple(run.sheets))


def list_given(images: Sequence[Path], *, listener: Listener = SILENT) -> Listing:
    """The images that files and folders stand for, in their order.

    An id is the path below the folder, if there is one folder, or else below the last folder that all have in common.
    Whether a file that was named can be read shows when it is read.

    Raises:
        DataError: E327 when a name is not valid Unicode; for folders see `list_images`.
    """
    if len(images) == 1 and images[0].is_dir():
        return list_images(images[0], listener=listener)
    found: list[Path] = []
    for path in images:
        found += list_images(path, listener=listener).paths if path.is_dir() else [path]
    paths = tuple(dict.fromkeys(Path(os.path.abspath(path)) for path in found))
    root = os.path.commonpath([path.parent for path in paths])
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    unwritable = [ascii(i) for i in ids if i.encode(errors="ignore").decode() != i]
    if unwritable:
        raise DataError("E327", f"{len(unwritable)} names are not UTF-8: {enumerate_some(unwritable)}")
    return Listing(ids, paths, tuple(path.stat().st_size if path.is_file() else 0 for path in paths))


def find_class(text: str, labels: LabelSpace) -> int:
    """The class of a name, or else of an index.

    Raises:
        OptionError: E204 when it is neither.
    """
    if text in labels.names:
        return labels.names.index(text)
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    known = enumerate_some([f"{i} {name}" for i, name in enumerate(labels.names)], limit=20)
    raise OptionError("E204", f"{text!r} is not a class", hint=f"classes: {known}")


class _Run:
    """The work on one model's images: what is done, what could not be read, and the sheet that is being filled."""

    def __init__(
        self,
        session: Session,
        classifier: Classifier,
        listing: Listing,
        faces: Sequence[Box | None] | None,
        folder: Path,
        chosen: int | None,
    ) -> None:
        self.done: list[Explained] = []
        self.sheets: list[Path] = []
        self.faults: dict[int, DataError] = {}
        self.oddities: dict[str, list[str]] = {}
        self._session, self._classifier, self._listing = session, classifier, listing
        self._faces, self._folder, self._chosen = faces, folder, chosen
        self._tiles: list[Any] = []

    def explain_rows(self, rows: range) -> None:
        """Read, ask and draw some images."""
        seen = list(self._read(rows))
        if not seen:
            return
        pixels = np.stack([one.pixels for one in seen])
        logits, features = (self._session.run(pixels, output=output) for output in (LOGITS, FEATURES))
        self._classifier.require_explains(features, logits)
        predicted = logits.argmax(axis=1)
        classes = predicted if self._chosen is None else np.full_like(predicted, self._chosen)
        maps = np.maximum(self._classifier.maps(features, classes), 0)
        log_p = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
        names = self._session.card.labels.names
        for i, one in enumerate(seen):
            explained = Explained(
                image=self._listing.ids[one.row],
                class_name=names[classes[i]],
                probability=float(np.exp(log_p[i, classes[i]])),
                predicted=names[predicted[i]],
                path=picture_path(self._folder, self._listing.ids[one.row]),
                on_face=_share(maps[i], one.face),
                face_area=None if one.face is None else float(one.face.mean()),
            )
            self._draw(one.pixels, maps[i] / max(float(maps[i].max()), 1e-12), explained)
            self.done.append(explained)

    def finish_sheet(self) -> None:
        """Write the sheet that is being filled, and remove those of an earlier run that would follow it."""
        self._write_sheet()
        number = len(self.sheets) + 1
        while (stale := self._folder / f"sheet-{number:03d}.png").exists():
            files.remove(stale)
            number += 1

    def _read(self, rows: range) -> Iterator[_Seen]:
        for row in rows:
            try:
                photo = read_image(self._listing.paths[row])
            except DataError as err:
                self.faults[row] = err
                continue
            for code in photo.notices:
                self.oddities.setdefault(code, []).append(self._listing.ids[row])
            preprocess = self._session.card.preprocess
            box = None if self._faces is None else self._faces[row]
            face = None if box is None else prepare_image(_mark(photo.pixels, box), preprocess, box)[..., 0] > 127
            yield _Seen(row, prepare_image(photo.pixels, preprocess, box), face)

    def _draw(self, pixels: Pixels, heat: Floats, explained: Explained) -> None:
        caption = [f"{explained.class_name}  {explained.probability:.1%}"]
        if self._chosen is not None:
            caption.append(f"predicted: {explained.predicted}")
        if self._faces is not None:
            share = "nothing speaks for it" if explained.face_area else "no face box"
            caption.append(share if explained.on_face is None else f"{explained.on_face:.0%} on the face")
        caption.append(explained.image)
        files.write_atomic(explained.path, to_png(draw_pair(pixels, heat, caption)), sync=False)
        self._tiles.append(draw_pair(pixels, heat, caption, small=True))
        if len(self._tiles) == COLUMNS * ROWS:
            self._write_sheet()

    def _write_sheet(self) -> None:
        if self._tiles:
            path = self._folder / f"sheet-{len(self.sheets) + 1:03d}.png"
            self.sheets.append(files.write_atomic(path, to_png(draw_sheet(self._tiles))))
            self._tiles = []


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What the model sees of a row: ``pixels`` ``(H, W, 3)``, and which of them ``(H, W)`` lie in the face box."""

    row: int
    pixels: Pixels
    face: Mask | None


def picture_path(folder: Path, image_id: str) -> Path:
    """Where an image's picture goes; with its whole name, since a.jpg and a.png may be two images."""
    return folder / f"{image_id}.png"


def _require_no_image(folder: Path, listing: Listing) -> None:
    images = {path.resolve() for path in listing.paths}
    for image_id in listing.ids:
        path = picture_path(folder, image_id)
        if path.resolve() in images:
            raise OptionError("E204", f"{path} is one of the images and would be replaced", hint="choose another -o")


def _select_boxes(boxes: Boxes, listing: Listing) -> tuple[Box | None, ...]:
    """The boxes of images whose ids may begin further down than those in the boxes' file, or further up."""
    known = {unicodedata.normalize("NFC", name) for name in boxes.of}
    ids = []
    for image_id, path in zip(listing.ids, listing.paths, strict=True):
        parts = Path(os.path.abspath(path)).parts[1:]
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        ids.append(next((t for t in [image_id, *tails] if unicodedata.normalize("NFC", t) in known), image_id))
    return boxes.select(ids)


def _mark(pixels: Pixels, box: Box) -> Pixels:
    """White where the box is and black elsewhere, of the image's size: prepared like the image, it shows the face."""
    marked = np.zeros_like(pixels)
    top, left = (max(0, round(side)) for side in (box.top, box.left))
    marked[top : max(0, round(box.bottom)), left : max(0, round(box.right))] = 255
    return marked


def _share(found: Floats, face: Mask | None) -> float | None:
    if face is None or not found.max() > 0:
        return None
    heat = resize_heat(found, face.shape)
    return float(heat[face].sum() / heat.sum())
