"""The arms of a benchmark that are our own: `predict`, its bound, and `submit`. The loops of others come as arguments.

Each is called in a process of its own with a job and a clock, see `ensemble.meter`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.boxes import Box, Boxes, read_boxes
from ensemble.crop import prepare_image
from ensemble.devices import Device, parse_device
from ensemble.events import SILENT, Listener
from ensemble.images import Pixels, read_photo
from ensemble.listing import Listing, list_images
from ensemble.members import read_members
from ensemble.meter import Clock, Outcome
from ensemble.model_file import INPUT, LOGITS, ModelFile, read_model
from ensemble.predict import predict, select_boxes
from ensemble.predictions import read_predictions
from ensemble.recipe import read_recipe
from ensemble.session import Session, start_session
from ensemble.submission import SubmissionFormat
from ensemble.submit import EarlyExit, submit
from ensemble.tta import parse_views

_PREPARED = 256  # images that the bound keeps in memory; it goes round in them

Logits = NDArray[np.float32]


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
    for; the bound is told what `predict` took. ``scratch`` is a folder for what is written, and outlives the pass.
    """

    models: tuple[Path, ...]
    images: Path
    ids: tuple[str, ...]
    tta: bool
    device: str
    boxes: Path | None = None
    batch: int | None = None
    workers: int | None = None
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
            return Outcome(answers, done.batch, done.workers, stages)

        if job.warm_up:
            run(job.ids[: job.warm_up], "warm-up", timed=False)
        return run(job.ids, "run", timed=True)


def run_bound(job: Job, clock: Clock) -> Outcome:
    """The forward passes alone: the models as `predict` runs them, on pixels that are in the device's memory already.

    On the CPU each worker thread takes a batch through all models and views; a GPU is fed by one thread, all its
    batches of one shape.
    """
    inputs, device = job.read(), job.where
    on_gpu = device.kind in {"cuda", "tensorrt"}
    total, batch, workers = len(job.ids), job.batch, 1 if on_gpu else job.workers
    assert batch is not None
    assert workers is not None
    kept = min(-(-total // batch), max(1, _PREPARED // batch))
    sessions = [start_session(model, device=device) for model in inputs.models]
    feed = _feed_from_gpu if on_gpu else _feed
    feeds = [
        [[feed(session, view, batch) for view in _look(inputs, session, i, batch, job.views)] for session in sessions]
        for i in range(kept)
    ]

    def ask(i: int) -> list[list[Logits]]:
        """All models and views on batch i."""
        rows = min(batch, total - i * batch)
        return [[look(rows) for look in looks] for looks in feeds[i % kept]]

    with ThreadPoolExecutor(workers) as pool:
        if job.warm_up:
            list(pool.map(ask, range(min(workers, kept))))
        clock.start()
        found = list(pool.map(ask, range(-(-total // batch))))
        clock.stop()
    answers = {
        session.card.member: {
            view: np.concatenate([one[m][v] for one in found[:kept]]) for v, view in enumerate(job.views)
        }
        for m, session in enumerate(sessions)
    }
    return Outcome(answers, batch, workers)


@dataclass(frozen=True, slots=True)
class RunSubmit:
    """`ens submit` itself: a recipe, and the early exit as the command takes it; see `EarlyExit`."""

    recipe: Path
    early: bool = False
    share: float | None = None
    oof: tuple[Path, ...] = ()
    truth: Path | None = None

    def __call__(self, job: Job, clock: Clock) -> Outcome:
        """Submit the job's images with its models; the recipe decides about the views."""
        recipe = read_recipe(self.recipe)
        oof = read_members(self.oof, recipe.labels, kind=None)
        early = EarlyExit(self.share, oof, self.truth) if self.early else None
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
        return replace(self, early=False, share=None, oof=(), truth=None)


class _Starter(Listener):
    """Starts the clock at the first news of progress: by then the models are ready."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def progress(self, stage: str, done: int, total: int) -> None:  # noqa: ARG002
        """Start the clock."""
        self._clock.start()


def _look(inputs: Inputs, session: Session, i: int, batch: int, views: tuple[str, ...]) -> list[Pixels]:
    """Batch i as a model takes it, seen in every view."""
    rows = range(i * batch, min((i + 1) * batch, len(inputs.listing)))
    pixels = np.stack(
        [
            prepare_image(read_photo(inputs.listing.paths[row]).pixels, session.card.preprocess, inputs.face(row))
            for row in rows
        ]
    )
    return [view.apply(pixels) for view in parse_views(",".join(views))]


def _feed(session: Session, pixels: Pixels, batch: int) -> Callable[[int], Logits]:  # noqa: ARG001 - as below
    return lambda rows: session.run(pixels[:rows])


def _feed_from_gpu(session: Session, pixels: Pixels, batch: int, *, place: str = "cuda") -> Callable[[int], Logits]:
    """A batch that is copied to the device once, filled up to the shape of the others, and asked about many times."""
    import onnxruntime

    filled = np.concatenate([pixels, np.repeat(pixels[-1:], batch - len(pixels), axis=0)])
    value = onnxruntime.OrtValue.ortvalue_from_numpy(filled, place, session.device.index)

    def ask(rows: int) -> Logits:
        binding = session.runtime.io_binding()
        binding.bind_ortvalue_input(INPUT, value)
        binding.bind_output(LOGITS, place, session.device.index)
        session.runtime.run_with_iobinding(binding)
        logits: Logits = binding.copy_outputs_to_cpu()[0][:rows]
        return logits

    return ask
