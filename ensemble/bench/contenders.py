"""The arms of a benchmark that are our own: `predict`, its bound, and `submit`. The loops of others come as arguments.

Each is called in a process of its own with a job and a clock, see `ensemble.bench.process_meter`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ensemble.arrays import Pixels
from ensemble.bench.agreement import Answers
from ensemble.bench.process_meter import Clock, Outcome
from ensemble.blend.recipe import read_recipe
from ensemble.card import Preprocess
from ensemble.events import SILENT, Listener
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box, Boxes, read_boxes
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import Listing, list_images
from ensemble.images.views import View, parse_views
from ensemble.predict.inputs import select_boxes
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.predictions.external import read_members
from ensemble.runtime.device import Device, parse_device
from ensemble.runtime.gpu_sessions import model_inputs, shared_batch_size, start_gpu_sessions
from ensemble.runtime.io_binding import DeviceBuffers
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.session import start_session
from ensemble.submission.format import SubmissionFormat
from ensemble.submit.exit_thresholds import Goal
from ensemble.submit.submit import EarlyExit, submit

_PREPARED = 256  # images that the bound keeps in memory; it goes round in them


@dataclass(frozen=True, slots=True)
class Inputs:
    """A job's files, read: the models, the images, and the face in each where a model wants it."""

    models: tuple[ModelFile, ...]
    listing: Listing
    faces: tuple[Box | None, ...] | None

    def face(self, row: int) -> Box | None:
        """The face in an image."""
        return None if self.faces is None else self.faces[row]


@dataclass(frozen=True, slots=True)
class Job:
    """What every arm has to do: these images through these models, and with ``tta`` their mirror images too.

    ``warm_up`` images go first, before the clock starts. ``batch`` and ``workers`` are what the user asked `predict`
    for; the bound is told what `predict` took, ``at_once`` too: how many images go through each member at once.
    ``scratch`` is a folder for what is written, and outlives the pass.
    """

    models: tuple[Path, ...]
    images: Path
    ids: tuple[str, ...]
    tta: bool
    device: str
    boxes: Path | None = None
    batch: int | None = None
    workers: int | None = None
    at_once: Mapping[str, int] = field(default_factory=dict)
    warm_up: int = 0
    scratch: Path | None = None

    @property
    def where(self) -> Device:
        """The device, which was chosen before."""
        device = parse_device(self.device)
        assert device is not None
        return device

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views."""
        return ("identity", "hflip") if self.tta else ("identity",)

    def read(self) -> Inputs:
        """Read the models and find the images.

        Raises:
            EnsError: as `read_model`, `list_images`, `read_boxes` and `select_boxes`.
        """
        models = tuple(read_model(path) for path in self.models)
        listing = list_images(self.images, self.ids)
        return Inputs(models, listing, select_boxes(models, self.read_boxes(), listing, SILENT))

    def read_boxes(self) -> Boxes | None:
        """The face boxes, where there are any."""
        return None if self.boxes is None else read_boxes(self.boxes)


def run_predict(job: Job, clock: Clock) -> Outcome:
    """`ens predict` itself, into a folder that is new each time."""
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder:

        def run(ids: tuple[str, ...], name: str, *, timed: bool) -> Outcome:
            done = predict(
                job.models,
                job.images,
                Path(folder, name),
                views=parse_views(",".join(job.views)),
                ids=ids,
                boxes=job.read_boxes(),
                device=job.device,
                batch=job.batch,
                workers=job.workers,
                listener=_Starter(clock) if timed else SILENT,
            )
            if timed:
                clock.stop()
            answers = {one.member: read_predictions(one.folder).logits for one in done.members}
            stages = {stage: spent for stage, spent in done.seconds.items() if stage != "wall"}
            at_once = {one.member: one.at_once or done.batch for one in done.members}
            return Outcome(answers, done.batch, done.workers, stages, at_once=at_once)

        if job.warm_up:
            run(job.ids[: job.warm_up], "warm-up", timed=False)
        return run(job.ids, "run", timed=True)


def run_bound(job: Job, clock: Clock) -> Outcome:
    """The forward passes alone: the models as `predict` runs them, on pixels that are in the device's memory already.

    On the CPU each worker thread takes a batch through all models and views; each GPU has a thread of its own.
    """
    inputs, batch, workers = job.read(), job.batch, job.workers
    assert batch is not None
    assert workers is not None
    count = -(-len(job.ids) // batch)
    kept = min(count, max(1, _PREPARED // batch))
    batches = [_look(inputs, range(i * batch, min((i + 1) * batch, len(job.ids)))) for i in range(kept)]
    views = parse_views(",".join(job.views))
    if job.where.is_gpu:
        ask = _ask_gpus(inputs, batches, views, job.where, batch)
        pools = [ThreadPoolExecutor(1) for _ in job.where.each]
    else:
        ask = _ask_cpu(inputs, batches, views, job.where, job.at_once)
        pools = [ThreadPoolExecutor(workers)]

    def run(batches: int) -> list[Answers]:
        asked = [pools[i % len(pools)].submit(ask, i, min(batch, len(job.ids) - i * batch)) for i in range(batches)]
        return [one.result() for one in asked]

    if job.warm_up:
        run(min(count, kept * len(pools)))
    clock.start()
    found = run(count)[:kept]
    clock.stop()
    for pool in pools:
        pool.shutdown()
    answers = {
        member: {view: np.concatenate([one[member][view] for one in found]) for view in of_member}
        for member, of_member in found[0].items()
    }
    return Outcome(answers, batch, workers)


@dataclass(frozen=True, slots=True)
class RunSubmit:
    """`ens submit` itself: a recipe, and the early exit as the command takes it; see `EarlyExit`."""

    recipe: Path
    early: bool = False
    goal: Goal | None = None
    oof: tuple[Path, ...] = ()
    truth: Path | None = None

    def __call__(self, job: Job, clock: Clock) -> Outcome:
        """Submit the job's images with its models; the recipe decides about the views."""
        recipe = read_recipe(self.recipe)
        oof = read_members(self.oof, recipe.labels, kind=None)
        early = EarlyExit(self.goal, oof, self.truth) if self.early else None
        with tempfile.TemporaryDirectory(dir=job.scratch) as folder:

            def run(ids: tuple[str, ...], name: str, *, timed: bool) -> Outcome:
                output = Path(folder, f"{name}.csv")
                done = submit(
                    recipe,
                    job.images,
                    job.models,
                    output,
                    work=Path(folder, name),
                    like=SubmissionFormat(ids),
                    early_exit=early,
                    device=job.device,
                    batch=job.batch,
                    workers=job.workers,
                    boxes=job.read_boxes(),
                    listener=_Starter(clock) if timed else SILENT,
                )
                if timed:
                    clock.stop()
                rows = output.read_text(encoding="utf-8").splitlines()[1:]
                classes = tuple(row.rpartition(",")[2] for row in rows)
                shares = {"passes": float(done.passes), "of": float(done.whole)}
                return Outcome({}, job.batch or 0, job.workers or 0, dict(done.stages) | shares, classes)

            if job.warm_up:
                run(job.ids[: job.warm_up], "warm-up", timed=False)
            return run(job.ids, "run", timed=True)

    def without_exit(self) -> RunSubmit:
        """The same with every model looking at every image."""
        return replace(self, early=False, goal=None, oof=(), truth=None)


class _Starter(Listener):
    """Starts the clock at the first news of progress: by then the models are ready."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def progress(self, stage: str, done: int, total: int) -> None:  # noqa: ARG002
        """Start the clock."""
        self._clock.start()


def _look(inputs: Inputs, rows: range) -> dict[Preprocess, Pixels]:
    """Some of the images as each model takes them."""
    photos = [read_image(inputs.listing.paths[row]).pixels for row in rows]
    return {
        preprocess: np.stack(
            [prepare_image(photo, preprocess, inputs.face(row)) for photo, row in zip(photos, rows, strict=True)]
        )
        for preprocess in {model.card.preprocess for model in inputs.models}
    }


def _ask_cpu(
    inputs: Inputs,
    batches: Sequence[Mapping[Preprocess, Pixels]],
    views: Sequence[View],
    device: Device,
    at_once: Mapping[str, int],
) -> Callable[[int, int], Answers]:
    """All models and views on the first rows of batch i, going round in the batches there are."""
    sessions = [start_session(model, device=device) for model in inputs.models]
    seen = [
        {preprocess: {view.name: view.apply(pixels) for view in views} for preprocess, pixels in batch.items()}
        for batch in batches
    ]

    def ask(i: int, rows: int) -> Answers:
        looks = seen[i % len(seen)]
        return {
            one.card.member: {
                view: one.run_in_pieces(pixels[:rows], at_once.get(one.card.member, rows))
                for view, pixels in looks[one.card.preprocess].items()
            }
            for one in sessions
        }

    return ask


def _ask_gpus(
    inputs: Inputs,
    batches: Sequence[Mapping[Preprocess, Pixels]],
    views: Sequence[View],
    device: Device,
    rows: int,
) -> Callable[[int, int], Answers]:
    """The same on GPUs: each has every batch in buffers of its own, and takes its turn."""
    sessions = start_gpu_sessions(
        {one.card.member: one for one in inputs.models}, device=device, rows=rows, views=views
    )
    rows = shared_batch_size(tuple(sessions.values()))
    lanes = []
    for batch in batches:
        lanes.append([DeviceBuffers(one) for one in device.each])
        for lane in lanes[-1]:
            for preprocess, arrays in model_inputs(batch, views).items():
                lane.load(preprocess, arrays, rows=rows)

    def ask(i: int, _: int) -> Answers:  # a GPU's last batch is filled up
        of_devices = lanes[i % len(lanes)]
        lane = of_devices[i % len(of_devices)]
        return {name: session.run_views(lane) for name, session in sessions.items()}

    return ask
