"""Images that could not be read, which ``errors.csv`` names and E326 counts, and those that were only unusual."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensemble import files
from ensemble.codes import CODES
from ensemble.errors import DataError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.listing import Listing
from ensemble.tables import render_table

ERRORS = "errors.csv"


def write_errors(folder: Path, listing: Listing, faults: Mapping[int, DataError]) -> None:
    """Name the images that could not be read in ``errors.csv``; without any, there is no such file.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    if not faults:
        files.remove(folder / ERRORS)
        return
    rows = [(listing.ids[row], fault.code, fault.message, fault.hint) for row, fault in sorted(faults.items())]
    files.write_atomic(folder / ERRORS, render_table(("id", "code", "message", "hint"), rows))


def unread(faults: Mapping[int, DataError], listing: Listing, folder: Path, *, kept: str) -> DataError:
    """E326, with every fault; ``kept`` says what is done nevertheless."""
    return DataError(
        "E326",
        f"{len(faults):,} of {len(listing):,} images could not be read; {kept}",
        path=folder / ERRORS,
        details=tuple(str(fault) for fault in faults.values()),
    )


def tell_oddities(oddities: Mapping[str, list[str]], listener: Listener) -> None:
    """One notice for each code, with the number of images, by their ids, that it was about."""
    for code, ids in sorted(oddities.items()):
        listener.notice(Notice(code, f"{len(ids):,} images: {CODES[code].cause} ({enumerate_some(ids, limit=3)})"))
