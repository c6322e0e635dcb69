"""Find the folds of a training: given in a file or the table, or dealt once for all members of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds, make_folds, read_folds
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener
from ensemble.text.plain_numbers import is_count


@dataclass(frozen=True, slots=True)
class SharedFolds:
    """The folds of a split, and the file in which all members of a folder share them; None for folds of a file."""

    folds: Folds
    file: Path | None


def read_or_make_folds(
    folds: str, repeat: int, repeats: int, folder: Path, dataset: Dataset, *, listener: Listener = SILENT
) -> SharedFolds:
    """Return the folds of the split ``repeat`` of ``repeats``: those of a file, of the table, or shared by all members.

    ``folds`` is a number or a file. The first member that is trained in a folder writes its shared folds there, a file
    for each split.

    Raises:
        OptionError: E204 when ``folds`` is neither, or others are shared; E208 when there are several splits, and the
            folds are given.
        DataError: as `make_folds` and `read_folds`.
    """
    rows = dataset.rows
    shared = folder / (f"folds_r{repeat}.csv" if repeat else "folds.csv")
    if repeats > 1 and (not is_count(folds) or dataset.folds is not None):
        source = f"--folds {folds}" if not is_count(folds) else "the table"
        hint = "leave --repeats out, or let ens train deal the folds: --folds 5, --fold-column none"
        raise OptionError("E208", f"--repeats deals several fold splits, and {source} has one", hint=hint)
    sharing = f"all members in a folder share its {shared.name}: choose another folder with -o, or remove it"
    if not is_count(folds):
        if not Path(folds).is_file():
            raise OptionError("E204", f"--folds takes a number, or a CSV of id,fold that exists, got {folds!r}")
        return SharedFolds(read_folds(Path(folds), rows), None)
    if dataset.folds is not None:
        if shared.exists() and read_folds(shared, rows, hint=sharing) != dataset.folds:
            message = f"{shared} has other folds than the table"
            hint = "all members in a folder share its folds.csv: choose another folder with -o, or --fold-column none"
            raise OptionError("E204", message, hint=hint)
        return SharedFolds(dataset.folds, shared)
    if not shared.exists():
        made = make_folds(
            rows, folds=int(folds), seed=repeat, labels=dataset.labels, unit=dataset.unit, listener=listener
        )
        return SharedFolds(made, shared)
    found = read_folds(shared, rows, hint=sharing)
    if found.count != int(folds):
        message = f"{shared} has {found.count} folds, --folds is {folds}"
        raise OptionError("E204", message, hint=sharing)
    return SharedFolds(found, shared)
