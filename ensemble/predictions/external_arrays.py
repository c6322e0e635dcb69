"""Read predictions that numpy wrote: `.npz` with ids, and `.npy` for the ids of a list."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats
from ensemble.errors import FileError, PredictionError, enumerate_some
from ensemble.events import Listener
from ensemble.ids import find_id_column
from ensemble.labels import LabelSpace
from ensemble.text.bounded_tables import load_arrays
from ensemble.text.csv_table import read_table

_IDS = "ids"


@dataclass(frozen=True, slots=True, eq=False)
class ExternalTable:
    """The content of a file as written: ``views[name]`` is ``(N, C)``, in the class order of the label space."""

    ids: tuple[str, ...]
    views: Mapping[str, Floats]


_FORMS = {
    *("logit", "logits", "prob", "probs", "proba", "probas", "probability", "probabilities", "softmax", "sigmoid"),
    *("score", "scores", "pred", "preds", "prediction", "predictions", "output", "outputs", "log", "logprobs"),
    *("logprob", "raw", "rank", "ranks", "oof", "odds", "calibrated"),
}
"""Words that say in which form an array has predictions, not from which view of the images."""
_OTHER = {
    *("y", "label", "labels", "target", "targets", "truth", "true", "onehot", "gt"),
    *("feature", "features", "embedding", "embeddings", "weight", "weights", "std", "variance", "var", "uncertainty"),
}
"""Words of arrays that are no predictions."""


def read_npz(path: Path, labels: LabelSpace, *, array: str | None = None) -> ExternalTable:
    """Read the array ``ids`` ``(N,)`` of text or bytes, and one array ``(N, C)`` per view, or the one of ``array``.

    Raises:
        FileError: E707 when the file cannot be read.
        PredictionError: E514 when it does not contain them, or several arrays whose names are not those of views.
    """
    arrays = _load(path)
    if not isinstance(arrays, dict) or _IDS not in arrays or len(arrays) < 2:
        got = sorted(arrays) if isinstance(arrays, dict) else "one array, as in a .npy file"
        hint = "write it with numpy.savez(path, ids=ids, identity=logits)"
        raise PredictionError("E514", f"{path.name} needs ids and at least one view, got {got}", path=path, hint=hint)
    raw = arrays.pop(_IDS)
    if raw.ndim != 1:
        raise PredictionError(
            "E514",
            f"{path.name}: ids is {raw.shape}, expected ({len(raw) if raw.ndim else 1},): one id per image",
            path=path,
            hint="write ids.ravel() if each row holds one id",
        )
    if array is not None:
        if array not in arrays:
            message = f"{path.name} has no array {array!r}, only {enumerate_some(sorted(arrays), limit=20)}"
            raise PredictionError("E514", message, path=path, hint="name one of them with --array")
        arrays = {"identity": arrays[array]}
    _require_views(arrays, path)
    return ExternalTable(_as_text(raw, path), _checked(arrays, len(raw), labels, path))


def _require_views(names: Collection[str], path: Path) -> None:
    """Check that several arrays are not one in two forms, such as logits and probabilities, nor labels or features.

    Raises:
        PredictionError: E514 when they are.
    """
    if len(names) < 2:
        return
    words = {name: re.findall(r"[^\W_]+", name.casefold()) for name in names}
    odd = sorted(name for name, found in words.items() if _OTHER.intersection(found))
    rest: dict[tuple[str, ...], list[str]] = {}
    for name, found in sorted(words.items()):
        if _FORMS.intersection(found):
            rest.setdefault(tuple(word for word in found if word not in _FORMS), []).append(name)
    twice = next((same for same in rest.values() if len(same) > 1), None)
    if odd or twice:
        is_what = "are one in several forms" if twice else "do not look like views of the images"
        raise PredictionError(
            "E514",
            f"{path.name} has the arrays {enumerate_some(sorted(names), limit=10)}; {enumerate_some(twice or odd)} "
            f"{is_what}, and each array would count as a view",
            path=path,
            hint=f"name the one to be read: --array {(twice or sorted({*names} - {*odd}) or odd)[0]}",
        )


def read_npy(
    path: Path, labels: LabelSpace, *, ids: Path | None, id_column: str | None, listener: Listener
) -> ExternalTable:
    """Read one array ``(N, C)`` whose rows are those of the list ``ids``.

    Raises:
        FileError: E707 when a file cannot be read.
        DataError: E313 or E322 when the list is not valid.
        PredictionError: E514 when there is no list, or the array has another shape.
    """
    if ids is None:
        raise PredictionError(
            "E514",
            f"{path.name} has no ids",
            path=path,
            hint="name the list of its rows with --ids list.csv (--oof-ids for out-of-fold predictions), put it beside "
            "the file as ids.csv, or write numpy.savez(path, ids=ids, identity=values)",
        )
    table = read_table(ids, listener=listener)
    names = table.without_duplicates(find_id_column(table, named=id_column, listener=listener))
    array = _load(path)
    if isinstance(array, dict):
        raise PredictionError("E514", f"{path.name} holds several arrays: call it .npz", path=path)
    return ExternalTable(names, _checked({"identity": array}, len(names), labels, path))


def _load(path: Path) -> dict[str, NDArray[Any]] | NDArray[Any]:
    try:
        return load_arrays(path)
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as err:
        raise PredictionError("E514", f"{path.name} is not a file of plain numpy arrays: {err}", path=path) from err


def _as_text(ids: NDArray[Any], path: Path) -> tuple[str, ...]:
    """Return ids as text; bytes, as h5py and ``numpy.char`` give them, are UTF-8."""
    try:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in ids.tolist())
    except UnicodeDecodeError as err:
        raise PredictionError("E514", f"{path.name}: an id is not UTF-8 text: {err}", path=path) from err


def _checked(arrays: Mapping[str, NDArray[Any]], rows: int, labels: LabelSpace, path: Path) -> dict[str, Floats]:
    for name, values in arrays.items():
        if values.shape != (rows, len(labels)) or values.dtype.kind not in "fiu":
            raise PredictionError(
                "E514",
                f"{path.name}: {name} is {values.dtype} {values.shape}, expected numbers ({rows}, {len(labels)}): "
                f"{rows} ids and {len(labels)} classes",
                path=path,
                hint="name the array of the predictions with --array" if len(arrays) > 1 else None,
            )
    return {name: values.astype(np.float64) for name, values in arrays.items()}
