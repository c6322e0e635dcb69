"""Draw class-activation maps: where in an image the evidence for its class is, over the input of the model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble import files
from ensemble.analysis.map_source import MapInput, MapSource, start_member
from ensemble.analysis.overlay import COLUMNS, ROWS, draw_pair, draw_sheet, resize_heat, to_png
from ensemble.arrays import Floats, Mask, Pixels
from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.decode import name_image, read_image
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import Listing, list_images
from ensemble.labels import LabelSpace
from ensemble.predict.bad_images import ERRORS, tell_oddities, unread, write_errors
from ensemble.predictions.truth import read_truth
from ensemble.runtime.model_file import read_model
from ensemble.text.csv_table import read_table
from ensemble.text.plain_numbers import is_count
from ensemble.text.unicode_text import compose

BATCH = 16


@dataclass(frozen=True, slots=True)
class Explained:
    """The map of one image: the class it is for, the probability of that class, and the predicted class.

    ``on_face`` is the share of the map that is in the face box, None without a box or without any evidence.
    ``face_area`` is the share of the image that is in the box. ``truth`` are the names of the true class or labels,
    where they are known.
    """

    image: str
    class_name: str
    probability: float
    predicted: str
    path: Path
    on_face: float | None
    face_area: float | None
    truth: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Explanations:
    """The maps of one model, and the contact sheets."""

    member: str
    device: str
    images: tuple[Explained, ...]
    sheets: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "member": self.member,
            "device": self.device,
            "images": [one.as_dict() for one in self.images],
            "sheets": [str(path) for path in self.sheets],
        }

    def render(self) -> str:
        """Return, for the terminal, the number of maps, their mean share on faces where known, and the sheets."""
        lines = [f"{len(self.images):,} images explained for {self.member}, on {self.device}"]
        shares = [(one.on_face, one.face_area) for one in self.images if one.on_face is not None]
        if shares:
            found, area = np.array(shares, dtype=np.float64).mean(axis=0)
            lines.append(
                f"{found:.0%} of the evidence is on the face, which is {area:.0%} of the image "
                f"({len(shares):,} images with a face)"
            )
        return "\n".join([*lines, *map(str, self.sheets)])


def explain(
    model: Path,
    images: Sequence[Path],
    folder: Path,
    *,
    target: str | None = None,
    boxes: Boxes | None = None,
    truth: Path | None = None,
    device: str = "auto",
    listener: Listener = SILENT,
) -> Explanations:
    """Draw the map of the predicted class, or of the class ``target`` (a name or an index), over each image.

    ``images`` are files and folders. Each image gets ``<folder>/<image>.png``; contact sheets are ``sheet-001.png`` and
    so on. A map shows the evidence for the class (negative values count as 0), scaled to its own maximum. Where several
    labels may apply, each one that does (from a probability of 0.5, and the most probable one) has a map,
    ``<folder>/<image>.<number>-<label>.png``. With the CSV ``truth`` each map has the true class below the answer.

    Raises:
        OptionError: E203 when the device is not known, E204 when the class is not, or when a map would overwrite an
            image, E206 when the model needs boxes and there are none.
        DataError: E316 when there are no images, E327 when a name is not valid Unicode, E351 when an image is not in
            ``boxes``; E326 when some could not be read: all others are done, and ``errors.csv`` lists the rest.
        ModelError: E431 without the output ``features``, E432 when the head is not linear; see also `read_model`.
        EnsError: see `read_truth`.
        FileError, DeviceError: see `read_model`, `choose_run_device` and `start_session`; E701 or E702 for the folder.
    """
    require_readable(images, truth)
    source = start_member(read_model(model), device=device, listener=listener)
    return explain_source(source, images, folder, target=target, boxes=boxes, truth=truth, listener=listener)


def require_readable(images: Sequence[Path], truth: Path | None) -> None:
    """Check that there are images, and that the ground truth is a table, before a model is started.

    Raises:
        DataError: as `list_given`; E322 when the truth is no table.
        FileError: E707 when the truth cannot be read.
    """
    list_given(images)
    if truth is not None:
        read_table(truth)


def explain_source(
    source: MapSource,
    images: Sequence[Path],
    folder: Path,
    *,
    target: str | None = None,
    boxes: Boxes | None = None,
    truth: Path | None = None,
    listener: Listener = SILENT,
) -> Explanations:
    """Draw maps as `explain` does, of a model that is started: a member or a fused file.

    Raises:
        EnsError: as `explain`.
    """
    chosen = None if target is None else find_class(target, source.labels)
    if boxes is None and source.takes_boxes:
        raise OptionError("E206", f"{source.name} was trained on face crops and needs face boxes")
    listing = list_given(images, listener=listener)
    known = None if truth is None else _true_names(truth, source, listing, listener)
    _require_no_image(folder, listing)
    faces = None if boxes is None else _select_boxes(boxes, listing)
    files.require_writable(folder)
    explainer = _Explainer(source, listing, faces, folder, chosen, known)
    listener.progress("explain", 0, len(listing))
    for start in range(0, len(listing), BATCH):
        rows = range(start, min(start + BATCH, len(listing)))
        explainer.explain_rows(rows)
        listener.progress("explain", rows.stop, len(listing))
    explainer.finish_sheet()
    tell_oddities(explainer.oddities, listener)
    write_errors(folder / ERRORS, listing, explainer.faults)
    if explainer.faults:
        raise unread(explainer.faults, listing, folder / ERRORS, kept=f"all others are in {folder}")
    return Explanations(source.name, source.device, tuple(explainer.done), tuple(explainer.sheets))


def list_given(images: Sequence[Path], *, listener: Listener = SILENT) -> Listing:
    """List the given files and the images in the given folders, in their order.

    An id is the path below the folder if there is one folder, else below the deepest folder that all have in common.
    A file that was named is not checked before it is read.

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
    """Return the index of a class given by name or index.

    Raises:
        OptionError: E204 when it is neither.
    """
    if text in labels.names:
        return labels.names.index(text)
    if is_count(text) and int(text) < len(labels):
        return int(text)
    known = enumerate_some([f"{i} {name}" for i, name in enumerate(labels.names)], limit=20)
    raise OptionError("E204", f"{text!r} is not a class", hint=f"classes: {known}")


def _true_names(path: Path, source: MapSource, listing: Listing, listener: Listener) -> dict[str, str]:
    """Return the names of the true class or labels of the listed images; those that the truth lacks are a notice.

    Ids are compared exactly, or else without their folders.
    """
    truth = read_truth(path, source.labels, independent=source.activation == "sigmoid", listener=listener)
    names = source.labels.names
    if truth.applies is None:
        answers = [names[c] for c in truth.classes]
    else:
        answers = [", ".join(names[c] for c in np.flatnonzero(row)) or "none" for row in truth.applies]
    known = dict(zip(truth.ids, answers, strict=True))
    if not known.keys() & set(listing.ids):
        known = {name.rpartition("/")[2]: answer for name, answer in known.items()}
    found = {name: known.get(name, known.get(name.rpartition("/")[2])) for name in listing.ids}
    missing = [name for name, answer in found.items() if answer is None]
    if missing:
        text = f"{len(missing):,} of {len(listing):,} images are not in {path.name}: {enumerate_some(missing)}"
        listener.notice(Notice("W590", text))
    return {name: answer for name, answer in found.items() if answer is not None}


class _Explainer:
    """Explains the images of one model, collects the images that could not be read, and fills contact sheets."""

    def __init__(
        self,
        source: MapSource,
        listing: Listing,
        faces: Sequence[Box | None] | None,
        folder: Path,
        chosen: int | None,
        truth: Mapping[str, str] | None,
    ) -> None:
        self.done: list[Explained] = []
        self.sheets: list[Path] = []
        self.faults: dict[int, DataError] = {}
        self.oddities: dict[str, list[str]] = {}
        self._source, self._listing = source, listing
        self._faces, self._folder, self._chosen, self._truth = faces, folder, chosen, truth
        self._images = {os.path.realpath(path) for path in listing.paths}
        self._tiles: list[Any] = []

    def _choose(self, predicted: NDArray[np.intp], applies: Mask | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the place of the image and the class of each map: one per image, or one per label that applies."""
        places = np.arange(len(predicted))
        if self._chosen is not None:
            return places, np.full_like(predicted, self._chosen)
        if applies is None:
            return places, predicted
        shown = applies.copy()
        shown[places, predicted] = True
        found = np.nonzero(shown)
        return found[0], found[1]

    def explain_rows(self, rows: range) -> None:
        """Read, predict and draw some images."""
        inputs = list(self._read(rows))
        if not inputs:
            return
        found = self._source.predict(inputs)
        independent = self._source.activation == "sigmoid"
        p, predicted = found.probabilities, found.predicted
        places, classes = self._choose(predicted, found.applies)
        maps = np.maximum(found.maps(places, classes), 0)
        names = self._source.labels.names
        for k, (i, label) in enumerate(zip(places.tolist(), classes.tolist(), strict=True)):
            one = inputs[i]
            path = picture_path(self._folder, self._listing.ids[one.row])
            if independent and self._chosen is None:
                path = path.with_name(f"{path.stem}.{label}-{re.sub(r'[^A-Za-z0-9]+', '_', names[label])}.png")
                if path.exists() and os.path.realpath(path) in self._images:
                    raise _would_be_overwritten(path)
            explained = Explained(
                image=self._listing.ids[one.row],
                class_name=names[label],
                probability=float(p[i, label]),
                predicted=names[predicted[i]],
                path=path,
                on_face=_share(maps[k], one.face),
                face_area=None if one.face is None else float(one.face.mean()),
                truth=None if self._truth is None else self._truth.get(self._listing.ids[one.row]),
            )
            self._draw(one.pixels, maps[k] / max(float(maps[k].max()), 1e-12), explained)
            self.done.append(explained)

    def finish_sheet(self) -> None:
        """Write the last sheet, and remove the later sheets of an earlier run."""
        self._write_sheet()
        number = len(self.sheets) + 1
        while (stale := self._folder / f"sheet-{number:03d}.png").exists():
            files.remove(stale)
            number += 1

    def _read(self, rows: range) -> Iterator[MapInput]:
        for row in rows:
            path, box = self._listing.paths[row], None if self._faces is None else self._faces[row]
            try:
                photo = read_image(path)
            except DataError as err:
                self.faults[row] = err
                continue
            try:
                if box is not None:
                    box.require_fits(photo.image.width, photo.image.height)
            except DataError as err:
                self.faults[row] = name_image(err, path)
                continue
            for code in photo.notices:
                self.oddities.setdefault(code, []).append(self._listing.ids[row])
            preprocess, pixels = self._source.preprocess, photo.pixels
            face = None if box is None else prepare_image(_mark(pixels, box), preprocess, box)[..., 0] > 127
            yield MapInput(row, pixels, box, prepare_image(pixels, preprocess, box), face)

    def _is_right(self, explained: Explained) -> bool | None:
        """Return if the predicted class is the true one, or None if that is not known, or one of several labels."""
        if explained.truth is None:
            return None
        same = explained.truth == explained.predicted
        return same if same or self._source.activation == "softmax" else None

    def _draw(self, pixels: Pixels, heat: Floats, explained: Explained) -> None:
        right = self._is_right(explained)
        caption = [f"{explained.class_name}  {explained.probability:.1%}"]
        if self._chosen is not None:
            caption.append(f"predicted: {explained.predicted}")
        if self._truth is not None:
            word = {True: " (right)", False: " (wrong)", None: ""}[right]
            caption.append("truth unknown" if explained.truth is None else f"true: {explained.truth}{word}")
        if self._faces is not None:
            share = "no evidence" if explained.face_area else "no face box"
            caption.append(share if explained.on_face is None else f"{explained.on_face:.0%} on the face")
        caption.append(explained.image)
        files.write_atomic(explained.path, to_png(draw_pair(pixels, heat, caption, right=right)), sync=False)
        self._tiles.append(draw_pair(pixels, heat, caption, small=True, right=right))
        if len(self._tiles) == COLUMNS * ROWS:
            self._write_sheet()

    def _write_sheet(self) -> None:
        if self._tiles:
            path = self._folder / f"sheet-{len(self.sheets) + 1:03d}.png"
            height, width = self._source.preprocess.size
            title = f"{self._source.name}: input ({width} x {height} px), evidence for the class below"
            sheet = draw_sheet(self._tiles, title, answers=self._truth is not None)
            self.sheets.append(files.write_atomic(path, to_png(sheet)))
            self._tiles = []


def picture_path(folder: Path, image_id: str) -> Path:
    """Return the path of an image's map; it keeps the suffix, since a.jpg and a.png may be two images."""
    return folder / f"{image_id}.png"


def _require_no_image(folder: Path, listing: Listing) -> None:
    images = {os.path.realpath(path) for path in listing.paths}
    for image_id in listing.ids:
        path = picture_path(folder, image_id)
        if os.path.realpath(path) in images:
            raise _would_be_overwritten(path)


def _would_be_overwritten(path: Path) -> OptionError:
    return OptionError("E204", f"{path} is one of the images and would be overwritten", hint="choose another -o")


def _select_boxes(boxes: Boxes, listing: Listing) -> tuple[Box | None, ...]:
    """Select the boxes of images whose ids may have fewer or more leading folders than those in the box file."""
    known = {compose(name) for name in boxes.of}
    ids = []
    for image_id, path in zip(listing.ids, listing.paths, strict=True):
        parts = Path(os.path.abspath(path)).parts[1:]
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        ids.append(next((t for t in [image_id, *tails] if compose(t) in known), image_id))
    return boxes.select(ids)


def _mark(pixels: Pixels, box: Box) -> Pixels:
    """Return a mask image, white in the box: prepared like the image, it shows which pixels are the face."""
    marked = np.zeros_like(pixels)
    top, left = (max(0, round(side)) for side in (box.top, box.left))
    marked[top : max(0, round(box.bottom)), left : max(0, round(box.right))] = 255
    return marked


def _share(found: Floats, face: Mask | None) -> float | None:
    if face is None or not found.max() > 0:
        return None
    heat = resize_heat(found, face.shape)
    return float(heat[face].sum() / heat.sum())
