"""Files of the parts of a run: Parquet, or a zip of numpy arrays where pyarrow is not installed.

A program that only runs an ensemble, as in a Kaggle bundle, needs no pyarrow: its parts are ``part-00000.npz``. A
folder holds one kind of files: a run that was begun without pyarrow is resumed and read with or without it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.files import write_atomic
from ensemble.text.bounded_tables import has_pyarrow, load_arrays

PARQUET, ARRAYS = ".parquet", ".npz"
SUFFIXES = (PARQUET, ARRAYS)
_ABOUT = "about"
_DATE = (1980, 1, 1, 0, 0, 0)


def part_suffix(folder: Path, prefix: str) -> str:
    """Return the suffix of the parts in a folder, those that are there or those to be written."""
    return ARRAYS if any(folder.glob(f"*{prefix}-*{ARRAYS}*")) or not has_pyarrow() else PARQUET


def is_arrays(path: Path) -> bool:
    """Return True if the name of a part is that of a zip of arrays."""
    return ARRAYS in path.suffixes


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], *, sync: bool) -> None:
    """Write arrays and JSON-ready values; equal content gives equal bytes.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    text = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), dtype=np.uint8)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, values in ({_ABOUT: text} | {f"array {name}": values for name, values in arrays.items()}).items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), entry.getvalue())
    write_atomic(path, stream.getvalue(), sync=sync)


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the values of a file of `write_arrays`; its checksums are verified.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged or of another program.
    """
    try:
        found = load_arrays(path)
        about = dict(json.loads(found.pop(_ABOUT).tobytes())) if isinstance(found, dict) else None
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError) as err:
        raise ValueError(f"damaged, or written by another program: {err}") from err
    if isinstance(found, np.ndarray) or about is None:
        raise ValueError("it was written by another program")
    return {name.removeprefix("array "): values for name, values in found.items()}, about
