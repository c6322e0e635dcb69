"""Images x cells with early exit: one decode for all cells, and only the rows still open go on; resumable.

A chunk's resized pixels stay in memory while the cells run one after the other, each on
the rows whose answer is still open. A finished chunk appears by rename as ``chunk-00000.parquet``: the class of each
row that left early, the logits of each row that saw every cell, and how many cells each row saw. Images that could not
be read have no row in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
import onnxruntime
import PIL
from numpy.typing import NDArray

from ensemble import files
from ensemble.arrays import Classes, Logits, Mask
from ensemble.blend.blend import blend
from ensemble.blend.recipe import Recipe
from ensemble.errors import DataError, FileError, Interrupted, PredictionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing
from ensemble.images.sandbox import find_faults
from ensemble.images.views import View
from ensemble.predict.background_writer import Writer
from ensemble.predict.bad_images import log_prior, tell_oddities
from ensemble.predict.crash_note import note, noted, read_note, tell_died
from ensemble.predict.pipeline import Batch, Pipeline, Work
from ensemble.predict.timing import Pace
from ensemble.predictions.dataset import Predictions
from ensemble.runtime.device import Device
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.session import Session, start_session
from ensemble.submit.chunk_file import OPEN, Chunk, read_chunk, write_chunk
from ensemble.submit.early_exit import Cell, Running

CHUNK_ROWS = {"cpu": 64, "openvino": 64, "cuda": 256, "tensorrt": 256}  # on a CPU each core has a chunk of its own


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What runs: ``cells`` in their order, by ``models`` of their members, through ``views`` by name.

    ``stops`` says after how many cells a row may leave, and how far its answer must lead; None leaves it to the bound.
    """

    recipe: Recipe
    cells: tuple[Cell, ...]
    models: Mapping[str, ModelFile]
    views: Mapping[str, View]
    stops: Mapping[int, float] | None = None
    boxes: Boxes | None = None

    def fingerprint(self, listing: Listing, device: Device) -> dict[str, Any]:
        """What the answers depend on."""
        recipe = json.loads(self.recipe.to_json())
        recipe.pop("learned", None)
        return {
            "recipe": hashlib.sha256(json.dumps(recipe).encode()).hexdigest(),
            "models": {name: model.sha256 for name, model in sorted(self.models.items())},
            "cells": [[cell.member, cell.view, cell.weight] for cell in self.cells],
            "stops": None if self.stops is None else [[k, repr(lead)] for k, lead in sorted(self.stops.items())],
            "ids": listing.sha256,
            "provider": device.provider,
            "boxes": None if self.boxes is None else self.boxes.sha256,
            "versions": f"onnxruntime {onnxruntime.__version__}, Pillow {PIL.__version__}",
        }


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """Every chunk in order, the rows that could not be read, and by member how it ran, where it did."""

    chunks: list[Chunk]
    faults: dict[int, DataError]
    decisions: dict[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    work: Work
    chunk: Chunk
    faults: Mapping[int, DataError]
    oddities: Mapping[int, tuple[str, ...]]


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
    """Every chunk, computed or found in ``folder``.

    A chunk that lacks rows that could not be read is done again when they are mended. Those rows, and those that a run
    was at when it died, are tried in a process of their own before anything is computed.

    Raises:
        DeviceError: see `Session.run`; E603 when memory runs out.
        FileError: E701 to E703 for the folder, E704 when it holds another run.
        Interrupted: E801 on Ctrl-C or SIGTERM; finished chunks are kept.
    """
    with files.locked(folder):
        run = plan.fingerprint(listing, device)
        parts, origins = _chunks(listing, device), list[str]()
        for rows in parts:
            sizes = ",".join(map(str, listing.sizes[rows.start : rows.stop]))
            origins.append(json.dumps(run | {"sizes": hashlib.sha256(sizes.encode()).hexdigest()}))
        chunks, lacks = _resume(folder, origins, run, listing, parts, fresh=fresh, listener=listener)
        known = _try_doubtful(chunks, lacks, listing, folder, parts, listener)
        pipeline.known |= known
        with noted([folder]):
            faults, decisions = _compute(
                plan, listing, folder, parts, origins, chunks, pipeline, device, batch, listener
            )
        faults |= known
    return Chunks([chunks[index] for index in sorted(chunks)], faults, decisions)


def _chunks(listing: Listing, device: Device) -> list[range]:
    """The rows of each chunk."""
    size = rows_of_chunk(device)
    return [range(start, min(start + size, len(listing))) for start in range(0, len(listing), size)]


def _path(folder: Path, index: int) -> Path:
    return folder / f"chunk-{index:05d}.parquet"


def _resume(
    folder: Path,
    origins: Sequence[str],
    run: Mapping[str, Any],
    listing: Listing,
    parts: Sequence[range],
    *,
    fresh: bool,
    listener: Listener,
) -> tuple[dict[int, Chunk], dict[int, set[int]]]:
    """By number, the chunks that are there already, and the rows that they or those to be done again lack."""
    found, lacks = dict[int, Chunk](), dict[int, set[int]]()
    for path in sorted(folder.glob("chunk-*.parquet")):
        if fresh:
            files.remove(path)
            continue
        try:
            chunk, origin = read_chunk(path)
        except PredictionError as err:
            listener.notice(Notice("W705", f"{err.message}; it is done again", path))
            continue
        before = json.loads(origin)
        differing = [name for name, value in run.items() if before.get(name) != value]
        if differing:
            raise FileError("E704", f"{folder} holds another run: other {' and '.join(differing)}", path=folder)
        index = int(path.stem.removeprefix("chunk-"))
        if before.pop("missing", 0):
            there = set(chunk.ids)
            lacks[index] = {row for row in parts[index] if listing.ids[row] not in there}
        if origins[index] == json.dumps(before):
            found[index] = chunk
        elif index not in lacks:
            listener.notice(Notice("W705", f"images of {path.name} changed since; it is done again", path))
    return found, lacks


def _try_doubtful(
    chunks: dict[int, Chunk],
    lacks: Mapping[int, set[int]],
    listing: Listing,
    folder: Path,
    parts: Sequence[range],
    listener: Listener,
) -> dict[int, DataError]:
    """Try the rows that chunks lack, and those that a run died over; chunks that need not lack a row are taken away."""
    noted_parts = read_note(folder)
    died = {row for index, rows in enumerate(parts) if index in noted_parts and index not in chunks for row in rows}
    tell_died(len(died), listener)
    faults = find_faults(listing, died.union(*lacks.values()), listener=listener)
    for index, rows in lacks.items():
        if not faults.keys() >= rows:
            chunks.pop(index, None)
    return faults


def _compute(
    plan: Plan,
    listing: Listing,
    folder: Path,
    parts: Sequence[range],
    origins: Sequence[str],
    chunks: dict[int, Chunk],
    pipeline: Pipeline,
    device: Device,
    batch: int,
    listener: Listener,
) -> tuple[dict[int, DataError], dict[str, Mapping[str, str]]]:
    """Add the chunks that are missing to ``chunks`` and to the folder; return faults and decisions, see `Chunks`."""
    pending = [index for index in range(len(origins)) if index not in chunks]
    models = plan.models if pending else {}
    if device.is_gpu:
        sessions = start_gpu_sessions(models, device=device, rows=batch, listener=listener)
    else:
        sessions = {name: start_session(model, device=device, listener=listener) for name, model in models.items()}
    asked = tuple(sessions.values())
    faults: dict[int, DataError] = {}
    oddities: dict[str, list[str]] = {}
    unfinished = deque(pending)
    before = done = sum(len(parts[index]) for index in chunks)
    pace = Pace(pipeline.watch, plan.models, workers=pipeline.workers, on_gpu=device.is_gpu)

    def answer(work: Work, read: Batch) -> _Answer:
        chunk = _run_cells(plan, listing, read, sessions, pipeline, batch)
        return _Answer(work, chunk, read.faults, read.oddities)

    def work() -> Iterator[Work]:
        for index in pending:
            note(folder, unfinished[0], index)
            yield Work(parts[index], asked)

    answers = pipeline.map(answer, work())
    with Writer() as writer:
        try:
            listener.progress("submit", done, len(listing))
            for index, one in zip(pending, answers, strict=True):
                faults |= one.faults
                for row, codes in one.oddities.items():
                    for code in codes:
                        oddities.setdefault(code, []).append(listing.ids[row])
                chunks[index] = one.chunk
                origin = _origin(origins[index], missing=len(one.faults))
                writing = functools.partial(write_chunk, _path(folder, index), one.chunk, origin)
                with pipeline.watch.waiting("blocked"):
                    writer.write(writing, rows=len(one.work.rows))
                unfinished.popleft()
                done += len(one.work.rows)
                listener.detail(pace.tell())
                listener.progress("submit", done, len(listing))
            writer.finish()
        except KeyboardInterrupt as err:
            number = int(err.args[0]) if err.args else SIGINT
            safe = before + writer.settle()
            raise Interrupted(f"stopped; {safe:,} of {len(listing):,} images are done", signal_number=number) from err
        finally:
            answers.close()
    tell_oddities(oddities, listener)
    return faults, {name: session.decisions for name, session in sessions.items()}


def _run_cells(
    plan: Plan, listing: Listing, read: Batch, sessions: Mapping[str, Session], pipeline: Pipeline, batch: int
) -> Chunk:
    """Ask cell after cell about the rows that are still open, gathered into full batches."""
    count, classes = len(read.rows), len(plan.recipe.labels)
    decided = np.full(count, OPEN, dtype=np.intp)
    passes = np.zeros(count, dtype=np.intp)
    left = np.arange(count)
    running = Running(plan.recipe, plan.cells, count)
    seen = np.zeros((count, 0, classes), dtype=np.float32)
    for cell in plan.cells:
        if not len(left):
            break
        session, look = sessions[cell.member], plan.views[cell.view].apply
        pixels = read.pixels[session.card.preprocess]
        pieces = (left[start : start + batch] for start in range(0, len(left), batch))
        logits = np.concatenate([pipeline.ask(session, look(pixels[piece])) for piece in pieces])
        seen = np.concatenate([seen, logits[:, np.newaxis]], axis=1)
        running.add(logits[:, plan.recipe.labels.permutation(session.card.labels, owner=cell.member)])
        passes[left] += 1
        if running.seen == len(plan.cells):
            break
        done, answers = _leaving(plan, running)
        decided[left[done]] = answers[done]
        left, seen = left[~done], seen[~done]
        running.keep(~done)
    if not len(left):
        seen = np.zeros((0, len(plan.cells), classes), dtype=np.float32)
    return Chunk(tuple(listing.ids[row] for row in read.rows), decided, passes, seen)


def _leaving(plan: Plan, running: Running) -> tuple[Mask, NDArray[np.intp]]:
    if plan.stops is None:
        return running.certain()
    leads, answers = running.leaders()
    return leads >= plan.stops.get(running.seen, np.inf), answers


def _origin(origin: str, *, missing: int) -> str:
    return json.dumps(json.loads(origin) | {"missing": missing}) if missing else origin


def answers_of(plan: Plan, chunks: Sequence[Chunk]) -> Classes:
    """The class of each row of the chunks, in their order: the early answers, and `blend` for the rows still open.

    Rows that left early take part in the blend with zeros, so that each other row stands where it would stand in a
    blend of all: a vectorised exp() may round a row by its place.
    """
    ids = tuple(name for chunk in chunks for name in chunk.ids)
    classes = np.concatenate([chunk.classes for chunk in chunks])
    left = np.flatnonzero(classes == OPEN)
    logits = np.concatenate([chunk.logits for chunk in chunks])
    by_member: dict[str, dict[str, Logits]] = {}
    for k, cell in enumerate(plan.cells):
        values = np.zeros((len(ids), logits.shape[2]), dtype=np.float32)
        values[left] = logits[:, k]
        by_member.setdefault(cell.member, {})[cell.view] = values
    members = [
        Predictions(name, cell.group, None, plan.models[name].card.labels, ids, by_member[name], sha256="")
        for name, cell in {cell.member: cell for cell in plan.cells}.items()
    ]
    # silent: among so many zeros, what is said about odd members would be wrong
    classes[left] = blend(members, plan.recipe, ids=ids).classes[left]
    return classes


def filled_chunk(plan: Plan, ids: Sequence[str]) -> Chunk:
    """Images that could not be read, for which every cell says the class prior of its member."""
    count = len(ids)
    prior = np.stack([log_prior(plan.models[cell.member].card) for cell in plan.cells])
    nothing = np.zeros(count, dtype=np.intp)
    return Chunk(tuple(ids), np.full(count, OPEN, dtype=np.intp), nothing, np.tile(prior, (count, 1, 1)))


def rows_of_chunk(device: Device) -> int:
    """How many rows a chunk has, but for the last."""
    return CHUNK_ROWS[device.kind]


def rows_of_cells(chunks: Sequence[Chunk], cells: int) -> list[int]:
    """How many rows saw each cell."""
    passes = np.concatenate([chunk.passes for chunk in chunks])
    return [int((passes > k).sum()) for k in range(cells)]
