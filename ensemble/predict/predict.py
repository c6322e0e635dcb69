"""Images x members x views -> predictions: one decode for all members, resumable.

A run that was killed goes on from the parts it finds (see `ensemble.predict.parts`) and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble import files
from ensemble.errors import DataError, ModelError, enumerate_some
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing
from ensemble.images.remote_listing import list_images_at
from ensemble.images.views import View
from ensemble.predict import parts
from ensemble.predict.bad_images import (
    ERRORS,
    OnBadImage,
    describe_priors,
    tell_unread,
    unread,
    write_errors,
)
from ensemble.predict.batch_size import SIZES
from ensemble.predict.crash_note import noted
from ensemble.predict.inputs import select_boxes
from ensemble.predict.memory_budget import Bounds, fit_memory, need_of
from ensemble.predict.parts import PartStore, fingerprint_of
from ensemble.predict.pipeline import Answer, Pipeline, Work
from ensemble.predict.ray_pipeline import RemotePipeline
from ensemble.predict.ray_worker import Cluster, stand_in
from ensemble.predict.result import MemberRun, Predicted, is_record
from ensemble.predict.resumable import Slice, run_slices
from ensemble.predict.slice_folder import resume
from ensemble.predict.timing import Pace
from ensemble.runtime.device import Device
from ensemble.runtime.machine import available_cores, available_memory
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.providers import choose_device
from ensemble.runtime.session import Session
from ensemble.runtime.start import start_sessions

RUN = "_run.json"  # with the underscore, Parquet readers pass it over
BATCH = {"cpu": 16, "openvino": 16, "cuda": 128, "tensorrt": 128}  # on a CPU, small batches stay in its caches


def predict(
    models: Sequence[Path],
    images: Path | str,
    folder: Path,
    *,
    views: Sequence[View],
    ids: Sequence[str] | None = None,
    boxes: Boxes | None = None,
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    memory: int | None = None,
    fresh: bool = False,
    on_bad_image: OnBadImage = "fail",
    cluster: Cluster | None = None,
    listener: Listener = SILENT,
) -> Predicted:
    """Predict every image with every model and view; each member's logits go to ``folder/<member>/``.

    All images are listed and checked for existence before a model is loaded. ``workers`` threads decode, and on the
    CPU also compute; ``batch`` images are computed at once, by default on the CPU as many of a batch as a trial of each
    model on the first ones shows to be fastest; ``memory`` bytes, by default half of what is available, bound both. On
    the CPU none of them changes a bit of the answers. Parts that are there already are kept if they come from the same
    model, views, images and device; ``fresh`` removes them first. Models with a face crop need ``boxes``. With a
    ``cluster`` its machines compute the parts, to the same bytes, and ``workers`` are the threads of one actor.

    An image that cannot be read is named in ``errors.csv`` and keeps no other from being predicted. ``on_bad_image``
    says what becomes of it, and may be another one in the next run: nothing is computed again for that. Where a run
    died, the next one first tries the images that it was at in a process of their own.

    Raises:
        OptionError: E201 when a view does not fit a model, E203 when the device is not known, E206 when a model needs
            boxes and there are none.
        DataError: E3xx when images are missing or listed wrongly, E351 when one has no entry in ``boxes``; E326 when
            some could not be read and ``on_bad_image`` is ``fail``, or when none could be: then all others are
            predicted and kept, and the predictions do not count as finished.
        FileError, ModelError, DeviceError: see `read_model`, `choose_device` and `start_session`; E428 when two models
            have one name, E603 when ``memory`` is too small for one image or the machine's runs out, E701 to E704 for
            the folder.
        Interrupted: E801 on Ctrl-C or SIGTERM; finished parts are kept.
    """
    began = time.monotonic()
    recorder = Recorder(listener)
    files.require_writable(folder)
    listing = list_images_at(images, ids, listener=recorder)
    read = _read_models(models, views)
    found = select_boxes(read, boxes, listing, recorder)
    where = cluster.choose_device(device) if cluster else choose_device(device, listener=recorder)
    on_gpu = where.is_gpu
    with contextlib.ExitStack() as stack:
        members = []
        for model in read:
            stack.enter_context(files.locked(folder / model.card.member))
            run = fingerprint_of(model, listing, views, where, boxes)
            members.append(PartStore(model, folder, run, listing))
        faults = resume(members, listing, fresh=fresh, listener=recorder)
        pipeline: Pipeline | RemotePipeline
        sizes = () if batch else SIZES
        if cluster:
            pipeline = RemotePipeline(
                cluster,
                read,
                listing,
                views,
                device=where,
                workers=workers,
                part_rows=parts.PART_ROWS,
                boxes=found,
                sizes=sizes,
                listener=recorder,
            )
            bounds = Bounds(pipeline.workers, batch or BATCH[where.kind], 0)
        else:
            memory = memory or available_memory() // 2
            bounds = _fit(members, listing, where, memory, workers or available_cores(), batch, recorder)
            pipeline = Pipeline(
                listing,
                views,
                on_gpu=on_gpu,
                workers=bounds.workers,
                boxes=found,
                ahead=bounds.ahead,
                sizes=sizes,
                listener=recorder,
            )
        pipeline.known |= faults
        for member in members:
            member.clear()
        rows_a_batch = bounds.batch if batch or on_gpu or cluster else _share_out(members, bounds)
        pace = Pace(pipeline.watch, [m.name for m in members], workers=bounds.workers, on_gpu=on_gpu)
        with noted([member.folder for member in members]):
            faults |= _compute_in_turn(members, pipeline, listing, where, rows_a_batch, pace, views, recorder)
        write_errors(folder / ERRORS, listing, faults)
        policy: OnBadImage = "fail" if len(faults) == len(listing) else on_bad_image
        if policy != "fail":
            filling = f"filled with {describe_priors(m.model.card for m in members)}"
            what = "left out" if policy == "skip" else filling
            tell_unread(faults, listing, folder / ERRORS, what, recorder)
        watch = pipeline.watch.seconds
        runs = tuple(_member_run(member, pipeline) for member in members)
        forward = sum(run.seconds for run in runs)
        stages = ("read", "decode", "resize", *(["copy"] if on_gpu else []), "forward", "write")
        seconds = {stage: watch.get(stage, 0.0) for stage in stages}
        seconds |= {"forward": forward, "wall": time.monotonic() - began}
        seen = tuple(view.name for view in views)
        unread_ids = tuple(listing.ids[row] for row in sorted(faults))
        done = Predicted(
            len(listing),
            seen,
            str(where),
            rows_a_batch,
            bounds.workers,
            runs,
            seconds,
            memory,
            filled=unread_ids if policy == "fill" else (),
            missing=unread_ids if policy != "fill" else (),
        )
        for member in members:
            changed = member.finish(policy)
            if member.computed or changed or not is_record(member.folder / RUN):
                files.write_atomic(member.folder / RUN, done.record(member.model, recorder.notices))
    if faults and policy == "fail":
        raise unread(faults, listing, folder / ERRORS, kept="all others are predicted and kept")
    return done


def _fit(
    members: Sequence[PartStore],
    listing: Listing,
    device: Device,
    memory: int,
    workers: int,
    batch: int | None,
    listener: Listener,
) -> Bounds:
    """How much may be under way; where nothing is pending, no image or network is looked at to find that out."""
    if not any(member.pending for member in members):
        return Bounds(workers, batch or BATCH[device.kind], 4 * workers)
    need = need_of([member.model for member in members], listing, device)
    bounds = fit_memory(need, memory, workers=workers, batch=batch or BATCH[device.kind], on_gpu=device.is_gpu)
    if bounds.workers < workers or bounds.batch < (batch or 1):
        listener.notice(Notice("W603", f"{memory / 2**30:.1f} GB of memory are enough for {bounds}"))
    return bounds


def _share_out(members: Sequence[PartStore], bounds: Bounds) -> int:
    """How large batches are on the CPU: of few images, every core has its share."""
    pending = set().union(*(member.pending for member in members))
    rows = sum(len(piece.rows) for piece in members[0].slices if piece.index in pending)
    return min(bounds.batch, max(1, -(-rows // bounds.workers)))


def _member_run(member: PartStore, pipeline: Pipeline | RemotePipeline) -> MemberRun:
    seconds, trial = pipeline.watch.seconds.get(member.name, 0.0), pipeline.trials.get(member.name)
    run = MemberRun(member.name, member.folder, member.computed, seconds, member.decisions)
    return run if trial is None else replace(run, at_once=trial.size, trial=trial.samples)


def _read_models(models: Sequence[Path], views: Sequence[View]) -> list[ModelFile]:
    read = [read_model(path) for path in models]
    counts = Counter(model.card.member for model in read)
    for model in read:
        if counts[model.card.member] > 1:
            both = [str(other.path) for other in read if other.card.member == model.card.member]
            raise ModelError("E428", f"{enumerate_some(both)} are all called {model.card.member!r}")
        for view in views:
            view.require_fits(model.card.preprocess.size, member=model.card.member)
    return read


def _compute_in_turn(
    members: Sequence[PartStore],
    pipeline: Pipeline | RemotePipeline,
    listing: Listing,
    device: Device,
    batch: int,
    pace: Pace,
    views: Sequence[View],
    listener: Listener,
) -> dict[int, DataError]:
    """Run what is pending: all members together, or as many at a time as a GPU's memory holds."""
    faults, left = dict[int, DataError](), [member for member in members if member.pending]
    while left:
        models = {member.name: member.model for member in left}
        sessions: Mapping[str, Session]
        if isinstance(pipeline, RemotePipeline):
            sessions = {name: stand_in(model, device) for name, model in models.items()}
        else:
            sessions = start_sessions(models, device=device, rows=batch, views=views, in_turn=True, listener=listener)
        together = [member for member in left if member.name in sessions]
        faults |= _compute(together, sessions, pipeline, listing, batch, pace, listener)
        for member in together:
            member.decisions = sessions[member.name].decisions
        left = left[len(together) :]
        del sessions  # their memory is for the next ones
    return faults


def _compute(
    members: Sequence[PartStore],
    sessions: Mapping[str, Session],
    pipeline: Pipeline | RemotePipeline,
    listing: Listing,
    batch: int,
    pace: Pace,
    listener: Listener,
) -> dict[int, DataError]:
    """Compute and write the pending parts of these members, and return the images that could not be read."""

    def work(slices: Iterator[Slice]) -> Iterator[Work]:
        for piece in slices:
            asked = tuple(sessions[member.name] for member in members if piece.index in member.pending)
            for start in range(piece.rows[0], piece.rows[-1] + 1, batch):
                yield Work(range(start, min(start + batch, piece.rows[-1] + 1)), asked)

    def compute(slices: Iterator[Slice]) -> Generator[Answer, None, None]:
        return pipeline.run(work(slices))

    return run_slices(
        members,
        listing,
        compute,
        stage="predict",
        watch=pipeline.watch,
        detail=pace.tell,
        # on a cluster all parts go out at once, and a decoder that crashes ends a worker and not this process
        crash_notes=isinstance(pipeline, Pipeline),
        listener=listener,
    )
