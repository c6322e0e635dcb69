"""Images x members x views -> predictions: one decode for all members, resumable.

A run that was killed resumes from its finished parts (see `ensemble.predict.parts`) and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble import files
from ensemble.errors import DataError, FileError, ModelError, enumerate_some
from ensemble.events import Listener, Notice, Recorder
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing
from ensemble.images.remote_listing import list_images_at
from ensemble.images.views import View
from ensemble.predict.bad_images import (
    ERRORS,
    OnBadImage,
    describe_priors,
    tell_unread,
    unread,
    write_errors,
)
from ensemble.predict.batch_size import SIZES
from ensemble.predict.begun import begun_providers
from ensemble.predict.crash_note import noted
from ensemble.predict.inputs import Inputs, select_boxes
from ensemble.predict.memory_budget import Bounds, fit_memory, need_of
from ensemble.predict.options import RunOptions
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
from ensemble.runtime.run_device import choose_run_device
from ensemble.runtime.session import Session
from ensemble.runtime.start import start_sessions

RUN = "_run.json"  # with the underscore, Parquet readers pass it over
BATCH = {
    "cpu": 16,
    "openvino": 16,
    "plugin": 16,
    "cuda": 128,
    "tensorrt": 128,
}  # on a CPU, small batches stay in its caches


@dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """The resources for the members: ``rows`` images per batch; ``memory`` in bytes, None on a cluster."""

    pipeline: Pipeline | RemotePipeline
    device: Device
    workers: int
    rows: int
    memory: int | None


def predict(
    models: Sequence[Path],
    images: Path | str,
    folder: Path,
    *,
    views: Sequence[View],
    ids: Sequence[str] | None = None,
    boxes: Boxes | None = None,
    cluster: Cluster | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Predicted:
    """Predict every image with every model and view; each member's logits go to ``folder/<member>/``.

    All images are listed and checked for existence before a model is loaded. Finished parts are kept if they come from
    the same model, views, images and device. Models with a face crop need ``boxes``. With a ``cluster`` its machines
    compute the parts, to the same bytes, and ``options.workers`` are the threads of one actor.

    An image that cannot be read is named in ``errors.csv`` and keeps no other from being predicted; see
    `RunOptions.on_bad_image`. After a crash, the images that were being processed are first decoded in a subprocess.

    Raises:
        OptionError: E201 when a view does not fit a model, E203 when the device is not known, E206 when a model needs
            boxes and there are none.
        DataError: E3xx when images are missing or listed wrongly, E351 when one has no entry in ``boxes``; E326 when
            some could not be read and ``on_bad_image`` is ``fail``, or when none could be: then all others are
            predicted and kept, and the predictions do not count as finished.
        FileError, ModelError, DeviceError: see `read_model`, `choose_run_device` and `start_session`; E428 when two
            models have one name, E603 when ``memory`` is too small for one image or the machine's runs out, E701 to
            E704 for the folder.
        Interrupted: E801 on Ctrl-C or SIGTERM; finished parts are kept.
    """
    began = time.monotonic()
    recorder = Recorder(options.listener)
    options = replace(options, listener=recorder)
    files.require_writable(folder)
    listing = list_images_at(images, ids, listener=recorder)
    read = _read_models(models, views)
    inputs = Inputs(listing, select_boxes(read, boxes, listing, recorder), tuple(views))
    begun = () if options.fresh else begun_providers(folder / model.card.member for model in read)
    choose = cluster.choose_device if cluster else choose_run_device
    device = choose(options.device, read, begun=begun, listener=recorder)
    with contextlib.ExitStack() as stack:
        members = []
        for model in read:
            stack.enter_context(files.locked(folder / model.card.member))
            members.append(PartStore(model, folder, fingerprint_of(model, listing, views, device, boxes), listing))
        faults = resume(members, listing, fresh=options.fresh, listener=recorder)
        if cluster:
            setup = _set_up_cluster(cluster, members, inputs, device, options)
        else:
            setup = _set_up(members, inputs, device, options)
        setup.pipeline.known |= faults
        for member in members:
            member.clear()
        with noted([member.folder for member in members]):
            faults |= _compute_in_turn(members, inputs, setup, recorder)
        errors = options.errors or folder / ERRORS
        policy = _apply_policy(faults, members, listing, errors, options)
        done = _result(members, inputs, setup, faults, policy, began)
        for member in members:
            changed = member.finish(policy)
            if member.computed or changed or not is_record(member.folder / RUN):
                files.write_atomic(member.folder / RUN, done.record(member.model, recorder.notices))
    if faults and policy == "fail":
        raise unread(faults, listing, errors, kept="all others are predicted and kept")
    return done


def _set_up(members: Sequence[PartStore], inputs: Inputs, device: Device, options: RunOptions) -> _Setup:
    """Fit workers and batches into the memory of this machine."""
    memory, batch = options.memory or available_memory() // 2, options.batch or BATCH[device.kind]
    workers = options.workers or available_cores()
    bounds = Bounds(workers, batch, 4 * workers)
    if any(member.pending for member in members):  # else no image or network is opened to find out
        need = need_of([member.model for member in members], inputs.listing, device)
        bounds = fit_memory(need, memory, workers=workers, batch=batch, on_gpu=device.is_gpu)
        if bounds.workers < workers or bounds.batch < (options.batch or 1):
            message = f"{memory / 2**30:.1f} GB of memory are enough for {bounds}"
            options.listener.notice(Notice("W603", message))
    rows = bounds.batch if options.batch or device.is_gpu else _per_worker(members, bounds)
    pipeline = Pipeline(
        inputs,
        on_gpu=device.is_gpu,
        workers=bounds.workers,
        ahead=bounds.ahead,
        sizes=() if options.batch else SIZES,
        listener=options.listener,
    )
    return _Setup(pipeline, device, bounds.workers, rows, memory)


def _set_up_cluster(
    cluster: Cluster, members: Sequence[PartStore], inputs: Inputs, device: Device, options: RunOptions
) -> _Setup:
    pipeline = RemotePipeline(
        cluster,
        [member.model for member in members],
        inputs,
        device=device,
        workers=options.workers,
        rows=options.batch or BATCH[device.kind],
        sizes=() if options.batch else SIZES,
        listener=options.listener,
    )
    return _Setup(pipeline, device, pipeline.workers, options.batch or BATCH[device.kind], None)


def _per_worker(members: Sequence[PartStore], bounds: Bounds) -> int:
    """Return the batch size on the CPU: of few images, every worker gets its share."""
    pending = set().union(*(member.pending for member in members))
    rows = sum(len(piece.rows) for piece in members[0].slices if piece.index in pending)
    return min(bounds.batch, max(1, -(-rows // bounds.workers)))


def _apply_policy(
    faults: Mapping[int, DataError], members: Sequence[PartStore], listing: Listing, path: Path, options: RunOptions
) -> OnBadImage:
    """Name unreadable images in ``path`` and say how they are handled: `fail` where none could be read."""
    write_errors(path, listing, faults)
    policy: OnBadImage = "fail" if len(faults) == len(listing) else options.on_bad_image
    if policy != "fail":
        filling = f"filled with {describe_priors(member.model.card for member in members)}"
        tell_unread(faults, listing, path, "left out" if policy == "skip" else filling, options.listener)
    return policy


def _result(
    members: Sequence[PartStore],
    inputs: Inputs,
    setup: _Setup,
    faults: Mapping[int, DataError],
    policy: OnBadImage,
    began: float,
) -> Predicted:
    spent = setup.pipeline.watch.seconds
    runs = tuple(_member_run(member, setup.pipeline) for member in members)
    stages = ("read", "decode", "resize", *(["copy"] if setup.device.is_gpu else []), "forward", "write")
    unread_ids = tuple(inputs.listing.ids[row] for row in sorted(faults))
    return Predicted(
        images=len(inputs.listing),
        views=tuple(view.name for view in inputs.views),
        device=str(setup.device),
        batch=setup.rows,
        workers=setup.workers,
        members=runs,
        seconds={stage: spent.get(stage, 0.0) for stage in stages}
        | {"forward": sum(run.seconds for run in runs), "wall": time.monotonic() - began},
        memory=setup.memory,
        filled=unread_ids if policy == "fill" else (),
        missing=unread_ids if policy != "fill" else (),
    )


def _member_run(member: PartStore, pipeline: Pipeline | RemotePipeline) -> MemberRun:
    seconds, trial = pipeline.watch.seconds.get(member.name, 0.0), pipeline.trials.get(member.name)
    run = MemberRun(member.name, member.folder, member.computed, seconds, member.decisions)
    return run if trial is None else replace(run, at_once=trial.size, trial=trial.samples)


def _read_models(models: Sequence[Path], views: Sequence[View]) -> list[ModelFile]:
    read = [read_model(path) for path in models]
    counts = Counter(model.card.member for model in read)
    for model in read:
        if model.card.member.casefold() == ERRORS:
            message = f"the predictions of {model.path} would take the place of {ERRORS}, the list of unreadable images"
            raise FileError("E760", message, path=model.path, hint="export it again with another --member")
        if counts[model.card.member] > 1:
            both = [str(other.path) for other in read if other.card.member == model.card.member]
            raise ModelError("E428", f"{enumerate_some(both)} are all called {model.card.member!r}")
        for view in views:
            view.require_fits(model.card.preprocess.size, model.card.labels, member=model.card.member)
    return read


def _compute_in_turn(
    members: Sequence[PartStore], inputs: Inputs, setup: _Setup, listener: Listener
) -> dict[int, DataError]:
    """Compute what is pending: all members together, or as many at a time as the memory of a GPU holds."""
    faults, left = dict[int, DataError](), [member for member in members if member.pending]
    while left:
        models = {member.name: member.model for member in left}
        sessions: Mapping[str, Session]
        if isinstance(setup.pipeline, RemotePipeline):
            sessions = {name: stand_in(model, setup.device) for name, model in models.items()}
        else:
            sessions = start_sessions(
                models, device=setup.device, rows=setup.rows, views=inputs.views, in_turn=True, listener=listener
            )
        together = [member for member in left if member.name in sessions]
        faults |= _compute(together, sessions, inputs.listing, setup, listener)
        for member in together:
            member.decisions = sessions[member.name].decisions
        left = left[len(together) :]
        del sessions  # their memory is for the next ones
    return faults


def _compute(
    members: Sequence[PartStore],
    sessions: Mapping[str, Session],
    listing: Listing,
    setup: _Setup,
    listener: Listener,
) -> dict[int, DataError]:
    """Compute and write the pending parts of these members, and return the images that could not be read."""
    pipeline = setup.pipeline

    def work(slices: Iterator[Slice]) -> Iterator[Work]:
        for piece in slices:
            asked = tuple(sessions[member.name] for member in members if piece.index in member.pending)
            for rows in piece.batches(setup.rows):
                yield Work(rows, asked)

    def compute(slices: Iterator[Slice]) -> Generator[Answer, None, None]:
        return pipeline.run(work(slices))

    return run_slices(
        members,
        listing,
        compute,
        stage="predict",
        watch=pipeline.watch,
        detail=Pace(
            pipeline.watch,
            [member.name for member in members],
            workers=setup.workers,
            on_gpu=setup.device.is_gpu,
        ).tell,
        # on a cluster all parts go out at once, and a decoder that crashes ends a worker and not this process
        crash_notes=isinstance(pipeline, Pipeline),
        listener=listener,
    )
