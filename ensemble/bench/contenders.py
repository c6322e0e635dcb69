"""The contenders of a benchmark that are our own: `predict`, its bound and `submit`. The caller supplies the baselines.

Each runs in a process of its own with a job and a timer, see `ensemble.bench.process_meter`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ensemble.arrays import Pixels
from ensemble.bench.agreement import MemberLogits
from ensemble.bench.process_meter import PassResult, PassTimer
from ensemble.blend.recipe import read_recipe
from ensemble.card import Preprocess
from ensemble.events import SILENT, Listener
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Boxes, read_boxes
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import Listing, list_images
from ensemble.images.views import View, parse_views
from ensemble.predict.inputs import select_boxes
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.predictions.external import NO_OPTIONS, ExternalOptions
from ensemble.predictions.read_members import read_members
from ensemble.runtime.device import Device, parse_device
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.gpu_start import model_inputs, shared_batch_size
from ensemble.runtime.io_binding import DeviceBuffers
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.session import run_together, start_session
from ensemble.submission.sheet import AnswerSheet
from ensemble.submit.destination import Destination
from ensemble.submit.exit_thresholds import Goal
from ensemble.submit.submit import EarlyExit, submit

_PREPARED = 256  # images that the bound keeps in memory and cycles through


@dataclass(frozen=True, slots=True)
class JobInputs:
    """The files of a job, read: models, images, and the face box per image where a model needs it."""

    models: tuple[ModelFile, ...]
    listing: Listing
    faces: tuple[Box | None, ...] | None

    def face(self, row: int) -> Box | None:
        """Return the face box of an image."""
        return None if self.faces is None else self.faces[row]


@dataclass(frozen=True, slots=True)
class BenchJob:
    """The job of every contender: predict these images with these models, with ``tta`` also flipped horizontally.

    ``warm_up`` images go first, before the timer starts. ``batch`` and ``workers`` are what the user asked of
    `predict`. The bound is given what `predict` chose, including ``at_once``: images per forward pass, by member.
    ``scratch`` is a folder for output that outlives the pass.
    """

    models: tuple[Path, ...]
    images: Path
    ids: tuple[str, ...] = ()
    tta: bool = False
    device: str | Device = "auto"
    boxes: Path | None = None
    batch: int | None = None
    workers: int | None = None
    at_once: Mapping[str, int] = field(default_factory=dict)
    warm_up: int = 0
    scratch: Path | None = None

    @property
    def where(self) -> Device:
        """The device; `bench` has replaced "auto"."""
        device = self.device if isinstance(self.device, Device) else parse_device(self.device)
        assert device is not None
        return device

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views."""
        return ("identity", "hflip") if self.tta else ("identity",)

    def read(self) -> JobInputs:
        """Read the models and find the images.

        Raises:
            EnsError: as `read_model`, `list_images`, `read_boxes` and `select_boxes`.
        """
        models = tuple(read_model(path) for path in self.models)
        listing = list_images(self.images, self.ids)
        return JobInputs(models, listing, select_boxes(models, self.read_boxes(), listing, SILENT))

    def read_boxes(self) -> Boxes | None:
        """Read the face boxes, if there are any."""
        return None if self.boxes is None else read_boxes(self.boxes)


def run_predict(job: BenchJob, timer: PassTimer) -> PassResult:
    """Run `ens predict` itself, into a new folder each time."""
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder:

        def run(ids: tuple[str, ...], name: str, *, timed: bool) -> PassResult:
            done = predict(
                job.models,
                job.images,
                Path(folder, name),
                views=parse_views(",".join(job.views)),
                ids=ids,
                boxes=job.read_boxes(),
                options=_options(job, timer if timed else None),
            )
            if timed:
                timer.stop()
            logits = {one.member: read_predictions(one.folder).logits for one in done.members}
            stages = {stage: spent for stage, spent in done.seconds.items() if stage != "wall"}
            at_once = {one.member: one.at_once or done.batch for one in done.members}
            return PassResult(logits, done.batch, done.workers, stages, at_once=at_once)

        # on GPUs the start itself runs every model several times before the timer starts
        if job.warm_up and not job.where.is_gpu:
            run(job.ids[: job.warm_up], "warm-up", timed=False)
        return run(job.ids, "run", timed=True)


def _options(job: BenchJob, timer: PassTimer | None) -> RunOptions:
    """Return what the user asked of a run; a timed one starts the timer when its first images are due."""
    listener = SILENT if timer is None else Starter(timer)
    return RunOptions(device=job.device, batch=job.batch, workers=job.workers, listener=listener)


def run_bound(job: BenchJob, timer: PassTimer) -> PassResult:
    """Run only the forward passes of `predict`, on pixels that are already in the memory of the device.

    This is the upper bound of its speed. On the CPU each worker thread takes a batch through all models and views; each
    GPU has a thread of its own.
    """
    inputs, batch, workers = job.read(), job.batch, job.workers
    assert batch is not None
    assert workers is not None
    count = -(-len(job.ids) // batch)
    kept = min(count, max(1, _PREPARED // batch))
    batches = [_prepare(inputs, range(i * batch, min((i + 1) * batch, len(job.ids)))) for i in range(kept)]
    views = parse_views(",".join(job.views))
    if job.where.is_gpu:
        predict_batch = _on_gpus(inputs, batches, views, job.where, batch)
        pools = [ThreadPoolExecutor(1) for _ in job.where.each]
    else:
        predict_batch = _on_cpu(inputs, batches, views, job.where, job.at_once)
        pools = [ThreadPoolExecutor(workers)]

    def run(batches: int) -> list[MemberLogits]:
        futures = [
            pools[i % len(pools)].submit(predict_batch, i, min(batch, len(job.ids) - i * batch)) for i in range(batches)
        ]
        return [future.result() for future in futures]

    if job.warm_up:
        run(min(count, kept * len(pools)))
    timer.start()
    found = run(count)[:kept]
    timer.stop()
    for pool in pools:
        pool.shutdown()
    logits = {
        member: {view: np.concatenate([one[member][view] for one in found]) for view in views_of_member}
        for member, views_of_member in found[0].items()
    }
    return PassResult(logits, batch, workers)


@dataclass(frozen=True, slots=True)
class RunSubmit:
    """`ens submit` itself, with a recipe and the settings of its early exit (see `EarlyExit`)."""

    recipe: Path
    early: bool = False
    goal: Goal | None = None
    oof: tuple[Path, ...] = ()
    truth: Path | None = None
    tables: ExternalOptions = NO_OPTIONS

    def __call__(self, job: BenchJob, timer: PassTimer) -> PassResult:
        """Submit the images of the job with its models; the recipe decides which views."""
        recipe = read_recipe(self.recipe)
        options = replace(self.tables, activation=recipe.activation)
        oof = read_members(self.oof, recipe.labels, options=options, beside=(self.truth,))
        early = EarlyExit(self.goal, oof, self.truth) if self.early else None
        with tempfile.TemporaryDirectory(dir=job.scratch) as folder:

            def run(ids: tuple[str, ...], name: str, *, timed: bool) -> PassResult:
                output = Path(folder, f"{name}.csv")
                done = submit(
                    recipe,
                    job.images,
                    job.models,
                    Destination(output, Path(folder, name), AnswerSheet(ids)),
                    early_exit=early,
                    boxes=job.read_boxes(),
                    options=_options(job, timer if timed else None),
                )
                if timed:
                    timer.stop()
                rows = output.read_text(encoding="utf-8").splitlines()[1:]
                classes = tuple(row.rpartition(",")[2] for row in rows)
                shares = {"passes": float(done.passes), "of": float(done.whole)}
                return PassResult({}, job.batch or 0, job.workers or 0, dict(done.stages) | shares, classes)

            if job.warm_up:
                run(job.ids[: job.warm_up], "warm-up", timed=False)
            return run(job.ids, "run", timed=True)

    def without_exit(self) -> RunSubmit:
        """Return the same without an early exit: every model predicts every image."""
        return replace(self, early=False, goal=None, oof=(), truth=None)


class Starter(Listener):
    """Starts the timer at the first report of progress: by then the models are ready."""

    def __init__(self, timer: PassTimer) -> None:
        self._timer = timer

    def progress(self, stage: str, done: int, total: int) -> None:  # noqa: ARG002
        """Start the timer."""
        self._timer.start()


def _prepare(inputs: JobInputs, rows: range) -> dict[Preprocess, Pixels]:
    """Decode some of the images and prepare them as each model needs them."""
    photos = [read_image(inputs.listing.paths[row]).pixels for row in rows]
    return {
        preprocess: np.stack(
            [prepare_image(photo, preprocess, inputs.face(row)) for photo, row in zip(photos, rows, strict=True)]
        )
        for preprocess in {model.card.preprocess for model in inputs.models}
    }


def _on_cpu(
    inputs: JobInputs,
    batches: Sequence[Mapping[Preprocess, Pixels]],
    views: Sequence[View],
    device: Device,
    at_once: Mapping[str, int],
) -> Callable[[int, int], MemberLogits]:
    """Return a function of ``i`` and ``rows`` that predicts the first rows of batch ``i``, modulo the batches."""
    sessions = [start_session(model, device=device) for model in inputs.models]
    prepared = [
        {preprocess: {view.name: view.apply(pixels) for view in views} for preprocess, pixels in batch.items()}
        for batch in batches
    ]

    def predict_batch(i: int, rows: int) -> MemberLogits:
        pixels_of = prepared[i % len(prepared)]
        return {
            one.card.member: {
                view: one.run_in_pieces(pixels[:rows], at_once.get(one.card.member, rows))
                for view, pixels in pixels_of[one.card.preprocess].items()
            }
            for one in sessions
        }

    return predict_batch


def _on_gpus(
    inputs: JobInputs,
    batches: Sequence[Mapping[Preprocess, Pixels]],
    views: Sequence[View],
    device: Device,
    rows: int,
) -> Callable[[int, int], MemberLogits]:
    """Return the same for GPUs in turn; each holds every batch in its own buffers."""
    sessions = start_gpu_sessions(
        {one.card.member: one for one in inputs.models}, device=device, rows=rows, views=views
    )
    rows = shared_batch_size(tuple(sessions.values()))
    buffers = []
    for batch in batches:
        buffers.append([DeviceBuffers(one) for one in device.each])
        for of_device in buffers[-1]:
            for preprocess, arrays in model_inputs(batch, views).items():
                of_device.load(preprocess, arrays, rows=rows)

    def predict_batch(i: int, _: int) -> MemberLogits:  # the last batch of a GPU is padded
        of_devices = buffers[i % len(buffers)]
        filled = of_devices[i % len(of_devices)]
        return run_together(tuple(sessions.values()), filled)

    return predict_batch
