"""Unreadable images, which ``errors.csv`` lists and E326 counts, and images that are only unusual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ensemble import files
from ensemble.arrays import Logits
from ensemble.card import ModelCard
from ensemble.error_codes import CODES
from ensemble.errors import DataError, UnreadableImagesError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.images.listing import Listing
from ensemble.text.csv_table import defuse, render_table

OnBadImage = Literal["fail", "fill", "skip"]
"""Handling of an unreadable image: fail once all others are done, fill in the class prior, or skip the image."""
ERRORS = "errors.csv"


def write_errors(path: Path, listing: Listing, faults: Mapping[int, DataError]) -> None:
    """List the unreadable images in a CSV file; without any, no file is written, and an old one is removed.

    Cells that a spreadsheet would compute begin with an apostrophe.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    if not faults:
        files.remove(path)
        return
    cells = [(listing.ids[row], fault.code, fault.message, fault.hint) for row, fault in sorted(faults.items())]
    rows = [[defuse(cell) for cell in row] for row in cells]
    files.write_atomic(path, render_table(("id", "code", "message", "hint"), rows))


def unread(faults: Mapping[int, DataError], listing: Listing, path: Path, *, kept: str) -> UnreadableImagesError:
    """Return E326 with the error of each image; ``kept`` says what is done anyway, and ``path`` lists the images."""
    return UnreadableImagesError(
        "E326",
        f"{len(faults):,} of {len(listing):,} images could not be read; {kept}",
        path=path,
        details=tuple(str(fault) for _, fault in sorted(faults.items())),
    )


def tell_unread(faults: Mapping[int, DataError], listing: Listing, path: Path, what: str, listener: Listener) -> None:
    """Give W326 if there are errors; ``what`` says how the images were handled, and ``path`` lists them."""
    if faults:
        some = enumerate_some([listing.ids[row] for row in sorted(faults)], limit=3)
        message = f"{len(faults):,} of {len(listing):,} images could not be read and {what}: {some}; see {path}"
        listener.notice(Notice("W326", message, path))


def tell_oddities(oddities: Mapping[str, list[str]], listener: Listener) -> None:
    """Give one notice per code, with the number of images and some of their ids."""
    for code, ids in sorted(oddities.items()):
        listener.notice(Notice(code, f"{len(ids):,} images: {CODES[code].cause} ({enumerate_some(ids, limit=3)})"))


def log_prior(card: ModelCard) -> Logits:
    """Return the logits ``(C,)`` of the class prior: the log of the class frequencies in the training data.

    Each class counts once more than it was seen, so that none is impossible; without counts that is uniform.
    """
    counts = np.array(card.class_counts or [0] * len(card.labels), dtype=np.float64) + 1
    return np.asarray(np.log(counts / counts.sum()), dtype=np.float32)


def describe_priors(cards: Iterable[ModelCard]) -> str:
    """Return a text that names the prior of each member."""
    known, unknown = list[str](), list[str]()
    for card in cards:
        (known if card.class_counts else unknown).append(card.member)
    parts = [f"the mix of classes in training ({enumerate_some(known)})"] * bool(known)
    parts += [f"uniform, as the card knows no mix of classes ({enumerate_some(unknown)})"] * bool(unknown)
    return "; ".join(parts)
