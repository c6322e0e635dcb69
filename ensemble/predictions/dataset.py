"""Read and write predictions as Parquet: one folder per member, one file per part, ``_complete.json`` written last.

part-00000.parquet    id: string, and one fixed_size_list<float32>[C] per view; card and origin in the schema metadata
filled.parquet        only if unreadable images were filled: their rows, plus a column filled: bool (always true)
_complete.json        the files and their SHA-256; without it the predictions are incomplete

Without pyarrow the files are ``part-00000.npz`` and ``filled.npz``, see `ensemble.predictions.part_file`.

pandas, polars and DuckDB open the folder directly. If there are filled rows, pass union_by_name=true to DuckDB or
missing_columns="insert" to polars.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.arrays import Floats, Logits
from ensemble.card import METADATA_KEY, Activation, ModelCard
from ensemble.errors import ModelError, PredictionError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.files import write_atomic
from ensemble.labels import LabelSpace
from ensemble.predictions.part_file import is_arrays, part_suffix, read_arrays, write_arrays
from ensemble.text.bounded_tables import read_parquet, require_pyarrow
from ensemble.text.json_text import parse_json, read_utf8
from ensemble.text.json_types import require_field_types, require_type

COMPLETE = "_complete.json"
FILLED = "filled.parquet"
ORIGIN_KEY = "ens.origin"
_ID = "id"
_FILLED = "filled"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """One member's predictions of all images.

    ``logits[view]`` is ``(N, C)`` float32: row i belongs to ``ids[i]``, column j to ``labels.names[j]``; arrays are
    read-only. ``group`` is the name under which the folds of one model are averaged (the member's own name if it has no
    folds). ``sha256`` is the hash of ids and logits, ``holdout_sha256`` that of the ids held out from training, if
    the card has it (see `hash_ids`). ``filled`` lists unreadable images whose rows are the class prior, ``missing``
    unreadable images without a row. ``activation`` turns the logits into probabilities. ``repeat`` counts the fold
    splits that a model was trained on. Where out-of-fold predictions of several splits were joined, ``looks[view]``
    ``(R, N, C)`` has the logits of each split, and ``logits`` is their mean. ``optimistic`` ones are out-of-fold, but
    of a student whose labels came from models that were trained on these images.
    """

    member: str
    group: str
    fold: int | None
    labels: LabelSpace
    ids: tuple[str, ...]
    logits: Mapping[str, Logits]
    sha256: str
    holdout_sha256: str | None = None
    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    activation: Activation = "softmax"
    repeat: int = 0
    looks: Mapping[str, Floats] | None = None
    optimistic: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def independent(self) -> bool:
        """True if several labels may apply to an image: their probabilities do not sum to one."""
        return self.activation == "sigmoid"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Consecutive rows of one member's predictions: ``logits[view]`` is ``(n, C)`` float32.

    ``card`` describes the member. ``origin`` identifies what the rows were computed from; a part is reused only if its
    origin is unchanged. ``filled`` lists the ids whose rows are the class prior instead of the model's output.
    """

    ids: tuple[str, ...]
    logits: Mapping[str, Logits]
    origin: str
    card: ModelCard
    filled: tuple[str, ...] = ()


def part_path(folder: Path, index: int) -> Path:
    """Return the path of part ``index`` in a member's folder."""
    return folder / f"part-{index:05d}{part_suffix(folder, 'part')}"


def write_part(path: Path, part: Part, *, sync: bool = True) -> None:
    """Write one part; equal parts give identical bytes. ``sync=False`` is for files that can be computed again.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    if is_arrays(path):
        about = {"ids": part.ids, "filled": part.filled, METADATA_KEY: part.card.to_json(), ORIGIN_KEY: part.origin}
        write_arrays(path, {view: np.asarray(one, np.float32) for view, one in part.logits.items()}, about, sync=sync)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {METADATA_KEY: part.card.to_json(), ORIGIN_KEY: part.origin}
    fields = [pa.field(_ID, pa.string(), nullable=False)]
    columns: list[Any] = [pa.array(part.ids, pa.string())]
    for view, logits in part.logits.items():
        kind = pa.list_(pa.field("element", pa.float32(), nullable=False), logits.shape[1])
        fields.append(pa.field(view, kind, nullable=False))
        flat = pa.array(np.ascontiguousarray(logits, dtype=np.float32).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
    if part.filled:
        fields.append(pa.field(_FILLED, pa.bool_()))
        filled = set(part.filled)
        columns.append(pa.array([name in filled for name in part.ids], pa.bool_()))
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    write_atomic(path, memoryview(sink.getvalue()), sync=sync)


def read_part(path: Path) -> Part:
    """Read one part and verify its page checksums.

    Raises:
        PredictionError: E514 when the file cannot be read or is not a part of predictions.
        OptionError: E205 when it is Parquet, and pyarrow is not installed.
    """
    try:
        return _read_arrays(path) if is_arrays(path) else _read_parquet(path)
    except FileNotFoundError as err:
        hint = "run the command that wrote it again, which computes what is missing, or copy the whole folder"
        raise PredictionError("E514", f"{path} is missing", hint=hint, path=path) from err
    except (OSError, KeyError, ValueError, TypeError, ModelError) as err:
        raise PredictionError("E514", f"{path.name} cannot be read as predictions: {err}", path=path) from err


def _read_arrays(path: Path) -> Part:
    views, about = read_arrays(path)
    card, ids = ModelCard.from_json(about[METADATA_KEY]), tuple(map(str, about["ids"]))
    shapes = {(values.shape, values.dtype.name) for values in views.values()}
    if shapes != {((len(ids), len(card.labels)), "float32")}:
        raise ValueError(f"its views are not float32 of {len(ids):,} rows and {len(card.labels)} columns")
    return Part(ids, views, str(about[ORIGIN_KEY]), card, tuple(map(str, about["filled"])))


def _read_parquet(path: Path) -> Part:
    require_pyarrow(path.name)
    import pyarrow as pa

    try:
        table = read_parquet(path)
        metadata = table.schema.metadata or {}
        if METADATA_KEY.encode() not in metadata or ORIGIN_KEY.encode() not in metadata:
            raise ValueError(f"it has no {METADATA_KEY} and origin in its metadata: it was written by another program")
        card = ModelCard.from_json(metadata[METADATA_KEY.encode()].decode())
        origin = metadata[ORIGIN_KEY.encode()].decode()
        ids = _ids(table.column(_ID))
        views = [name for name in table.column_names if name not in {_ID, _FILLED}]
        logits = {view: _matrix(table.column(view), len(card.labels)) for view in views}
        flags = table.column(_FILLED).to_pylist() if _FILLED in table.column_names else [False] * len(ids)
    except pa.ArrowException as err:
        raise ValueError(str(err)) from err
    if not views or len(views) < len(set(table.column_names) - {_ID, _FILLED}):
        raise ValueError("it has no view, or two of one name")
    filled = tuple(name for name, flag in zip(ids, flags, strict=True) if flag)
    return Part(ids, logits, origin, card, filled)


def write_complete(
    folder: Path, parts: Sequence[Path], rows: int, *, missing: Sequence[str] = (), optimistic: bool = False
) -> Path:
    """Mark the predictions complete; ``parts`` are in row order, ``missing`` are the images without a row.

    ``optimistic`` ones are out of fold, but of a student of models that were trained on these images.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    listed = [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in parts]
    value = {"schema": 1, "rows": rows, "parts": listed} | ({"missing": list(missing)} if missing else {})
    value |= {"optimistic": True} if optimistic else {}
    text = json.dumps(value, indent=1)
    return write_atomic(folder / COMPLETE, text.encode() + b"\n")


def read_predictions(folder: Path) -> Predictions:
    """Read a member's complete predictions.

    Raises:
        PredictionError: E513 when they are incomplete, E514 when the folder does not contain predictions, a part is
            missing or damaged, or the parts differ in card or views.
    """
    complete = _read_complete(folder)
    parts: list[Part] = []
    for listed in complete.parts:
        path = folder / listed.name
        part = read_part(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != listed.sha256:
            raise PredictionError("E514", f"{path} changed after it was completed", path=path, hint=_REPAIR)
        parts.append(part)
    if len({(part.card.to_json(), tuple(part.logits)) for part in parts}) != 1:
        raise PredictionError("E514", f"the parts in {folder} are of different runs", path=folder, hint=_REPAIR)
    card = parts[0].card
    ids = tuple(i for part in parts for i in part.ids)
    if len(ids) != complete.rows or len(set(ids)) != complete.rows:
        raise PredictionError(
            "E514", f"{folder} must contain {complete.rows} images, got {len(set(ids))}", path=folder, hint=_REPAIR
        )
    logits = {view: _read_only(np.concatenate([part.logits[view] for part in parts])) for view in parts[0].logits}
    return Predictions(
        member=card.member,
        group=card.group or card.member,
        fold=card.fold,
        labels=card.labels,
        ids=ids,
        logits=logits,
        sha256=_hash(ids, logits),
        holdout_sha256=card.holdout_sha256,
        filled=tuple(name for part in parts for name in part.filled),
        missing=complete.missing,
        activation=card.activation,
        repeat=card.repeat,
        optimistic=complete.optimistic,
    )


def hash_ids(ids: Iterable[str]) -> str:
    """Return the SHA-256 of a set of image ids, independent of their order; a card stores that of its holdout."""
    return hashlib.sha256("\0".join(sorted(ids)).encode()).hexdigest()


_REPAIR = "run the command that wrote it again: damaged parts are recomputed"


def find_predictions(path: Path) -> tuple[Path, ...]:
    """Return ``path`` if it is a member's folder, else the members' folders directly below it, sorted by name.

    Raises:
        PredictionError: E514 when there are none.
    """
    if _is_member(path):
        return (path,)
    if not path.is_dir():
        raise PredictionError("E514", f"{path} is not a folder of predictions", path=path)
    members = sorted(child for child in path.iterdir() if _is_member(child))
    if not members:
        raise PredictionError("E514", f"{path} contains no predictions", path=path)
    return tuple(members)


def has_members(path: Path) -> bool:
    """Return True for a member's folder, and for a folder of them."""
    return _is_member(path) or (path.is_dir() and any(map(_is_member, path.iterdir())))


def _is_member(path: Path) -> bool:
    return os.path.lexists(path / COMPLETE) or part_path(path, 0).exists()


def require_none_missing(members: Sequence[Predictions], ids: Iterable[str]) -> None:
    """Check that no member lacks one of these images because it was unreadable.

    Raises:
        PredictionError: E534 when a member does.
    """
    wanted = set(ids)
    for member in members:
        missing = sorted(wanted.intersection(member.missing))
        if missing:
            raise PredictionError(
                "E534",
                f"{member.member} lacks {len(missing):,} images of the ground truth: {enumerate_some(missing)}",
                hint="fix the images and predict again, predict with --on-bad-image fill, or remove them from the "
                "ground truth",
            )


def notice_filled(members: Sequence[Predictions], listener: Listener) -> tuple[str, ...]:
    """Return the images that are filled in at least one member, sorted; W535 names them."""
    filled = tuple(sorted({name for member in members for name in member.filled}))
    if filled:
        names = enumerate_some(sorted(member.member for member in members if member.filled))
        some = enumerate_some(list(filled))
        listener.notice(Notice("W535", f"{len(filled):,} images are filled with the class prior in {names}: {some}"))
    return filled


OPTIMISTIC = (
    "the labels are those of models that did not see the image, but were trained on the images that the "
    "student is scored on: its out-of-fold score is optimistic, and so is a blend that learns from it"
)
"""What W391 says of a student that learned from out-of-fold predictions."""


def notice_optimistic(members: Sequence[Predictions], listener: Listener) -> None:
    """Say which members are students whose out-of-fold predictions are optimistic (W391)."""
    groups = sorted({member.group for member in members if member.optimistic})
    if groups:
        listener.notice(Notice("W391", f"{enumerate_some(groups)}, of ens distil without --predictions: {OPTIMISTIC}"))


@dataclass(frozen=True, slots=True)
class _CompletePart:
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Complete:
    """The content of ``_complete.json``: parts in row order, the count of rows, the images without one."""

    parts: tuple[_CompletePart, ...]
    rows: int
    missing: tuple[str, ...]
    optimistic: bool


def _read_complete(folder: Path) -> _Complete:
    try:
        value = parse_json(read_utf8(folder / COMPLETE))
        require_type(value, Mapping[str, Any], "it")
        require_field_types(
            value, {"parts": tuple[_CompletePart, ...], "rows": int, "missing": tuple[str, ...], "optimistic": bool}
        )
        parts = tuple(_CompletePart(part["name"], part["sha256"]) for part in value["parts"])
        if not parts or any(Path(part.name).name != part.name or "\0" in part.name for part in parts):
            raise ValueError("it lists no parts, or some in another folder")
        return _Complete(parts, value["rows"], tuple(value.get("missing", [])), value.get("optimistic", False))
    except (FileNotFoundError, NotADirectoryError) as err:
        if (folder / COMPLETE).is_symlink():
            message = f"{folder / COMPLETE} is a link that leads nowhere"
            raise PredictionError("E514", message, path=folder, hint=_REPAIR) from err
        if part_path(folder, 0).exists():
            raise PredictionError("E513", f"the predictions in {folder} are incomplete", path=folder) from err
        raise PredictionError("E514", f"{folder} contains no predictions", path=folder) from err
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as err:
        raise PredictionError("E514", f"{folder / COMPLETE} cannot be read: {err}", path=folder, hint=_REPAIR) from err


def _ids(column: Any) -> tuple[str, ...]:
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
        raise ValueError(f"the ids are {column.type} with {column.null_count:,} empty, expected text for each row")
    return tuple(column.to_pylist())


def _matrix(column: Any, classes: int) -> Logits:
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type) or column.type.value_type != pa.float32():
        raise ValueError(
            f"a column has the type {column.type}, expected {classes} float32 values in each row: "
            "it was written by another program"
        )
    if column.null_count or column.combine_chunks().flatten().null_count:
        raise ValueError("a view has empty values")
    if column.type.list_size != classes:
        raise ValueError(f"a view has {column.type.list_size} columns, the card has {classes} classes")
    flat = column.combine_chunks().flatten() if len(column) else pa.array([], pa.float32())
    return np.asarray(flat.to_numpy(), dtype=np.float32).reshape(-1, classes)


def _read_only(array: Logits) -> Logits:
    array.flags.writeable = False
    return array


def _hash(ids: Sequence[str], logits: Mapping[str, Logits]) -> str:
    digest = hashlib.sha256("\0".join(ids).encode())
    for view, values in logits.items():
        digest.update(view.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def require_finite(member: Predictions, view: str) -> None:
    """Check that all logits of a view are finite.

    Raises:
        PredictionError: E505 when one is NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(member.logits[view]).all(axis=1))
    if len(bad):
        some = enumerate_some([member.ids[row] for row in bad])
        raise PredictionError(
            "E505",
            f"{member.member}, view {view}: {len(bad):,} of {len(member):,} rows are NaN or infinite: {some}",
        )
