"""IO binding: run a model with a fixed batch size from and into buffers on its device, allocating and copying nothing.

cuDNN searches for algorithms again for every new shape, and a CUDA graph replays fixed addresses. So all models of a
run share one batch size, `SharedBatchSize`; the last batch is padded to it and the extra rows are cut off. The input
buffers, `DeviceBuffers`, belong to a device and not to a model: ten members that see the same pixels share one copy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count as count_up
from typing import Any
from weakref import WeakSet

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.card import Preprocess
from ensemble.runtime.cuda import lock_pages, synchronize, unlock_pages
from ensemble.runtime.device import Device
from ensemble.runtime.front import TENSOR
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.providers import BindableRuntime

# while a CUDA graph is captured, no other thread may copy or allocate on a GPU
CUDA_LOCK = threading.RLock()
_HERE = threading.local()
_NUMBERS = count_up(1)
_ALIGNED = 64  # floats: 256 bytes, as CUDA aligns what it allocates


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
        self.outputs = OutputBuffer(device)
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
        self.outputs.clear()
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


class FrontSession:
    """The nodes that several networks begin with, run once per piece of a batch; ``value`` is what they all take."""

    def __init__(
        self, runtime: BindableRuntime, device: Device, *, shape: Sequence[int], kind: Any, stream: int | None
    ) -> None:
        self.nodes = ""  # where they run, for the record of a run
        self._runtime = runtime
        self._stream = stream
        with CUDA_LOCK:
            self.value = allocate(device, shape, kind)
        self._bindings: dict[tuple[int, ...], _Binding] = {}

    def run(self, inputs: Mapping[str, Any]) -> None:
        """Compute ``value``; with a stream of our own, return before the device has."""
        key = tuple(value.data_ptr() for value in inputs.values())
        if key not in self._bindings:
            binding = self._runtime.io_binding()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(TENSOR, self.value)
            self._bindings[key] = _Binding(binding, run_options(stream=self._stream))
        run_bound(self._runtime, self._bindings[key], stream=self._stream)

    def forget(self) -> None:
        """Drop the bindings to all buffers it has run with."""
        self._bindings.clear()


class BoundSession:
    """A network of fixed batch size on a device: inputs bound to `DeviceBuffers` or a front, logits to their outputs.

    With a ``front`` it takes that one's tensor instead of the images. With a ``stream``, a ``cudaStream_t`` that all
    networks of the device share, `enqueue` returns at once, and `OutputBuffer.fetch` waits.
    """

    def __init__(
        self,
        runtime: BindableRuntime,
        *,
        shape: tuple[int, int, int],
        graphs: bool = False,
        front: FrontSession | None = None,
        stream: int | None = None,
    ) -> None:
        self.shape = shape  # rows, views, classes
        self.front = front
        self.number = next(_NUMBERS)
        self._runtime = runtime
        self._graphs = graphs
        self._stream = stream
        self._bindings: dict[tuple[int, ...], _Binding] = {}
        self._numbers = count_up(1)

    @property
    def rows(self) -> int:
        """The number of images of a batch."""
        return self.shape[0]

    def enqueue(self, inputs: Mapping[str, Any], outputs: OutputBuffer, number: int) -> None:
        """Run the network on piece ``number`` of a batch, into its place in ``outputs``."""
        inputs = inputs if self.front is None else {TENSOR: self.front.value}
        place = outputs.place(self, number)
        key = (place, *(value.data_ptr() for value in inputs.values()))
        first = key not in self._bindings
        if first:
            self._bindings[key] = self._bind(inputs, outputs, place)
        # only the run that captures a graph must be alone
        with CUDA_LOCK if first and self._graphs else nullcontext():
            run_bound(self._runtime, self._bindings[key], stream=self._stream)

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
        if self.front is not None:
            self.front.forget()

    def _bind(self, inputs: Mapping[str, Any], outputs: OutputBuffer, place: int) -> _Binding:
        binding = self._runtime.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        rows, views, classes = self.shape
        # the buffer's own name for its device, as onnxruntime has it
        where = (outputs.device_name, outputs.device.index if outputs.device_name != "cpu" else 0)
        binding.bind_output(LOGITS, *where, np.float32, [rows * views, classes], place)
        # a CUDA graph replays the addresses it was captured with: one graph per binding
        graph = next(self._numbers) if self._graphs else None
        return _Binding(binding, run_options(stream=self._stream, graph=graph), graph)


def run_options(*, stream: int | None, graph: int | None = None) -> Any:
    """Return the options of a binding's runs; None for onnxruntime's own."""
    if stream is None and graph is None:
        return None
    import onnxruntime

    options = onnxruntime.RunOptions()
    if stream is not None:
        # onnxruntime then neither waits for the stream at the end of a run nor, since 1.28, of a graph's replay
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def run_bound(runtime: BindableRuntime, bound: _Binding, *, stream: int | None) -> None:
    """Run a binding, whose inputs are on the device: a copy to it has ended when `DeviceBuffers.load` returns."""
    runtime.run_with_iobinding(bound.binding, bound.options)
    if stream is None:
        bound.binding.synchronize_outputs()


class OutputBuffer:
    """The logits of all networks and pieces of a batch, in one buffer on the device: one copy brings them back."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._value: Any = None
        self._places: dict[tuple[int, int], int] = {}  # by session and piece: the first float
        self._end = 0

    @property
    def device_name(self) -> str:
        """The name of the buffer's device in onnxruntime, such as ``cuda``."""
        return str(self._value.device_name())

    def reserve(self, sessions: Sequence[BoundSession], pieces: Sequence[int]) -> bool:
        """Make room for so many pieces of each session; return True if the buffer moved, and no binding holds."""
        for session, count in zip(sessions, pieces, strict=True):
            for number in range(count):
                if (session.number, number) not in self._places:
                    self._places[session.number, number] = self._end
                    self._end += -(-int(np.prod(session.shape)) // _ALIGNED) * _ALIGNED
        if self._value is not None and self._value.shape()[0] >= self._end:
            return False
        moved, self._value = self._value is not None, None  # free the old one first
        with CUDA_LOCK:
            self._value = allocate(self.device, (self._end,), np.float32)
        return moved

    def place(self, session: BoundSession, number: int) -> int:
        """Return the address of a session's logits for piece ``number``."""
        return int(self._value.data_ptr()) + 4 * self._places[session.number, number]

    def fetch(self, stream: int | None) -> Logits:
        """Wait for the device, once, and return a copy of the whole buffer, once."""
        if stream is not None:
            synchronize(stream, index=self.device.index)
        with CUDA_LOCK:
            return np.array(self._value.numpy(), dtype=np.float32)

    def logits(self, fetched: Logits, session: BoundSession, number: int) -> Logits:
        """Return the logits ``(rows, views, C)`` of a session's piece from what `fetch` returned."""
        start = self._places[session.number, number]
        return fetched[start : start + int(np.prod(session.shape))].reshape(session.shape)

    def clear(self) -> None:
        """Free the buffer."""
        self._value, self._end = None, 0
        self._places.clear()


def allocate(device: Device, shape: Sequence[int], kind: Any) -> Any:
    """Return an uninitialized ``onnxruntime.OrtValue`` of this shape and numpy type on the device."""
    import onnxruntime

    name = "cuda" if device.is_gpu else "cpu"
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, name, device.index)
