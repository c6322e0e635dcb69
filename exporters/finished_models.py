"""The models that an export of several checkpoints has finished: the next run of the same export keeps them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.errors import EnsError
from ensemble.events import Listener, Notice
from ensemble.files import remove, sha256_file, write_atomic
from ensemble.install import version_of
from ensemble.text.json_text import parse_json, read_utf8
from ensemble.text.json_types import require_field_types, require_type

_NAME = ".export.state"
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("checkpoint", "file", "sha256", "member", "line"), str),
    "values": Mapping[str, Any],
}
_PACKAGES = ("ens-onnx", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy", "Pillow")


@dataclass(frozen=True, slots=True)
class FinishedModel:
    """An exported model: its ``member``, its file, the line that describes it and its JSON-ready ``values``."""

    member: str
    path: Path
    line: str
    values: Mapping[str, Any]


class FinishedModels:
    """The record ``.export.state`` in the folder of the models, while an export of several checkpoints is under way.

    ``settings`` are what all models depend on, beside the versions of the packages, and ``inputs`` the files and
    folders of images and tables. A model is kept if these, its checkpoint with the files beside it, and its own bytes
    are those of the record. An export of one checkpoint has no record: it always runs.
    """

    def __init__(
        self, folder: Path, checkpoints: Sequence[Path], settings: Sequence[object], inputs: Sequence[Path | None]
    ) -> None:
        self._path = folder / _NAME
        self._folder = folder
        self._is_kept = len(checkpoints) > 1
        self._models: dict[str, dict[str, Any]] = {}
        self._states: dict[str, str] = {}
        versions = [(name, version_of(name)) for name in _PACKAGES]
        self._inputs = [repr(versions), *(_state_of(path) for path in inputs if path is not None)]
        self._run = _hash([repr(one) for one in settings] + self._inputs)
        if self._is_kept:
            self._models = self._read()

    def find(self, checkpoint: Path, listener: Listener) -> FinishedModel | None:
        """Return the model of a checkpoint if an export that did not end has finished it; I495 says so."""
        # taken before the export: a training may write the checkpoint again meanwhile
        self._states[str(checkpoint)] = state = _checkpoint_state(checkpoint)
        if not self._is_kept:
            return None
        found = self._models.get(str(checkpoint))
        if found is None or found["checkpoint"] != state:
            return None
        path = self._folder / found["file"]
        try:
            same = sha256_file(path) == found["sha256"]
        except EnsError:
            return None
        if not same:
            return None
        text = f"{path.name} is kept: an export with the same options that did not end has finished it"
        listener.notice(Notice("I495", text, path))
        return FinishedModel(found["member"], path, found["line"], found["values"])

    def key_of(self, checkpoint: Path, settings: Sequence[object]) -> str:
        """Return a hash of all that the model of a checkpoint depends on: ``settings``, the inputs, and its own state.

        The state is that of the call of `find` for it.
        """
        return _hash([f"{checkpoint}", self._states[str(checkpoint)], *map(repr, settings), *self._inputs])

    def add(self, checkpoint: Path, model: FinishedModel) -> None:
        """Record the model of a checkpoint that `find` did not find.

        Raises:
            FileError: E701 or E702 when the record cannot be written.
        """
        if self._is_kept:
            self._models[str(checkpoint)] = {
                "checkpoint": self._states[str(checkpoint)],
                "file": model.path.name,
                "sha256": sha256_file(model.path),
                "member": model.member,
                "line": model.line,
                "values": model.values,
            }
            write_atomic(self._path, json.dumps({"run": self._run, "models": self._models}).encode())

    def end(self) -> None:
        """Remove the record: all models are finished."""
        if self._is_kept:
            remove(self._path)

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return the models of the record, none if it is of another export or damaged."""
        try:
            record = parse_json(read_utf8(self._path))
            models: dict[str, dict[str, Any]] = record["models"] if record["run"] == self._run else {}
            require_type(models, Mapping[str, Mapping[str, Any]], "models")
            for one in models.values():
                require_field_types(one, _KINDS)
            whole = all(
                _KINDS.keys() <= one.keys() and os.path.basename(one["file"]) == one["file"] for one in models.values()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return models if whole else {}


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _checkpoint_state(path: Path) -> str:
    """Return the state of a checkpoint: its bytes, and what lies beside it, such as settings and training records."""
    if not path.is_file():
        return _state_of(path)
    return _hash([sha256_file(path), _state_of(path.parent, below=False), _state_of(path.parent / "oof")])


def _state_of(path: Path, *, below: bool = True) -> str:
    """Return a hash of the names, sizes and times of a file or of the files in a folder, but for models and records."""
    found: list[str] = []
    is_folder = path.is_dir()
    folders = os.walk(path) if is_folder else [(str(path.parent), [], [path.name])]
    for folder, inner, names in folders:
        inner.sort()
        for name in sorted(names):
            if is_folder and (name.startswith(".") or name.endswith(".onnx")):
                continue
            place = os.path.join(folder, name)
            try:
                stat = os.stat(place)
            except OSError:
                continue
            found.append(f"{place}\n{stat.st_size}\n{stat.st_mtime_ns}")
        if not below:
            break
    return _hash(found)
