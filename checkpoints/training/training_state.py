"""The state of a fold's training, written after every epoch so that an interrupted training can resume."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from checkpoints.training.loggers import LogRow
from ensemble.errors import ModelError
from ensemble.files import write_atomic

_KEY = "ens.course"  # the name in files of all versions


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """The weights after an epoch (counted from 1), and their `HoldoutScores.main`."""

    number: int
    score: float
    weights: Mapping[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class TrainingState:
    """A training after ``done`` epochs; ``kept`` is the epoch whose weights would be written now.

    ``best_epoch`` has the highest score so far, ``best_score``; ``kept`` may be another epoch. ``averaged`` holds
    the exponential moving average of the weights.
    """

    model: torch.nn.Module
    averaged: torch.nn.Module | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    done: int = 0
    kept: Epoch | None = None
    best_epoch: int = 0
    best_score: float = -1.0
    log: list[LogRow] = field(default_factory=list)


def save_state(path: Path, state: TrainingState, *, fingerprint: str) -> None:
    """Write the state and that of torch's random generators; ``fingerprint`` is that of the job.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    assert state.kept is not None, "a state is saved after the first epoch or later"
    groups = state.optimizer.state_dict()["param_groups"]
    numbers = {
        "origin": fingerprint,
        "done": state.done,
        "kept": (state.kept.number, state.kept.score),
        "best": (state.best_epoch, state.best_score),
        "log": [row.as_dict() for row in state.log],
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in groups],
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
    }
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in _tensors(state)
    }
    write_atomic(path, safetensors.torch.save(tensors, metadata={_KEY: json.dumps(numbers)}))


def restore_state(path: Path, state: TrainingState, *, fingerprint: str) -> bool:
    """Load a file into a newly made state; return False if there is no file, or one of another fingerprint.

    Raises:
        ModelError: E403 when the file is damaged.
    """
    if not path.exists():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            numbers = json.loads((f.metadata() or {})[_KEY])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a mapping, it only has keys()
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as err:
        raise ModelError(
            "E403", f"{path} cannot be read: {err}", path=path, hint="remove it to train the fold from the start"
        ) from err
    if numbers["origin"] != fingerprint:
        return False
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    state.model.load_state_dict(parts["model"])
    if state.averaged is not None:
        state.averaged.load_state_dict(parts["averaged"])
    state.optimizer.load_state_dict(_optimizer_state(state, parts.get("optimizer", {}), numbers["groups"]))
    state.schedule.load_state_dict(numbers["schedule"])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(numbers["scaler"])
    torch.set_rng_state(parts["random"]["cpu"])
    device = next(state.model.parameters()).device
    if device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], device)
    state.done = numbers["done"]
    number, score = numbers["kept"]
    state.kept = Epoch(number, score, parts["kept"])
    state.best_epoch, state.best_score = numbers["best"]
    state.log = [LogRow(**row) for row in numbers["log"]]
    return True


def _tensors(state: TrainingState) -> Iterator[tuple[str, torch.Tensor]]:
    assert state.kept is not None, "a state is saved after the first epoch or later"
    averaged = {} if state.averaged is None else state.averaged.state_dict()
    weights = {"model": state.model.state_dict(), "averaged": averaged, "kept": state.kept.weights}
    for part, tensors in weights.items():
        yield from ((f"{part}/{name}", tensor) for name, tensor in tensors.items())
    for number, values in state.optimizer.state_dict()["state"].items():
        yield from ((f"optimizer/{number}/{name}", tensor) for name, tensor in values.items() if tensor is not None)
    yield "random/cpu", torch.get_rng_state()
    device = next(state.model.parameters()).device
    if device.type == "cuda":
        yield "random/cuda", torch.cuda.get_rng_state(device)


def _optimizer_state(
    state: TrainingState, tensors: Mapping[str, torch.Tensor], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the state for `torch.optim.Optimizer.load_state_dict`, with the parameters of this process."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        moments.setdefault(int(number), {})[name] = tensor
    own_groups = state.optimizer.state_dict()["param_groups"]
    return {
        "state": moments,
        "param_groups": [saved | {"params": own["params"]} for saved, own in zip(groups, own_groups, strict=True)],
    }
