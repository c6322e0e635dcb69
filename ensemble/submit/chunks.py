"""Images x passes with early exit: one decode for all passes, each of which runs on the rows still open; resumable.

A chunk is what `predict` calls a part: consecutive images that are computed and written together. Its resized pixels
stay in memory while the passes run one after the other. ``chunk-00000.parquet`` holds the class of each row that left
early, the logits of each row that needed all passes, and the number of passes of each row. Images that could not be
read have no row in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble import files
from ensemble.arrays import Classes, Logits
from ensemble.blend.blend import blend
from ensemble.blend.recipe import Recipe
from ensemble.errors import DataError
from ensemble.events import SILENT, Listener
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing
from ensemble.images.views import View
from ensemble.predict.bad_images import log_prior
from ensemble.predict.begun import begun_providers
from ensemble.predict.crash_note import noted
from ensemble.predict.fingerprint import Fingerprint, Origin, library_versions
from ensemble.predict.pipeline import Batch, Pipeline, Work
from ensemble.predict.resumable import Slice, run_slices
from ensemble.predict.slice_folder import SliceFolder, resume
from ensemble.predict.timing import Pace
from ensemble.predictions.dataset import Predictions
from ensemble.runtime.device import Device
from ensemble.runtime.device_pool import DevicePool
from ensemble.runtime.io_binding import buffers_on
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.session import Session
from ensemble.runtime.start import start_sessions
from ensemble.submit.chunk_file import OPEN, Chunk, join_chunks, read_chunk, write_chunk
from ensemble.submit.early_exit import ForwardPass, Running, Settled, keep_members, passes_of

# On a CPU each core computes a chunk of its own. On a GPU a pass runs in whole batches, however few rows are open, and
# the number of batches shrinks as rows leave.
CHUNK_ROWS = {"cpu": 64, "openvino": 64, "plugin": 64, "cuda": 2048, "tensorrt": 2048}
_BATCHES_AT_ONCE = 4  # of a GPU: put on its stream before it is waited for
Rows: TypeAlias = NDArray[np.intp]
Ask: TypeAlias = Callable[[Session, View, Rows], Logits]
_AT_ONCE_SECONDS = 8.0  # of a worker, for rows that are kept or lost together
_ROW_BYTES = 64 + 8 + 8  # an id, generously; the class and the number of passes
_FOOTER_BYTES = 4096  # of a chunk: its schema, origin and checksums


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The ``passes`` to run, in order, with the ``models`` of their members and the ``views``, by name.

    ``stops`` is the lead that an answer needs to leave after so many passes; None requires certainty.
    """

    recipe: Recipe
    passes: tuple[ForwardPass, ...]
    models: Mapping[str, ModelFile]
    views: Mapping[str, View]
    stops: Mapping[int, float] | None = None
    boxes: Boxes | None = None

    def keep(self, members: Collection[str]) -> Plan:
        """Return the plan of some of the members."""
        recipe = keep_members(self.recipe, set(members))
        models = {name: self.models[name] for name in members}
        return replace(self, recipe=recipe, passes=passes_of(recipe), models=models)

    def fingerprint(self, listing: Listing, device: Device) -> Fingerprint:
        """Return what the answers depend on."""
        recipe = json.loads(self.recipe.to_json())
        recipe.pop("learned", None)
        values = {
            "recipe": hashlib.sha256(json.dumps(recipe).encode()).hexdigest(),
            "models": {name: model.sha256 for name, model in sorted(self.models.items())},
            "cells": [[one.member, one.view, one.weight] for one in self.passes],
            "stops": None if self.stops is None else [[k, repr(lead)] for k, lead in sorted(self.stops.items())],
            "ids": listing.sha256,
            "provider": device.provider,
            "boxes": None if self.boxes is None else self.boxes.sha256,
            "versions": library_versions(),
        }
        return Fingerprint(values)


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """Every chunk in order, the images that could not be read, by row, and by member how it ran, where it did."""

    chunks: list[Chunk]
    faults: dict[int, DataError]
    decisions: dict[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkAnswer:
    """A chunk that was computed; the rest as `Computed`."""

    asked: range
    chunk: Chunk
    faults: Mapping[int, DataError]
    oddities: Mapping[int, tuple[str, ...]]


class ChunkStore(SliceFolder[ChunkAnswer, Chunk]):
    """The chunks of a plan in one folder; ``chunks`` are those that are finished, by index."""

    prefix = "chunk"

    def __init__(self, plan: Plan, folder: Path, listing: Listing, device: Device) -> None:
        super().__init__(folder, plan.fingerprint(listing, device), listing, size=rows_of_chunk(device))
        self.chunks: dict[int, Chunk] = {}
        self._row_bytes = _ROW_BYTES + 4 * len(plan.passes) * len(plan.recipe.labels)

    def read(self, path: Path) -> Chunk:
        """See `SliceFolder.read`."""
        return read_chunk(path)

    def keep(self, index: int, content: Chunk) -> None:
        """Hold a finished chunk in memory."""
        self.chunks[index] = content

    def write(self, piece: Slice, answers: Sequence[ChunkAnswer]) -> None:
        """See `Store.write`."""
        chunk = self._join(piece, answers)
        origin = Origin(self.run, piece.sizes, len(piece.rows) - len(chunk.ids) or None)
        self.chunks[piece.index] = chunk = replace(chunk, origin=origin.to_json())
        write_chunk(self.path(piece.index), chunk)
        files.remove(self.early_path(piece.index))

    def write_early(self, piece: Slice, answers: Sequence[ChunkAnswer]) -> None:
        """See `Store.write_early`."""
        origin = Origin(self.run, piece.sizes).to_json()
        write_chunk(self.early_path(piece.index), replace(self._join(piece, answers), origin=origin), sync=False)

    def _join(self, piece: Slice, answers: Sequence[ChunkAnswer]) -> Chunk:
        """Return the rows of the answers and those that the slice holds, in the order of the listing."""
        early = self.early(piece)
        rows = [*piece.held, *(row for answer in answers for row in answer.asked)]
        parts = [answer.chunk for answer in answers]
        return join_chunks(parts if early is None else [early, *parts], {self.listing.ids[row]: row for row in rows})

    def bytes_of(self, rows: int) -> int:
        """See `Store.bytes_of`; as if no row left early."""
        size = len(self.slices[0].rows)
        return rows * self._row_bytes + _FOOTER_BYTES * (1 + rows // size)


def run_chunks(
    plan: Plan,
    listing: Listing,
    folder: Path,
    *,
    pipeline: Pipeline,
    device: Device,
    batch: int,
    fresh: bool = False,
    listener: Listener = SILENT,
) -> Chunks:
    """Compute every chunk, or keep those found in ``folder``; see `ensemble.predict.resumable`.

    Raises:
        DeviceError: see `Session.run`; E603 when memory runs out.
        FileError: E701 to E703 for the folder, E704 when it holds another run.
        Interrupted: E801 on Ctrl-C or SIGTERM; finished chunks are kept.
    """
    with files.locked(folder):
        store = ChunkStore(plan, folder, listing, device)
        faults = resume([store], listing, fresh=fresh, listener=listener)
        store.clear()
        pipeline.known |= faults
        size = max(rows_of_chunk(device), batch)
        with noted([folder]):
            sessions: Mapping[str, Session] = {}
            if store.pending:
                pool = size if device.kind == "cuda" else 0
                sessions = start_sessions(plan.models, device=device, rows=batch, pool=pool, listener=listener)
            pools = {one: DevicePool(one, size) for one in device.each}

            def answer(work: Work, read: Batch) -> ChunkAnswer:
                ask = partial(_ask_on_host, pipeline, read, batch)
                if device.kind == "cuda":
                    with buffers_on(device) as lane:  # each GPU has a thread of its own, and so a pool
                        ask = partial(_ask_on_device, pipeline, pools[lane.device])
                        pools[lane.device].load(read.pixels)
                chunk = _run_passes(plan, listing, read, sessions, ask)
                return ChunkAnswer(work.rows, chunk, read.faults, read.oddities)

            def compute(slices: Iterator[Slice]) -> Generator[ChunkAnswer, None, None]:
                asked = tuple(sessions.values())

                def work() -> Iterator[Work]:
                    for piece in slices:
                        at_once = size if device.kind == "cuda" else _rows_at_once(pipeline, plan, batch)
                        for rows in piece.batches(at_once):
                            yield Work(rows, asked)

                return pipeline.map(answer, work())

            faults |= run_slices(
                [store],
                listing,
                compute,
                stage="submit",
                watch=pipeline.watch,
                detail=Pace(pipeline.watch, plan.models, workers=pipeline.workers, on_gpu=device.is_gpu).tell,
                listener=listener,
            )
    for one in pools.values():
        one.close()
    decisions = {name: session.decisions for name, session in sessions.items()}
    return Chunks([store.chunks[index] for index in sorted(store.chunks)], faults, decisions)


def _rows_at_once(pipeline: Pipeline, plan: Plan, batch: int) -> int:
    """Return how many rows of a chunk to compute together, by the speed so far, so that a kill costs seconds."""
    watch = pipeline.watch
    rows = watch.rows.get("decode", 0)
    if not rows:
        return batch
    seconds = sum(watch.elapsed.get(name, 0.0) for name in plan.models) / rows
    return max(batch, int(_AT_ONCE_SECONDS / seconds) // batch * batch) if seconds > 0 else batch


def _ask_on_host(pipeline: Pipeline, read: Batch, batch: int, session: Session, view: View, rows: Rows) -> Logits:
    """Return a pass's logits of some rows of a chunk, gathered and turned into the view here."""
    pixels = read.pixels[session.card.preprocess]
    step = batch * _BATCHES_AT_ONCE if session.device.is_gpu else batch
    pieces = (rows[start : start + step] for start in range(0, len(rows), step))
    return np.concatenate([pipeline.ask(session, view.apply(pixels[piece])) for piece in pieces])


def _ask_on_device(pipeline: Pipeline, pool: DevicePool, session: Session, view: View, rows: Rows) -> Logits:
    """Return the same from a chunk that is on the GPU: rows and view are gathered there."""
    pool.choose(session.card.preprocess, view, rows)
    return pipeline.ask_pool(session, pool)


def _run_passes(plan: Plan, listing: Listing, read: Batch, sessions: Mapping[str, Session], ask: Ask) -> Chunk:
    """Run pass after pass on the rows that are still open, gathered into full batches."""
    count, classes = len(read.rows), len(plan.recipe.labels)
    decided = np.full(count, OPEN, dtype=np.intp)
    counts = np.zeros(count, dtype=np.intp)
    left = np.arange(count)
    running = Running(plan.recipe, plan.passes, count)
    seen = np.zeros((count, 0, classes), dtype=np.float32)
    for one in plan.passes:
        if not len(left):
            break
        session = sessions[one.member]
        view = plan.views[one.view]
        logits = view.restore(ask(session, view, left), session.card.labels, member=one.member)
        seen = np.concatenate([seen, logits[:, np.newaxis]], axis=1)
        running.add(logits[:, plan.recipe.labels.permutation(session.card.labels, owner=one.member)])
        counts[left] += 1
        if running.seen == len(plan.passes):
            break
        settled = _settle(plan, running)
        done = settled.rows
        decided[left[done]] = settled.classes[done]
        left, seen = left[~done], seen[~done]
        running.keep(~done)
    if not len(left):
        seen = np.zeros((0, len(plan.passes), classes), dtype=np.float32)
    return Chunk(tuple(listing.ids[row] for row in read.rows), decided, counts, seen)


def _settle(plan: Plan, running: Running) -> Settled:
    """Return the rows that need no further pass, by the thresholds or else by the bound."""
    if plan.stops is None:
        return running.certain()
    found = running.leaders()
    return Settled(found.leads >= plan.stops.get(running.seen, np.inf), found.classes)


def answers_of(plan: Plan, chunks: Sequence[Chunk]) -> Classes:
    """Return the class of each row of the chunks, in order: the early answers, and `blend` for the rows still open.

    Rows that left early take part in the blend with zeros, so that each other row keeps its place: a vectorized exp()
    may round a row differently at another place.
    """
    ids = tuple(name for chunk in chunks for name in chunk.ids)
    classes = np.concatenate([chunk.classes for chunk in chunks])
    left = np.flatnonzero(classes == OPEN)
    logits = np.concatenate([chunk.logits for chunk in chunks])
    by_member: dict[str, dict[str, Logits]] = {}
    for k, one in enumerate(plan.passes):
        values = np.zeros((len(ids), logits.shape[2]), dtype=np.float32)
        values[left] = logits[:, k]
        by_member.setdefault(one.member, {})[one.view] = values
    members = [
        Predictions(name, one.group, None, plan.models[name].card.labels, ids, by_member[name], sha256="")
        for name, one in {one.member: one for one in plan.passes}.items()
    ]
    # silent: among so many zeros, what is said about odd members would be wrong
    classes[left] = blend(members, plan.recipe, ids=ids).classes[left]
    return classes


def filled_chunk(plan: Plan, ids: Sequence[str]) -> Chunk:
    """Return a chunk for images that could not be read: each pass gives the class prior of its member."""
    count = len(ids)
    prior = np.stack([log_prior(plan.models[one.member].card) for one in plan.passes])
    nothing = np.zeros(count, dtype=np.intp)
    return Chunk(tuple(ids), np.full(count, OPEN, dtype=np.intp), nothing, np.tile(prior, (count, 1, 1)))


def rows_of_chunk(device: Device) -> int:
    """Return the rows of every chunk but the last."""
    return CHUNK_ROWS[device.kind]


def rows_per_pass(chunks: Sequence[Chunk], passes: int) -> list[int]:
    """Return how many rows needed each of the passes."""
    counts = np.concatenate([chunk.passes for chunk in chunks])
    return [int((counts > k).sum()) for k in range(passes)]


def begun_run(work: Path, models: Iterable[str]) -> tuple[str, ...]:
    """Return the providers that the parts of a run in ``work`` were computed with, with an early exit or without."""
    parts = begun_providers(work / "preds" / name for name in models)
    return parts or begun_providers(
        [work / "early"], prefix=ChunkStore.prefix, origin_of=lambda path: read_chunk(path).origin
    )
