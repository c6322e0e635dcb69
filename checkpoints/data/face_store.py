"""The boxes file while `ens crop` runs: written in rounds, and resumed image by image.

Each round rewrites ``<name>.partial``, which replaces the file at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble import files
from ensemble.errors import DataError, FileError
from ensemble.images.face_boxes import Face, read_faces, write_boxes
from ensemble.images.listing import Listing
from ensemble.predict.resumable import Slice, Store

ROUND = 256  # images
_FACE_BYTES = 160  # of a row in the file, generously


@dataclass(frozen=True, slots=True, eq=False)
class RoundFaces:
    """The faces of one round; the rest as `ensemble.predict.resumable.Computed`."""

    asked: Sequence[int]
    faces: tuple[Face, ...]
    faults: Mapping[int, DataError]
    oddities: Mapping[int, tuple[str, ...]]


class FaceStore(Store[RoundFaces]):
    """The boxes file at ``path``, which ``origin`` identifies, in rounds of `ROUND` images.

    ``faces`` are those that are written, by id; ``computed`` counts those that this run found.

    Raises:
        FileError: E704 when the file was found with other settings.
    """

    def __init__(self, path: Path, origin: str, listing: Listing, *, fresh: bool) -> None:
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._origin = origin
        self.faces = {} if fresh else self._read(listing)
        self.computed = 0
        pending = [row for row, name in enumerate(listing.ids) if name not in self.faces]
        rounds = [pending[start : start + ROUND] for start in range(0, len(pending), ROUND)]
        super().__init__(path.parent, [Slice(index, rows) for index, rows in enumerate(rounds)])

    def write(self, piece: Slice, answers: Sequence[RoundFaces]) -> None:  # noqa: ARG002 - the file is not cut in rounds
        """See `Store.write`."""
        found = {face.id: face for answer in answers for face in answer.faces}
        self.computed += len(found.keys() - self.faces.keys())
        self.faces |= found
        write_boxes(self._partial, self.faces.values(), origin=self._origin)

    def write_early(self, piece: Slice, answers: Sequence[RoundFaces]) -> None:
        """See `Store.write_early`; a later run looks for the images that have no face yet, and so needs no more."""
        self.write(piece, answers)

    def bytes_of(self, rows: int) -> int:
        """See `Store.bytes_of`; the file is there twice until the end."""
        return 2 * (len(self.faces) + rows) * _FACE_BYTES

    def finish(self) -> None:
        """Replace the file, if a round was written, by this run or by one that was stopped, or if there is none.

        Raises:
            FileError: E701 or E702 when it cannot be written.
        """
        if self._partial.exists() or not self._path.exists():
            write_boxes(self._path, self.faces.values(), origin=self._origin)
        files.remove(self._partial)

    def _read(self, listing: Listing) -> dict[str, Face]:
        size_of = dict(zip(listing.ids, listing.sizes, strict=True))
        kept: dict[str, Face] = {}
        for file in (self._path, self._partial):
            if not file.exists():
                continue
            found = read_faces(file)
            if found.origin != self._origin:
                raise FileError("E704", f"{file} holds boxes that were found with other settings", path=file)
            kept |= {face.id: face for face in found.faces if size_of.get(face.id) == face.bytes}
        return kept
