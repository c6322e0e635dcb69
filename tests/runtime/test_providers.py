"""The requested device is the one that runs, or an error says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ensemble.errors import DeviceError, OptionError
from ensemble.events import Recorder
from ensemble.install import install_command
from ensemble.runtime import providers
from ensemble.runtime.cuda import Gpu
from ensemble.runtime.device import CPU, PROVIDERS, Device, parse_device
from ensemble.runtime.machine import available_cores
from ensemble.runtime.proof import proofs_of
from ensemble.runtime.providers import choose_device, explain_log, try_device
from tests.support.gpus import fake_gpus


@pytest.fixture(autouse=True)
def forget_starts() -> Iterator[None]:
    """Clear the cache of started devices, so that each test starts them again."""
    try_device.cache_clear()
    yield
    try_device.cache_clear()


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", None),
        ("cpu", CPU),
        ("cuda", Device("cuda", 0)),
        ("cuda:3", Device("cuda", 3)),
        ("tensorrt:1", Device("tensorrt", 1)),
        ("cuda:2,0", Device("cuda", 2, others=(0,))),
    ],
)
def test_devices_are_named_as_in_torch(text: str, device: Device | None) -> None:
    """A name with an index is that device, a name without one is the first."""
    assert parse_device(text) == device


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA", "cuda:1 ", "cuda:0,", "cuda:0,1,0"]
)
def test_a_device_that_is_not_known_is_refused(text: str) -> None:
    """Anything else is E203, never taken for the CPU."""
    with pytest.raises(OptionError, match="E203"):
        parse_device(text)


def test_the_cpu_starts_everywhere() -> None:
    """The CPU is proved by a model that adds, like any other device."""
    assert try_device(CPU).works
    assert choose_device("cpu") == CPU


class FallenBack:
    """What onnxruntime gives when CUDA does not start: a session on the CPU, and no error."""

    def __init__(self, model: bytes, options: Any = None, **rest: Any) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        return [feed["x"] * 2]


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_fault_60_a_silent_fallback_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """When the session's own providers lack the device, asking for it is E601, although onnxruntime lists it."""
    monkeypatch.setattr("ensemble.runtime.tensorrt.explain_missing", lambda: "")
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    with pytest.raises(DeviceError, match=f"E601.*{name}:0") as caught:
        choose_device(name)
    packages = ["tensorrt-cu13>=10.13,<11"] if name == "tensorrt" else []
    assert install_command(*packages, extra="gpu") in caught.value.hint


def test_several_gpus_are_named_once_and_run_one_by_one() -> None:
    """The name of several GPUs is what asks for them, and each of them is a device of its own."""
    device = Device("cuda", 2, others=(0,))
    assert parse_device(str(device)) == device
    assert device.each == (Device("cuda", 2), Device("cuda", 0))


def test_gpus_of_two_kinds_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two GPUs of different models are E607, which names both; one that does not start is E601."""
    with fake_gpus(monkeypatch, tmp_path):
        assert choose_device("cuda:0,1") == Device("cuda", 0, others=(1,))
        monkeypatch.setattr(providers, "describe_gpu", lambda index: Gpu(("NVIDIA A100", "NVIDIA T4")[index], "8.0"))
        with pytest.raises(DeviceError, match=r"E607.*A100.*T4"):
            choose_device("cuda:0,1")
        try_device.cache_clear()
        monkeypatch.setattr(providers, "start_runtime", fails_on_1)
        with pytest.raises(DeviceError, match=r"E601.*cuda:1 was requested.*no GPU of that index"):
            choose_device("cuda:0,1")


def fails_on_1(model: bytes, device: Device, *rest: Any) -> tuple[Any, str]:
    if device.index == 1:
        raise RuntimeError("CUDA failure 101: invalid device ordinal ; GPU=1")
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), ""


def test_fault_60_auto_goes_on_with_the_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` without a GPU is the CPU and a W601 that names the cause."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    recorder = Recorder()
    assert choose_device("auto", listener=recorder) == CPU
    assert [notice.code for notice in recorder.notices] == ["W601"]
    assert "built without CUDAExecutionProvider" in recorder.notices[0].message


def test_a_device_that_computes_wrongly_does_not_count_as_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose one plus one is not two is not used."""

    class Wrong(FallenBack):
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
            return [np.zeros(1, dtype=np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    start = try_device(Device("cuda"))
    assert not start.works
    assert "1 + 1 gave 0.0" in start.cause


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (
            "\x1b[1;31m[E] Failed to load library a.so: libcurand.so.10: cannot open shared object file\n",
            "libcurand.so.10 is missing",
        ),
        ("libcuda.so.1: cannot open shared object file", "libcuda.so.1 is missing: no NVIDIA driver is installed"),
        (
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "the NVIDIA driver is too old",
        ),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1", "no NVIDIA GPU is visible"),
        ("CUDA failure 101: invalid device ordinal ; GPU=7", "no GPU of that index"),
        ("Please install TensorRT libraries as mentioned", "the TensorRT libraries are missing"),
        # of 1.31.1's libonnxruntime_providers_cuda.so
        ("cuDNN is not available. Install cuDNN, update the system library search path, or", "cuDNN is missing"),
        ("CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0", "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIAL"),
        ("", "without a reason"),
    ],
)
def test_fault_61_the_cause_is_read_from_the_log(log: str, cause: str) -> None:
    """The missing library, the old driver and the missing GPU are distinguished."""
    assert cause in explain_log(log)


class Dim(FallenBack):
    """A GPU on which everything works but convolutions in ``broken``."""

    broken = ""

    def __init__(self, model: bytes, options: Any = None, **rest: Any) -> None:
        self._session = REAL_SESSION(model, options, providers=["CPUExecutionProvider"])
        self._fails = self.broken.encode() in model if self.broken else False

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        if self._fails:
            raise RuntimeError(f"{CUDNN_FAILED}Name:'3x3 convolution in {self.broken}' Status Message: {CUDNN_MISSING}")
        answer: list[Any] = self._session.run(outputs, feed)
        return answer


REAL_SESSION = onnxruntime.InferenceSession
CUDNN_FAILED = "[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned while running Conv node. "
CUDNN_MISSING = "cuDNN is not available. Install cuDNN, update the system library search path, or set enable_cudnn=0"


@pytest.mark.parametrize(("broken", "works"), [("", True), ("in float32", False), ("in float16", False)])
def test_a_gpu_without_convolutions_does_not_count_as_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str, works: bool
) -> None:
    """CUDA that adds and has no cuDNN, for float32 or float16, does not start: its first convolution says why."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Dim, "broken", broken)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Dim)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    start = try_device(Device("cuda"))
    assert start.works is works
    assert start.cause.startswith("cuDNN is missing" if broken else "")


def test_a_convolution_that_computes_wrongly_is_found_out() -> None:
    """The expected values are onnxruntime's own on the CPU; another answer, or NaN, is named with its precision."""
    for proof in proofs_of(Device("cuda")):
        session = REAL_SESSION(proof.model, providers=["CPUExecutionProvider"])
        answer = session.run(None, dict(proof.inputs))[0]
        assert proof.fault(answer) == ""
        assert proof.name in proof.fault(answer * 1.01)
        assert proof.name in proof.fault(answer * np.nan)
    assert [proof.name for proof in proofs_of(CPU)] == ["1 + 1"]
    assert "Pad" in str(onnx.load_from_string(proofs_of(Device("cuda"))[1].model).graph)
    assert "Pad" not in str(onnx.load_from_string(proofs_of(Device("tensorrt"))[1].model).graph)


def test_cores_are_those_this_process_may_use() -> None:
    """The number of cores is at least one and never more than the machine has."""
    import os

    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.gpu
def test_cuda_starts_where_there_is_a_gpu() -> None:
    """On a machine with a GPU and CUDA's libraries, CUDA runs the proof."""
    start = try_device(Device("cuda"))
    if not start.works:
        pytest.skip(f"no CUDA device here: {start.cause}")
    assert choose_device("auto") == Device("cuda")
