"""What is under way: a note that only a run which died leaves behind, so that the next one knows where it was.

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
    """Note that parts ``first`` to ``last`` are under way.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    files.write_atomic(folder / NOTE, f"{first} {last}\n".encode(), sync=False)


def read_note(folder: Path) -> range:
    """The parts that a run was at when it died; none where it did not, or where its note cannot be read."""
    try:
        first, last = map(int, (folder / NOTE).read_bytes().split())
    except (OSError, ValueError):
        return range(0)
    return range(first, last + 1)


def tell_died(rows: int, listener: Listener) -> None:
    """Say that a run died while it was at some of so many images, if there are any."""
    if rows:
        what = f"an earlier run died while it was at some of {rows:,} images; each is tried by itself first"
        listener.notice(Notice("W325", what))


@contextmanager
def noted(folders: Sequence[Path]) -> Iterator[None]:
    """Take the notes away when what is done inside has ended, unless memory ran out.

    Raises:
        DeviceError: E603 instead of `MemoryError`.
    """
    try:
        yield
    except MemoryError as err:
        raise DeviceError(
            "E603",
            "the machine's memory ran out; what was finished is kept",
            hint="run the same command again with a smaller --memory, --batch or --workers: it goes on where it was",
        ) from err
    except BaseException:
        _remove(folders)
        raise
    _remove(folders)


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        files.remove(folder / NOTE)
