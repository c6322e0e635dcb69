"""The state of a fold's training, written after every epoch and within epochs so that a stopped training can resume."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from checkpoints.training.loggers import LogRow
from ensemble.errors import FileError, ModelError
from ensemble.files import remove, write_atomic

_KEY = "ens.course"  # the name in files of all versions
_SECONDS = 10.0  # of training between two states within an epoch
_LEAST_SHARE = 10  # and at least so many times what writing one takes


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """The weights after an epoch (counted from 1), and their `HoldoutScores.main`."""

    number: int
    score: float
    weights: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class WithinEpoch:
    """A point within an epoch: after so many ``steps``, with the sum of their losses and the state of the generator."""

    steps: int
    loss: float
    generator: torch.Tensor


@dataclass(slots=True, eq=False)
class TrainingState:
    """A training after ``done`` epochs; ``kept`` is the epoch whose weights would be written now.

    ``best_epoch`` has the highest score so far, ``best_score``; ``kept`` may be another epoch. ``averaged`` holds
    the exponential moving average of the weights. ``within`` is where a stopped training was in the next epoch.
    ``mean`` is that of the weights after each of the last epochs (`weight_average`).
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
    within: WithinEpoch | None = None
    mean: Mapping[str, torch.Tensor] | None = None


def save_state(path: Path, state: TrainingState, *, fingerprint: str) -> None:
    """Write the state and that of torch's random generators; ``fingerprint`` is that of the job.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    assert state.kept is not None, "a state is saved after the first epoch or later"
    numbers = _numbers(state, fingerprint) | {
        "kept": (state.kept.number, state.kept.score),
        "best": (state.best_epoch, state.best_score),
        "log": [row.as_dict() for row in state.log],
    }
    kept = ((f"kept/{name}", tensor) for name, tensor in state.kept.weights.items())
    write_atomic(path, _to_bytes([*_tensors(state), *kept], numbers))


class StepStates:
    """The file of the state within an epoch, written every ten seconds, or less often where that takes its time.

    It is used only in the epoch after that of the state that `save_state` wrote.
    """

    def __init__(self, path: Path, *, fingerprint: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._fingerprint, self._clock = path, fingerprint, clock
        self._due = clock() + _SECONDS

    @property
    def is_due(self) -> bool:
        """True when it is time to write."""
        return self._clock() >= self._due

    def save(self, state: TrainingState, within: WithinEpoch) -> None:
        """Write the state after some steps of an epoch.

        Raises:
            FileError: E701 or E702 when it cannot be written.
        """
        began = self._clock()
        numbers = _numbers(state, self._fingerprint) | {"steps": within.steps, "loss": within.loss}
        tensors = [*_tensors(state), ("random/order", within.generator)]
        # not synced: after a power failure the state of the epoch before is there
        write_atomic(self._path, _to_bytes(tensors, numbers), sync=False)
        now = self._clock()
        self._due = now + max(_SECONDS, _LEAST_SHARE * (now - began))

    def restore(self, state: TrainingState) -> bool:
        """Load a file of the same training and epoch into the state; return False if there is none."""
        if not self._path.exists():
            return False
        try:
            numbers, parts = _read(self._path)
        except ModelError:  # torn by a power failure
            return False
        if (numbers["origin"], numbers["done"]) != (self._fingerprint, state.done):
            return False
        _load(state, numbers, parts)
        state.within = WithinEpoch(numbers["steps"], numbers["loss"], parts["random"]["order"])
        return True

    def clear(self) -> None:
        """Remove the file: the epoch is over."""
        with contextlib.suppress(FileError):
            remove(self._path)
        self._due = self._clock() + _SECONDS


def restore_state(path: Path, state: TrainingState, *, fingerprint: str) -> bool:
    """Load a file into a newly made state; return False if there is no file, or one of another fingerprint.

    Raises:
        ModelError: E403 when the file is damaged.
    """
    if not path.exists():
        return False
    numbers, parts = _read(path)
    if numbers["origin"] != fingerprint:
        return False
    _load(state, numbers, parts)
    state.done = numbers["done"]
    number, score = numbers["kept"]
    state.kept = Epoch(number, score, parts["kept"])
    state.best_epoch, state.best_score = numbers["best"]
    state.log = [LogRow(**row) for row in numbers["log"]]
    return True


def _numbers(state: TrainingState, fingerprint: str) -> dict[str, Any]:
    groups = state.optimizer.state_dict()["param_groups"]
    return {
        "origin": fingerprint,
        "done": state.done,
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in groups],
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
    }


def _to_bytes(tensors: Iterable[tuple[str, torch.Tensor]], numbers: Mapping[str, Any]) -> bytes:
    copies = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors}
    return safetensors.torch.save(copies, metadata={_KEY: json.dumps(numbers)})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Return the numbers of a file and its tensors by part.

    Raises:
        ModelError: E403 when the file is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            numbers = json.loads((f.metadata() or {})[_KEY])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a mapping, it only has keys()
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as err:
        raise ModelError(
            "E403", f"{path} cannot be read: {err}", path=path, hint="remove it to train the fold from the start"
        ) from err
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return numbers, parts


def _load(state: TrainingState, numbers: Mapping[str, Any], parts: Mapping[str, dict[str, torch.Tensor]]) -> None:
    """Load what both files have: weights, optimizer, schedule, scaler and random generators."""
    state.model.load_state_dict(parts["model"])
    if state.averaged is not None:
        state.averaged.load_state_dict(parts["averaged"])
    state.mean = parts.get("mean")
    state.optimizer.load_state_dict(_optimizer_state(state, parts.get("optimizer", {}), numbers["groups"]))
    state.schedule.load_state_dict(numbers["schedule"])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(numbers["scaler"])
    torch.set_rng_state(parts["random"]["cpu"])
    device = next(state.model.parameters()).device
    if device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], device)


def _tensors(state: TrainingState) -> Iterator[tuple[str, torch.Tensor]]:
    averaged = {} if state.averaged is None else state.averaged.state_dict()
    weights = {"model": state.model.state_dict(), "averaged": averaged, "mean": state.mean or {}}
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
