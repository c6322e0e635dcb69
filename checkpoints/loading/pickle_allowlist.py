"""The globals that a checkpoint's pickle may refer to, and the errors for those that refer to others."""

from __future__ import annotations

import _compat_pickle
import re
import sys
from pathlib import Path
from typing import BinaryIO

from checkpoints.loading.pickle_sandbox import scan_pickles
from ensemble.errors import ModelError, enumerate_some


class InertObject:
    """A replacement for objects in a checkpoint's metadata: it keeps plain attributes and runs no code.

    The `argparse.Namespace` of a training script becomes one with the options as attributes; a numpy scalar or a path
    becomes one without. Nothing of numpy or pathlib is called, so paths of another system can be read.
    """

    def __init__(self, *args: object) -> None:
        """Drop the arguments of the original object."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


# Globals that training scripts save beside the weights. Those of numpy and pathlib were moved between versions.
INERT_NAMES: tuple[str, ...] = (
    "argparse.Namespace",
    *(
        f"pathlib{module}.{kind}"
        for module in ("", "._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{function}" for core in ("core", "_core") for function in ("scalar", "_reconstruct")),
)

# What torch itself reads with weights_only=True; used only for the text of an error.
_TORCH_READS = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\.(Tensor|Size|device|[A-Z]\w+(Storage|Tensor)|(q?u?int|q?float|bfloat|complex)\w*|bool|half|double|long)"
    r"|torch\.(_utils|_tensor)\._rebuild_\w+"
    r"|torch\.(storage|sparse)\.\w+(Storage|Tensor)"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout"
    r"|_codecs\.encode|builtins\.(bytearray|set|complex)"
)
# Every pickled module refers to these; they are harmless.
_MODULE_COMPANIONS = {"functools", "collections", "builtins.set", "builtins.dict", "builtins.list", "builtins.object"}


def list_globals(pickles: BinaryIO | bytes, count: int, path: Path) -> list[str]:
    """Return every global that ``count`` pickles refer to, as ``module.name`` in order of appearance.

    The pickles are read in a subprocess with limits of time and memory, and nothing is imported.

    Raises:
        ModelError: E444 when a limit is exceeded, or E401 and E402 when the pickles would be refused anyway.
    """
    found = scan_pickles(pickles, count)
    names = [_python3_name(module, name) for module, name in found.names]
    if found.exceeded is not None:
        too_much = ModelError("E444", f"reading {path.name} takes {found.exceeded}; it was refused", path=path)
        raise refusal(names, path) or too_much
    return names


def _python3_name(module: str, name: str) -> str:
    """Return the name in Python 3: torch saves with protocol 2, which writes the names of Python 2."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def refuse_programs(names: list[str], path: Path) -> None:
    """Refuse a pickle that refers to functions of the standard library, before torch reads it.

    Raises:
        ModelError: E401 with their names.
    """
    if any(_is_suspect(name) for name in names) and (error := refusal(names, path)) is not None:
        raise error


def refusal(names: list[str], path: Path) -> ModelError | None:
    """Return E401 or E402 for a pickle that refers to more than weights need; None if it does not."""
    refused = [name for name in names if name not in INERT_NAMES and not _TORCH_READS.fullmatch(name)]
    if not refused:
        return None
    # a pickled module refers to classes of torch and of its author, but not to functions such as os.system
    suspects = [name for name in refused if _is_suspect(name)]
    if not suspects and any(name.startswith("torch.nn.modules.") for name in refused):
        own = [name for name in refused if not name.startswith("torch.")] or refused
        return ModelError(
            "E402", f"{path.name} holds a whole pickled module, not its weights: {enumerate_some(own)}", path=path
        )
    others = [name for name in refused if name not in suspects]
    return ModelError(
        "E401",
        f"{path.name} wants to run {enumerate_some(suspects + others)}; refused. There is no override.",
        path=path,
    )


def _is_suspect(name: str) -> bool:
    """Return True for a name of the standard library that neither weights nor their metadata need."""
    if name in INERT_NAMES or _TORCH_READS.fullmatch(name):
        return False
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names and name not in _MODULE_COMPANIONS and root not in _MODULE_COMPANIONS
