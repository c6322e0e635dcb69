"""The files of one checkpoint: itself, or the shards that an index or a folder names."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from checkpoints.loading.other_files import describe_folder, describe_parts
from checkpoints.loading.state_dicts import is_averaged_name
from ensemble.errors import FileError, ModelError, enumerate_some
from ensemble.events import Listener, Notice

# in the order in which a folder of Hugging Face is searched
_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# what trainers keep beside the weights: transformers, accelerate
_NO_WEIGHTS = ("optimizer", "scheduler", "training_args", "rng_", "random_states", "sampler", "scaler", "dl_state")
_NUMBERED = re.compile(r"(model|pytorch_model)_\d+\.(safetensors|bin)")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
_MOST_FOLDERS = 1000
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a checkpoint at ``path``, and the names of tensors that their index lists, if there is one."""

    path: Path
    paths: tuple[Path, ...]
    names: tuple[str, ...] = ()


def find_files(path: Path, listener: Listener) -> Files:
    """Return the files of a checkpoint: of a folder, of an index of shards, of any one shard, or the file itself.

    Raises:
        FileError: E707 when a folder holds no weights, or several sets of them.
        ModelError: E403 when a shard is missing, E404 when an index or folder is something else.
    """
    if path.is_dir():
        path = _in_folder(path, listener)
    if path.name.endswith(".index.json"):
        return _from_index(path)
    parts = _SHARD.fullmatch(path.name)
    if parts is None:
        return Files(path, (path,))
    total = int(parts["total"])
    index = path.with_name(f"{parts['stem']}{parts['suffix']}.index.json")
    if index.is_file():
        listener.notice(Notice("I480", f"the file is one of {total} shards; all are read, by {index.name}", path))
        return _from_index(index)
    paths = [
        path.with_name(f"{parts['stem']}-{number:05}-of-{total:05}{parts['suffix']}")
        for number in range(1, min(total, 10_000) + 1)
    ]
    _require_shards(path, paths)
    if total > 1:
        listener.notice(Notice("I480", f"the file is one of {total} shards; all are read", path))
    return Files(path, tuple(paths))


def adapter_beside(path: Path, base: Path) -> Path | None:
    """Return the LoRA adapter in a folder that also has the weights it belongs to; None if there is none."""
    if not path.is_dir():
        return None
    files = [path / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    return next((file for file in files if file.is_file() and file != base), None)


def _in_folder(folder: Path, listener: Listener) -> Path:
    names = {entry.name for entry in folder.iterdir()}
    found = [folder / name for name in _WEIGHT_FILES if name in names]
    if found:
        _require_no_other_network(folder, names, found[0].name, listener)
    if not found:
        found = sorted(folder / name for name in names if name.endswith(".index.json"))
    if not found and not {"data.pkl", "version"} <= names:
        others = sorted(folder / name for name in names if name.endswith(_SUFFIXES))
        others = [path for path in others if not path.name.startswith(_NO_WEIGHTS) and not _is_optimizer(path.name)]
        if any(path.name.endswith(".safetensors") for path in others):
            others = [path for path in others if path.name.endswith(".safetensors")]
        shards = {parts["stem"] for path in others if (parts := _SHARD.fullmatch(path.name)) is not None}
        if len(others) > 1 and (whole := describe_parts(names)) is not None:
            message = f"{folder} is not a checkpoint but {whole.description}"
            raise ModelError("E404", message, hint=whole.hint, path=folder)
        if len(others) > 1 and not (len(shards) == 1 and all(_SHARD.fullmatch(path.name) for path in others)):
            listed = enumerate_some([path.name for path in others])
            raise FileError("E707", f"{folder} is a folder of several checkpoints: {listed}; name one", path=folder)
        found = others[:1]
    if not found:
        other = describe_folder(names)
        if other is not None:
            raise ModelError(
                "E404", f"{folder} is not a checkpoint but {other.description}", hint=other.hint, path=folder
            )
        below = _weights_below(folder)
        hint = f"below it are {enumerate_some(below)}: name the one that is meant" if below else None
        raise FileError(
            "E707", f"{folder} is a folder without weights; name the checkpoint's file", hint=hint, path=folder
        )
    listener.notice(Notice("I480", f"{found[0].name} in the folder is read", folder))
    return found[0]


def _weights_below(folder: Path) -> list[str]:
    """Return the paths of files that may hold weights in the folders below one, such as ``checkpoint-500``."""
    found = []
    for parent, folders, names in itertools.islice(os.walk(folder), _MOST_FOLDERS):
        folders.sort()
        kept = [name for name in names if name.endswith(_SUFFIXES) and not name.startswith(_NO_WEIGHTS)]
        found += [os.path.relpath(Path(parent, name), folder) for name in sorted(kept) if not _is_optimizer(name)]
    return found


def _is_optimizer(name: str) -> bool:
    """Return True for the states of optimizers that DeepSpeed keeps beside the weights."""
    return name.endswith("_optim_states.pt")


def _require_no_other_network(folder: Path, names: set[str], read: str, listener: Listener) -> None:
    """Refuse a folder with averaged weights, or a second network, in a file beside the usual one.

    accelerate's ``save_state`` numbers the networks of a training, ``model_1.safetensors``, and keeps other objects,
    which may hold an average, in ``custom_checkpoint_0.pkl`` (accelerate/checkpointing.py).
    """
    others = [
        name
        for name in sorted(names)
        if name.endswith(_SUFFIXES)
        and name not in _WEIGHT_FILES
        and not name.startswith((*_NO_WEIGHTS, "adapter_model"))
        and _SHARD.fullmatch(name) is None
    ]
    several = [name for name in others if is_averaged_name(name) or _NUMBERED.fullmatch(name)]
    if several:
        listed = enumerate_some([read, *several])
        raise FileError(
            "E707",
            f"{folder} is a folder of several checkpoints: {listed}",
            hint=f"name the file that is meant, such as {folder / several[0]}",
            path=folder,
        )
    if others:
        message = f"not read: {enumerate_some(others)}; if one has averaged weights, name it in place of the folder"
        listener.notice(Notice("I480", message, folder))


def _from_index(path: Path) -> Files:
    """Return the shards of a Hugging Face index: a map from the tensors' names to the files that hold them."""
    try:
        where = json.loads(path.read_bytes())["weight_map"]
        names = tuple(str(name) for name in where)
        files = list(dict.fromkeys(where.values()))
        known = all(isinstance(name, str) and Path(name).name == name for name in files) and bool(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise ModelError("E404", f"{path.name} is not an index of shards: it has no weight_map", path=path) from err
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    if not known:  # a path would lead elsewhere
        raise ModelError("E404", f"{path.name} is not an index of files beside it", path=path)
    paths = [path.with_name(name) for name in files]
    _require_shards(path, paths)
    return Files(path, tuple(paths), names)


def _require_shards(path: Path, paths: list[Path]) -> None:
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        message = f"{path.name}: {len(missing)} of {len(paths)} shards are missing: {enumerate_some(missing)}"
        raise ModelError("E403", message, hint="download the missing files into the same folder", path=path)
