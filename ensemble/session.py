"""One model on one device: uint8 images in, float32 logits out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.card import ModelCard
from ensemble.devices import CPU, Device, create_session, explain_log, not_started
from ensemble.errors import DeviceError, EnsError, ModelError
from ensemble.events import SILENT, Listener
from ensemble.images import Pixels
from ensemble.model_file import INPUT, LOGITS, ModelFile, read_model
from ensemble.parity import require_parity, tell_parity

_OUT_OF_MEMORY = re.compile(
    r"BFCArena|out of memory|failed to allocate memory|bad allocation|bad_alloc|CUDA failure 2:", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A model that is ready to run; `run` may be called from several threads at once."""

    card: ModelCard
    sha256: str
    device: Device
    runtime: Any

    def run(self, batch: Pixels, *, output: str = LOGITS) -> NDArray[np.float32]:
        """The logits ``(B, C)`` float32 of a batch ``(B, H, W, 3)`` uint8, or another of the model's outputs.

        Raises:
            DeviceError: E602 when the device's memory is too small for this batch, E604 when an answer is NaN or
                infinite, E605 when the device fails in another way.
        """
        try:
            answers: NDArray[np.float32] = self.runtime.run([output], {INPUT: batch})[0]
        except Exception as err:
            raise _run_error(err, self.card.member, self.device, len(batch)) from err
        bad = int(np.count_nonzero(~np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)))
        if bad:
            raise DeviceError(
                "E604", f"{bad} of {len(batch)} answers of {self.card.member} ({self.card.precision}) are not finite"
            )
        return answers


def open_session(path: Path, *, device: Device = CPU, threads: int = 1) -> Session:
    """Read, check and start one model, and run it once, so that what fails fails here.

    ``threads`` is how many cores one call of `Session.run` may use on the CPU. With 1, the call computes in the
    caller's own thread, and as many calls as there are cores can run side by side.

    Raises:
        FileError, ModelError: see `read_model`; E420 when onnxruntime cannot build the network.
        DeviceError: E601 when the device does not start.
    """
    return start_session(read_model(path), device=device, threads=threads)


def start_session(model: ModelFile, *, device: Device = CPU, threads: int = 1, listener: Listener = SILENT) -> Session:
    """As `open_session`, for a model already read.

    Raises:
        ModelError, DeviceError: as `open_session`; E606 when OpenVINO's answers are not those of onnxruntime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    height, width = model.card.preprocess.size
    try:
        runtime = create_session(model.data, device, options=options, provider_options=provider_options(model, device))
    except EnsError:
        raise
    except Exception as err:
        code = "E421" if re.search(r"IR version|opset", str(err)) else "E420"
        runtime_name = "OpenVINO" if device.kind == "openvino" else "onnxruntime"
        message = f"{model.path.name}: {runtime_name} cannot build it: {_last_line(err)}"
        raise ModelError(code, message, path=model.path) from err
    session = Session(model.card, model.sha256, device, runtime)
    try:
        session.run(np.full((1, height, width, 3), 128, dtype=np.uint8))
    except DeviceError as err:
        if err.code == "E605" and device.is_gpu:
            raise not_started(device, explain_log(str(err.__cause__))) from err
        raise
    if device.kind == "openvino":
        who = f"{model.card.member} on {device}"
        quantised = b"QuantizeLinear" in model.data
        precision = "int8" if quantised else "bf16" if device.bf16 else model.card.precision
        reference = start_session(model, threads=threads)
        parity = require_parity(session.run, reference.run, (height, width), who=who, precision=precision)
        tell_parity(parity, who=who, listener=listener)
    return session


def provider_options(model: ModelFile, device: Device) -> Mapping[str, str]:
    """What onnxruntime is told: no TF32 behind a float32 card; TensorRT engines are kept by model and versions."""
    match device.kind:
        case "cpu" | "openvino":
            return {}
        case "cuda":
            return {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        case "tensorrt":
            height, width = model.card.preprocess.size
            cache = (
                Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ens" / "tensorrt" / model.sha256[:16]
            )
            shape = f"{height}x{width}x3"
            return {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(cache),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(cache.parent),
                "trt_fp16_enable": str(int(model.card.precision == "fp16")),
                "trt_profile_min_shapes": f"{INPUT}:1x{shape}",
                "trt_profile_opt_shapes": f"{INPUT}:128x{shape}",
                "trt_profile_max_shapes": f"{INPUT}:256x{shape}",
            }


def _run_error(err: Exception, member: str, device: Device, batch: int) -> DeviceError:
    if _OUT_OF_MEMORY.search(str(err)):
        return DeviceError("E602", f"{device} has too little memory for {member} at a batch of {batch}")
    return DeviceError("E605", f"{member} failed on {device}: {_last_line(err)}")


def _last_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[-1][:300] if lines else type(err).__name__
