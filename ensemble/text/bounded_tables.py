"""Read Parquet and numpy files whose size in memory is checked before they are unpacked.

Both can unpack to a thousand times their size and more: a column of one value repeated takes a few bytes, whatever its
length. A file may take 20 times its own size in memory, and half a gigabyte in any case.
"""

from __future__ import annotations

import stat
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import cut_text
from ensemble.install import require_module

_FREE_BYTES, _TIMES = 512 * 2**20, 20
_FREE_ROWS = 2_000_000
_MAX_COLUMNS = 200_000
_MAX_TEXT = 1_000_000  # bytes of one cell; a list of labels in a cell has a few thousand
_MAX_BINARY = 64_000_000  # an image in a cell


def has_pyarrow() -> bool:
    """Return True if Parquet can be read and written here."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def require_pyarrow(what: str) -> None:
    """Check that a Parquet file can be read or written; ``what`` begins the message.

    Raises:
        OptionError: E205 when pyarrow is not installed.
    """
    require_module("pyarrow", what)


def read_parquet(path: Path, *, checksums: bool = True) -> Any:
    """Return the table of a Parquet file; ``checksums`` verifies those of its pages.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read, is not Parquet, or has text that is not UTF-8.
        ValueError: it is not a regular file, or takes too much memory.
        OptionError: E205 when pyarrow is not installed.
    """
    require_pyarrow(path.name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = _size(path)
    with pq.ParquetFile(path, page_checksum_verification=checksums) as file:
        schema, about = file.schema_arrow, file.metadata
        _require_rows(path, about.num_rows, size)
        if about.num_columns > _MAX_COLUMNS:
            raise ValueError(f"{path.name} has {about.num_columns:,} columns; {_MAX_COLUMNS:,} are allowed")
        _require_bytes(path, about.num_rows * sum(_width(field.type) for field in schema), size)
        stored = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        _require_bytes(path, stored, size)
        texts = [field.name for field in schema if _is_text(field.type)]
        nested = any(_is_list(field.type) for field in schema)
    with pq.ParquetFile(path, page_checksum_verification=checksums, read_dictionary=texts) as file:
        # lists of any length say nothing about their size beforehand
        batches = file.iter_batches(batch_size=1024) if nested else file.iter_batches(batch_size=65536)
        kept, total = [], 0
        for batch in batches:
            _require_short(path, batch)
            total += sum(map(_unpacked, batch.columns))
            _require_bytes(path, total, size)
            kept.append(pa.RecordBatch.from_arrays([_plain(one) for one in batch.columns], names=batch.schema.names))
    flat = pa.schema(
        [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema],
        metadata=schema.metadata,
    )
    table = pa.Table.from_batches([batch.cast(flat) for batch in kept], schema=flat)
    table.validate(full=True)  # pyarrow reads text without looking at its bytes
    return table


def list_values(column: Any) -> list[Any]:
    """Return the values of a pyarrow column as Python has them.

    Raises:
        ValueError: a value is beyond those of Python, such as a date after the year 9999.
    """
    try:
        found: list[Any] = column.to_pylist()
    except OverflowError as err:
        raise ValueError(f"a value of {column.type} is out of Python's range: {err}") from err
    return found


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | NDArray[Any]:
    """Return the array of a ``.npy`` file, or those of a ``.npz`` file by name, whatever it is called.

    Raises:
        OSError: it cannot be read.
        ValueError, EOFError, KeyError, zipfile.BadZipFile: it is neither, holds objects, or takes too much memory.
    """
    size = _size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that reading a header of Python 2 takes longer
            return _load_arrays(path, size)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        raise
    except Exception as err:  # numpy's reader of headers raises what Python's tokenizer and parser raise
        raise ValueError(f"damaged: {err or type(err).__name__}") from err


def _load_arrays(path: Path, size: int) -> dict[str, NDArray[Any]] | NDArray[Any]:
    if not zipfile.is_zipfile(path):
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a header that the file is too short for
        if not isinstance(found, np.ndarray):
            raise ValueError("neither .npy nor .npz")
        return np.array(found)
    with zipfile.ZipFile(path) as archive:
        _require_bytes(path, sum(part.file_size for part in archive.infolist()), size)
        (name, times), *_ = Counter(part.filename for part in archive.infolist()).most_common(1) or [("", 0)]
        if times > 1:
            raise ValueError(f"{cut_text(name, 60)} is in it {times} times")
        for part in archive.infolist():
            with archive.open(part) as stream:
                _require_declared(part, stream)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _require_declared(part: zipfile.ZipInfo, stream: Any) -> None:
    """Compare the shape in an array's header with the bytes behind it: numpy would make room for the shape."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
    except ValueError as err:
        raise ValueError(f"{part.filename} in it is not an array: {err}") from err
    count = 1
    for side in shape:
        count *= side
    if count * kind.itemsize > part.file_size:
        raise ValueError(f"{part.filename} in it has {part.file_size:,} bytes for an array of {shape}")


def _size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # before opening it: a FIFO would block forever
        raise ValueError(f"{path.name} is not a regular file")
    return status.st_size


def _require_rows(path: Path, rows: int, size: int) -> None:
    if rows > max(_FREE_ROWS, size):
        raise ValueError(f"{path.name} has {size:,} bytes for {rows:,} rows")


def _require_bytes(path: Path, wanted: int, size: int) -> None:
    if wanted > max(_FREE_BYTES, _TIMES * size):
        raise ValueError(f"{path.name} has {size:,} bytes, and would take {wanted / 2**20:,.0f} MB in memory")


def _require_short(path: Path, batch: Any) -> None:
    """Refuse a text that is longer than any name or list of names: each comparison of it would take seconds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        texts = column.dictionary if pa.types.is_dictionary(column.type) else column
        if len(texts) and _is_text(texts.type):
            longest = pc.max(pc.binary_length(texts)).as_py() or 0
            if longest > (_MAX_BINARY if pa.types.is_binary(texts.type) else _MAX_TEXT):
                raise ValueError(f"{path.name}: a text of column {cut_text(name, 60)} has {longest:,} bytes")


def _width(kind: Any) -> int:
    """Return the bytes that a value takes at least."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 1


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind))


def _unpacked(column: Any) -> int:
    """Return the bytes of a column once equal texts are no longer stored once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return int(pc.sum(lengths).as_py() or 0) + 4 * len(column)


def _plain(column: Any) -> Any:
    import pyarrow as pa

    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
