"""Face boxes: the position of the face in each image, found once by `ens crop` and kept in one Parquet file.

id, left, top, right, bottom: px of the upright image; null if no face was found
probability, faces, found_by: of the chosen face; the number of faces; the pass that found it, ``first`` or ``second``
width, height: of the upright image, px
bytes: of its file
right_eye_x, right_eye_y, ...: px of the upright image, of the points in `POINTS`; these columns are there if the
    detector finds points (RetinaFace does, MTCNN's are not kept)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ensemble.errors import DataError, FileError, cut_text, enumerate_some
from ensemble.files import write_atomic
from ensemble.text.bounded_tables import read_parquet, require_pyarrow
from ensemble.text.unicode_text import compose

FoundBy = Literal["first", "second"]
# right and left are the person's: in a photograph that is not mirrored, the right eye is on the left
POINTS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")
_POINT_COLUMNS = tuple(f"{name}_{axis}" for name in POINTS for axis in "xy")
_ORIGIN_KEY = b"ens.origin"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in px of the upright image; it may reach beyond the image's border.

    ``size`` is the width and height of the image that it was found in, None where that is not known.
    ``points`` are x and y of each of `POINTS`, ten numbers in px, where the detector found them.

    Raises:
        DataError: E350 when the sides have no area, or the points are not ten finite numbers.
    """

    left: float
    top: float
    right: float
    bottom: float
    points: tuple[float, ...] | None = None
    size: tuple[int, int] | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        sides = (self.left, self.top, self.right, self.bottom)
        if not all(map(math.isfinite, sides)) or self.right <= self.left or self.bottom <= self.top:
            raise DataError("E350", f"a box needs finite sides with left < right and top < bottom, got {sides}")
        points = self.points
        if points is not None and (len(points) != len(_POINT_COLUMNS) or not all(map(math.isfinite, points))):
            raise DataError("E350", f"a face has {len(POINTS)} points, ten finite numbers, got {points}")

    def __repr__(self) -> str:
        # hashed into fingerprints: points count only where a detector finds them
        sides = f"left={self.left}, top={self.top}, right={self.right}, bottom={self.bottom}"
        return f"Box({sides})" if self.points is None else f"Box({sides}, points={self.points})"

    def fits(self, width: int, height: int) -> bool:
        """Return whether the box may be of an image of ``width`` x ``height`` px, see `require_fits`."""
        return self.size in {None, (width, height)} and self._is_inside(width, height)

    def require_fits(self, width: int, height: int) -> None:
        """Refuse a box that was made for another image than one of ``width`` x ``height`` px.

        Raises:
            DataError: E354 when the image that it was found in had another size, when its center is outside the image,
                or when it reaches further beyond the border than the image is wide or high.
        """
        if self.fits(width, height):
            return
        found = f"({self.left:g}, {self.top:g}, {self.right:g}, {self.bottom:g}) is outside the image"
        if self.size is not None and self.size != (width, height):
            found = f"was found in an image of {self.size[0]:,}x{self.size[1]:,} px"
        raise DataError("E354", f"the image has {width:,}x{height:,} px, and its face box {found}")

    def _is_inside(self, width: int, height: int) -> bool:
        across, down = self.left + self.right, self.top + self.bottom
        return (
            0 <= across <= 2 * width
            and 0 <= down <= 2 * height
            and min(self.left + width, self.top + height) >= 0
            and self.right <= 2 * width
            and self.bottom <= 2 * height
        )


@dataclass(frozen=True, slots=True)
class Face:
    """The face found in one image of ``width`` x ``height`` px: the chosen one of ``faces``, or None."""

    id: str
    box: Box | None
    probability: float | None
    faces: int
    found_by: FoundBy | None
    width: int
    height: int
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Boxes:
    """The box of each searched image by id; None if no face was found.

    ``sha256`` is the hash of ids and boxes, independent of their order.
    """

    of: Mapping[str, Box | None]
    sha256: str = field(init=False)
    _normalized: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name, box in sorted(self.of.items()):
            digest.update(f"{name}\0{box}\0".encode())
        object.__setattr__(self, "sha256", digest.hexdigest())
        object.__setattr__(self, "_normalized", {compose(name): name for name in self.of})

    def __len__(self) -> int:
        return len(self.of)

    def select(self, ids: Sequence[str]) -> tuple[Box | None, ...]:
        """Return the boxes of ``ids``, in their order, matched exactly or else after Unicode normalization.

        Raises:
            DataError: E351 when some of them have no entry.
        """
        names = [i if i in self.of else self._normalized.get(compose(i), i) for i in ids]
        missing = [i for i, name in zip(ids, names, strict=True) if name not in self.of]
        if missing:
            raise DataError(
                "E351", f"{len(missing):,} of {len(ids):,} images are not in the boxes file: {enumerate_some(missing)}"
            )
        return tuple(self.of[name] for name in names)


def write_boxes(path: Path, faces: Iterable[Face], *, origin: str = "") -> Path:
    """Write faces, sorted by id; ``origin`` describes how they were found.

    Raises:
        FileError: E701 or E702 when it cannot be written.
        OptionError: E205 when pyarrow is not installed.
    """
    require_pyarrow(path.name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(faces, key=lambda face: face.id)
    columns: dict[str, list[Any]] = {
        side: [None if face.box is None else getattr(face.box, side) for face in rows]
        for side in ("left", "top", "right", "bottom")
    }
    for name in ("id", "probability", "faces", "found_by", "width", "height", "bytes"):
        columns[name] = [getattr(face, name) for face in rows]
    schema = _schema()
    if any(face.box is not None and face.box.points for face in rows):
        for index, name in enumerate(_POINT_COLUMNS):
            columns[name] = [
                None if face.box is None or not face.box.points else face.box.points[index] for face in rows
            ]
            schema = schema.append(pa.field(name, pa.float32()))
    schema = schema.with_metadata({_ORIGIN_KEY: origin.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), sink, write_page_checksum=True)
    return write_atomic(path, memoryview(sink.getvalue()))


@dataclass(frozen=True, slots=True)
class FaceFile:
    """The content of a boxes file: its faces, and the ``origin`` that `write_boxes` was given."""

    faces: tuple[Face, ...]
    origin: str


def read_faces(path: Path) -> FaceFile:
    """Read what `write_boxes` wrote, or the boxes of another program.

    Raises:
        FileError: E707 when the file does not exist.
        DataError: E350 when it is not a file of boxes, E313 when an id is there twice.
        OptionError: E205 when pyarrow is not installed.
    """
    if not path.is_file():
        raise FileError("E707", f"{path} is not a file", path=path)
    require_pyarrow(path.name)
    import pyarrow as pa

    try:
        table = read_parquet(path)
        origin = (table.schema.metadata or {}).get(_ORIGIN_KEY, b"").decode()
        faces = tuple(_face(row) for row in table.to_pylist())
    except KeyError as err:
        raise DataError("E350", f"{path.name} is no file of face boxes: it has no column {err}", path=path) from err
    except (OSError, pa.ArrowException, TypeError, ValueError, OverflowError, DataError) as err:
        why = err.message if isinstance(err, DataError) else str(err)
        raise DataError("E350", f"{path.name} cannot be read as face boxes: {why}", path=path) from err
    _require_pixels(faces, path)
    if len({face.id for face in faces}) != len(faces):
        raise DataError("E313", f"{path.name}: an id is listed more than once", path=path)
    return FaceFile(faces, origin)


def _require_pixels(faces: Sequence[Face], path: Path) -> None:
    """Refuse boxes in shares of the image, which other programs write: as pixels they are the image's first corner.

    Raises:
        DataError: E350 when no side of any box is beyond 1.
    """
    found = [face.box for face in faces if face.box is not None]
    if found and all(max(box.right, box.bottom) <= 1 and min(box.left, box.top) >= 0 for box in found):
        raise DataError(
            "E350",
            f"{path.name}: all {len(found):,} boxes are within 0 to 1: shares of the image, not pixels",
            hint="multiply left and right by the image's width, top and bottom by its height",
            path=path,
        )


def _known_sides(sides: Sequence[float | None]) -> str:
    names = ("left", "top", "right", "bottom")
    return ", ".join(f"{name} {'null' if side is None else side}" for name, side in zip(names, sides, strict=True))


def read_boxes(path: Path) -> Boxes:
    """Read the boxes of a file.

    Raises:
        FileError, DataError: as `read_faces`.
    """
    return Boxes({face.id: face.box for face in read_faces(path).faces})


_NUMBER = (float, int)
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("left", "top", "right", "bottom", "probability", *_POINT_COLUMNS), _NUMBER),
    **dict.fromkeys(("faces", "width", "height", "bytes"), (int,)),
    "found_by": (str,),
}
"""Types of the values of a row, where there are any."""


def _face(row: Mapping[str, Any]) -> Face:
    if not isinstance(row["id"], str):
        raise TypeError(f"an id is {cut_text(str(row['id']), 40)!r}, expected text")
    sides = [row[side] for side in ("left", "top", "right", "bottom")]
    size = (row.get("width"), row.get("height"))
    for name, kinds in _KINDS.items():
        # true is no length, and a size as text would leave unsaid that the image has another one
        if row.get(name) is not None and type(row[name]) not in kinds:
            wanted = "text" if str in kinds else "a number" if float in kinds else "a whole number"
            raise TypeError(f"{name} is {cut_text(str(row[name]), 40)!r}, expected {wanted}")
    if any(side is not None and side < 0 for side in size):
        raise ValueError(f"the size {size[0]}x{size[1]} px is below 0")
    known = all(side is not None and side > 0 for side in size)
    # a file written by another program may have only the id and the four sides
    points: tuple[Any, ...] = tuple(row.get(name) for name in _POINT_COLUMNS)
    box: Box | None = None
    if sides.count(None) < len(sides):
        if None in sides:
            raise ValueError(f"the box of {cut_text(str(row['id']), 80)} lacks a side: {_known_sides(sides)}")
        left, top, right, bottom = sides
        image = cast("tuple[int, int]", size) if known else None
        box = Box(left, top, right, bottom, None if None in points else points, size=image)
    return Face(
        row["id"],
        box,
        row.get("probability"),
        row.get("faces", int(box is not None)),
        row.get("found_by"),
        row.get("width", 0),
        row.get("height", 0),
        row.get("bytes", 0),
    )


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            *(pa.field(side, pa.float32()) for side in ("left", "top", "right", "bottom")),
            pa.field("probability", pa.float32()),
            pa.field("faces", pa.int32(), nullable=False),
            pa.field("found_by", pa.string()),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),
        ]
    )
