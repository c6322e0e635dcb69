"""Read the elements of a checkpoint's tensors from its storages."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

import torch

from checkpoints.loading.pickle_objects import InertObject, Storage, StoredTensor

# the elements of one storage as a flat tensor
ReadStorage = Callable[[Storage], torch.Tensor]


class StorageError(ValueError):
    """A storage is missing or shorter than its tensors."""


def archive_storages(archive: ZipFile, folder: str, *, is_little: bool) -> ReadStorage:
    """Return a function that reads the storages of an archive of torch.save, each once."""
    entries: dict[str, ZipInfo] = {part.filename: part for part in archive.infolist()}
    known: dict[str, torch.Tensor] = {}

    def read(storage: Storage) -> torch.Tensor:
        name = f"{folder}data/{storage.key}"
        if name not in entries:
            raise StorageError(f"{name} is missing in the archive")
        if name not in known:
            data = bytearray(entries[name].file_size)
            with archive.open(entries[name]) as part:
                _fill(part, data)
            known[name] = _bytes_tensor(data, storage.dtype, is_little=is_little)
        return known[name]

    return read


def legacy_storages(file: BinaryIO, keys: object, storages: Mapping[str, Storage], *, is_little: bool) -> ReadStorage:
    """Read the storages that follow the pickles of torch.save before 1.6: their number of elements, and these."""
    known: dict[str, torch.Tensor] = {}
    for key in keys if isinstance(keys, list) else []:
        count = int.from_bytes(file.read(8), "little" if is_little else "big")
        storage = storages.get(str(key))
        if storage is None or count > storage.count:
            raise StorageError(f"storage {key} has {count} elements, which no tensor needs")
        size = count * _dtype(storage.dtype).itemsize
        if size > os.fstat(file.fileno()).st_size - file.tell():
            raise EOFError(f"the file ends in storage {key}, of {size:,} bytes")
        data = bytearray(size)
        _fill(file, data)
        known[str(key)] = _bytes_tensor(data, storage.dtype, is_little=is_little)

    def read(storage: Storage) -> torch.Tensor:
        if storage.key not in known:
            raise StorageError(f"storage {storage.key} is missing")
        return known[storage.key]

    return read


def inline_storages(storage: Storage) -> torch.Tensor:
    """Return the storage whose elements are in the pickle itself."""
    if storage.data is None:
        raise StorageError(f"storage {storage.key} is missing")
    itemsize = _dtype(storage.dtype).itemsize
    return _bytes_tensor(bytearray(storage.data[: storage.count * itemsize]), storage.dtype, is_little=True)


def read_tensors(value: object, read: ReadStorage) -> object:
    """Return the content of a file with every `StoredTensor` replaced by its tensor, without copying containers."""
    done: dict[int, object] = {}
    tensors: dict[StoredTensor, torch.Tensor] = {}

    def convert(value: object) -> object:
        if isinstance(value, StoredTensor):
            if value not in tensors:
                tensors[value] = _tensor(value, read)
            return tensors[value]
        if not isinstance(value, dict | list | tuple) or id(value) in done:
            return done.get(id(value), value)
        done[id(value)] = value
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = convert(item)
            if isinstance(value, InertObject):
                vars(value).update({name: convert(item) for name, item in vars(value).items()})
        elif isinstance(value, list):
            value[:] = [convert(item) for item in value]
        else:
            done[id(value)] = tuple(convert(item) for item in value)
        return done[id(value)]

    return convert(value)


def _tensor(stored: StoredTensor, read: ReadStorage) -> torch.Tensor:
    if stored.storage is None:
        return torch.empty(stored.shape, dtype=_dtype(stored.dtype), device="meta")
    elements = read(stored.storage)
    if (dtype := _dtype(stored.dtype)) != elements.dtype:
        if len(elements) % dtype.itemsize:
            raise StorageError(f"storage {stored.storage.key} is no whole number of elements")
        elements = elements.view(dtype)
    last = stored.offset + sum((side - 1) * step for side, step in zip(stored.shape, stored.strides, strict=True))
    if math.prod(stored.shape) and last >= len(elements):
        raise StorageError(f"storage {stored.storage.key} has {len(elements)} elements, and a tensor needs {last + 1}")
    offset = stored.offset if math.prod(stored.shape) else 0
    return elements.as_strided(stored.shape, stored.strides, offset)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise StorageError(f"elements of type {name} are not known")
    return found


def _bytes_tensor(data: bytearray, dtype: str, *, is_little: bool) -> torch.Tensor:
    kind = _dtype(dtype)
    if len(data) % kind.itemsize:
        raise StorageError(f"{len(data)} bytes are no whole number of {dtype} elements")
    if not data:
        return torch.empty(0, dtype=kind)
    if is_little != (sys.byteorder == "little"):
        size = kind.itemsize // (2 if kind.is_complex else 1)
        for place in range(0, len(data), size):
            data[place : place + size] = data[place : place + size][::-1]
    return torch.frombuffer(data, dtype=kind)


def _fill(file: object, data: bytearray) -> None:
    view, done = memoryview(data), 0
    while done < len(data):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("a storage ends early")
        done += count
