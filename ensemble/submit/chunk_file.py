"""Chunk: the results of an early exit for some images, in memory and as a file, see `part_file`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble import files
from ensemble.arrays import Classes, Logits
from ensemble.errors import PredictionError
from ensemble.predictions.dataset import ORIGIN_KEY
from ensemble.predictions.part_file import is_arrays, read_arrays, write_arrays
from ensemble.text.bounded_tables import read_parquet, require_pyarrow

OPEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive rows: ``classes`` ``(n,)`` with `OPEN` where all passes were needed, ``passes`` ``(n,)`` counts them.

    ``logits`` ``(open rows, passes, C)`` float32 are those of the open rows, in the models' own order of classes.
    ``origin`` identifies what the rows were computed from, see `ensemble.predict.fingerprint`.
    """

    ids: tuple[str, ...]
    classes: Classes
    passes: NDArray[np.intp]
    logits: Logits
    origin: str = ""


def join_chunks(chunks: Sequence[Chunk], row_of: Mapping[str, int]) -> Chunk:
    """Return one or more chunks as one, without ids that have no row, in the order of the rows."""
    ids = [name for chunk in chunks for name in chunk.ids]
    classes = np.concatenate([chunk.classes for chunk in chunks])
    passes = np.concatenate([chunk.passes for chunk in chunks])
    logits = np.concatenate([chunk.logits for chunk in chunks])
    place = np.cumsum(classes == OPEN) - 1  # in the logits, of the rows that are open
    order = sorted((i for i, name in enumerate(ids) if name in row_of), key=lambda i: row_of[ids[i]])
    chosen = np.array(order, dtype=np.intp)
    kept = logits[place[chosen[classes[chosen] == OPEN]]]
    return Chunk(tuple(ids[i] for i in order), classes[chosen], passes[chosen], kept)


def write_chunk(path: Path, chunk: Chunk, *, sync: bool = True) -> None:
    """Write one chunk; the same rows always give the same bytes. ``sync=False``: it can be computed again.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    if is_arrays(path):
        arrays: dict[str, NDArray[Any]] = {"class": chunk.classes, "passes": chunk.passes, "logits": chunk.logits}
        write_arrays(path, arrays, {"ids": chunk.ids, ORIGIN_KEY: chunk.origin}, sync=sync)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, passes, classes = chunk.logits.shape
    values = iter(chunk.logits.reshape(count, passes * classes).tolist())
    table = pa.table(
        {
            "id": pa.array(chunk.ids, pa.string()),
            "class": pa.array(chunk.classes, pa.int64()),
            "passes": pa.array(chunk.passes, pa.int64()),
            "logits": pa.array([next(values) if k == OPEN else None for k in chunk.classes], pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({ORIGIN_KEY: chunk.origin, "shape": json.dumps(chunk.logits.shape)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    files.write_atomic(path, memoryview(sink.getvalue()), sync=sync)


def read_chunk(path: Path) -> Chunk:
    """Read one chunk and check its checksums.

    Raises:
        PredictionError: E514 when it cannot be read.
        OptionError: E205 when it is Parquet, and pyarrow is not installed.
    """
    try:
        chunk = _read_arrays(path) if is_arrays(path) else _read_parquet(path)
        if len(chunk.logits) != int((chunk.classes == OPEN).sum()):
            raise ValueError("its logits are not those of the open rows")
        return chunk
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as err:
        raise PredictionError("E514", f"{path.name} cannot be read as a chunk: {err}", path=path) from err


def _read_arrays(path: Path) -> Chunk:
    arrays, about = read_arrays(path)
    ids, logits = tuple(map(str, about["ids"])), np.asarray(arrays["logits"], dtype=np.float32)
    if not len(ids) == len(arrays["class"]) == len(arrays["passes"]) or logits.ndim != 3:
        raise ValueError("its columns have other lengths")
    classes, passes = (arrays[name].astype(np.intp) for name in ("class", "passes"))
    return Chunk(ids, classes, passes, logits, str(about[ORIGIN_KEY]))


def _read_parquet(path: Path) -> Chunk:
    require_pyarrow(path.name)
    import pyarrow as pa

    try:
        table = read_parquet(path)
        metadata = table.schema.metadata
        flat = table.column("logits").combine_chunks().flatten().to_numpy()
        return Chunk(
            tuple(table.column("id").to_pylist()),
            table.column("class").to_numpy().astype(np.intp),
            table.column("passes").to_numpy().astype(np.intp),
            np.asarray(flat, dtype=np.float32).reshape(json.loads(metadata[b"shape"])),
            metadata[ORIGIN_KEY.encode()].decode(),
        )
    except pa.ArrowException as err:
        raise ValueError(str(err)) from err
