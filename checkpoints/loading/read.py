"""Read the content of a checkpoint, whatever its files, without running code from them."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.loading.container import Container, detect_container, format_size
from checkpoints.loading.pickle_file import array_tensor, read_pickle, row_strides
from checkpoints.loading.pickle_objects import Storage, StoredTensor
from checkpoints.loading.shards import Files, adapter_beside, find_files
from ensemble.card import METADATA_KEY, ModelCard
from ensemble.errors import FileError, ModelError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import sha256_file
from ensemble.text.bounded_tables import load_arrays


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The content of a checkpoint: ``payload`` is what was saved, ``card`` the one that `ens train` wrote.

    The payload consists of tensors, plain Python values and containers, and `InertObject` for everything else. No
    container is inside itself. ``files`` are those that were read, and ``size`` is their number of bytes, unpacked;
    ``sha256`` is that of the file, or of the hashes of several.
    """

    payload: object
    card: ModelCard | None
    container: Container
    files: tuple[Path, ...]
    size: int
    sha256: str


def read_content(path: Path, *, with_values: bool = True, listener: Listener = SILENT) -> Content:
    """Return the content of a checkpoint: a file of any common format, or the index or folder of a sharded one.

    Without ``with_values`` tensors remain `StoredTensor`, which have a shape and a type; torch is not imported then.

    Raises:
        FileError: E707 when a file cannot be read.
        ModelError: E401 to E405 for a file that is refused, damaged or something else, E417 when it has no weights,
            E427 for a card that cannot be read, E444 for a pickle that takes too much memory or time.
    """
    files = find_files(path, listener)
    contents = [_read_file(part, with_values, listener) for part in files.paths]
    adapter = adapter_beside(path, files.path)
    if adapter is not None:
        listener.notice(Notice("I480", f"{adapter.name} in the folder is read too", path))
        contents.append(_of_base(_read_file(adapter, with_values, listener)))
    if len(contents) == 1:
        return contents[0]
    return Content(
        payload=_merge(files, contents),
        card=next((content.card for content in contents if content.card is not None), None),
        container=contents[0].container,
        files=tuple(file for content in contents for file in content.files),
        size=sum(content.size for content in contents),
        sha256=hashlib.sha256("".join(content.sha256 for content in contents).encode()).hexdigest(),
    )


def stored_card(path: Path) -> ModelCard | None:
    """Return the card in a file that `ens train` wrote, without reading its tensors; None for other files.

    Raises:
        ModelError: E427 for a card that cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as f:
            card = (f.metadata() or {}).get(METADATA_KEY)
    except (OSError, safetensors.SafetensorError):
        return None
    return None if card is None else ModelCard.from_json(card)


def _merge(files: Files, contents: list[Content]) -> dict[object, object]:
    """Return the tensors of all shards in one dictionary, after checking them against the index."""
    merged: dict[object, object] = {}
    for content in contents:
        if not isinstance(content.payload, dict):
            raise ModelError("E417", f"{content.files[0].name} is no part of a state dict", path=content.files[0])
        merged |= content.payload
    missing = [name for name in files.names if name not in merged]
    if missing:
        raise ModelError(
            "E403", f"{files.path.name}: the files lack {enumerate_some(missing)} of its index", path=files.path
        )
    return merged


def _of_base(adapter: Content) -> Content:
    """Return a LoRA adapter with the names of its base network, to which peft adds a prefix."""
    if not isinstance(adapter.payload, dict):
        return adapter
    names = {key: str(key).removeprefix("base_model.model.") for key in adapter.payload}
    return replace(adapter, payload={names[key]: value for key, value in adapter.payload.items()})


def _read_file(path: Path, with_values: bool, listener: Listener) -> Content:
    container = detect_container(path)
    if container == "legacy":
        listener.notice(Notice("W406", f"{path.name} is in torch.save's old format, without checksums", path))
    try:
        card: ModelCard | None = None
        payload: object
        if container == "safetensors":
            payload, card = _read_safetensors(path, with_values)
        elif container == "npz":
            payload = _read_npz(path, with_values)
        else:
            payload = read_pickle(path, container, with_values=with_values, listener=listener)
        return Content(payload, card, container, (path,), _size(path, container), sha256_file(path))
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err


def _size(path: Path, container: Container) -> int:
    if container != "npz":
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:  # which numpy may compress
        return sum(part.file_size for part in archive.infolist())


def _read_safetensors(path: Path, with_values: bool) -> tuple[dict[str, object], ModelCard | None]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt" if with_values else "np") as f:
            card = (f.metadata() or {}).get(METADATA_KEY)
            tensors = {key: f.get_tensor(key) if with_values else _outline(f, key) for key in f.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as err:
        size = format_size(path.stat().st_size)
        raise ModelError("E403", f"{path.name} ({size}) cannot be read: {err}", path=path) from err
    return tensors, None if card is None else ModelCard.from_json(card)


_SAFETENSORS_TYPES = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}


def _outline(file: object, key: str) -> StoredTensor:
    """Return a tensor of safetensors without its values."""
    part = file.get_slice(key)  # type: ignore[attr-defined]
    shape, kind = tuple(part.get_shape()), str(part.get_dtype())
    letters = kind.rstrip("0123456789")
    known = f"{_SAFETENSORS_TYPES[letters]}{kind[len(letters) :]}" if letters in _SAFETENSORS_TYPES else kind.lower()
    return StoredTensor(Storage(key, known, 0), known, 0, shape, row_strides(shape))


def _read_npz(path: Path, with_values: bool) -> dict[str, object]:
    try:
        arrays = load_arrays(path)
        found: dict[str, object] = dict(arrays) if isinstance(arrays, dict) else {"array": arrays}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise ModelError("E405", f"{path.name} cannot be read: {err}", path=path) from err
    return {name: array_tensor(value, with_values=with_values) for name, value in found.items()}
