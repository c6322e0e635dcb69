"""OpenVINO's own runtime behind the one call that a session makes of onnxruntime: on Intel's and others' CPUs.

OpenVINO's execution provider for onnxruntime is a build of onnxruntime that takes the place of the one with CUDA, and
lags behind it; OpenVINO itself reads the same .onnx bytes and can be installed beside it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.runtime.machine import available_cores


class UnavailableError(Exception):
    """Why OpenVINO cannot be had here, in one line."""


class OpenVINORuntime:
    """A compiled network with onnxruntime's `run`; several threads may call it at once.

    Each call takes an inference request that nobody uses and puts it back, so that there are as many requests as
    there were calls at once.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._names = tuple(output.any_name for output in compiled.outputs)
        self._idle: list[Any] = []

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of these names, or all of them, for the inputs by name."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        inputs = {name: np.ascontiguousarray(values) for name, values in feed.items()}
        found = request.infer(inputs, share_inputs=True, share_outputs=True)
        # copied, because the next call with this request writes over them
        answers = [np.array(found[name]) for name in outputs or self._names]
        self._idle.append(request)
        return answers


def build_runtime(model: bytes, *, bf16: bool, threads: int = 1) -> OpenVINORuntime:
    """Compile an ONNX network for the CPU: in float32, or in bfloat16 where it is asked for.

    A call runs on ``threads`` cores, and as many calls side by side as there are cores for.

    Raises:
        UnavailableError: OpenVINO is not installed, or bfloat16 is asked of a CPU without it.
        RuntimeError: OpenVINO cannot build the network.
    """
    try:
        import openvino
    except ImportError as err:
        raise UnavailableError(f"OpenVINO is not installed ({err})") from err
    core = openvino.Core()
    if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError(f"{core.get_property('CPU', 'FULL_DEVICE_NAME').strip()} does not compute in bf16")
    cores = available_cores()
    settings = {
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": max(1, cores // threads),
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "EXECUTION_MODE_HINT": "PERFORMANCE" if bf16 else "ACCURACY",
        # two processes that pin their threads would pin them to the same cores
        "ENABLE_CPU_PINNING": False,
    }
    return OpenVINORuntime(core.compile_model(core.read_model(model), "CPU", settings))


def openvino_version() -> str:
    """The installed version; ``missing`` where there is none."""
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return "missing"
