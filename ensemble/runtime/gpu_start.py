"""Start models on GPUs one by one and side by side: options measured, views fused in, fronts shared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import TypeAlias, TypeVar, cast
from weakref import WeakValueDictionary

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.card import Preprocess
from ensemble.errors import DeviceMemoryError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.views import View, parse_views
from ensemble.runtime.autotune import TuningResult, candidate_options, tune, tune_cached
from ensemble.runtime.cache import cache_folder
from ensemble.runtime.cuda import create_stream, describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.device_pool import DevicePool
from ensemble.runtime.fixed_batch import FixedBatchModel
from ensemble.runtime.front import split_front
from ensemble.runtime.fused_views import HOST_VIEWS, fuse_pool, fuse_views, split_views, stack_views
from ensemble.runtime.io_binding import BoundSession, DeviceBuffers, FrontSession, SharedBatchSize
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import INPUT, ModelFile
from ensemble.runtime.parity import PICTURES
from ensemble.runtime.providers import BindableRuntime, require_on_device
from ensemble.runtime.session import Session, build_network, provider_options, report_start_failure
from ensemble.runtime.tensorrt import announce_build, digest, engine_options, require_symmetric, versions
from ensemble.thread_pool import thread_pool

T = TypeVar("T")
Measure: TypeAlias = Callable[[Mapping[str, str]], tuple[float, Logits]]
RUNS = 5  # timed, after two warm-up runs
_SIDE_BY_SIDE = 4  # sessions that start at once: each searches its convolutions' kernels on a core of its own


@dataclass(slots=True, eq=False)
class GpuStarter:
    """Starts models for one batch size; they share a stream per GPU and, where they begin alike, a front.

    ``fronts`` are those in use, by what they compute, device and options. With a ``pool`` of so many images the models
    take rows and views from a `DevicePool`, one view per run.
    """

    device: Device
    shape: SharedBatchSize
    views: tuple[View, ...]
    listener: Listener = SILENT
    pool: int = 0
    streams: dict[Device, int | None] = field(default_factory=dict)
    fronts: WeakValueDictionary[tuple[object, ...], FrontSession] = field(default_factory=WeakValueDictionary)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if self.device.is_gpu:
            self.streams.update({one: create_stream(one.index) for one in self.device.each})

    def start(self, models: Mapping[str, ModelFile]) -> Iterator[tuple[str, Session]]:
        """Yield each model with its session, in order.

        The first of each kind of network starts alone, as its options are measured; the others of its kind start side
        by side, unless they capture CUDA graphs, while which nothing else may run.

        Raises:
            ModelError, DeviceError: as `start_gpu_sessions`; E608 when the device does not support a model's layers.
        """
        for names in self._groups(models):
            started = list(self._side_by_side(models, names)) if len(names) > 1 else []
            yield from started
            for name in names[len(started) :]:
                yield name, self.start_one(models[name])

    def _side_by_side(self, models: Mapping[str, ModelFile], names: Sequence[str]) -> Iterator[tuple[str, Session]]:
        """Start models together; end with the one before the first that finds no memory: it is tried again alone."""
        with thread_pool(min(_SIDE_BY_SIDE, available_cores(), len(names))) as pool:
            futures = [pool.submit(self.start_one, models[name]) for name in names]
            try:
                for name, future in zip(names, futures, strict=True):
                    yield name, future.result()
            except DeviceMemoryError:
                return
            finally:
                for future in futures:
                    future.cancel()

    def _groups(self, models: Mapping[str, ModelFile]) -> Iterator[list[str]]:
        """Yield the names in order, those that may start side by side together; asked for one after the other."""
        seen: set[str] = set()
        alike: list[str] = []
        for name, model in models.items():
            kind = self.kind_of(model)
            if kind in seen and self.device.kind == "cuda" and not self._captures(model):
                alike.append(name)
                continue
            if alike:
                yield alike
                alike = []
            seen.add(kind)
            yield [name]
        if alike:
            yield alike

    def _captures(self, model: ModelFile) -> bool:
        return self._tuned(model, measure=None).options.get("enable_cuda_graph") == "1"

    def kind_of(self, model: ModelFile) -> str:
        """Return what the fastest options depend on, as a name: the network, the GPU, the shape and the versions."""
        card, several = model.card, len(self.device.each) > 1
        size, classes = card.preprocess.size, len(card.labels)
        network = (card.arch, card.precision, size, classes, [view.name for view in self.views], self.pool)
        tried = candidate_options(fp16=card.precision == "fp16", several=several)
        options = (
            sorted(provider_options(card, model.sha256, self.device).items()) if self.device.kind == "cuda" else ()
        )
        return digest(describe_gpu(self.device.index), versions(), network, self.shape.rows, options, tried)

    def start_one(self, model: ModelFile) -> Session:
        """Start one model on each of the devices and run it once on each.

        Raises:
            ModelError, DeviceError: see `start`.
        """
        made = split_views(self.views, model.card.preprocess.size)[1]
        noise = _noise(model, self.shape.rows, made)
        placed: dict[str, str] = {}
        with report_start_failure(self.device):
            tuned = TuningResult(self._options(model), {}, {})
            if self.device.kind == "cuda":
                tuned = self._tuned(
                    model,
                    measure=lambda options: measure_session(self.session(model, options, {}), noise, pool=self.pool),
                )
            session = self.session(model, tuned.options, placed)
            runs = [_run_once(session, one, noise, pool=self.pool) for one in self.device.each]
        assert session.fixed_batch is not None
        session.fixed_batch.seconds = runs[0].seconds
        placed["host memory"] = "page-locked" if all(run.page_locked for run in runs) else "pageable"
        return replace(session, decisions={**session.decisions, "tried": tuned.render(), **placed})

    def _options(self, model: ModelFile) -> Mapping[str, str]:
        if self.device.kind == "tensorrt":
            one, rows = self.device.each[0], self.shape.rows
            require_symmetric(model, one)
            return engine_options(model.card, model.sha256, one, rows=rows, views=self.views)
        return provider_options(model.card, model.sha256, self.device)

    def _tuned(self, model: ModelFile, *, measure: Measure | None) -> TuningResult:
        """Return the fastest options of this kind of network; without ``measure`` those that were found before."""
        card, several = model.card, len(self.device.each) > 1
        options = self._options(model)

        def find() -> TuningResult:
            if measure is None:
                return TuningResult({"enable_cuda_graph": "1"}, {}, {})  # not known, so nothing may run beside it
            tried = candidate_options(fp16=card.precision == "fp16", several=several)
            return tune(options, tried, measure, member=card.member, listener=self.listener)

        path = cache_folder() / "tuning" / f"{self.kind_of(model)}.json"
        return tune_cached(path, find, write=measure is not None)

    def session(self, model: ModelFile, options: Mapping[str, str], placed: dict[str, str]) -> Session:
        """Return the session of a model that starts with these options when it first runs."""
        card = model.card
        cut, made = split_views(self.views, card.preprocess.size)
        names = [view.name for view in (*cut, *made)]
        build = partial(self._build, model, options, placed)
        fixed = FixedBatchModel(
            card.preprocess, len(card.labels), names, self.shape, self.device, build, streams=self.streams
        )
        decisions = {
            "rows": str(self.shape.rows),
            "views on the device": ", ".join(view.name for view in cut),
            "views on the host": ", ".join(view.name for view in made),
            "gpu": ", ".join(str(describe_gpu(one.index) or one) for one in self.device.each),
            "stream": "one for all models" if any(self.streams.values()) else "one per model",
            "tried": "",
            **options,
        }
        return Session(card, model.sha256, self.device, None, fixed, decisions)

    def _build(
        self, model: ModelFile, options: Mapping[str, str], placed: dict[str, str], one: Device, rows: int
    ) -> BoundSession:
        card, member = model.card, model.card.member
        size = card.preprocess.size
        if self.pool:
            data = fuse_pool(model.data, pool=max(self.pool, PICTURES), rows=rows, size=size)
        else:
            data = fuse_views(model.data, self.views, rows=rows, size=size, for_cudnn=one.kind == "cuda")
        if one.kind == "tensorrt":
            options = engine_options(card, model.sha256, one, rows=rows, views=self.views)
        stream = self.streams.get(one)
        given = {**options, **({} if stream is None else {"user_compute_stream": str(stream)})}
        front = None
        if one.kind == "cuda" and (split := split_front(data)) is not None:
            key = (split.key, one, stream)
            with self._lock:
                front = self.fronts.get(key)
                if front is None:
                    plain = {name: value for name, value in given.items() if name != "enable_cuda_graph"}
                    runtime = cast("BindableRuntime", build_network(model, split.front, one, plain))
                    nodes = require_on_device(runtime, one, member=f"the front of {member}")
                    front = FrontSession(runtime, one, shape=split.shape, kind=split.dtype, stream=stream)
                    front.nodes = nodes
                    self.fronts[key] = front
            data = split.body
            placed["front"] = front.nodes
        with announce_build(options, member, self.listener):
            runtime = cast("BindableRuntime", build_network(model, data, one, given))
            placed["nodes"] = require_on_device(runtime, one, member=member) if one.is_gpu else ""
            return BoundSession(
                runtime,
                shape=(rows, len(self.views), len(card.labels)),
                graphs=options.get("enable_cuda_graph") == "1",
                front=front,
                stream=stream,
            )


def time_options(
    model: ModelFile, options: Mapping[str, str], *, device: Device, rows: int, views: Sequence[View]
) -> float:
    """Return the seconds of a batch with given provider options.

    Raises:
        ModelError, DeviceError: as `GpuStarter.start`.
    """
    starter = GpuStarter(device, SharedBatchSize(rows), tuple(views))
    made = split_views(views, model.card.preprocess.size)[1]
    return measure_session(starter.session(model, options, {}), _noise(model, rows, made))[0]


def model_inputs(pixels: Mapping[Preprocess, Pixels], views: Sequence[View]) -> dict[Preprocess, dict[str, Pixels]]:
    """Return the models' inputs for a batch, by preprocessing: the images, and the views that the host must make."""
    return {
        preprocess: {INPUT: images} | _made(split_views(views, preprocess.size)[1], images)
        for preprocess, images in pixels.items()
    }


def fill(session: Session, device: Device, pixels: Mapping[str, Pixels], *, pool: int) -> DeviceBuffers | DevicePool:
    """Return buffers on one of a model's devices with a batch by the model's inputs, or a pool with its images."""
    if not pool:
        buffers = DeviceBuffers(device)
        buffers.load_later(session.card.preprocess, pixels)
        return buffers
    images = DevicePool(device, pool)
    images.load({session.card.preprocess: pixels[INPUT]})
    images.choose(session.card.preprocess, parse_views("identity")[0], np.arange(len(pixels[INPUT])))
    return images


def measure_session(session: Session, pixels: Mapping[str, Pixels], *, pool: int = 0) -> tuple[float, Logits]:
    """Return the median seconds of a batch already on the first device, and its logits."""
    buffers = fill(session, session.device.each[0], pixels, pool=pool)
    try:
        for _ in range(2):
            answers = session.run_views(buffers)
        spent = []
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run_views(buffers)
            spent.append(time.perf_counter() - start)
    finally:
        buffers.close()
    return statistics.median(spent), np.concatenate(list(answers.values()))


@dataclass(frozen=True, slots=True)
class _FirstRun:
    """The seconds of a batch, and whether the host's memory could be page-locked."""

    seconds: float
    page_locked: bool


def _run_once(session: Session, device: Device, pixels: Mapping[str, Pixels], *, pool: int) -> _FirstRun:
    """Run a model on one of its devices, once to start it and once for the time."""
    buffers = fill(session, device, pixels, pool=pool)
    try:
        session.run_views(buffers)
        start = time.perf_counter()
        session.run_views(buffers)
        return _FirstRun(time.perf_counter() - start, buffers.page_locked)
    finally:
        buffers.close()


def _noise(model: ModelFile, rows: int, made: Sequence[View]) -> dict[str, Pixels]:
    """Return a batch of noise by the model's inputs."""
    image = np.random.default_rng(0).integers(96, 160, (rows, *model.card.preprocess.size, 3), dtype=np.uint8)
    return {INPUT: image} | _made(made, image)


def _made(views: Sequence[View], images: Pixels) -> dict[str, Pixels]:
    return {HOST_VIEWS: stack_views(views, images)} if views else {}


def retry_on_oom(session: Session, ask: Callable[[], T], listener: Listener) -> T:
    """Return ``ask()``; when the device is out of memory, halve the shared batch size with a notice and try again.

    Raises:
        DeviceError: E602 when a batch of one is too large; others as `Session.run`.
    """
    assert session.fixed_batch is not None
    shape = session.fixed_batch.shape
    while True:
        tried = shape.rows
        try:
            return ask()
        except DeviceMemoryError as err:
            if tried == 1:
                raise
            if shape.halve(tried):
                listener.notice(Notice("W602", f"{err.message}; continuing with {shape.rows}"))


def shared_batch_size(sessions: Sequence[Session]) -> int:
    """Return the batch size of models that were started together."""
    fixed = sessions[0].fixed_batch
    assert fixed is not None
    return fixed.shape.rows


def relative_costs(sessions: Sequence[Session]) -> dict[str, float]:
    """Return what a batch of each model took when it started, by member; equal costs where that is not known."""
    costs = {one.card.member: 0.0 if one.fixed_batch is None else one.fixed_batch.seconds for one in sessions}
    return costs if min(costs.values()) > 0 else dict.fromkeys(costs, 1.0)
