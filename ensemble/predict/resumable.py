"""Resumable runs: compute the images slice by slice, write each slice in the background, and resume after any stop.

`predict` (a slice is a part of 256 images), `submit` with early exit (a chunk) and `ens crop` (a round) all run here:

    faults = resume(stores, listing)                  # see `slice_folder`: keep finished slices, refuse another run
    for answer in compute(pending slices):            # in order; the caller decodes and runs its models
        if it ends a slice:
            store.write(slice, answers)               # in a thread, atomically, while the next slice is computed
        elif ten seconds have passed:
            store.write_early(slice, answers)         # what there is of it, for a run that is killed

A signal ends a run with E801 and a full disk with E701; both keep what is computed. Images that an earlier run could
not read, or that it was processing when it crashed, are first decoded in a subprocess.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import Any, Generic, Protocol, TypeVar

from ensemble.errors import DataError, DiskFullError, FileError, Interrupted
from ensemble.events import Listener
from ensemble.images.listing import Listing
from ensemble.predict.background_writer import Writer
from ensemble.predict.bad_images import tell_oddities
from ensemble.predict.crash_note import note
from ensemble.predict.timing import Stopwatch

EARLY_SECONDS = 10.0  # after so long what there is of a slice is written


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of the listing that are computed, written and resumed together.

    ``sizes`` is the hash of the sizes of their files, so that a slice is computed again when an image changed. ``held``
    are the rows that a run which was stopped has computed.
    """

    index: int
    rows: Sequence[int]
    sizes: str = ""
    held: frozenset[int] = frozenset()

    @property
    def left(self) -> list[int]:
        """The rows to compute."""
        return [row for row in self.rows if row not in self.held]

    def batches(self, size: int) -> Iterator[range]:
        """Yield the rows to compute as ranges of at most ``size`` rows."""
        start = stop = -1
        for row in self.left:
            if row != stop or stop - start == size:
                if start >= 0:
                    yield range(start, stop)
                start = row
            stop = row + 1
        if start >= 0:
            yield range(start, stop)


class Computed(Protocol):
    """Results of some rows of a slice, as `run_slices` sees them."""

    @property
    def asked(self) -> Sequence[int]:
        """The rows that were to be computed."""

    @property
    def faults(self) -> Mapping[int, DataError]:
        """The errors of unreadable images, by row."""

    @property
    def oddities(self) -> Mapping[int, tuple[str, ...]]:
        """The codes of notices about images, by row."""


A = TypeVar("A", bound=Computed)


class Store(ABC, Generic[A]):
    """Storage of the ``slices`` of a run; ``pending`` are the indices of those that are not finished.

    ``held`` are the rows that are stored of unfinished slices, by index.
    Most are a `SliceFolder`, which detects by itself what is finished.
    """

    def __init__(self, folder: Path, slices: Sequence[Slice]) -> None:
        self.folder = folder
        self.slices = tuple(slices)
        self.pending = {piece.index for piece in slices}
        self.held: dict[int, frozenset[int]] = {}

    @abstractmethod
    def write(self, piece: Slice, answers: Sequence[A]) -> None:
        """Write a slice from its ``held`` rows and its answers, in order. Called from one background thread.

        Raises:
            FileError: E701 or E702 when it cannot be written.
        """

    @abstractmethod
    def write_early(self, piece: Slice, answers: Sequence[A]) -> None:
        """Write the first answers of a slice, and its ``held`` rows, where a later run finds them.

        Raises:
            FileError: E701 or E702 when they cannot be written.
        """

    @abstractmethod
    def bytes_of(self, rows: int) -> int:
        """Estimate the size on disk of so many more rows."""


def run_slices(
    stores: Sequence[Store[A]],
    listing: Listing,
    compute: Callable[[Iterator[Slice]], Generator[A, None, None]],
    *,
    stage: str,
    watch: Stopwatch,
    detail: Callable[[], str] | None = None,
    crash_notes: bool = True,
    listener: Listener,
) -> dict[int, DataError]:
    """Compute the slices that are pending in any of the stores and write each to those in which it is pending.

    ``compute`` gets the slices and yields their answers in order, one or more per slice; it may read ahead.
    ``detail`` is shown beside the progress of the ``stage``, which counts the images that are written. Without
    ``crash_notes`` nothing records which images are being processed.

    Returns:
        The images that could not be read, by row.

    Raises:
        FileError: E701 when the disk is full, with what is kept and how much to free; E702 when it cannot be written.
        Interrupted: E801 on Ctrl-C or SIGTERM; what is computed is kept.
    """
    pending = _pending(stores)
    progress = _Progress(stores, pending, listing, watch)
    faults: dict[int, DataError] = {}
    oddities: dict[str, list[str]] = {}

    def begin() -> Iterator[Slice]:
        for piece in pending:
            for store in stores if crash_notes else ():
                if piece.index in store.pending:
                    note(store.folder, progress.unfinished[0].index, piece.index)
            yield piece

    answers = compute(begin())
    with Writer() as writer:
        try:
            listener.progress(stage, progress.before, len(listing))
            for answer in answers:
                faults |= answer.faults
                for row, code in ((row, code) for row, codes in answer.oddities.items() for code in codes):
                    oddities.setdefault(code, []).append(listing.ids[row])
                progress.add(answer, writer)
                if detail is not None:
                    listener.detail(detail())
                safe = progress.before + writer.rows
                if safe < len(listing):  # else it ends below
                    listener.progress(stage, safe, len(listing))
            writer.finish()
            if pending:
                listener.progress(stage, len(listing), len(listing))
        except KeyboardInterrupt as err:
            number = int(err.args[0]) if err.args else SIGINT
            with contextlib.suppress(FileError):
                progress.keep(writer)
            safe = progress.before + writer.settle()
            raise Interrupted(f"stopped; {safe:,} of {len(listing):,} images are done", signal_number=number) from err
        except DiskFullError as err:
            raise _with_room(err, stores, progress.before + writer.settle(), len(listing)) from err
        finally:
            answers.close()
    tell_oddities(oddities, listener)
    return faults


def _pending(stores: Sequence[Store[A]]) -> list[Slice]:
    """Return the slices to compute; a row is held where every store that lacks its slice has it."""
    found: dict[int, Slice] = {}
    for store in stores:
        for piece in store.slices:
            if piece.index in store.pending:
                held = store.held.get(piece.index, frozenset())
                held &= found[piece.index].held if piece.index in found else held
                # an answer ends a slice, so there has to be one
                held -= {piece.rows[-1]} if len(held) == len(piece.rows) else frozenset()
                found[piece.index] = replace(piece, held=held)
    return [found[index] for index in sorted(found)]


class _Progress(Generic[A]):
    """The slices of a run that are ``unfinished``, and the answers to the first of them.

    ``before`` is the number of images that were done before the run.
    """

    def __init__(
        self,
        stores: Sequence[Store[A]],
        pending: Sequence[Slice],
        listing: Listing,
        watch: Stopwatch,
    ) -> None:
        self.unfinished = deque(pending)
        self.before = len(listing) - sum(len(piece.left) for piece in pending)
        self._stores, self._watch = stores, watch
        self._gathered: list[A] = []
        self._rows = self._written = 0
        self._last = time.monotonic()

    def add(self, answer: A, writer: Writer) -> None:
        """Take an answer, and write the slice if that completes it, or what there is of it if it is time.

        Raises:
            FileError: that of an earlier write.
        """
        self._gathered.append(answer)
        self._rows += len(answer.asked)
        if self._rows == len(self.unfinished[0].left):
            self._write(writer, early=False)
            self.unfinished.popleft()
            self._gathered, self._rows, self._written = [], 0, 0
        elif time.monotonic() - self._last >= EARLY_SECONDS and writer.is_idle:
            self.keep(writer)

    def keep(self, writer: Writer) -> None:
        """Write the answers to the unfinished slice."""
        if self._rows > self._written:
            self._write(writer, early=True)

    def _write(self, writer: Writer, *, early: bool) -> None:
        write = partial(self._write_to_all, self.unfinished[0], tuple(self._gathered), early=early)
        with self._watch.waiting("blocked"):
            writer.write(write, rows=self._rows - self._written)
        self._written, self._last = self._rows, time.monotonic()

    def _write_to_all(self, piece: Slice, answers: Sequence[A], *, early: bool) -> None:
        with self._watch.timing("write", clock=time.perf_counter):
            for store in self._stores:
                if piece.index in store.pending:
                    (store.write_early if early else store.write)(piece, answers)


def _with_room(err: DiskFullError, stores: Sequence[Store[Any]], safe: int, rows: int) -> DiskFullError:
    """Add to E701 what is kept and how much room the rest needs."""
    room = max(1, -(-sum(store.bytes_of(rows - safe) for store in stores) // 2**20))
    hint = f"free {room:,} MB and run the same command again: it resumes where it stopped"
    if "disk is full" not in err.message:  # a quota, the size of a file, the number of files
        hint = f"{err.hint}, which takes {room:,} MB and resumes where it stopped"
    return DiskFullError(
        "E701",
        f"{err.message}; {safe:,} of {rows:,} images are done and kept",
        hint=hint,
        path=err.path,
    )
