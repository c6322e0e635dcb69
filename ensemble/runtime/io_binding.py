"""IO binding: run a model with a fixed batch size from and into buffers on its device, allocating and copying nothing.

cuDNN searches for algorithms again for every new shape, and a CUDA graph replays fixed addresses. So all models of a
run share one batch size, `SharedBatchSize`; the last batch is padded to it and the extra rows are cut off. The input
buffers, `DeviceBuffers`, belong to a device and not to a model: ten members that see the same pixels share one copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count as count_up
from typing import Any
from weakref import WeakSet

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.card import Preprocess
from ensemble.runtime.cuda import lock_pages, unlock_pages
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.providers import BindableRuntime

# while a CUDA graph is captured, no other thread may copy or allocate on a GPU
CUDA_LOCK = threading.RLock()
_HERE = threading.local()


class SharedBatchSize:
    """The batch size of all models of a run; it never grows."""

    def __init__(self, rows: int) -> None:
        self._lock = threading.Lock()
        self.rows = rows

    def halve(self, tried: int) -> bool:
        """Halve the size that was ``tried``; return False if it is 1 or another thread has halved it meanwhile."""
        with self._lock:
            if tried != self.rows or tried == 1:
                return False
            self.rows = tried // 2
            return True


@dataclass(slots=True)
class _Buffer:
    """A buffer on the device, and the host memory that is copied to it."""

    host: Pixels
    value: Any
    locked: bool


@dataclass(frozen=True, slots=True, eq=False)
class _LoadedBatch:
    """A batch by the model's inputs, and the ``rows`` per piece on the device; 0 if it is not there yet."""

    pixels: Mapping[str, Pixels]
    rows: int

    @property
    def count(self) -> int:
        return len(self.pixels[INPUT])


class DeviceBuffers:
    """The input buffers of one batch on one device, allocated when first needed and reused for every later batch."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.page_locked = True
        # weak references: a model that is rebuilt for a smaller batch frees its memory at once
        self.users: WeakSet[BoundSession] = WeakSet()
        self._places: dict[tuple[Preprocess, str], list[_Buffer]] = {}
        self._loaded: dict[Preprocess, _LoadedBatch] = {}

    def load(self, preprocess: Preprocess, pixels: Mapping[str, Pixels], *, rows: int) -> None:
        """Copy a batch to the device in pieces of ``rows`` images; the last one is padded with what was there before.

        ``pixels`` are ``(n, ...)`` uint8 by the model's inputs: ``(n, H, W, 3)`` for ``image``.
        """
        self.load_later(preprocess, pixels)
        for name, array in pixels.items():
            for number, start in enumerate(range(0, len(array), rows)):
                piece = array[start : start + rows]
                place = self._buffer(preprocess, name, number, (rows, *array.shape[1:]))
                place.host[: len(piece)] = piece
                with CUDA_LOCK:
                    place.value.update_inplace(place.host)
        self._loaded[preprocess] = _LoadedBatch(pixels, rows)

    def load_later(self, preprocess: Preprocess, pixels: Mapping[str, Pixels]) -> None:
        """Remember a batch that `pieces` will copy."""
        self._loaded[preprocess] = _LoadedBatch(pixels, 0)

    def pieces(self, preprocess: Preprocess, *, rows: int) -> list[dict[str, Any]]:
        """Return the inputs of each run over the loaded batch; load it again if ``rows`` has changed meanwhile."""
        found = self._loaded[preprocess]
        if found.rows != rows:
            self.load(preprocess, found.pixels, rows=rows)
        return [
            {name: self._places[preprocess, name][number].value for name in found.pixels}
            for number in range(-(-found.count // rows))
        ]

    def count(self, preprocess: Preprocess) -> int:
        """Return the number of images loaded."""
        return self._loaded[preprocess].count

    def clear(self) -> None:
        """Forget the batch, keep the buffers."""
        self._loaded.clear()

    def close(self) -> None:
        """Free the memory, and the models' bindings to it."""
        self.clear()
        for bound in self.users:
            bound.forget()
        self.users.clear()
        for places in self._places.values():
            self._drop(places)
        self._places.clear()

    def _buffer(self, preprocess: Preprocess, name: str, number: int, shape: tuple[int, ...]) -> _Buffer:
        places = self._places.setdefault((preprocess, name), [])
        if places and places[0].host.shape != shape:
            # for a larger batch size, which does not come back
            self._drop(places)
        if number == len(places):
            host = np.zeros(shape, dtype=np.uint8)
            with CUDA_LOCK:
                value = allocate(self.device, shape, np.uint8)
                locked = self.device.is_gpu and lock_pages(host, index=self.device.index)
            places.append(_Buffer(host, value, locked))
            self.page_locked &= locked
        return places[number]

    def _drop(self, places: list[_Buffer]) -> None:
        with CUDA_LOCK:
            for place in places:
                if place.locked:
                    unlock_pages(place.host)
            places.clear()


@contextmanager
def use_buffers(buffers: DeviceBuffers) -> Iterator[None]:
    """Make this thread's runs use ``buffers`` inside the block."""
    _HERE.buffers = buffers
    try:
        yield
    finally:
        del _HERE.buffers


@contextmanager
def buffers_on(device: Device) -> Iterator[DeviceBuffers]:
    """Yield this thread's buffers if they are on the device, else temporary ones."""
    here: DeviceBuffers | None = getattr(_HERE, "buffers", None)
    if here is not None and here.device in device.each:
        yield here
        return
    buffers = DeviceBuffers(device.each[0])
    try:
        yield buffers
    finally:
        buffers.close()


@dataclass(frozen=True, slots=True, eq=False)
class _Binding:
    """An ``onnxruntime.IOBinding``, the options of its runs, and the number of the CUDA graph that it replays."""

    binding: Any
    options: Any = None
    graph: int | None = None


class BoundSession:
    """A network of fixed batch size: inputs bound to `DeviceBuffers`, logits to an output buffer of its own."""

    def __init__(
        self, runtime: BindableRuntime, device: Device, *, rows: int, views: int, classes: int, graphs: bool
    ) -> None:
        self.rows = rows
        self._runtime = runtime
        self._device = device
        self._graphs = graphs
        self._shape = (rows, views, classes)
        with CUDA_LOCK:
            self._logits = allocate(device, (rows * views, classes), np.float32)
        self._bindings: dict[tuple[int, ...], _Binding] = {}
        self._numbers = count_up(1)

    def run(self, inputs: Mapping[str, Any]) -> Logits:
        """Return the logits ``(rows, views, C)`` of one piece of a batch."""
        key = tuple(value.data_ptr() for value in inputs.values())
        first = key not in self._bindings
        if first:
            self._bindings[key] = self._bind(inputs)
        bound = self._bindings[key]
        with CUDA_LOCK if first else nullcontext():
            # CUDA's default stream copied the inputs; the network's own stream does not wait for it
            bound.binding.synchronize_inputs()
            self._runtime.run_with_iobinding(bound.binding, bound.options)
            bound.binding.synchronize_outputs()
        with CUDA_LOCK:
            return np.array(self._logits.numpy(), dtype=np.float32).reshape(self._shape)

    def forget(self) -> None:
        """Drop the bindings to all buffers it has run with, and the CUDA graphs captured for them.

        onnxruntime keeps a graph per thread that captured one: so the thread that ran the model calls this.
        """
        release = getattr(self._runtime, "release_captured_graph", None)  # since onnxruntime 1.31
        for bound in self._bindings.values():
            if bound.graph is not None and release is not None:
                with CUDA_LOCK:
                    release(bound.graph)
        self._bindings.clear()

    def _bind(self, inputs: Mapping[str, Any]) -> _Binding:
        import onnxruntime

        binding = self._runtime.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(LOGITS, self._logits)
        if not self._graphs:
            return _Binding(binding)
        options = onnxruntime.RunOptions()
        # a CUDA graph replays the addresses it was captured with: one graph per binding
        graph = next(self._numbers)
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return _Binding(binding, options, graph)


@dataclass(slots=True, eq=False)
class FixedBatchModel:
    """One model on its devices: one `BoundSession` per device, rebuilt when the shared batch size has shrunk.

    ``views`` are the views' names in the order of the graph's output, ``build`` starts the network on a device.
    """

    preprocess: Preprocess
    classes: int
    views: Sequence[str]
    shape: SharedBatchSize
    device: Device
    build: Callable[[Device, int], BoundSession]
    bound: dict[Device, BoundSession] = field(default_factory=dict)

    def run_views(self, buffers: DeviceBuffers) -> dict[str, Logits]:
        """Return the logits ``(n, C)`` of each view of the loaded batch."""
        logits = self._run(buffers)
        return {name: np.ascontiguousarray(logits[:, place]) for place, name in enumerate(self.views)}

    def run(self, buffers: DeviceBuffers, pixels: Pixels) -> Logits:
        """Return the logits ``(n, C)`` of a batch in host memory, for a graph of one view."""
        assert len(self.views) == 1
        buffers.load(self.preprocess, {INPUT: pixels}, rows=self.shape.rows)
        return self._run(buffers)[:, 0]

    def _run(self, buffers: DeviceBuffers) -> Logits:
        rows = self.shape.rows
        bound = self.on(buffers.device, rows)
        buffers.users.add(bound)
        logits = np.concatenate([bound.run(piece) for piece in buffers.pieces(self.preprocess, rows=rows)])
        return logits[: buffers.count(self.preprocess)]

    def on(self, device: Device, rows: int) -> BoundSession:
        """Return the model on one of the devices for a batch of ``rows``."""
        found = self.bound.get(device)
        if found is None or found.rows != rows:
            self.bound.pop(device, None)
            found = None  # free its memory before the next one is built
            with CUDA_LOCK:
                found = self.build(device, rows)
            self.bound[device] = found
        return found


def allocate(device: Device, shape: Sequence[int], kind: Any) -> Any:
    """Return an uninitialised ``onnxruntime.OrtValue`` of this shape and numpy type on the device."""
    import onnxruntime

    name = "cuda" if device.is_gpu else "cpu"
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, name, device.index)
