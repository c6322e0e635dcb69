"""Models started together on GPUs: as many as the memory holds, all with one shape and with their views inside."""

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
from ensemble.runtime.autotune import Tuned, tune, tune_once, ways
from ensemble.runtime.cuda import describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.fused_views import MADE, fuse_views, make_views, split_views
from ensemble.runtime.io_binding import BoundSession, DeviceBuffers, FixedBatchModel, SharedBatchSize
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import INPUT, ModelFile
from ensemble.runtime.parity import ON_GPUS, require_parity, tell_parity
from ensemble.runtime.providers import BindableRuntime, require_placed
from ensemble.runtime.session import Session, build_network, provider_options, start_session, starting
from ensemble.runtime.tensorrt import building, cache_folder, digest, engine_options, versions

T = TypeVar("T")
_RUNS = 5  # measured, behind two that warm up


def start_gpu_sessions(
    models: Mapping[str, ModelFile],
    *,
    device: Device,
    rows: int,
    views: Sequence[View] = (),
    in_turn: bool = False,
    listener: Listener = SILENT,
) -> dict[str, Session]:
    """Start models on a GPU, or on several, for ``rows`` images at once; without ``views`` for the image as it is.

    With more than two views the rows are fewer: a network sees up to twice ``rows`` pictures at once, and not more.
    With ``in_turn``, where the memory does not hold all, the first ones that it holds are returned, and the notice W608
    is given; otherwise, and where it does not hold a single one, the rows are halved until it does.

    Raises:
        ModelError, DeviceError: see `start_session`; E602 when not even one row fits, E606 when the answers are not
            those of the CPU.
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
            listener.notice(Notice("W602", f"{err.message}; going on with {shape.rows}"))
    for name, session in sessions.items() if device.is_gpu else ():
        _compare(session, models[name], views or parse_views("identity"), listener)
    return sessions


def _compare(session: Session, model: ModelFile, views: Sequence[View], listener: Listener) -> None:
    """Hold a model's answers on each GPU against those of the CPU: pictures and views in turn, so that all are seen.

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
        lane = DeviceBuffers(one)
        try:
            lane.hold(card.preprocess, model_inputs({card.preprocess: pictures}, views)[card.preprocess])
            logits = retry_on_oom(session, partial(session.run_views, lane), listener)
        finally:
            lane.close()
        return np.stack([logits[view.name][i] for i, view in turns(pictures)])

    for one in session.device.each:
        who, size = f"{card.member} on {one}", card.preprocess.size
        parity = require_parity(partial(answer, one), expect, size, who=who, precision=card.precision, limits=ON_GPUS)
        tell_parity(parity, who=who, listener=listener)


def start_gpu_session(
    model: ModelFile,
    *,
    device: Device,
    shape: SharedBatchSize,
    views: Sequence[View] = (),
    listener: Listener = SILENT,
) -> Session:
    """Start one model with a fixed shape on each of the devices, and run it once on each.

    Raises:
        ModelError, DeviceError: as `start_gpu_sessions`; E608 when the device does not take the model's layers.
    """
    views = views or parse_views("identity")
    card = model.card
    cut, made = split_views(views, card.preprocess.size)
    tuned = Tuned({}, {}, {})
    placed: dict[str, str] = {}

    def build(options: Mapping[str, str], one: Device, rows: int) -> BoundSession:
        data = fuse_views(model.data, views, rows=rows, size=card.preprocess.size)
        if one.kind == "tensorrt":
            options = engine_options(card, model.sha256, one, rows=rows, views=views)
        with building(options, card.member, listener):
            runtime = cast("BindableRuntime", build_network(model, data, one, options))
            placed["nodes"] = require_placed(runtime, one, member=card.member) if one.is_gpu else ""
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
    with starting(device):
        if device.kind == "cuda":
            several = len(device.each) > 1
            network = (card.arch, card.precision, card.preprocess.size, len(card.labels), [view.name for view in views])
            key = digest(describe_gpu(device.index), versions(), network, shape.rows, several)
            tuned = tune_once(
                cache_folder() / "tuning" / f"{key}.json",
                lambda: tune(
                    options,
                    ways(fp16=card.precision == "fp16", several=several),
                    lambda tried: _measure(session_of(tried), noise),
                    member=card.member,
                    listener=listener,
                ),
            )
        session = session_of(tuned.options or options)
        locked = [_run_once(session, one, noise) for one in device.each]
    placed["host memory"] = "page-locked" if all(locked) else "pageable"
    return replace(session, decisions={**session.decisions, **placed})


def retry_on_oom(session: Session, ask: Callable[[], T], listener: Listener) -> T:
    """What ``ask`` gives; where the device has too little memory, the one shape is halved, with a notice, and again.

    Raises:
        DeviceError: E602 when one row is too many; others as `Session.run`.
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
                listener.notice(Notice("W602", f"{err.message}; going on with {shape.rows}"))


def model_inputs(pixels: Mapping[Preprocess, Pixels], views: Sequence[View]) -> dict[Preprocess, dict[str, Pixels]]:
    """What the models take of a batch, by preprocessing: the images, and the views that the device cannot make."""
    return {
        preprocess: {INPUT: images} | _made(split_views(views, preprocess.size)[1], images)
        for preprocess, images in pixels.items()
    }


def shared_batch_size(sessions: Sequence[Session]) -> int:
    """The one shape of the models that run together."""
    fixed = sessions[0].fixed_batch
    assert fixed is not None
    return fixed.shape.rows


def _made(views: Sequence[View], images: Pixels) -> dict[str, Pixels]:
    return {MADE: make_views(views, images)} if views else {}


def _noise(model: ModelFile, rows: int, made: Sequence[View]) -> dict[str, Pixels]:
    """A batch to try a model with, by its inputs."""
    image = np.random.default_rng(0).integers(96, 160, (rows, *model.card.preprocess.size, 3), dtype=np.uint8)
    return {INPUT: image} | _made(made, image)


def _run_once(session: Session, device: Device, pixels: Mapping[str, Pixels]) -> bool:
    """Run a model on one of its devices, and say whether the host's memory could be page-locked."""
    lane = DeviceBuffers(device)
    try:
        lane.hold(session.card.preprocess, pixels)
        session.run_views(lane)
        return lane.page_locked
    finally:
        lane.close()


def _measure(session: Session, pixels: Mapping[str, Pixels]) -> tuple[float, Logits]:
    """The median seconds of a batch that is on the first device already, and its logits."""
    lane = DeviceBuffers(session.device.each[0])
    try:
        lane.hold(session.card.preprocess, pixels)
        for _ in range(2):
            answers = session.run_views(lane)
        spent = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            session.run_views(lane)
            spent.append(time.perf_counter() - start)
    finally:
        lane.close()
    return statistics.median(spent), np.concatenate(list(answers.values()))


def _decisions(
    options: Mapping[str, str],
    device: Device,
    shape: SharedBatchSize,
    cut: Sequence[View],
    made: Sequence[View],
    tuned: Tuned,
) -> dict[str, str]:
    """How a model runs, for the record of the run."""
    return {
        "rows": str(shape.rows),
        "views on the device": ", ".join(view.name for view in cut),
        "views on the host": ", ".join(view.name for view in made),
        "gpu": ", ".join(str(describe_gpu(one.index) or one) for one in device.each),
        "tried": tuned.render(),
        **options,
    }
