"""GPUs for machines without one: the CPU's provider under the name of CUDA, with memory that can run out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest

from ensemble.runtime import cuda, gpu_start, io_binding, providers
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.model_file import INPUT, LOGITS


@dataclass
class FakeGpus:
    """``rows`` is the largest batch that fits into memory, ``models`` how many networks; ``started`` lists them all.

    Options with a ``broken`` value do not start, and ``refused`` operators run on the CPU. ``models_started`` are the
    graphs of networks, ``graphs`` the CUDA graphs, by number, that were captured and released. ``runs`` counts the
    runs of networks and fronts, ``waits`` how often the host waited for the device.
    """

    rows: int = 10**6
    models: int = 10**6
    alive: int = 0
    broken: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    started: list[tuple[Device, Mapping[str, str]]] = field(default_factory=list)
    models_started: list[bytes] = field(default_factory=list)
    graphs: list[tuple[int, str]] = field(default_factory=list)
    waits: int = 0
    runs: int = 0

    def wait(self) -> None:
        """Count a wait for the device."""
        self.waits += 1

    def start(
        self, model: bytes, device: Device, options: Any = None, provider_options: Mapping[str, str] | None = None
    ) -> tuple[Any, str]:
        """Do what `providers.start_runtime` does, on the CPU."""
        asked = provider_options or {}
        if self.broken & set(asked.values()):
            raise RuntimeError(f"not supported: {min(self.broken)}")
        # the front that networks share is not counted
        counted = bool(asked) and onnx.load_from_string(model).graph.output[0].name == LOGITS
        if counted:
            if self.alive >= self.models:
                raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")
            self.started.append((device, dict(asked)))
            self.models_started.append(model)
        return _Network(model, options, self, device.provider, counted=counted), ""


class _Network(onnxruntime.InferenceSession):  # type: ignore[misc]
    def __init__(self, model: bytes, options: Any, gpus: FakeGpus, provider: str, *, counted: bool) -> None:
        super().__init__(model, options, providers=[CPU.provider])
        self._gpus = gpus
        self._provider = provider
        self._counted = counted
        gpus.alive += counted

    def __del__(self) -> None:
        self._gpus.alive -= self._counted

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=CPU.provider if node.op_type in self._gpus.refused else self._provider, get_nodes=part.get_nodes
            )
            for part in super().get_provider_graph_assignment_info()
            for node in part.get_nodes()[:1]
        ]

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        (first, *_) = self.get_inputs()  # of a network behind a front, not the images
        if first.name == INPUT and first.shape[0] > self._gpus.rows:
            raise RuntimeError("CUDA failure 2: out of memory")
        if number := _entry(run_options, "gpu_graph_id"):
            self._gpus.graphs.append((int(number), "captured"))
        self._gpus.runs += 1
        super().run_with_iobinding(iobinding, run_options)
        if not _entry(run_options, "disable_synchronize_execution_providers"):
            self._gpus.waits += 1

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        self._gpus.graphs.append((graph_annotation_id, "released"))


def _entry(options: Any, name: str) -> str:
    """Return a configuration entry of a run; empty where there is none."""
    try:
        return str(options.get_run_config_entry(name))
    except (AttributeError, RuntimeError):
        return ""


@contextmanager
def fake_gpus(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[FakeGpus]:
    """Make every GPU start, and keep what is found out under ``home``."""
    fake, on_device = FakeGpus(), io_binding.allocate
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(providers, "start_runtime", fake.start)
    monkeypatch.setattr(io_binding, "allocate", lambda _, shape, kind: on_device(CPU, shape, kind))
    monkeypatch.setattr(io_binding, "synchronize", lambda *_, **__: fake.wait())
    monkeypatch.setattr(gpu_start, "create_stream", lambda index: 4096 + index)
    monkeypatch.setattr(io_binding, "lock_pages", lambda *_, **__: False)
    for module in (providers, cuda, gpu_start):
        monkeypatch.setattr(module, "describe_gpu", lambda _: cuda.Gpu("NVIDIA Test", "9.0"))
    providers.try_device.cache_clear()
    yield fake
    providers.try_device.cache_clear()
