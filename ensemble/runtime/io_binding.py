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

# while a CUDA graph is captured, no other thread may make CUDA copy or allocate
_QUIET = threading.RLock()
_HERE = threading.local()


class SharedBatchSize:
    """The number of images in every run of every model; it only ever shrinks."""

    def __init__(self, rows: int) -> None:
        self._lock = threading.Lock()
        self.rows = rows

    def halve(self, tried: int) -> bool:
        """Half of what was ``tried``; False when another thread has halved it since."""
        with self._lock:
            if tried != self.rows or tried == 1:
                return False
            self.rows = tried // 2
            return True


@dataclass(slots=True)
class _Place:
    """A buffer on the device, and the host memory that it is filled from."""

    host: Pixels
    value: Any
    locked: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A batch by the model's inputs, and into how many rows a piece it is cut on the device; 0: not there."""

    pixels: Mapping[str, Pixels]
    rows: int

    @property
    def count(self) -> int:
        return len(self.pixels[INPUT])


class DeviceBuffers:
    """The buffers of one batch on one device, made when first needed and then used again for every batch after."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.page_locked = True
        # weakly: a model that is built again for fewer rows gives its memory back at once
        self.users: WeakSet[BoundSession] = WeakSet()
        self._places: dict[tuple[Preprocess, str], list[_Place]] = {}
        self._loaded: dict[Preprocess, _Loaded] = {}

    def load(self, preprocess: Preprocess, pixels: Mapping[str, Pixels], *, rows: int) -> None:
        """Copy a batch to the device, ``rows`` images a piece; the last piece is filled up with what was there before.

        ``pixels`` are ``(n, ...)`` uint8 by the model's inputs: ``(n, H, W, 3)`` for ``image``.
        """
        self.hold(preprocess, pixels)
        for name, array in pixels.items():
            for number, start in enumerate(range(0, len(array), rows)):
                piece = array[start : start + rows]
                place = self._place(preprocess, name, number, (rows, *array.shape[1:]))
                place.host[: len(piece)] = piece
                with _QUIET:
                    place.value.update_inplace(place.host)
        self._loaded[preprocess] = _Loaded(pixels, rows)

    def hold(self, preprocess: Preprocess, pixels: Mapping[str, Pixels]) -> None:
        """Let `pieces` do what `load` does."""
        self._loaded[preprocess] = _Loaded(pixels, 0)

    def pieces(self, preprocess: Preprocess, *, rows: int) -> list[dict[str, Any]]:
        """What is loaded, as one set of inputs for each run; loaded once more when ``rows`` has changed since."""
        found = self._loaded[preprocess]
        if found.rows != rows:
            self.load(preprocess, found.pixels, rows=rows)
        return [
            {name: self._places[preprocess, name][number].value for name in found.pixels}
            for number in range(-(-found.count // rows))
        ]

    def count(self, preprocess: Preprocess) -> int:
        """How many images are loaded."""
        return self._loaded[preprocess].count

    def clear(self) -> None:
        """Forget the batch; the buffers stay."""
        self._loaded.clear()

    def close(self) -> None:
        """Give the memory back, and with it what models keep of it."""
        self.clear()
        for bound in self.users:
            bound.forget()
        self.users.clear()
        for places in self._places.values():
            self._drop(places)
        self._places.clear()

    def _place(self, preprocess: Preprocess, name: str, number: int, shape: tuple[int, ...]) -> _Place:
        places = self._places.setdefault((preprocess, name), [])
        if places and places[0].host.shape != shape:
            # of more rows, which do not come back
            self._drop(places)
        if number == len(places):
            host = np.zeros(shape, dtype=np.uint8)
            with _QUIET:
                value = _on_device(self.device, shape, np.uint8)
                locked = self.device.is_gpu and lock_pages(host, index=self.device.index)
            places.append(_Place(host, value, locked))
            self.page_locked &= locked
        return places[number]

    def _drop(self, places: list[_Place]) -> None:
        with _QUIET:
            for place in places:
                if place.locked:
                    unlock_pages(place.host)
            places.clear()


@contextmanager
def use_buffers(lane: DeviceBuffers) -> Iterator[None]:
    """Inside, what this thread asks of a model goes through ``lane``."""
    _HERE.lane = lane
    try:
        yield
    finally:
        del _HERE.lane


@contextmanager
def buffers_on(device: Device) -> Iterator[DeviceBuffers]:
    """This thread's lane, if it is on the device, or else one for the moment."""
    here: DeviceBuffers | None = getattr(_HERE, "lane", None)
    if here is not None and here.device in device.each:
        yield here
        return
    lane = DeviceBuffers(device.each[0])
    try:
        yield lane
    finally:
        lane.close()


class BoundSession:
    """A session of one shape: the inputs where a lane has them, the logits in a buffer of its own."""

    def __init__(
        self, runtime: BindableRuntime, device: Device, *, rows: int, views: int, classes: int, graphs: bool
    ) -> None:
        self.rows = rows
        self._runtime = runtime
        self._device = device
        self._graphs = graphs
        self._shape = (rows, views, classes)
        with _QUIET:
            self._logits = _on_device(device, (rows * views, classes), np.float32)
        self._bindings: dict[tuple[int, ...], tuple[Any, Any]] = {}
        self._numbers = count_up(1)

    def run(self, inputs: Mapping[str, Any]) -> Logits:
        """The logits ``(rows, views, C)`` of one piece of a lane."""
        key = tuple(value.data_ptr() for value in inputs.values())
        first = key not in self._bindings
        if first:
            self._bindings[key] = self._bind(inputs)
        binding, options = self._bindings[key]
        with _QUIET if first else nullcontext():
            # CUDA's default stream copied the inputs, and the network has a stream of its own, which does not wait
            binding.synchronize_inputs()
            self._runtime.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
        with _QUIET:
            return np.array(self._logits.numpy(), dtype=np.float32).reshape(self._shape)

    def forget(self) -> None:
        """Let go of the lanes it has run with."""
        self._bindings.clear()

    def _bind(self, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        import onnxruntime

        binding = self._runtime.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(LOGITS, self._logits)
        if not self._graphs:
            return binding, None
        options = onnxruntime.RunOptions()
        # a graph knows only the addresses it was captured with: each binding has its own
        options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        return binding, options


@dataclass(slots=True, eq=False)
class FixedBatchModel:
    """One model on its devices with one shape: a `BoundSession` a device, built again when the shape has shrunk.

    ``views`` are the names in the order of the graph's answers, ``build`` starts the network on a device.
    """

    preprocess: Preprocess
    classes: int
    views: Sequence[str]
    shape: SharedBatchSize
    device: Device
    build: Callable[[Device, int], BoundSession]
    bound: dict[Device, BoundSession] = field(default_factory=dict)

    def run_views(self, lane: DeviceBuffers) -> dict[str, Logits]:
        """The logits ``(n, C)`` of each view of what the lane has loaded."""
        logits = self._run(lane)
        return {name: np.ascontiguousarray(logits[:, place]) for place, name in enumerate(self.views)}

    def run(self, lane: DeviceBuffers, pixels: Pixels) -> Logits:
        """The logits ``(n, C)`` of a batch in the host's memory, for a graph of one view."""
        assert len(self.views) == 1
        lane.load(self.preprocess, {INPUT: pixels}, rows=self.shape.rows)
        return self._run(lane)[:, 0]

    def _run(self, lane: DeviceBuffers) -> Logits:
        rows = self.shape.rows
        bound = self.on(lane.device, rows)
        lane.users.add(bound)
        logits = np.concatenate([bound.run(piece) for piece in lane.pieces(self.preprocess, rows=rows)])
        return logits[: lane.count(self.preprocess)]

    def on(self, device: Device, rows: int) -> BoundSession:
        """The model on one of the devices, for so many rows."""
        found = self.bound.get(device)
        if found is None or found.rows != rows:
            self.bound.pop(device, None)
            found = None  # its memory, before the next one needs some
            with _QUIET:
                found = self.build(device, rows)
            self.bound[device] = found
        return found


def _on_device(device: Device, shape: Sequence[int], kind: Any) -> Any:
    import onnxruntime

    name = "cuda" if device.is_gpu else "cpu"
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, name, device.index)
