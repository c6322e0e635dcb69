"""Choose between onnxruntime and OpenVINO on the CPU by timing both on the models of a run: ``cpu:fastest``.

Times are CPU seconds, so that other work on the machine does not decide: with a call on every core, as `predict` makes
them, the engine that needs fewer is the faster one. The choice is cached by network, processor and versions, so that a
resumed run computes as it did before.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ensemble import files
from ensemble.arrays import Pixels
from ensemble.errors import EnsError, FileError
from ensemble.events import SILENT, Listener, Notice
from ensemble.install import install_command
from ensemble.runtime.cache import cache_folder
from ensemble.runtime.device import CPU, FASTEST, Device
from ensemble.runtime.machine import available_cores, processor_name
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.openvino import describe_for_openvino, openvino_version
from ensemble.runtime.parity import draw_pictures
from ensemble.runtime.session import Session, start_session
from ensemble.text.json_types import require_type

SECONDS = 20.0  # of measurement, for all models together
_OPENVINO = Device("openvino")
_MARGIN = 0.98  # a gain below 2 % is noise
_SIZES = (1, 8)  # images per call: which is faster differs between the engines
_CLEAR = 5  # rounds, in each of which the same engine is faster


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """CPU seconds per image through all models of a run: the medians of ``rounds`` in which both engines took turns."""

    onnxruntime: float
    openvino: float
    rounds: int

    @property
    def device(self) -> Device:
        """The faster engine; onnxruntime unless OpenVINO gains more than 2 %."""
        return _OPENVINO if self.openvino < _MARGIN * self.onnxruntime else CPU

    def __str__(self) -> str:
        each = f"{1000 * self.onnxruntime:.2f} CPU ms an image in ONNX Runtime, {1000 * self.openvino:.2f} in OpenVINO"
        return f"{each} (medians of {self.rounds} rounds)"


def choose_engine(models: Sequence[ModelFile], *, seconds: float = SECONDS, listener: Listener = SILENT) -> Device:
    """Return ``cpu`` (onnxruntime) or ``openvino``, whichever runs these models faster here, and say the times.

    OpenVINO is only measured where it is installed, starts, and gives onnxruntime's answers within the limits of
    `require_parity`; otherwise a notice (W615) says why ONNX Runtime was chosen.

    Raises:
        ModelError, DeviceError: a model does not run in onnxruntime, see `start_session`.
    """
    path = _cache_path(models)
    known = _read(path)
    if known is not None and openvino_version() != "missing":
        message = f"{FASTEST} is {known.device}: {known}, measured before on this processor"
        listener.notice(Notice("I615", message))
        return known.device
    try:
        if openvino_version() == "missing":
            cause = f"it is not installed ({install_command(extra='openvino')})"
            return _without_openvino(cause, models, listener)
        theirs = [start_session(model, device=_OPENVINO) for model in models]
    except EnsError as err:
        return _without_openvino(err.message, models, listener)
    ours = [start_session(model, device=CPU) for model in models]
    found = time_engines(ours, theirs, seconds=seconds, listener=listener)
    _write(path, found)
    listener.notice(Notice("I615", f"{FASTEST} is {found.device}: {found}"))
    return found.device


def time_engines(
    ours: Sequence[Session], theirs: Sequence[Session], *, seconds: float, listener: Listener = SILENT
) -> EngineTimes:
    """Time the sessions of onnxruntime and of OpenVINO in turn, with one call per core at once, for about ``seconds``.

    It ends early once one engine was clearly faster in each of five rounds. A whole round is measured in any case.
    """
    cores, began = available_cores(), time.monotonic()
    found: tuple[list[float], list[float]] = ([], [])
    with ThreadPoolExecutor(cores) as pool:
        for sessions in (ours, theirs):  # memory is fetched and layers are planned
            _time_round(sessions, pool, cores)
        while not found[0] or time.monotonic() - began < seconds:
            order = (0, 1) if len(found[0]) % 2 == 0 else (1, 0)
            for engine in order:
                found[engine].append(_time_round((ours, theirs)[engine], pool, cores))
            listener.progress("time engines", int(min(time.monotonic() - began, seconds)), int(seconds))
            ratios = [b / a for a, b in zip(*found, strict=True)]
            if len(ratios) >= _CLEAR and (max(ratios) < _MARGIN or min(ratios) > 1 / _MARGIN):
                break
    return EngineTimes(median(found[0]), median(found[1]), len(found[0]))


def _time_round(sessions: Sequence[Session], pool: ThreadPoolExecutor, cores: int) -> float:
    """Return the CPU seconds per image through all sessions, each at its faster batch size."""
    total = 0.0
    for session in sessions:
        pictures = _pictures(session)
        each = []
        for size in _SIZES:
            batch = pictures[:size]
            began = time.process_time()
            for call in [pool.submit(session.run, batch) for _ in range(2 * cores)]:
                call.result()
            each.append((time.process_time() - began) / (2 * cores * len(batch)))
        total += min(each)
    return total


def _pictures(session: Session) -> Pixels:
    wanted = session.card.preprocess
    drawn = draw_pictures(wanted.size)
    return np.ascontiguousarray(drawn)


def _without_openvino(cause: str, models: Sequence[ModelFile], listener: Listener) -> Device:
    message = f"{FASTEST} is cpu (ONNX Runtime); OpenVINO was not measured: {cause}"
    if suited := describe_for_openvino(model.card for model in models):
        message += f"; {suited}, and slower in ONNX Runtime than a float32 model"
    listener.notice(Notice("W615", message))
    return CPU


def _cache_path(models: Sequence[ModelFile]) -> Path:
    import onnxruntime

    versions = [onnxruntime.__version__, openvino_version()]
    parts = [*sorted(model.sha256 for model in models), processor_name(), str(available_cores()), *versions]
    return cache_folder() / "engines" / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> EngineTimes | None:
    """Return the times in a file of the cache; None where there is none, or none that was written here."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        require_type(value, EngineTimes, "the file")
        found = EngineTimes(value["onnxruntime"], value["openvino"], value["rounds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.onnxruntime > 0 and found.openvino > 0 else None


def _write(path: Path, found: EngineTimes) -> None:
    value = {"onnxruntime": found.onnxruntime, "openvino": found.openvino, "rounds": found.rounds}
    try:
        files.require_writable(path.parent)
        files.write_atomic(path, json.dumps(value).encode() + b"\n")
    except FileError:
        pass  # without a writable cache the next run measures again
