"""What a pickle may name while torch reads it, and why it was refused; nothing in here executes a pickle."""

from __future__ import annotations

import _compat_pickle
import pickletools
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

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
    r"|torch\.(storage|sparse)\.\w+"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout"
    r"|_codecs\.encode|builtins\.(bytearray|set|complex)"
)
# These come with every pickled module and do nothing by themselves.
_MODULE_COMPANIONS = {"functools", "collections", "builtins.set", "builtins.dict", "builtins.list", "builtins.object"}


def imported_names(stream: BinaryIO) -> list[str]:
    """Every global that the pickles in a stream would import, as ``module.name`` in order of appearance.

    Only the instructions are read. Whatever follows the last whole pickle is ignored.
    """
    names: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns of odd escapes in damaged strings
        try:
            while True:
                for name in _names_of_one_pickle(stream):
                    names[name] = None
        # it raises these at the end of the stream and on bytes that are no instructions
        except (ValueError, IndexError, OverflowError, MemoryError):
            return list(names)


def _names_of_one_pickle(stream: BinaryIO) -> Iterable[str]:
    strings: list[str] = []  # as they were pushed; STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name in {"GLOBAL", "INST"}:
            yield _modern_name(*str(argument).split(" ", 1))
        elif instruction.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)
        elif instruction.name in {"BINPUT", "LONG_BINPUT", "MEMOIZE"} and strings:
            memo[len(memo) if argument is None else argument] = strings[-1]
        elif instruction.name in {"BINGET", "LONG_BINGET"} and argument in memo:
            strings.append(memo[argument])


def _modern_name(module: str, name: str) -> str:
    """A global's name in Python 3: torch saves with protocol 2, which writes Python 2's names."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def refusal(names: list[str], path: Path) -> ModelError | None:
    """The error for a pickle that names more than weights need, E401 or E402; None when it does not."""
    refused = [name for name in names if name not in INERT_NAMES and not _TORCH_READS.fullmatch(name)]
    if not refused:
        return None
    # a pickled module names classes of torch and of its author; what it would do with os or builtins is another matter
    suspects = [name for name in refused if _is_standard(name)]
    if not suspects and any(name.startswith("torch.nn.modules.") for name in refused):
        own = [name for name in refused if not name.startswith("torch.")] or refused
        return ModelError(
            "E402", f"{path.name} holds a whole pickled module, not its weights: {enumerate_some(own)}", path=path
        )
    others = [name for name in refused if name not in suspects]
    return ModelError(
        "E401", f"{path.name} wants to run {enumerate_some(suspects + others)}; it was refused", path=path
    )


def _is_standard(name: str) -> bool:
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names and name not in _MODULE_COMPANIONS and root not in _MODULE_COMPANIONS
