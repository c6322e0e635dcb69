"""Summary of a training set: images and groups (such as people) per class, ages, image sizes, and problems."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from checkpoints.data.columns import IMAGES, PEOPLE, Unit
from checkpoints.data.dataset import Dataset
from checkpoints.data.mask_contest import Row
from ensemble.errors import DataError, enumerate_some
from ensemble.events import SILENT, Listener
from ensemble.files import write_atomic
from ensemble.images.decode import decode_file, read_file
from ensemble.images.face_boxes import Boxes
from ensemble.images.planes import describe_array, is_array
from ensemble.runtime.machine import available_cores
from ensemble.text.text_table import render_columns
from ensemble.thread_pool import thread_pool

PER_PERSON = 7  # images, in the mask contest
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class ScannedImage:
    """One file: the size of the upright image, its color mode and the hash of its pixels, or why it cannot be read."""

    width: int = 0
    height: int = 0
    mode: str = ""
    sha256: str = ""
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """Counts of one class or one value of an axis; ``trained`` counts images by their training target.

    ``people`` counts the groups that no two folds share, such as people or patients. ``with_face`` is the share of
    images with a face box, and None without boxes.
    """

    name: str
    people: int
    images: int
    trained: int
    with_face: float | None


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Statistics of a training set; ``ages`` counts people, ``sizes`` and ``modes`` count images.

    ``unit`` is the noun for the groups that ``people`` counts; it is `IMAGES` where each image is one by itself.
    ``label_counts`` has the number of images with 0, 1, ... labels, where an image may have several, and ``folds`` the
    number of images that each fold of the table holds out.
    ``duplicates`` are groups of images with the same pixels, ``contradictions`` those of them with several classes.
    """

    images: int
    people: int
    classes: tuple[Count, ...]
    axes: Mapping[str, tuple[Count, ...]]
    ages: Mapping[int, int]
    sizes: Mapping[str, int]
    modes: Mapping[str, int]
    unreadable: tuple[str, ...]
    incomplete: Mapping[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    contradictions: tuple[tuple[str, ...], ...]
    fixes: tuple[str, ...]
    age_cut: int
    unit: Unit = PEOPLE
    label_counts: Mapping[int, int] = field(default_factory=dict)
    folds: Mapping[int, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; groups are called by their noun, and left out where there are none."""
        value = asdict(self)
        del value["unit"]
        for name in ("label_counts", "folds"):
            if not value[name]:
                del value[name]
        if self.unit == PEOPLE:
            return value
        for counts in (value, *value["classes"], *(one for axis in value["axes"].values() for one in axis)):
            groups = counts.pop("people")
            if self.unit != IMAGES:
                counts[self.unit.plural] = groups
        for name in ("incomplete", "ages", "age_cut"):
            del value[name]
        return value

    def title(self) -> str:
        """Return the number of images and, if they are grouped, of groups."""
        groups = "" if self.unit == IMAGES else f" of {self.people:,} {self.unit.plural}"
        return f"{self.images:,} images{groups}"

    def render(self) -> str:
        """Return the summary as text; long lists are shortened."""
        lines = [self.title(), "", _table("label" if self.label_counts else "class", self.classes, self.unit)]
        lines += [_table(axis, counts, self.unit) for axis, counts in self.axes.items() if len(self.axes) > 1]
        if self.label_counts:
            lines.append("labels per image: " + _pairs(self.label_counts))
        if self.folds:
            lines.append("images per fold of the table: " + _pairs(self.folds))
        if self.ages:
            oldest = ", ".join(f"{age}: {self.ages.get(age, 0)}" for age in (57, 58, 59, 60))
            lines.append(
                f"ages {min(self.ages)} to {max(self.ages)}; people of {oldest}; trained as 60: {self.age_cut}+"
            )
        lines.append(f"sizes: {_most(self.sizes)}; modes: {_most(self.modes)}")
        lines.append(f"label fixes: {len(self.fixes)}")
        for name, found in (
            ("unreadable", list(self.unreadable)),
            (f"people without {PER_PERSON} images", [f"{who} ({count})" for who, count in self.incomplete.items()]),
            ("duplicate images", [" = ".join(group) for group in self.duplicates]),
            (self.contradictions_title(), [" = ".join(group) for group in self.contradictions]),
        ):
            if name.startswith("people") and self.unit != PEOPLE:
                continue
            lines.append(f"{name}: {len(found):,}" + (f": {enumerate_some(found, limit=3)}" if found else ""))
        return "\n".join(lines)

    def contradictions_title(self) -> str:
        """Return the heading of the images that are twice in the data, with different labels."""
        return "the same image with other labels" if self.label_counts else "the same image in several classes"


def scan_images(
    rows: Sequence[Row], *, workers: int | None = None, listener: Listener = SILENT
) -> tuple[ScannedImage, ...]:
    """Decode every image once, in threads."""
    found: list[ScannedImage] = []
    with thread_pool(workers or available_cores()) as pool:
        for start in range(0, len(rows), _CHUNK):
            found += pool.map(_scan_image, [row.path for row in rows[start : start + _CHUNK]])
            listener.progress("data", len(found), len(rows))
    return tuple(found)


def summarize(data: Dataset, scanned: Sequence[ScannedImage], *, boxes: Boxes | None = None) -> DatasetSummary:
    """Summarize a training set; with ``boxes`` also the share of images with a face per class.

    Raises:
        DataError: E351 when an image has no entry in ``boxes``.
    """
    rows = data.rows
    has_face = None
    if boxes is not None:
        has_face = {row.id: box is not None for row, box in zip(rows, boxes.select([r.id for r in rows]), strict=True)}
    by_class: dict[int, list[Row]] = defaultdict(list)
    by_hash: dict[str, list[Row]] = defaultdict(list)
    for row, one in zip(rows, scanned, strict=True):
        for label in _labels(row):
            by_class[label].append(row)
        if one.fault is None:
            by_hash[one.sha256].append(row)
    trained = Counter(label for row in rows for label in _targets(row))
    repeated = [group for group in by_hash.values() if len(group) > 1]
    people = Counter(row.person for row in rows)
    age_of = {row.person: row.age for row in rows if row.age is not None}
    readable = [one for one in scanned if one.fault is None]
    return DatasetSummary(
        images=len(rows),
        people=len(people),
        classes=tuple(_count(name, by_class[i], trained[i], has_face) for i, name in enumerate(data.labels.names)),
        axes={axis.name: _along(data, axis.name, axis.values, has_face) for axis in data.labels.axes},
        ages=dict(sorted(Counter(age_of.values()).items())),
        sizes=dict(Counter(f"{one.width}x{one.height}" for one in readable).most_common()),
        modes=dict(Counter(one.mode for one in readable).most_common()),
        unreadable=tuple(f"{row.id}: {one.fault}" for row, one in zip(rows, scanned, strict=True) if one.fault),
        incomplete={who: count for who, count in people.items() if data.is_contest and count != PER_PERSON},
        duplicates=tuple(tuple(row.id for row in group) for group in repeated),
        contradictions=tuple(
            tuple(row.id for row in group) for group in repeated if len({_labels(row) for row in group}) > 1
        ),
        fixes=tuple(
            f"{one.fix.id}: {one.fix.field} {one.fix.value} ({one.fix.source}, {one.images} images)"
            for one in data.applied
            if one.images
        ),
        age_cut=data.age_cut,
        unit=data.unit,
        label_counts=_sorted(Counter(len(row.present) for row in rows if row.present is not None)),
        folds={} if data.folds is None else _sorted(Counter(data.folds.of_person[row.person] for row in rows)),
    )


def _labels(row: Row) -> tuple[int, ...]:
    return (row.label,) if row.present is None else row.present


def _targets(row: Row) -> tuple[int, ...]:
    return (row.target,) if row.present is None else row.present


def _sorted(counts: Mapping[int, int]) -> Mapping[int, int]:
    return dict(sorted(counts.items()))


def _pairs(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{number}: {count:,}" for number, count in counts.items())


def write_rows(path: Path, data: Dataset, scanned: Sequence[ScannedImage]) -> Path:
    """Write one row per image as Parquet; ``label`` is the true class, ``target`` the one to train on.

    Where an image may have several labels, ``labels`` has their indices and ``classes`` their names instead.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    rows = data.rows
    strings, numbers = pa.string(), pa.int32()
    columns = {
        "id": pa.array([row.id for row in rows], strings),
        "person": pa.array([row.person for row in rows], strings),
        **{name: pa.array([getattr(row, name) for row in rows], numbers) for name in ("mask", "gender", "age")},
        **_label_columns(data),
        "path": pa.array([str(row.path) for row in rows], strings),
        **{name: pa.array([getattr(one, name) for one in scanned], numbers) for name in ("width", "height")},
        **{name: pa.array([getattr(one, name) for one in scanned], strings) for name in ("mode", "sha256", "fault")},
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return write_atomic(path, memoryview(sink.getvalue()))


def _label_columns(data: Dataset) -> dict[str, pa.Array]:
    strings, numbers = pa.string(), pa.int32()
    rows, names = data.rows, data.labels.names
    if data.activation == "sigmoid":
        return {
            "labels": pa.array([list(row.present or ()) for row in rows], pa.list_(numbers)),
            "classes": pa.array([[names[i] for i in row.present or ()] for row in rows], pa.list_(strings)),
        }
    return {
        "label": pa.array([row.label for row in rows], numbers),
        "target": pa.array([row.target for row in rows], numbers),
        "class": pa.array([names[row.label] for row in rows], strings),
    }


def _scan_image(path: Path) -> ScannedImage:
    try:
        data = read_file(path)
        if is_array(data):
            height, width, mode = describe_array(data)
            return ScannedImage(width, height, mode, hashlib.sha256(data).hexdigest())
        pixels = decode_file(data, path).pixels
    except DataError as err:
        return ScannedImage(fault=str(err))
    with Image.open(path) as image:  # the header again, for the mode before the conversion to RGB
        mode = image.mode
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return ScannedImage(width, height, mode, digest.hexdigest())


def _count(name: str, rows: Sequence[Row], trained: int, has_face: Mapping[str, bool] | None) -> Count:
    share = sum(has_face[row.id] for row in rows) / len(rows) if has_face is not None and rows else None
    return Count(name, len({row.person for row in rows}), len(rows), trained, share)


def _along(data: Dataset, axis: str, values: Sequence[str], has_face: Mapping[str, bool] | None) -> tuple[Count, ...]:
    if data.activation == "sigmoid":
        return ()  # labels that exclude nothing have no axes
    answers = data.labels.along(axis, [row.label for row in data.rows]).tolist()
    targets = Counter(data.labels.along(axis, [row.target for row in data.rows]).tolist())
    of: dict[int, list[Row]] = defaultdict(list)
    for row, answer in zip(data.rows, answers, strict=True):
        of[answer].append(row)
    return tuple(_count(value, of[i], targets[i], has_face) for i, value in enumerate(values))


def _table(title: str, counts: Sequence[Count], unit: Unit) -> str:
    groups = unit != IMAGES
    header = [title, *([unit.plural] if groups else []), "images", "trained"]
    rows: list[list[str | float | None]] = [
        [c.name, *([c.people] if groups else []), c.images, c.trained] for c in counts
    ]
    if any(count.with_face is not None for count in counts):
        header.append("with a face")
        for row, count in zip(rows, counts, strict=True):
            row.append(count.with_face)
    return render_columns(header, rows)


def _most(counts: Mapping[str, int]) -> str:
    return enumerate_some([f"{name} ({count:,})" for name, count in counts.items()]) or "none"
