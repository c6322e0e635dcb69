"""The contenders of a benchmark of a fused file: `ens predict` of it, and its forward passes alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ensemble.arrays import Logits
from ensemble.bench.contenders import BenchJob, Starter
from ensemble.bench.process_meter import PassResult, PassTimer
from ensemble.card import ModelCard, Precision
from ensemble.errors import OptionError
from ensemble.events import SILENT
from ensemble.fuse.fused_card import FusedCard, read_fused_card
from ensemble.fuse.fused_session import start_fused
from ensemble.fuse.graph import PLAIN_VIEW
from ensemble.fuse.predict_fused import as_logits, card_of_fused, predict_fused
from ensemble.images.decode import read_image
from ensemble.images.face_boxes import Box
from ensemble.images.listing import Listing, list_images
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime.machine import available_cores

_COARSER: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_PREPARED = 64  # images of any size that the bound keeps in memory and cycles through


@dataclass(frozen=True, slots=True)
class FusedInputs:
    """The files of a job about one fused file, read: its card, the images, and a face box or None for each."""

    path: Path
    card: FusedCard
    listing: Listing
    faces: tuple[Box | None, ...]


def read_fused_job(job: BenchJob) -> FusedInputs:
    """Read a job whose only model is a fused file.

    Raises:
        EnsError: as `read_fused_card`, `list_images` and `read_boxes`.
    """
    (path,) = job.models
    card, listing, boxes = read_fused_card(path), list_images(job.images, job.ids), job.read_boxes()
    faces = boxes.select(listing.ids) if card.takes_boxes and boxes is not None else (None,) * len(listing)
    return FusedInputs(path, card, listing, faces)


def fused_cards(job: BenchJob) -> dict[str, ModelCard]:
    """Return the card under which the fused file of a job is listed: of the coarsest precision of its members.

    Raises:
        OptionError: E206 when it needs face boxes, and the job has none.
        DeployError: E807 when it is not a fused file.
    """
    (path,) = job.models
    fused = read_fused_card(path)
    if fused.takes_boxes and job.boxes is None:
        raise OptionError("E206", f"members of {path.name} were trained on face crops and need face boxes")
    precision = max((member.card.precision for member in fused.members), key=_COARSER.index)
    return {path.stem: replace(card_of_fused(fused, path), precision=precision)}


def run_fused(job: BenchJob, timer: PassTimer) -> PassResult:
    """Run `ens predict` of a fused file, into a new folder each time."""
    (path,), workers = job.models, job.workers or available_cores()
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder:

        def run(ids: tuple[str, ...], name: str, *, timed: bool) -> Path:
            listener = Starter(timer) if timed else SILENT
            target = Path(folder, name)
            boxes = job.read_boxes()
            predict_fused(path, job.images, target, ids=ids, boxes=boxes, threads=workers, listener=listener)
            return target / path.stem

        if job.warm_up:
            run(job.ids[: job.warm_up], "warm-up", timed=False)
        found = run(job.ids, "run", timed=True)
        timer.stop()
        return PassResult({path.stem: read_predictions(found).logits}, 1, workers)


def run_fused_bound(job: BenchJob, timer: PassTimer) -> PassResult:
    """Run only the fused file, on photographs that are already decoded: resizing is part of it."""
    inputs, workers = read_fused_job(job), job.workers or available_cores()
    session = start_fused(inputs.path.read_bytes(), inputs.path, threads=workers)
    photos = [read_image(path).pixels[np.newaxis] for path in inputs.listing.paths[:_PREPARED]]

    def predict(count: int) -> Logits:
        rows = [session.run(photos[i % len(photos)], [inputs.faces[i % len(photos)]]) for i in range(count)]
        activation = inputs.card.recipe.activation
        found = [as_logits(one.probabilities[0], activation) for one in rows[: len(photos)]]
        return np.array(found, dtype=np.float32)

    if job.warm_up:
        predict(min(job.warm_up, len(photos)))
    timer.start()
    logits = predict(len(inputs.listing))
    timer.stop()
    return PassResult({inputs.path.stem: {PLAIN_VIEW: logits}}, 1, workers)
