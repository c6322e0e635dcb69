"""Read predictions made by other tools: a CSV or .npz file with ids, whose content kind is stated, never guessed."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ensemble.arrays import Floats, Logits
from ensemble.card import validate_member
from ensemble.csv_table import read_table
from ensemble.errors import FileError, PredictionError
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions, find_predictions, read_predictions
from ensemble.submission.lint import read_submission

ContentKind = Literal["logits", "probabilities", "classes"]
SUFFIXES = (".csv", ".npz")
_IDS = "ids"
_TOLERANCE = 1e-3


def read_external(path: Path, labels: LabelSpace, *, kind: ContentKind | None) -> Predictions:
    """Read one member from a file; its name is the file's stem.

    A ``.csv`` has the ids in its first column and one column per class: in any order if the header names the classes,
    else in the order of ``labels``. A ``.npz`` has an array ``ids`` ``(N,)`` and one array ``(N, C)`` per view, named
    like the view. Probabilities become their logarithms, which are logits. With ``classes`` the file is a submission
    and each row is one-hot: suited to the hard pool, because soft voting has no confidences to average.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E313 when an id is repeated, E322 when a CSV is not a table.
        PredictionError: E502 when the kind is missing or contradicts the values, E505 when a value is NaN or infinite,
            E514 when the file does not contain ids and one column per class, E520 when the kind is ``classes`` and the
            file is not a valid submission.
    """
    if kind is None:
        raise PredictionError(
            "E502", f"{path.name}: state whether it contains logits, probabilities or classes", path=path
        )
    if kind == "classes":
        return _read_classes(path, labels)
    found = _read_csv(path, labels) if path.suffix.lower() == ".csv" else _read_npz(path, labels)
    ids = found.ids
    if len(set(ids)) != len(ids) or not ids:
        raise PredictionError("E514", f"{path.name} must contain each image once, got {len(ids)} rows", path=path)
    logits = {view: _as_logits(values, ids, kind, path) for view, values in found.views.items()}
    member = validate_member(path.stem)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Predictions(member, member, None, labels, ids, logits, digest)


def _read_classes(path: Path, labels: LabelSpace) -> Predictions:
    answers = read_submission(path, labels)
    logits = np.full((len(answers), len(labels)), np.log(np.finfo(np.float32).tiny), dtype=np.float32)
    logits[np.arange(len(answers)), answers.classes] = 0
    logits.flags.writeable = False
    member = validate_member(path.stem)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Predictions(member, member, None, labels, answers.ids, {"identity": logits}, digest)


@dataclass(frozen=True, slots=True, eq=False)
class _ExternalTable:
    """The content of a file as written: ``views[name]`` is ``(N, C)``, in the class order of the label space."""

    ids: tuple[str, ...]
    views: Mapping[str, Floats]


def _read_csv(path: Path, labels: LabelSpace) -> _ExternalTable:
    table = read_table(path)
    names = table.header[1:]
    if len(names) != len(labels):
        raise PredictionError("E514", f"{path.name} has {len(names)} columns for {len(labels)} classes", path=path)
    order = [names.index(name) for name in labels.names] if set(names) == set(labels.names) else range(len(names))
    ids = table.without_duplicates(table.header[0])
    values = np.empty((len(ids), len(labels)))
    for row, (cells, line) in enumerate(zip(table.rows, table.lines, strict=True)):
        try:
            values[row] = [float(cells[1 + column]) for column in order]
        except ValueError as err:
            raise PredictionError("E514", f"{path.name}: line {line}: {err}", path=path) from err
    return _ExternalTable(ids, {"identity": values})


def _read_npz(path: Path, labels: LabelSpace) -> _ExternalTable:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as err:
        raise PredictionError("E514", f"{path.name} is not a .npz file of plain arrays: {err}", path=path) from err
    if _IDS not in arrays or len(arrays) < 2:
        hint = "write it with numpy.savez(path, ids=ids, identity=logits)"
        raise PredictionError(
            "E514", f"{path.name} needs ids and at least one view, got {sorted(arrays)}", path=path, hint=hint
        )
    ids = arrays.pop(_IDS)
    for name, values in arrays.items():
        if ids.ndim != 1 or values.shape != (len(ids), len(labels)) or values.dtype.kind not in "fiu":
            raise PredictionError(
                "E514",
                f"{path.name}: {name} is {values.dtype} {values.shape}, expected numbers ({ids.size}, {len(labels)})",
                path=path,
            )
    views = {name: values.astype(np.float64) for name, values in arrays.items()}
    return _ExternalTable(tuple(str(name) for name in ids), views)


def _as_logits(values: Floats, ids: tuple[str, ...], kind: ContentKind, path: Path) -> Logits:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise PredictionError(
            "E505", f"{path.name}: {bad.size} rows are NaN or infinite, such as {ids[bad[0]]}", path=path
        )
    are_probabilities = (values >= 0).all(axis=1) & (abs(values.sum(axis=1) - 1) < _TOLERANCE)
    if kind == "logits" and are_probabilities.all():
        raise PredictionError("E502", f"{path.name}: stated as logits, but every row sums to one", path=path)
    if kind == "probabilities":
        if not are_probabilities.all():
            row = int(np.flatnonzero(~are_probabilities)[0])
            low, total = values[row].min(), f"{values[row].sum():.4g}"
            problem = f"has the value {low:.4g}" if low < 0 else f"sums to {total}"
            raise PredictionError(
                "E502", f"{path.name}: stated as probabilities, but the row of {ids[row]} {problem}", path=path
            )
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    logits = values.astype(np.float32)
    logits.flags.writeable = False
    return logits


def read_members(paths: Iterable[Path], labels: LabelSpace, *, kind: ContentKind | None) -> list[Predictions]:
    """Read all members at the paths: files, members' folders, or folders of them.

    ``labels`` and ``kind`` describe the files; folders describe themselves.

    Raises:
        EnsError: as `read_external`, `find_predictions` and `read_predictions`.
    """
    members: list[Predictions] = []
    for path in paths:
        if path.suffix.lower() in SUFFIXES and path.is_file():
            members.append(read_external(path, labels, kind=kind))
        else:
            members += [read_predictions(folder) for folder in find_predictions(path)]
    return members
