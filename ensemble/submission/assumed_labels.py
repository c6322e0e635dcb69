"""The classes that are taken for a submission whose label space nobody has named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble.events import Listener, Notice
from ensemble.labels import MASK18, LabelSpace
from ensemble.submission.class_names import Mismatch, match_columns
from ensemble.submission.sheet_options import SheetOptions
from ensemble.text.csv_table import read_table


def assume_labels(path: Path, options: SheetOptions, listener: Listener) -> LabelSpace:
    """Return the classes of a table without a label space: its columns of answers, or those of mask18.

    The first column, or that of ``options``, has the ids. What is assumed is said (I543), unless the header is
    that of the mask contest.

    Raises:
        FileError: E707 when the table cannot be read.
        DataError: when it is not a table.
    """
    header = read_table(path, listener=listener).header
    column = options.id_column if options.id_column in header else header[0]
    names = tuple(name.strip() for name in header if name != column)
    if len(names) > 1 and len(set(names)) == len(names) and all(names) and not _has_classes(names, MASK18):
        message = f"{path.name}: its {len(names)} columns of answers are taken for the classes (--labels names others)"
        listener.notice(Notice("I543", message, path))
        return LabelSpace.flat(names)
    if list(header) == ["ImageID", "ans"]:  # which is that contest's own
        return MASK18
    message = (
        f"{path.name}: its answers are taken for classes of mask18, 0 to {len(MASK18) - 1} (--labels names others)"
    )
    listener.notice(Notice("I543", message, path))
    return MASK18


def _has_classes(columns: Sequence[str], labels: LabelSpace) -> bool:
    """Return True if there is a column for each class, and at least one of them can be found by its name or number."""
    match = match_columns(columns, labels.names)
    return len(columns) == len(labels) and not (isinstance(match, Mismatch) and len(match.missing) == len(labels))
