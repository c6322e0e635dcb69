"""The files and folders that hold a network's weights in the wild, each written from one flat dictionary of tensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from tests.support.user_networks import Network, State, body, changed, prefixed, state_of
from tests.support.weights import TINY

# what writes the tensors into an empty folder, and returns each path by which they are opened
Writer = Callable[[Path, State], list[Path]]
Saver = Callable[[State, Path], object]


def _alone(name: str, save: Saver) -> Writer:
    def write(folder: Path, state: State) -> list[Path]:
        save(state, folder / name)
        return [folder / name]

    return write


def _beside_config(name: str, save: Saver) -> Writer:
    """Return a writer of a folder as `timm.models.push_to_hf_hub` saves it (timm/models/_hub.py)."""

    def write(folder: Path, state: State) -> list[Path]:
        config = {"architecture": TINY, "num_classes": 5, "num_features": 64, "pretrained_cfg": {"tag": "mine"}}
        (folder / "config.json").write_text(json.dumps(config))
        save(state, folder / name)
        return [folder, folder / name]

    return write


def _sharded(stem: str, suffix: str, save: Saver, count: int, *, index: bool = True) -> Writer:
    """Return a writer of shards as `huggingface_hub.save_torch_state_dict` names them (serialization/_torch.py)."""

    def write(folder: Path, state: State) -> list[Path]:
        names = sorted(state)
        shards = [folder / f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]
        where = {name: shards[number % count].name for number, name in enumerate(names)}
        for shard in shards:
            save({name: state[name] for name in names if where[name] == shard.name}, shard)
        if not index:
            return [folder, shards[0], shards[-1]]
        listing = folder / f"{stem}{suffix}.index.json"
        total = sum(tensor.nbytes for tensor in state.values())
        listing.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
        return [folder, listing, shards[-1]]

    return write


def _pickle(values: object, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(values, protocol))


def _arrays(state: State) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in state.items()}


_SAFETENSORS: Saver = safetensors.torch.save_file
CONTAINERS: Mapping[str, Writer] = {
    "safetensors": _alone("model.safetensors", _SAFETENSORS),
    "safetensors under another name": _alone("best.pth", _SAFETENSORS),
    "safetensors with metadata": _alone(
        "m.safetensors", lambda state, path: safetensors.torch.save_file(state, path, {"format": "pt"})
    ),
    "safetensors beside config.json": _beside_config("model.safetensors", _SAFETENSORS),
    "two shards of safetensors with an index": _sharded("model", ".safetensors", _SAFETENSORS, 2),
    "eleven shards of safetensors without an index": _sharded("net", ".safetensors", _SAFETENSORS, 11, index=False),
    "three shards of pytorch_model.bin with an index": _sharded("pytorch_model", ".bin", torch.save, 3),
    "pytorch_model.bin beside config.json": _beside_config("pytorch_model.bin", torch.save),
    "zip": _alone("model.pt", torch.save),
    "zip of protocol 4": _alone("model.ckpt", lambda state, path: torch.save(state, path, pickle_protocol=4)),
    "legacy": _alone(
        "model.pth.tar", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)
    ),
    "legacy shards": _sharded(
        "pytorch_model",
        ".bin",
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
        2,
    ),
    "plain pickle of tensors": _alone("model.pkl", lambda state, path: _pickle(state, path, 4)),
    "plain pickle of arrays": _alone("model.pickle", lambda state, path: _pickle(_arrays(state), path, 2)),
    "plain pickle in a dictionary": _alone("model", lambda state, path: _pickle({"weights": state, "lr": 1}, path, 5)),
    "npz": _alone("model.npz", lambda state, path: np.savez(path, **_arrays(state))),
    "compressed npz": _alone("small.npz", lambda state, path: np.savez_compressed(path, **_arrays(state))),
}


def contents() -> Iterator[tuple[str, State, Network, str]]:
    """Return flat dictionaries as trainings save them: a name, the tensors, the user's network, and which weights."""
    net = body()
    state, ema = state_of(net), changed(net)
    yield "plain", state, net, "raw"
    yield "under a prefix", prefixed("module.model.", state), net, "raw"
    apart = {f"head.1.{k[3:]}" if k.startswith("fc.") else f"encoder.{k}": tensor for k, tensor in state.items()}
    yield "head apart", apart, net, "raw"
    yield "average beside", prefixed("net.", state) | prefixed("ema_net.", state_of(ema)), ema, "ema"
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    rounded = body()
    rounded.load_state_dict(halves)
    yield "half precision", halves, rounded, "raw"


def _traced(folder: Path) -> Path:
    torch.jit.trace(body(), torch.zeros(1, 3, 32, 32)).save(str(folder / "model.pt"))  # type: ignore[no-untyped-call]
    return folder / "model.pt"


def _exported(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.onnx.export(body(), (torch.zeros(1, 3, 32, 32),), folder / name, dynamo=False)
        return folder / name

    return write


def _program(folder: Path) -> Path:
    torch.export.save(torch.export.export(body(), (torch.zeros(1, 3, 32, 32),)), folder / "model.pt2")
    return folder / "model.pt2"


# what is no container of weights: how it is written, its code, what it is called, and a part of the line that helps
PROGRAMS: Mapping[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "TorchScript": (_traced, "E402", "a TorchScript program", "torch.jit.load('model.pt').state_dict()"),
    "ONNX": (_exported("model.onnx"), "E404", "an ONNX model", "ens adopt model.onnx"),
    "ONNX under another name": (_exported("best.pth"), "E404", "an ONNX model", "ens adopt model.onnx"),
    "torch.export": (_program, "E402", "a program of torch.export", "torch.export.load('model.pt2').state_dict"),
}
