"""What a pickle may name while torch reads it, and why it was refused."""

from __future__ import annotations

import _compat_pickle
import re
import sys
from pathlib import Path
from typing import BinaryIO

from checkpoints.loading.pickle_sandbox import rehearse
from ensemble.errors import ModelError, enumerate_some


class Inert:
    """Stands where a checkpoint's metadata has an object: it keeps plain attributes and runs nothing.

    A training file's `argparse.Namespace` becomes one of these with its options as attributes; a numpy scalar or a
    path becomes one without. Nothing of numpy or pathlib is called, so a path of another system does no harm.
    """

    def __init__(self, *args: object) -> None:
        """Whatever the object would be made from is dropped."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


# The names that trainers put beside their weights. numpy and pathlib moved theirs between versions.
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

# What torch itself reads with weights_only=True; used for nothing but the wording of a refusal.
_TORCH_READS = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\.(Tensor|Size|device|[A-Z]\w+(Storage|Tensor)|(q?u?int|q?float|bfloat|complex)\w*|bool|half|double|long)"
    r"|torch\.(_utils|_tensor)\._rebuild_\w+"
    r"|torch\.(storage|sparse)\.\w+(Storage|Tensor)"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout"
    r"|_codecs\.encode|builtins\.(bytearray|set|complex)"
)
# These come with every pickled module and do nothing by themselves.
_MODULE_COMPANIONS = {"functools", "collections", "builtins.set", "builtins.dict", "builtins.list", "builtins.object"}


def names_in(pickles: BinaryIO | bytes, count: int, path: Path) -> list[str]:
    """Every global that ``count`` pickles name, as ``module.name`` in order of appearance.

    They are followed in a process of its own, under limits, and nothing they name is imported.

    Raises:
        ModelError: E401 and E402 when they cannot be finished within the limits and name what is refused anyway, else
            E444.
    """
    found = rehearse(pickles, count)
    names = [_modern_name(module, name) for module, name in found.names]
    if found.exceeded is not None:
        too_much = ModelError("E444", f"reading {path.name} takes {found.exceeded}; it was refused", path=path)
        raise refusal(names, path) or too_much
    return names


def _modern_name(module: str, name: str) -> str:
    """A global's name in Python 3: torch saves with protocol 2, which writes Python 2's names."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def refuse_programs(names: list[str], path: Path) -> None:
    """Refuse a pickle that names functions of Python's own library, before torch is asked what it thinks of them.

    Raises:
        ModelError: E401 naming them.
    """
    if any(_is_suspect(name) for name in names) and (error := refusal(names, path)) is not None:
        raise error


def refusal(names: list[str], path: Path) -> ModelError | None:
    """The error for a pickle that names more than weights need, E401 or E402; None when it does not."""
    refused = [name for name in names if name not in INERT_NAMES and not _TORCH_READS.fullmatch(name)]
    if not refused:
        return None
    # a pickled module names classes of torch and of its author; what it would do with os or builtins is another matter
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
    """Whether a name is of Python's own library, and not one of those that weights or their metadata need."""
    if name in INERT_NAMES or _TORCH_READS.fullmatch(name):
        return False
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names and name not in _MODULE_COMPANIONS and root not in _MODULE_COMPANIONS
