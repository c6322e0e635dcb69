"""One image read through fsspec: a file in any storage, a range of a tar shard, or a row of a Parquet file."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from typing import Any

from ensemble.errors import DataError


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """One image behind a URL: a whole file, ``size`` bytes of a tar from ``start``, or a ``row`` of a row ``group``."""

    url: str
    name: str
    size: int
    start: int | None = None
    group: int | None = None
    row: int = 0

    @property
    def suffix(self) -> str:
        """The name's extension, with its dot."""
        return os.path.splitext(self.name)[1]

    def read_bytes(self) -> bytes:
        """Read the encoded image.

        Raises:
            DataError: E314 when the file is gone, E319 when it cannot be read.
        """
        try:
            if self.group is not None:
                return _row_group(self.url, self.group)[self.row]
            fs, path = open_storage(self.url)
            end = None if self.start is None else self.start + self.size
            return bytes(fs.cat_file(path, start=self.start, end=end))
        except FileNotFoundError as err:
            raise DataError("E314", f"{self.name}: {self.url} is missing") from err
        except Exception as err:  # every storage has errors of its own
            raise DataError("E319", f"{self.name}: {self.url} cannot be read: {err}") from err

    def exists(self) -> bool:
        """Return whether this machine can see the file."""
        fs, path = open_storage(self.url)
        return bool(fs.exists(path))

    def __str__(self) -> str:
        return self.url


_reading = threading.Lock()


def _row_group(url: str, group: int) -> list[bytes]:
    with _reading:  # threads that work on one row group read it once
        return read_row_group(url, group)


@functools.lru_cache(maxsize=2)
def read_row_group(url: str, group: int) -> list[bytes]:
    """Read the encoded images of one row group; the last two groups are cached."""
    import pyarrow.parquet as pq

    fs, path = open_storage(url)
    with fs.open(path, "rb") as file:
        values = pq.ParquetFile(file).read_row_group(group, columns=["image"]).column(0).to_pylist()
    # a null counts as an empty file
    return [(value["bytes"] if isinstance(value, dict) else value) or b"" for value in values]


def open_storage(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it; without a scheme, the local file system."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path)
