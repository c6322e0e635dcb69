"""Where a training stands: everything that changes while a fold is trained, on disk after every epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from checkpoints.training.loggers import LogRow
from ensemble.errors import ModelError
from ensemble.files import write_atomic

_KEY = "ens.course"


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """The weights after an epoch (counted from 1), and their macro F1 on the held-out people."""

    number: int
    macro_f1: float
    weights: Mapping[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class Course:
    """A training after ``done`` epochs; ``kept`` is the epoch whose weights would be written now.

    ``best_epoch`` and ``best_score`` are of the highest macro F1 so far, which ``kept`` need not be.
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


def save_course(path: Path, course: Course, *, origin: str) -> None:
    """Write all of it, with the state of torch's random numbers; ``origin`` says what is trained from what.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    assert course.kept is not None, "there is an epoch to go on from"
    groups = course.optimizer.state_dict()["param_groups"]
    numbers = {
        "origin": origin,
        "done": course.done,
        "kept": (course.kept.number, course.kept.macro_f1),
        "best": (course.best_epoch, course.best_score),
        "log": [asdict(row) for row in course.log],
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in groups],
        "schedule": course.schedule.state_dict(),
        "scaler": course.scaler.state_dict(),
    }
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in _tensors(course)
    }
    write_atomic(path, safetensors.torch.save(tensors, metadata={_KEY: json.dumps(numbers)}))


def load_course(path: Path, course: Course, *, origin: str) -> bool:
    """Bring a course that was just made to where the file says; whether there is such a file, of the same origin.

    Raises:
        ModelError: E403 when the file is damaged.
    """
    if not path.exists():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            numbers = json.loads((f.metadata() or {})[_KEY])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - no mapping, it only has keys()
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as err:
        raise ModelError(
            "E403", f"{path} cannot be read: {err}", path=path, hint="remove it: the fold begins anew"
        ) from err
    if numbers["origin"] != origin:
        return False
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    course.model.load_state_dict(parts["model"])
    if course.averaged is not None:
        course.averaged.load_state_dict(parts["averaged"])
    course.optimizer.load_state_dict(_optimizer_state(course, parts.get("optimizer", {}), numbers["groups"]))
    course.schedule.load_state_dict(numbers["schedule"])
    if course.scaler.is_enabled():
        course.scaler.load_state_dict(numbers["scaler"])
    torch.set_rng_state(parts["random"]["cpu"])
    device = next(course.model.parameters()).device
    if device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], device)
    course.done = numbers["done"]
    number, score = numbers["kept"]
    course.kept = Epoch(number, score, parts["kept"])
    course.best_epoch, course.best_score = numbers["best"]
    course.log = [LogRow(**row) for row in numbers["log"]]
    return True


def _tensors(course: Course) -> Iterator[tuple[str, torch.Tensor]]:
    assert course.kept is not None, "there is an epoch to go on from"
    averaged = {} if course.averaged is None else course.averaged.state_dict()
    for part, state in (("model", course.model.state_dict()), ("averaged", averaged), ("kept", course.kept.weights)):
        yield from ((f"{part}/{name}", tensor) for name, tensor in state.items())
    for number, values in course.optimizer.state_dict()["state"].items():
        yield from ((f"optimizer/{number}/{name}", tensor) for name, tensor in values.items() if tensor is not None)
    yield "random/cpu", torch.get_rng_state()
    device = next(course.model.parameters()).device
    if device.type == "cuda":
        yield "random/cuda", torch.cuda.get_rng_state(device)


def _optimizer_state(
    course: Course, tensors: Mapping[str, torch.Tensor], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    mine = course.optimizer.state_dict()["param_groups"]
    return {
        "state": state,
        "param_groups": [old | {"params": own["params"]} for old, own in zip(groups, mine, strict=True)],
    }
