"""Read a checkpoint that is a pickle, in torch.save's formats and plain, without calling anything that it names."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from checkpoints.loading.container import Container, format_size, list_checkpoint_globals
from checkpoints.loading.pickle_allowlist import refusal, uncommon_names
from checkpoints.loading.pickle_objects import Name, Record, Storage, StoredTensor
from checkpoints.loading.pickle_reader import LEGACY_PICKLES, PickleReader
from checkpoints.loading.pickle_values import Findings, to_content
from ensemble.errors import ModelError, enumerate_some
from ensemble.events import Listener, Notice


@dataclass(frozen=True, slots=True)
class _Pickled:
    """A pickle's value, and what is needed to read the storages that follow it in the format before torch 1.6."""

    value: object
    keys: object = None
    storages: Mapping[str, Storage] = field(default_factory=dict)
    place: int = 0
    is_little: bool = True


def read_pickle(path: Path, container: Container, *, with_values: bool, listener: Listener) -> object:
    """Interpret the file's pickle, which was read in the sandbox before; nothing in it is called."""
    names = list_checkpoint_globals(path, container)
    try:
        pickled = _interpret(path, container)
        content, found = to_content(pickled.value)
    except (OSError, MemoryError):
        raise
    except Exception as err:  # damage can raise anything
        if any(name.module.startswith("joblib.") for name in names):
            raise _joblib(path) from err
        # an archive has checksums: its bytes are right, and no pickle
        raise _damaged(path, "E417" if container == "zip" else "E403", err) from err
    _require_weights(pickled.value, found, names, path)
    _tell(found, path, listener)
    if not found.tensors and isinstance(content, dict):
        content = _tensors_of_arrays(content, path, listener, with_values=with_values)
    return _with_values(content, pickled, path, container) if with_values else content


def _interpret(path: Path, container: Container) -> _Pickled:
    if container == "zip":
        with zipfile.ZipFile(path) as archive:
            return _Pickled(PickleReader(io.BytesIO(archive.read(_data_entry(archive, path)))).load())
    with open(path, "rb") as f:
        reader = PickleReader(f)
        if container != "legacy":
            return _Pickled(reader.load())
        parts = [reader.load() for _ in range(LEGACY_PICKLES)]
        system = parts[2] if isinstance(parts[2], dict) else {}
        return _Pickled(
            parts[3], parts[4], reader.storages, f.tell(), is_little=bool(system.get("little_endian", True))
        )


def _data_entry(archive: zipfile.ZipFile, path: Path) -> str:
    found = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(found) > 1:
        raise ModelError("E417", f"{path.name} has {len(found)} entries named data.pkl", path=path)
    return found[0]


def _damaged(path: Path, code: str, err: Exception) -> ModelError:
    if isinstance(err, ModelError):
        return err
    size = format_size(path.stat().st_size)
    reason = str(err).partition("\n")[0] or type(err).__name__
    return ModelError(code, f"{path.name} ({size}) cannot be read: {reason}", path=path)


def _joblib(path: Path) -> ModelError:
    """Return the error for a dump of joblib, which writes the bytes of arrays between the pickle's instructions."""
    return ModelError(
        "E404",
        f"{path.name} is not a checkpoint but a joblib dump",
        hint=f"torch.save(joblib.load({path.name!r}), 'weights.pth')",
        path=path,
    )


def _require_weights(value: object, found: Findings, names: list[Name], path: Path) -> None:
    """Refuse a file whose content is made by code of its own, or whose tensors cannot be used.

    Raises:
        ModelError: E401, E404 or E417.
    """
    if found.quantized:
        raise ModelError(
            "E417",
            f"{path.name} holds quantized weights ({enumerate_some(found.quantized)}), which give other answers in "
            "another network",
            hint="export the float weights that were quantized; ens export --precision int8 quantizes them again",
            path=path,
        )
    if found.without_values:
        raise ModelError(
            "E417",
            f"{path.name} was saved from torch's meta device, without values: {enumerate_some(found.without_values)}",
            hint="save the state dict after the weights were loaded",
            path=path,
        )
    if type(value) is Record and not found.tensors and not value.attributes:
        raise refusal([str(name) for name in names], path)


def _tell(found: Findings, path: Path, listener: Listener) -> None:
    if found.modules:
        names = enumerate_some(list(found.modules))
        message = f"a whole pickled module: its weights were read, its code was not ({names})"
        listener.notice(Notice("I480", message, path))
    if objects := uncommon_names(list(found.objects)):
        listener.notice(
            Notice("I480", f"objects were read as data, without their code: {enumerate_some(objects)}", path)
        )
    for place, name in found.opaque.items():
        message = f"{place} was left out: it is made by {name}, which is code that does not run"
        listener.notice(Notice("W481", message, path))
    if found.too_deep:
        listener.notice(Notice("W481", "values that are nested too deeply were left out", path))


def _tensors_of_arrays(
    content: dict[object, object], path: Path, listener: Listener, *, with_values: bool
) -> dict[object, object]:
    """Return numpy arrays as tensors, in a file that has no others."""
    if "StructuredToParameterName@@" in content:
        raise ModelError(
            "E404",
            f"{path.name} is not a checkpoint of PyTorch but PaddlePaddle weights",
            hint="convert the model with paddle2onnx, then: ens adopt model.onnx",
            path=path,
        )
    arrays = 0

    def convert(value: object) -> object:
        nonlocal arrays
        arrays += isinstance(value, np.ndarray)
        if type(value) is dict:
            return {key: convert(item) for key, item in value.items()}
        return array_tensor(value, with_values=with_values)

    converted = convert(content)
    if arrays:
        listener.notice(Notice("I480", f"{arrays} numpy arrays were read as weights", path))
    assert isinstance(converted, dict)
    return converted


def _with_values(content: object, pickled: _Pickled, path: Path, container: Container) -> object:
    """Return the content with its tensors, whose storages are read from the file."""
    from checkpoints.loading import tensors

    try:
        if container == "zip":
            with zipfile.ZipFile(path) as archive:
                folder = _data_entry(archive, path).removesuffix("data.pkl")
                order = f"{folder}byteorder"
                is_little = order not in archive.namelist() or archive.read(order) != b"big"
                return tensors.read_tensors(content, tensors.archive_storages(archive, folder, is_little=is_little))
        if container == "plain":
            return tensors.read_tensors(content, tensors.inline_storages)
        with open(path, "rb") as f:
            f.seek(pickled.place)
            read = tensors.legacy_storages(f, pickled.keys, pickled.storages, is_little=pickled.is_little)
            return tensors.read_tensors(content, read)
    except (ValueError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile) as err:
        raise _damaged(path, "E405" if container == "zip" else "E403", err) from err


def array_tensor(value: object, *, with_values: bool) -> object:
    """Return a tensor for a numpy array of numbers, and any other value as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    if not with_values:
        storage = Storage("", value.dtype.name, value.size)
        return StoredTensor(storage, storage.dtype, 0, value.shape, row_strides(value.shape))
    import torch

    return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True, order="C"))


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    return tuple(int(np.prod(shape[place + 1 :])) for place in range(len(shape)))
