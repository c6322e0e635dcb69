"""Read predictions made by other tools: tables and arrays with ids, whose content kind is stated, never guessed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from ensemble.arrays import Floats, Logits
from ensemble.card import Activation, validate_member
from ensemble.errors import PredictionError
from ensemble.events import SILENT, Listener
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.external_arrays import read_npy, read_npz
from ensemble.predictions.external_tables import read_csv_table, read_parquet_table
from ensemble.submission.lint import read_submission
from ensemble.submission.sheet_options import SheetOptions

ContentKind = Literal["logits", "probabilities", "classes"]
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class ExternalOptions:
    """The content ``kind`` of files of other tools, and what else they do not say themselves.

    ``in_order`` takes the columns of a table in the order of the classes, whatever their names. ``ids`` is the list of
    ids for the rows of ``.npy`` files. ``id_column`` names the column of ids. With the activation ``sigmoid`` several
    labels may apply to an image. ``oof_ids`` is the list of ids for out-of-fold ``.npy`` files. ``array`` names the one
    array of ``.npz`` files that is read; by default each is a view.
    """

    kind: ContentKind | None = None
    in_order: bool = False
    ids: Path | None = None
    id_column: str | None = None
    activation: Activation = "softmax"
    oof_ids: Path | None = None
    array: str | None = None

    def for_oof(self) -> ExternalOptions:
        """Return the same for out-of-fold predictions, which are of other images."""
        return replace(self, ids=self.oof_ids)


NO_OPTIONS = ExternalOptions()


def read_external(
    path: Path, labels: LabelSpace, *, options: ExternalOptions, listener: Listener = SILENT
) -> Predictions:
    """Read one member from a file; its name is the file's stem.

    A ``.csv`` or ``.parquet`` has a column of ids, and one column per class that has the class's name or number, in any
    order. A ``.npz`` has an array ``ids`` ``(N,)`` and one array ``(N, C)`` per view, named like the view; a ``.npy``
    is one such array, for the ids of a list. Several arrays of a ``.npz`` whose names are not views, such as ``logits``
    beside ``probabilities``, are refused unless one is named. Probabilities become their logarithms, which are logits.

    With ``classes`` the file is a submission and each row is one-hot: suited to the hard pool, because soft voting has
    no confidences to average.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E313 when an id is repeated, E322 when a CSV is not a table.
        PredictionError: E502 when the kind is missing or contradicts the values, E505 when a value is NaN or infinite,
            E514 when the file does not contain ids and numbers, E520 when the kind is ``classes`` and the file is not a
            valid submission, E541 when the columns are not the classes.
    """
    kind = options.kind
    if kind is None:
        raise PredictionError(
            "E502", f"{path.name}: state whether it contains logits, probabilities or classes", path=path
        )
    if kind == "classes":
        return _read_classes(path, labels, options, listener)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        found = read_npz(path, labels, array=options.array)
    elif suffix == ".npy":
        found = read_npy(path, labels, ids=options.ids, id_column=options.id_column, listener=listener)
    elif suffix == ".parquet":
        found = read_parquet_table(path, labels, id_column=options.id_column, listener=listener)
    else:
        found = read_csv_table(path, labels, in_order=options.in_order, id_column=options.id_column, listener=listener)
    ids = found.ids
    if len(set(ids)) != len(ids) or not ids:
        raise PredictionError("E514", f"{path.name} must contain each image once, got {len(ids)} rows", path=path)
    convert = _as_logits if options.activation == "softmax" else _as_log_odds
    logits = {view: convert(values, ids, kind, path) for view, values in found.views.items()}
    member = validate_member(path.stem)
    own = b"" if options.array is None or suffix != ".npz" else f"\0{options.array}".encode()
    digest = hashlib.sha256(path.read_bytes() + own).hexdigest()
    return Predictions(member, member, None, labels, ids, logits, digest, activation=options.activation)


def _read_classes(path: Path, labels: LabelSpace, options: ExternalOptions, listener: Listener) -> Predictions:
    sheet_options = SheetOptions(id_column=options.id_column)
    answers = read_submission(path, labels, options=sheet_options, listener=listener)
    logits = np.full((len(answers), len(labels)), np.log(np.finfo(np.float32).tiny), dtype=np.float32)
    logits[np.arange(len(answers)), answers.classes] = 0
    logits.flags.writeable = False
    member = validate_member(path.stem)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Predictions(member, member, None, labels, answers.ids, {"identity": logits}, digest)


def _require_numbers(values: Floats, ids: tuple[str, ...], path: Path) -> None:
    # what float32 does not hold would become infinite; a NaN is not below anything
    bad = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max).all(axis=1))
    if bad.size:
        raise PredictionError(
            "E505",
            f"{path.name}: {bad.size} rows are NaN, infinite or beyond float32, such as {ids[bad[0]]}",
            path=path,
        )


def _as_log_odds(values: Floats, ids: tuple[str, ...], kind: ContentKind, path: Path) -> Logits:
    """Return the log-odds of independent labels; probabilities of 0 and 1 become very small and large ones."""
    _require_numbers(values, ids, path)
    if kind == "probabilities":
        outside = np.flatnonzero(((values < 0) | (values > 1)).any(axis=1))
        if outside.size:
            raise PredictionError(
                "E502",
                f"{path.name}: stated as probabilities, but the row of {ids[outside[0]]} has values outside 0 and 1",
                path=path,
            )
        least = np.finfo(np.float32).tiny
        # 1 - p loses the digits of a tiny p, but log1p does not
        values = np.log(np.maximum(values, least)) - np.log1p(-np.minimum(values, 1 - np.finfo(np.float64).epsneg))
    # not rounded to float32, which would tie probabilities that differ, and a pool of ranks counts ties
    logits = values.astype(np.float64)
    logits.flags.writeable = False
    return cast("Logits", logits)


def _as_logits(values: Floats, ids: tuple[str, ...], kind: ContentKind, path: Path) -> Logits:
    _require_numbers(values, ids, path)
    are_probabilities = (values >= 0).all(axis=1) & (abs(values.sum(axis=1) - 1) < _TOLERANCE)
    if kind == "logits" and are_probabilities.all():
        raise PredictionError("E502", f"{path.name}: stated as logits, but every row sums to one", path=path)
    if kind == "probabilities":
        if not are_probabilities.all():
            row = int(np.flatnonzero(~are_probabilities)[0])
            low, total = values[row].min(), f"{values[row].sum():.4g}"
            problem = f"has the value {low:.4g}" if low < 0 else f"sums to {total}"
            raise PredictionError(
                "E502",
                f"{path.name}: stated as probabilities, but the row of {ids[row]} {problem}",
                path=path,
                hint="state them with --as logits; or, if several labels may apply to an image, with --activation "
                "sigmoid",
            )
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    logits = values.astype(np.float32)
    logits.flags.writeable = False
    return logits
