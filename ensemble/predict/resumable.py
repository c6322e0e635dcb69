"""Resumable runs: compute the images slice by slice, write each slice in the background, and resume after any stop.

`predict` (a slice is a part of 256 images), `submit` with early exit (a chunk) and `ens crop` (a round) all run here:

    faults = resume(stores, listing)                  # see `slice_folder`: keep finished slices, refuse another run
    for answer in compute(pending slices):            # in order; the caller decodes and runs its models
        if it ends a slice:
            store.write(slice, answers)               # in a thread, atomically, while the next slice is computed

A signal ends a run with E801 and a full disk with E701; both keep what is finished. Images that an earlier run could
not read, or that it was processing when it crashed, are first decoded in a subprocess.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import Any, Generic, Protocol, TypeVar

from ensemble.errors import DataError, DiskFullError, Interrupted
from ensemble.events import Listener
from ensemble.images.listing import Listing
from ensemble.predict.background_writer import Writer
from ensemble.predict.bad_images import tell_oddities
from ensemble.predict.crash_note import note
from ensemble.predict.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of the listing that are computed, written and resumed together.

    ``sizes`` is the hash of the sizes of their files, so that a slice is computed again when an image changed.
    """

    index: int
    rows: Sequence[int]
    sizes: str = ""


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

    Most are a `SliceFolder`, which detects by itself what is finished.
    """

    def __init__(self, folder: Path, slices: Sequence[Slice]) -> None:
        self.folder = folder
        self.slices = tuple(slices)
        self.pending = {piece.index for piece in slices}

    @abstractmethod
    def write(self, piece: Slice, answers: Sequence[A]) -> None:
        """Write a slice from all its answers, in order. Called from one background thread.

        Raises:
            FileError: E701 or E702 when it cannot be written.
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
    ``detail`` is shown beside the progress of the ``stage``. Without ``crash_notes`` nothing records which images are
    being processed.

    Returns:
        The images that could not be read, by row.

    Raises:
        FileError: E701 when the disk is full, with what is kept and how much to free; E702 when it cannot be written.
        Interrupted: E801 on Ctrl-C or SIGTERM; finished slices are kept.
    """
    wanted = {piece.index: piece for store in stores for piece in store.slices if piece.index in store.pending}
    pending = [wanted[index] for index in sorted(wanted)]
    unfinished = deque(pending)
    before = done = len(listing) - sum(len(piece.rows) for piece in pending)
    faults: dict[int, DataError] = {}
    oddities: dict[str, list[str]] = {}
    gathered: list[A] = []

    def begin() -> Iterator[Slice]:
        for piece in pending:
            for store in stores if crash_notes else ():
                if piece.index in store.pending:
                    note(store.folder, unfinished[0].index, piece.index)
            yield piece

    answers = compute(begin())
    with Writer() as writer:
        try:
            listener.progress(stage, done, len(listing))
            for answer in answers:
                gathered.append(answer)
                faults |= answer.faults
                for row, code in ((row, code) for row, codes in answer.oddities.items() for code in codes):
                    oddities.setdefault(code, []).append(listing.ids[row])
                done += len(answer.asked)
                if sum(len(one.asked) for one in gathered) == len(unfinished[0].rows):
                    write = partial(_write, stores, unfinished[0], gathered, watch)
                    with watch.waiting("blocked"):
                        writer.write(write, rows=len(unfinished[0].rows))
                    gathered = []
                    unfinished.popleft()
                if detail is not None:
                    listener.detail(detail())
                listener.progress(stage, done, len(listing))
            writer.finish()
        except KeyboardInterrupt as err:
            number = int(err.args[0]) if err.args else SIGINT
            safe = before + writer.settle()
            raise Interrupted(f"stopped; {safe:,} of {len(listing):,} images are done", signal_number=number) from err
        except DiskFullError as err:
            raise _with_room(err, stores, before + writer.settle(), len(listing)) from err
        finally:
            answers.close()
    tell_oddities(oddities, listener)
    return faults


def _write(stores: Sequence[Store[A]], piece: Slice, answers: Sequence[A], watch: Stopwatch) -> None:
    with watch.timing("write", clock=time.perf_counter):
        for store in stores:
            if piece.index in store.pending:
                store.write(piece, answers)


def _with_room(err: DiskFullError, stores: Sequence[Store[Any]], safe: int, rows: int) -> DiskFullError:
    """Add to E701 what is kept and how much room the rest needs."""
    room = max(1, -(-sum(store.bytes_of(rows - safe) for store in stores) // 2**20))
    return DiskFullError(
        "E701",
        f"{err.message}; {safe:,} of {rows:,} images are done and kept",
        hint=f"free {room:,} MB and run the same command again: it resumes where it stopped",
        path=err.path,
    )
