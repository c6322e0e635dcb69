"""Read members wherever they are: their folders, files of other tools, and folders of either."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ensemble.errors import PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import (
    Predictions,
    find_predictions,
    has_members,
    notice_optimistic,
    read_predictions,
)
from ensemble.predictions.external import NO_OPTIONS, ExternalOptions, read_external

_OF_TRAINING = "settings.json"  # of ens train, probe and distil
SUFFIXES = (".csv", ".tsv", ".txt", ".npz", ".npy", ".parquet")


def read_members(
    paths: Iterable[Path],
    labels: LabelSpace,
    *,
    options: ExternalOptions = NO_OPTIONS,
    beside: Iterable[Path | None] = (),
    listener: Listener = SILENT,
) -> list[Predictions]:
    """Read all members at the paths, see `find_members`.

    ``labels`` and ``options`` describe the files; members' folders describe themselves. The ids of ``.npy`` files may
    also be a list ``ids.csv`` or ``ids.txt`` beside them.

    Raises:
        EnsError: as `find_members`, `read_external` and `read_predictions`.
    """
    classes = 1 if options.kind == "classes" else len(labels)
    members: list[Predictions] = []
    for path in find_members(paths, classes=classes, beside=(options.ids, *beside), listener=listener):
        if path.is_dir():
            members.append(read_predictions(path))
        else:
            own = options if path.suffix.lower() != ".npy" else replace(options, ids=options.ids or _ids_beside(path))
            members.append(read_external(path, labels, options=own, listener=listener))
    notice_optimistic(members, listener)
    return members


def find_members(
    paths: Iterable[Path], *, classes: int = 1, beside: Iterable[Path | None] = (), listener: Listener = SILENT
) -> tuple[Path, ...]:
    """Return the members' folders and the files of predictions at the paths, those in a folder sorted by name.

    A folder has members' folders, or else files. What lies among the files without being predictions is said (I591):
    tables with fewer columns than ``classes``, flat arrays, other kinds of files. ``beside`` are files with a meaning
    of their own, such as the ground truth.

    Raises:
        PredictionError: E514 when a folder has neither, E515 when two files have the same member's name.
    """
    known = {os.path.realpath(path) for path in beside if path is not None}
    found: list[Path] = []
    for path in paths:
        if (path / _OF_TRAINING).is_file() and not has_members(path) and has_members(path / "oof"):
            message = f"{path} is the folder of a trained member; its out-of-fold predictions are in {path / 'oof'}"
            raise PredictionError("E514", message, hint=f"give {path / 'oof'}", path=path)
        files = [] if not path.is_dir() or has_members(path) else _files_in(path, known, classes, listener)
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            files = [path]
        found += files or find_predictions(path)
    by_stem: dict[str, Path] = {}
    for path in found:
        if path.is_file() and by_stem.setdefault(path.stem, path) != path:
            raise PredictionError(
                "E515",
                f"{by_stem[path.stem]} and {path} would both be the member {path.stem}",
                hint="a member is called like its file: rename one of the files, or leave it out",
            )
    return tuple(found)


def _files_in(folder: Path, known: set[str], classes: int, listener: Listener) -> list[Path]:
    every = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    others = [path for path in every if os.path.realpath(path) not in known]
    files = [path for path in others if path.suffix.lower() in SUFFIXES and _may_be_predictions(path, classes)]
    left_out = [path.name for path in others if path not in files]
    if files and left_out:
        listener.notice(Notice("I591", f"{folder}: not read as predictions: {enumerate_some(left_out)}"))
    return files


def _may_be_predictions(path: Path, classes: int) -> bool:
    """Return False for a table with fewer columns than an id and the classes, and for an array that is not ``(N, C)``.

    What cannot be read may be predictions: reading it raises the error that says why.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _is_matrix(path)
    if suffix in {".npz", ".parquet"}:
        return True
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return max(first.count(mark) for mark in (b",", b";", b"\t", b"|")) >= classes


def _is_matrix(path: Path) -> bool:
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2)
    except (OSError, ValueError, EOFError):
        return True


def _ids_beside(path: Path) -> Path | None:
    """Return the list of ids in the folder of a ``.npy`` file, if there is one."""
    return next((beside for name in ("ids.csv", "ids.txt") if (beside := path.parent / name).is_file()), None)
