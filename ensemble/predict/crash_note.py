"""Crash marker: records the parts in progress; present only after an unclean exit.

The note is a file in the run's folder that names the first part that is not finished and the last that is begun. It
goes when the run ends, with or without an error, but stays where memory ran out: that may be one image's doing too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ensemble import files
from ensemble.errors import DeviceError
from ensemble.events import Listener, Notice

NOTE = ".underway"


def note(folder: Path, first: int, last: int) -> None:
    """Record that parts ``first`` to ``last`` are in progress.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    files.write_atomic(folder / NOTE, f"{first} {last}\n".encode(), sync=False)


def read_note(folder: Path) -> range:
    """Return the parts that were in progress when a run crashed; none without a readable marker."""
    try:
        first, last = map(int, (folder / NOTE).read_bytes().split())
    except (OSError, ValueError):
        return range(0)
    return range(first, last + 1)


def tell_died(rows: int, listener: Listener) -> None:
    """Give W325 if the previous run crashed while processing some of the images."""
    if rows:
        images = f"the {rows:,} images that it may have been processing"
        what = f"the previous run crashed; {images} are decoded in a subprocess first"
        listener.notice(Notice("W325", what))


@contextmanager
def noted(folders: Sequence[Path]) -> Iterator[None]:
    """Remove the markers when the block ends, unless memory ran out.

    Raises:
        DeviceError: E603 instead of `MemoryError`.
    """
    try:
        yield
    except MemoryError as err:
        raise DeviceError(
            "E603",
            "the machine ran out of memory; finished parts are kept",
            hint="run the same command again with a smaller --memory, --batch or --workers: it resumes",
        ) from err
    except BaseException:
        _remove(folders)
        raise
    _remove(folders)


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        files.remove(folder / NOTE)
