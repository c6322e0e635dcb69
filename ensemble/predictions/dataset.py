"""The Parquet dataset of ids and logits: one folder a member, one file a part, ``_complete.json`` last.

part-00000.parquet    id: string, and one fixed_size_list<float32>[C] a view; card and origin in the schema's metadata
filled.parquet        only where images could not be read and were filled: those rows, and filled: bool, which is true
_complete.json        the files with their hashes; without it the predictions are not finished

pandas, polars and DuckDB open the folder as it is; for the last two, with filled rows, say union_by_name=true or
missing_columns="insert".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble.arrays import Logits
from ensemble.card import METADATA_KEY, ModelCard
from ensemble.errors import ModelError, PredictionError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.files import write_atomic
from ensemble.labels import LabelSpace

COMPLETE = "_complete.json"
FILLED = "filled.parquet"
ORIGIN_KEY = "ens.origin"
_ID = "id"
_FILLED = "filled"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What one member says about every image.

    ``logits[view]`` is ``(N, C)`` float32, row i belongs to ``ids[i]``, column j to ``labels.names[j]``; arrays are
    read-only. ``group`` is the name under which folds of one member are averaged (the member's own name for a member
    without folds). ``sha256`` is the hash of ids and logits, ``holdout_sha256`` that of the sorted ids that the model
    was not trained on, where its training said so (see `hash_ids`). ``filled`` are the ids whose rows are the class
    prior, as the images could not be read; ``missing`` are those that have no row for the same reason.
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

    def __len__(self) -> int:
        return len(self.ids)


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
    """Where part ``index`` of a member stands."""
    return folder / f"part-{index:05d}.parquet"


def write_part(path: Path, part: Part) -> None:
    """Write one part; the same rows always give the same bytes.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
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
        columns.append(pa.array([name in part.filled for name in part.ids], pa.bool_()))
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    write_atomic(path, memoryview(sink.getvalue()))


def read_part(path: Path) -> Part:
    """Read one part and check its checksums.

    Raises:
        PredictionError: E514 when it cannot be read or is not such a part.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        metadata = table.schema.metadata or {}
        card = ModelCard.from_json(metadata[METADATA_KEY.encode()].decode())
        origin = metadata[ORIGIN_KEY.encode()].decode()
        ids = tuple(table.column(_ID).to_pylist())
        views = [name for name in table.column_names if name not in {_ID, _FILLED}]
        logits = {view: _matrix(table.column(view), len(card.labels)) for view in views}
        flags = table.column(_FILLED).to_pylist() if _FILLED in table.column_names else [False] * len(ids)
    except (OSError, pa.ArrowException, KeyError, ValueError, ModelError) as err:
        raise PredictionError("E514", f"{path.name} cannot be read as predictions: {err}", path=path) from err
    filled = tuple(name for name, flag in zip(ids, flags, strict=True) if flag)
    return Part(ids, logits, origin, card, filled)


def write_complete(folder: Path, parts: Sequence[Path], rows: int, *, missing: Sequence[str] = ()) -> Path:
    """Declare the predictions finished; ``parts`` in order, ``missing`` the images that have no row in them.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    listed = [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in parts]
    value = {"schema": 1, "rows": rows, "parts": listed} | ({"missing": list(missing)} if missing else {})
    text = json.dumps(value, indent=1)
    return write_atomic(folder / COMPLETE, text.encode() + b"\n")


def read_predictions(folder: Path) -> Predictions:
    """Read a member's finished predictions.

    Raises:
        PredictionError: E513 when they are not finished, E514 when the folder does not hold predictions, a part is
            missing or damaged, or parts do not belong together.
    """
    listed, rows, missing = _read_complete(folder)
    parts: list[Part] = []
    for name, sha256 in listed:
        path = folder / name
        part = read_part(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise PredictionError("E514", f"{path} changed after it was finished", path=path, hint=_REDO)
        parts.append(part)
    if len({(part.card.to_json(), tuple(part.logits)) for part in parts}) != 1:
        raise PredictionError("E514", f"the parts in {folder} do not belong together", path=folder, hint=_REDO)
    card = parts[0].card
    ids = tuple(i for part in parts for i in part.ids)
    if len(ids) != rows or len(set(ids)) != rows:
        raise PredictionError(
            "E514", f"{folder} should hold {rows} images, got {len(set(ids))}", path=folder, hint=_REDO
        )
    logits = {view: _frozen(np.concatenate([part.logits[view] for part in parts])) for view in parts[0].logits}
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
        missing=missing,
    )


def hash_ids(ids: Iterable[str]) -> str:
    """The hash of a set of images, whatever their order: by it a model knows those that it was not trained on."""
    return hashlib.sha256("\0".join(sorted(ids)).encode()).hexdigest()


_REDO = "run the ens predict command again: damaged parts are done again"


def find_predictions(path: Path) -> tuple[Path, ...]:
    """The member folders that ``path`` stands for: itself, or those directly below it, sorted by name.

    Raises:
        PredictionError: E514 when there are none, E513 when one of them is not finished.
    """
    if (path / COMPLETE).is_file() or part_path(path, 0).exists():
        return (path,)
    if not path.is_dir():
        raise PredictionError("E514", f"{path} is not a folder of predictions", path=path)
    members = sorted(child for child in path.iterdir() if part_path(child, 0).exists() or (child / COMPLETE).is_file())
    if not members:
        raise PredictionError("E514", f"{path} holds no predictions", path=path)
    return tuple(members)


def require_read(members: Sequence[Predictions], ids: Iterable[str]) -> None:
    """Check that no member lacks one of the images because it could not be read.

    Raises:
        PredictionError: E534 when one does.
    """
    wanted = set(ids)
    for member in members:
        missing = sorted(wanted.intersection(member.missing))
        if missing:
            raise PredictionError(
                "E534",
                f"{len(missing):,} images of the truth are missing in {member.member}: {enumerate_some(missing)}",
                hint="mend the images and predict again, or with --on-bad-image fill, or take them off the truth",
            )


def tell_filled(members: Sequence[Predictions], listener: Listener) -> tuple[str, ...]:
    """The images that are filled in some member, sorted; W535 names them."""
    filled = tuple(sorted({name for member in members for name in member.filled}))
    if filled:
        who = enumerate_some(sorted(member.member for member in members if member.filled))
        some = enumerate_some(list(filled))
        listener.notice(Notice("W535", f"{len(filled):,} images are filled with the class prior in {who}: {some}"))
    return filled


def _read_complete(folder: Path) -> tuple[list[tuple[str, str]], int, tuple[str, ...]]:
    try:
        value = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        listed = [(str(part["name"]), str(part["sha256"])) for part in value["parts"]]
        return listed, int(value["rows"]), tuple(map(str, value.get("missing", ())))
    except FileNotFoundError as err:
        if part_path(folder, 0).exists():
            raise PredictionError("E513", f"the predictions in {folder} are not finished", path=folder) from err
        raise PredictionError("E514", f"{folder} holds no predictions", path=folder) from err
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise PredictionError("E514", f"{folder / COMPLETE} cannot be read: {err}", path=folder, hint=_REDO) from err


def _matrix(column: Any, classes: int) -> Logits:
    if column.type.list_size != classes:
        raise ValueError(f"a view has {column.type.list_size} columns, the card {classes} classes")
    flat = column.combine_chunks().flatten() if len(column) else pa.array([], pa.float32())
    return np.asarray(flat.to_numpy(), dtype=np.float32).reshape(-1, classes)


def _frozen(array: Logits) -> Logits:
    array.flags.writeable = False
    return array


def _hash(ids: Sequence[str], logits: Mapping[str, Logits]) -> str:
    digest = hashlib.sha256("\0".join(ids).encode())
    for view, values in logits.items():
        digest.update(view.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def require_finite(member: Predictions, view: str) -> None:
    """Check that a view's logits are numbers.

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
