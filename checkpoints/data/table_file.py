"""Read a table of training labels: CSV in any common dialect, or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ensemble.errors import DataError, FileError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.text.bounded_tables import list_values, read_parquet
from ensemble.text.csv_table import Table, read_table

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_SPREADSHEETS = {".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"}
_OTHERS = {".json", ".jsonl", ".ndjson", ".feather", ".arrow", ".pkl", ".pickle", ".db", ".sqlite", ".xml", ".npz"}
_PACKED = {".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar"}
_INDEX = "__index_level_"  # how pandas calls an index without a name


def read_training_table(path: Path, *, listener: Listener = SILENT) -> Table:
    """Read a table as text cells; a list in a Parquet cell becomes its values with ``|`` between them.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E322 when it is a spreadsheet, packed or of another kind, or as `read_table`.
    """
    suffix = path.suffix.lower()
    if suffix in _SPREADSHEETS:
        raise DataError("E322", f"{path.name} is a spreadsheet", path=path, hint="save it as CSV, in UTF-8")
    if suffix in _PACKED:
        raise DataError("E322", f"{path.name} is packed", path=path, hint="unpack it")
    if suffix in _OTHERS:
        raise DataError(
            "E322", f"{path.name}: {suffix} is not read", path=path, hint="save the table as CSV or Parquet"
        )
    if suffix != ".parquet":
        return read_table(path, listener=listener)
    try:
        return _as_text(path, read_parquet(path, checksums=False), listener)
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err}", path=path) from err
    except (ValueError, pa.ArrowException) as err:
        raise DataError("E322", f"{path.name} is not a Parquet table: {err}", path=path) from err


def _as_text(path: Path, table: pa.Table, listener: Listener) -> Table:
    kept, left_out = [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if str(name).startswith(_INDEX):
            continue
        if pa.types.is_struct(column.type) or pa.types.is_binary(column.type) or pa.types.is_map(column.type):
            left_out.append(str(name))
            continue
        kept.append((str(name), [_cell(value) for value in list_values(column)]))
    if left_out:
        some = enumerate_some(left_out)
        listener.notice(Notice("W338", f"{path.name}: columns of bytes or records are not read: {some}", path))
    if not kept or not table.num_rows:
        raise DataError("E322", f"{path.name}: the table has no rows", path=path)
    rows = tuple(zip(*(cells for _, cells in kept), strict=True))
    return Table(path, tuple(name for name, _ in kept), rows, tuple(range(1, len(rows) + 1)))


def _cell(value: Any) -> str:
    if value is None or value != value:  # None and NaN
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "|".join(_cell(item) for item in value)
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
