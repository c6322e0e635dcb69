"""Read the content of a checkpoint file, in any common format, without running code from the file."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from checkpoints.loading.container import Container, detect_container, format_size, list_checkpoint_globals
from checkpoints.loading.pickle_allowlist import INERT_NAMES, InertObject, refusal, refuse_programs
from ensemble.card import METADATA_KEY, ModelCard
from ensemble.errors import FileError, ModelError
from ensemble.events import SILENT, Listener, Notice


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The content of a checkpoint file: ``payload`` is what was saved, ``card`` the one that `ens train` wrote."""

    payload: object
    card: ModelCard | None = None


def read_content(path: Path, *, listener: Listener = SILENT) -> Content:
    """Return the content of a checkpoint file, whatever its format, without running code from it.

    Raises:
        FileError: E707 when the file cannot be read.
        ModelError: E401 to E405 for a file that is refused, damaged or something else, E417 when it has no weights,
            E427 for a card that cannot be read, E444 for a pickle that takes too much memory or time.
    """
    container = detect_container(path)
    if container == "legacy":
        listener.notice(Notice("W406", f"{path.name} is in torch.save's old format, without checksums", path))
    try:
        return _read_safetensors(path) if container == "safetensors" else Content(_unpickle(path, container))
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err


def _read_safetensors(path: Path) -> Content:
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            card = (f.metadata() or {}).get(METADATA_KEY)
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a mapping, it only has keys()
    except safetensors.SafetensorError as err:
        size = format_size(path.stat().st_size)
        raise ModelError("E403", f"{path.name} ({size}) cannot be read: {err}", path=path) from err
    return Content(tensors, None if card is None else ModelCard.from_json(card))


def _unpickle(path: Path, container: Container) -> object:
    """Read a file of torch.save with weights_only=True, which runs no code; there is no fallback."""
    names = list_checkpoint_globals(path, container)
    refuse_programs(names, path)
    try:
        with (
            open(path, "rb") as f,  # an open file: given a path, torch decides by the suffix
            torch.serialization.safe_globals([(InertObject, name) for name in INERT_NAMES]),
            warnings.catch_warnings(action="ignore"),  # torch asks to report unusual pickles
        ):
            content: object = torch.load(f, map_location="cpu", weights_only=True)
            return content
    except OSError:
        raise
    except Exception as err:  # a hostile or damaged pickle can raise anything
        if (refused := refusal(names, path)) is not None:
            raise refused from err
        # the old format has no checksums: damage shows up here
        code = "E403" if container == "legacy" else "E417" if isinstance(err, pickle.UnpicklingError) else "E405"
        size = format_size(path.stat().st_size)
        raise ModelError(code, f"{path.name} ({size}) cannot be read: {_reason(err)}", path=path) from err


def _reason(err: Exception) -> str:
    """Return torch's message without its advice to load the file with weights_only=False."""
    _, mark, cause = str(err).partition("WeightsUnpickler error: ")
    if isinstance(err, pickle.UnpicklingError) and not mark:
        return "its pickle is not one of weights"
    return (cause or str(err)).strip().partition("\n")[0] or type(err).__name__
