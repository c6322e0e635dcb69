"""Start several models on GPUs: as many as fit into memory, with one batch size and their views fused in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.card import Preprocess
from ensemble.errors import DeviceMemoryError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.views import View, parse_views
from ensemble.runtime.autotune import TuningResult, candidate_options, tune, tune_cached
from ensemble.runtime.cache import cache_folder
from ensemble.runtime.cuda import describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.fused_views import HOST_VIEWS, fuse_views, split_views, stack_views
from ensemble.runtime.io_binding import BoundSession, DeviceBuffers, FixedBatchModel, SharedBatchSize
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import INPUT, ModelFile
from ensemble.runtime.parity import ON_GPUS, notify_parity, require_parity
from ensemble.runtime.providers import BindableRuntime, require_on_device
from ensemble.runtime.session import Session, build_network, provider_options, report_start_failure, start_session
from ensemble.runtime.tensorrt import announce_build, digest, engine_options, versions

T = TypeVar("T")
_RUNS = 5  # timed, after two warm-up runs


def start_gpu_sessions(
    models: Mapping[str, ModelFile],
    *,
    device: Device,
    rows: int,
    views: Sequence[View] = (),
    in_turn: bool = False,
    listener: Listener = SILENT,
) -> dict[str, Session]:
    """Start models on one or more GPUs for batches of ``rows`` images; without ``views`` for the image as it is.

    With more than two views the batch is smaller: a network computes at most ``2 * rows`` views of images at once. If
    not all models fit into memory, ``in_turn`` returns the first ones that do, with the notice W608; otherwise, and if
    not even one fits, the batch is halved until they do.

    Raises:
        ModelError, DeviceError: see `start_session`; E602 when not even a batch of one fits, E606 when the logits
            differ from the CPU's.
    """
    shape = SharedBatchSize(rows)
    while shape.rows * len(views) > 2 * rows and shape.halve(shape.rows):
        pass
    while True:
        sessions: dict[str, Session] = {}
        try:
            for name, model in models.items():
                sessions[name] = start_gpu_session(model, device=device, shape=shape, views=views, listener=listener)
            break
        except DeviceMemoryError as err:
            if in_turn and sessions:
                message = f"{len(sessions)} of {len(models)} models fit on {device} at once, the others run afterwards"
                listener.notice(Notice("W608", message))
                break
            if not shape.halve(shape.rows):
                raise
            listener.notice(Notice("W602", f"{err.message}; continuing with {shape.rows}"))
    for name, session in sessions.items() if device.is_gpu else ():
        _compare(session, models[name], views or parse_views("identity"), listener)
    return sessions


def _compare(session: Session, model: ModelFile, views: Sequence[View], listener: Listener) -> None:
    """Compare a model's logits on each GPU with the CPU's, cycling through test images and views so that all occur.

    Raises:
        DeviceError: E606 when they differ.
    """
    card = session.card
    reference = start_session(model, threads=available_cores())

    def turns(pictures: Pixels) -> list[tuple[int, View]]:
        return [(i % len(pictures), views[i % len(views)]) for i in range(max(len(pictures), len(views)))]

    def expect(pictures: Pixels) -> Logits:
        return np.concatenate([reference.run(view.apply(pictures[i : i + 1])) for i, view in turns(pictures)])

    def answer(one: Device, pictures: Pixels) -> Logits:
        buffers = DeviceBuffers(one)
        try:
            buffers.load_later(card.preprocess, model_inputs({card.preprocess: pictures}, views)[card.preprocess])
            logits = retry_on_oom(session, partial(session.run_views, buffers), listener)
        finally:
            buffers.close()
        return np.stack([logits[view.name][i] for i, view in turns(pictures)])

    for one in session.device.each:
        who, size = f"{card.member} on {one}", card.preprocess.size
        parity = require_parity(partial(answer, one), expect, size, who=who, precision=card.precision, limits=ON_GPUS)
        notify_parity(parity, who=who, listener=listener)


def start_gpu_session(
    model: ModelFile,
    *,
    device: Device,
    shape: SharedBatchSize,
    views: Sequence[View] = (),
    listener: Listener = SILENT,
) -> Session:
    """Start one model with a fixed batch size on each of the devices, and run it once on each.

    Raises:
        ModelError, DeviceError: as `start_gpu_sessions`; E608 when the device does not support the model's layers.
    """
    views = views or parse_views("identity")
    card = model.card
    cut, made = split_views(views, card.preprocess.size)
    tuned = TuningResult({}, {}, {})
    placed: dict[str, str] = {}

    def build(options: Mapping[str, str], one: Device, rows: int) -> BoundSession:
        cuda = one.kind == "cuda"
        data = fuse_views(model.data, views, rows=rows, size=card.preprocess.size, for_cudnn=cuda)
        if one.kind == "tensorrt":
            options = engine_options(card, model.sha256, one, rows=rows, views=views)
        with announce_build(options, card.member, listener):
            runtime = cast("BindableRuntime", build_network(model, data, one, options))
            placed["nodes"] = require_on_device(runtime, one, member=card.member) if one.is_gpu else ""
            graphs = options.get("enable_cuda_graph") == "1"
            return BoundSession(runtime, one, rows=rows, views=len(views), classes=len(card.labels), graphs=graphs)

    def session_of(options: Mapping[str, str]) -> Session:
        names = [view.name for view in (*cut, *made)]
        build_one: Callable[[Device, int], BoundSession] = partial(build, options)
        fixed = FixedBatchModel(card.preprocess, len(card.labels), names, shape, device, build_one)
        return Session(card, model.sha256, device, None, fixed, _decisions(options, device, shape, cut, made, tuned))

    noise = _noise(model, shape.rows, made)
    if device.kind == "tensorrt":
        options: Mapping[str, str] = engine_options(card, model.sha256, device.each[0], rows=shape.rows, views=views)
    else:
        options = provider_options(card, model.sha256, device)
    with report_start_failure(device):
        if device.kind == "cuda":
            several = len(device.each) > 1
            network = (card.arch, card.precision, card.preprocess.size, len(card.labels), [view.name for view in views])
            tried = candidate_options(fp16=card.precision == "fp16", several=several)
            key = digest(describe_gpu(device.index), versions(), network, shape.rows, sorted(options.items()), tried)
            tuned = tune_cached(
                cache_folder() / "tuning" / f"{key}.json",
                lambda: tune(
                    options,
                    tried,
                    lambda chosen: _measure(session_of(chosen), noise),
                    member=card.member,
                    listener=listener,
                ),
            )
        session = session_of(tuned.options or options)
        locked = [_run_once(session, one, noise) for one in device.each]
    placed["host memory"] = "page-locked" if all(locked) else "pageable"
    return replace(session, decisions={**session.decisions, **placed})


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


def model_inputs(pixels: Mapping[Preprocess, Pixels], views: Sequence[View]) -> dict[Preprocess, dict[str, Pixels]]:
    """Return the models' inputs for a batch, by preprocessing: the images, and the views that the host must make."""
    return {
        preprocess: {INPUT: images} | _made(split_views(views, preprocess.size)[1], images)
        for preprocess, images in pixels.items()
    }


def shared_batch_size(sessions: Sequence[Session]) -> int:
    """Return the batch size of models that were started together."""
    fixed = sessions[0].fixed_batch
    assert fixed is not None
    return fixed.shape.rows


def _made(views: Sequence[View], images: Pixels) -> dict[str, Pixels]:
    return {HOST_VIEWS: stack_views(views, images)} if views else {}


def _noise(model: ModelFile, rows: int, made: Sequence[View]) -> dict[str, Pixels]:
    """Return a batch of noise by the model's inputs."""
    image = np.random.default_rng(0).integers(96, 160, (rows, *model.card.preprocess.size, 3), dtype=np.uint8)
    return {INPUT: image} | _made(made, image)


def _run_once(session: Session, device: Device, pixels: Mapping[str, Pixels]) -> bool:
    """Run a model on one of its devices; return whether the host's memory could be page-locked."""
    buffers = DeviceBuffers(device)
    try:
        buffers.load_later(session.card.preprocess, pixels)
        session.run_views(buffers)
        return buffers.page_locked
    finally:
        buffers.close()


def _measure(session: Session, pixels: Mapping[str, Pixels]) -> tuple[float, Logits]:
    """Return the median seconds of a batch already on the first device, and its logits."""
    buffers = DeviceBuffers(session.device.each[0])
    try:
        buffers.load_later(session.card.preprocess, pixels)
        for _ in range(2):
            answers = session.run_views(buffers)
        spent = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            session.run_views(buffers)
            spent.append(time.perf_counter() - start)
    finally:
        buffers.close()
    return statistics.median(spent), np.concatenate(list(answers.values()))


def _decisions(
    options: Mapping[str, str],
    device: Device,
    shape: SharedBatchSize,
    cut: Sequence[View],
    made: Sequence[View],
    tuned: TuningResult,
) -> dict[str, str]:
    """Return the settings of a model for the run's record."""
    return {
        "rows": str(shape.rows),
        "views on the device": ", ".join(view.name for view in cut),
        "views on the host": ", ".join(view.name for view in made),
        "gpu": ", ".join(str(describe_gpu(one.index) or one) for one in device.each),
        "tried": tuned.render(),
        **options,
    }
