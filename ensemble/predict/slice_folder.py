"""A folder with one file per slice of a run, numbered from 0, and nothing else that looks like one."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ensemble import files
from ensemble.errors import DataError, FileError, PredictionError
from ensemble.events import Listener, Notice
from ensemble.images.listing import Listing
from ensemble.images.sandbox import find_faults
from ensemble.predict.crash_note import read_note, tell_died
from ensemble.predict.fingerprint import Fingerprint, Origin
from ensemble.predict.resumable import A, Slice, Store
from ensemble.predictions.part_file import ARRAYS, SUFFIXES, part_suffix

_EARLY = ".early"


class SliceContent(Protocol):
    """A slice that was read from its file."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its rows."""

    @property
    def origin(self) -> str:
        """The text of its `Origin`."""


C = TypeVar("C", bound=SliceContent)


class SliceFolder(Store[A], Generic[A, C]):
    """The files ``<prefix>-00000.parquet`` and so on of a run with the fingerprint ``run``; see `part_file`.

    ``lacks`` are the rows without a result because their images could not be read, by slice. ``doubtful`` are the rows
    that an earlier run was processing when it crashed. ``stale`` are files to be removed before anything is computed.

    What there is of an unfinished slice is in ``_<prefix>-00000.early``, a file like its own, or ``.npz.early`` of
    arrays; Parquet readers pass over names with an underscore.
    """

    prefix: ClassVar[str]

    def __init__(self, folder: Path, run: Fingerprint, listing: Listing, *, size: int) -> None:
        super().__init__(folder, slices_of(listing, size))
        self.run = run
        self.suffix = part_suffix(folder, self.prefix)
        self.listing = listing
        self.lacks: dict[int, tuple[int, ...]] = {}
        self.doubtful: frozenset[int] = frozenset()
        self.stale: tuple[Path, ...] = ()
        self._early: dict[int, C] = {}

    @abstractmethod
    def read(self, path: Path) -> C:
        """Read one file.

        Raises:
            PredictionError: E514 when it cannot be read.
        """

    def keep(self, index: int, content: C) -> None:
        """Take note of a finished slice whose images did not change; does nothing unless overridden."""

    @property
    def lacking(self) -> list[int]:
        """The rows whose images could not be read."""
        return sorted(row for rows in self.lacks.values() for row in rows)

    def path(self, index: int) -> Path:
        """Return the file of a slice, written or not."""
        return self.folder / f"{self.prefix}-{index:05d}{self.suffix}"

    def early_path(self, index: int) -> Path:
        """Return the file of the rows that there are of an unfinished slice."""
        kind = ARRAYS if self.suffix == ARRAYS else ""
        return self.folder / f"_{self.prefix}-{index:05d}{kind}{_EARLY}"

    def early(self, piece: Slice) -> C | None:
        """Return the stored rows of an unfinished slice if the run relies on any."""
        return self._early.get(piece.index) if piece.held else None

    def stored(self) -> list[Path]:
        """List every file that looks like a slice, also one with another number, a changed name or a copy's name.

        Parquet readers that open the whole folder would take the rows of each for results.

        Raises:
            FileError: E704 when one of them is a folder or another thing that is not a file.
        """
        paths = sorted(path for path in self.folder.glob("*") if self._looks_like_slice(path.name))
        for path in paths:
            if path.exists() and not path.is_file():
                raise FileError("E704", f"{path} is not a file", path=path, hint=f"move it out of {self.folder}")
        return paths

    def resume(self, *, fresh: bool, listener: Listener) -> None:
        """Find out which slices are finished, or with ``fresh`` which files are to go. Changes nothing on disk.

        A file that is damaged, or of which an image changed, is W705 and computed again.

        Raises:
            FileError: E704 when the folder holds another run, or a file that is not a slice of this run.
        """
        stored = self.stored()
        self.stale = tuple(stored) if fresh else ()
        by_name = {self.path(piece.index).name: piece for piece in self.slices}
        for path in () if fresh else stored:
            self._take(path, by_name.get(path.name), listener)
        for piece in self.slices:
            if not fresh and piece.index in self.pending:
                self._take_early(piece)
        used = {self.early_path(index) for index in self.held}
        self.stale += tuple(set(self.folder.glob(f"_{self.prefix}-*{_EARLY}")) - used)
        crashed = read_note(self.folder)
        doubtful = (piece for piece in self.slices if piece.index in self.pending and piece.index in crashed)
        self.doubtful = frozenset(
            row for piece in doubtful for row in piece.rows if row not in self.held.get(piece.index, ())
        )

    def reopen(self, faults: Mapping[int, DataError]) -> None:
        """Compute those slices again that lack a row whose image can be read now, or of which an image changed."""
        for index, rows in list(self.lacks.items()):
            if index in self.pending or not faults.keys() >= set(rows):
                self.pending.add(index)
                del self.lacks[index]

    def clear(self) -> None:
        """Remove the stale files.

        Raises:
            FileError: E702 when one may not be removed.
        """
        for path in self.stale:
            files.remove(path)

    def _take_early(self, piece: Slice) -> None:
        """Use the rows that a stopped run left of a slice; those of another run or of changed images are stale."""
        path = self.early_path(piece.index)
        if not path.is_file():
            return
        try:
            content = self.read(path)
            origin = Origin.parse(content.origin, path)
        except PredictionError:  # torn by a power failure: computed again
            return
        row_of = {self.listing.ids[row]: row for row in piece.rows}
        if (origin.run, origin.sizes) == (self.run, piece.sizes) and row_of.keys() >= set(content.ids):
            self.held[piece.index] = frozenset(row_of[name] for name in content.ids)
            self._early[piece.index] = content

    def _looks_like_slice(self, name: str) -> bool:
        lower = name.lower()
        return f"{self.prefix}-" in lower and lower.endswith(SUFFIXES) and not lower.startswith(".")

    def _take(self, path: Path, piece: Slice | None, listener: Listener) -> None:
        """Read the file of a slice, or of none, and note what is finished."""
        stray = FileError(
            "E704", f"{path} is not a {self.prefix} of this run", path=path, hint=f"move it out of {self.folder}"
        )
        try:
            content = self.read(path)
            origin = Origin.parse(content.origin, path)
        except PredictionError as err:
            if piece is None:
                raise stray from err
            listener.notice(Notice("W705", f"{err.message}; it is computed again", path))
            return
        differing = self.run.differences(origin.run)
        if differing:
            message = f"{self.folder} holds another run: it differs in {' and '.join(differing)}"
            raise FileError("E704", message, path=self.folder)
        if piece is None:
            raise stray
        if origin.missing:
            there = set(content.ids)
            self.lacks[piece.index] = tuple(row for row in piece.rows if self.listing.ids[row] not in there)
        if (origin.run, origin.sizes) == (self.run, piece.sizes):
            self.pending.discard(piece.index)
            self.keep(piece.index, content)
        elif not origin.missing:
            listener.notice(Notice("W705", f"images of {path.name} changed since; it is computed again", path))


def slices_of(listing: Listing, size: int) -> tuple[Slice, ...]:
    """Cut a listing into slices of ``size`` rows; the last may be shorter."""
    slices = []
    for index, start in enumerate(range(0, len(listing), size)):
        rows = range(start, min(start + size, len(listing)))
        text = ",".join(map(str, listing.sizes[rows.start : rows.stop]))
        slices.append(Slice(index, rows, hashlib.sha256(text.encode()).hexdigest()))
    return tuple(slices)


def resume(
    folders: Sequence[SliceFolder[Any, Any]], listing: Listing, *, fresh: bool, listener: Listener
) -> dict[int, DataError]:
    """Find out what is left to compute in each folder, and return the images known to be unreadable, by row.

    The rows that finished slices lack, and those that an earlier run was processing when it crashed (W325), are decoded
    in a subprocess first.

    Raises:
        FileError: see `SliceFolder.resume`.
    """
    for folder in folders:
        folder.resume(fresh=fresh, listener=listener)
    doubtful = frozenset[int]().union(*(folder.doubtful for folder in folders))
    tell_died(len(doubtful), listener)
    faults = find_faults(listing, doubtful.union(*(folder.lacking for folder in folders)), listener=listener)
    for folder in folders:
        folder.reopen(faults)
    return faults
