"""Arrays that a long run has computed, kept in files until it ends: a run that is killed resumes with them.

    with KeptArrays(folder, "probe", key) as kept:
        for step in steps:
            found = kept.get(step)
            if found is None:
                kept.add(step, found := compute(step))

What is added is written every ten seconds, to ``.<name>-<number>.state`` in the folder, and when the block is left by
an exception. When it ends the files are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import FileError
from ensemble.files import remove, write_atomic
from ensemble.install import version_of

_SECONDS = 10.0  # between two files
_MOST_HEADER = 1 << 24  # bytes
_MOST_FILE = 1 << 32  # bytes
_PACKAGES = ("ens-onnx", "numpy", "scipy", "scikit-learn", "onnxruntime", "Pillow")


class KeptArrays:
    """Arrays by the name of their step; ``key`` tells all that they depend on, beside the versions of the packages.

    Files of other keys, and damaged ones, are removed and not used; with ``fresh`` all are. The folder has one writer:
    see `files.locked`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        key: str,
        *,
        fresh: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        versions = [(package, version_of(package)) for package in _PACKAGES]
        self._key = hashlib.sha256(json.dumps([key, versions]).encode("utf-8", "surrogateescape")).hexdigest()
        self._folder, self._name, self._clock = folder, name, clock
        self._found: dict[str, NDArray[Any]] = {}
        self._new: dict[str, NDArray[Any]] = {}
        self._files: list[Path] = []
        self._number = 0
        for number, path in _files(folder, name):
            self._number = max(self._number, number + 1)
            arrays = None if fresh else read_state(path, self._key)
            if arrays is None:
                _try_remove(path)
            else:
                self._files.append(path)
                self._found |= arrays
        self.resumed = len(self._found)
        self._written = clock()

    def __enter__(self) -> KeptArrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _err: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            for path in self._files:
                _try_remove(path)
        else:
            with contextlib.suppress(FileError):  # the exception says more
                self._write()

    def get(self, step: str) -> NDArray[Any] | None:
        """Return the array of a step, which must not be changed; None if it is not there."""
        return self._found.get(step)

    def add(self, step: str, values: NDArray[Any]) -> None:
        """Keep the array of a step, and write what is not written if ten seconds have passed.

        Raises:
            FileError: E701 or E702 when it cannot be written.
        """
        self._found[step] = self._new[step] = values
        if self._clock() - self._written >= _SECONDS:
            self._write()

    def _write(self) -> None:
        if not self._new:
            return
        path = self._folder / f".{self._name}-{self._number:05d}.state"
        write_state(path, self._key, self._new)
        self._files.append(path)
        self._number += 1
        self._new = {}
        self._written = self._clock()


def write_state(path: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name to one file, with a checksum; ``key`` tells all that they depend on.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    parts = {step: np.ascontiguousarray(values) for step, values in arrays.items()}
    data = b"".join(values.tobytes() for values in parts.values())
    described = [(step, values.dtype.str, values.shape) for step, values in parts.items()]
    header = {"key": key, "sha256": hashlib.sha256(data).hexdigest(), "steps": described}
    write_atomic(path, json.dumps(header).encode() + b"\n" + data)


def _files(folder: Path, name: str) -> list[tuple[int, Path]]:
    """Return the files of a folder by their numbers, in order."""
    wanted = re.compile(rf"\.{re.escape(name)}-(\d{{5}})\.state")
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    return sorted((int(match[1]), folder / name) for name in names if (match := wanted.fullmatch(name)))


def read_state(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of a file of `write_state`, which are read-only, None if it is of another key or damaged."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_FILE:
            return None
        with path.open("rb") as file:
            header = json.loads(file.readline(_MOST_HEADER))
            data = file.read() if header["key"] == key else b""
        if header["key"] != key or hashlib.sha256(data).hexdigest() != header["sha256"]:
            return None
        found: dict[str, NDArray[Any]] = {}
        start = 0
        for step, kind, shape in header["steps"]:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            found[step] = np.frombuffer(data[start : start + size], kind).reshape(shape)
            start += size
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return None
    return found


def _try_remove(path: Path) -> None:
    with contextlib.suppress(FileError):
        remove(path)
