"""Run a model with OpenVINO's own runtime on a CPU, behind onnxruntime's ``run``.

OpenVINO's execution provider comes in a separate build of onnxruntime, which replaces the CUDA one and lags behind it;
OpenVINO itself reads the same .onnx bytes and can be installed beside onnxruntime-gpu.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.card import ModelCard
from ensemble.errors import enumerate_some
from ensemble.install import version_of
from ensemble.runtime.machine import available_cores
from ensemble.runtime.openvino_graph import computes_weights, for_openvino


class UnavailableError(Exception):
    """OpenVINO cannot be used here; the message is the cause in one line."""


class OpenVINORuntime:
    """A compiled network with onnxruntime's `run`; several threads may call it at once.

    Each call takes an idle inference request and puts it back, so there are as many requests as concurrent calls.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._names = tuple(output.any_name for output in compiled.outputs)
        self.idle_requests: list[Any] = []

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the named outputs, or all of them, for inputs by name."""
        try:
            request = self.idle_requests.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        inputs = {name: np.ascontiguousarray(values) for name, values in feed.items()}
        found = request.infer(inputs, share_inputs=True, share_outputs=True)
        # copied: the next call with this request overwrites them
        answers = [np.array(found[name]) for name in outputs or self._names]
        self.idle_requests.append(request)
        return answers


def build_runtime(model: bytes, *, bf16: bool, threads: int = 1) -> OpenVINORuntime:
    """Compile an ONNX network for the CPU, in float32 or bfloat16.

    A call runs on ``threads`` cores; as many calls run in parallel as there are cores for.

    Raises:
        UnavailableError: OpenVINO is not installed, or the CPU does not support bfloat16.
        RuntimeError: OpenVINO cannot build the network.
    """
    core = shared_core()
    if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError(f"{core.get_property('CPU', 'FULL_DEVICE_NAME').strip()} does not compute in bf16")
    cores = available_cores()
    streams = max(1, cores // threads)
    settings = {
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "EXECUTION_MODE_HINT": "PERFORMANCE" if bf16 else "ACCURACY",
        # two processes with pinned threads would pin them to the same cores
        "ENABLE_CPU_PINNING": False,
    }
    graph = for_openvino(model)
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    if graph is not model and streams > 1 and computes_weights(compiled):
        # with several streams OpenVINO 2026.4 keeps such weights before it has computed them
        compiled = core.compile_model(core.read_model(graph), "CPU", settings | {"NUM_STREAMS": 1})
    return OpenVINORuntime(compiled)


_core: Any = None
_starting = threading.Lock()


def shared_core() -> Any:
    """Return OpenVINO's core: one per process, which is kept until its end.

    A core's CPU plugin gives the thread that starts it an alternate stack for signals, and unmaps this memory when it
    is freed, even from another thread or while the plugin of a later core will restore it (``SigAltStackSetup`` in
    openvino/src/plugins/intel_cpu/src/sigstack_manager.cpp). The next signal then ends the process with SIGSEGV.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    global _core
    try:
        import openvino
    except ImportError as err:
        raise UnavailableError(f"OpenVINO is not installed ({err})") from err
    with _starting:
        if _core is None:
            _core = openvino.Core()
        return _core


def openvino_version() -> str:
    """Return the installed version, or ``missing``."""
    return version_of("openvino") or "missing"


def is_for_openvino(card: ModelCard) -> bool:
    """Return True for an int8 model that is quantized for OpenVINO: activation functions in float32 between integers.

    OpenVINO fuses a convolution, its activation function and the rounding; ONNX Runtime computes them one by one.
    """
    return card.precision == "int8" and card.checks.get("scheme") == "openvino"


def describe_for_openvino(cards: Iterable[ModelCard]) -> str:
    """Return, as the beginning of a message, which models are quantized for OpenVINO; empty if none is."""
    names = [card.member for card in cards if is_for_openvino(card)]
    return f"{enumerate_some(names)} {'is' if len(names) == 1 else 'are'} quantized for OpenVINO" if names else ""
