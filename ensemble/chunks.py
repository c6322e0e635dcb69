"""Images x cells with early exit: one decode for all cells, and only the rows still open go on; resumable.

A chunk's resized pixels stay in memory while the cells run one after the other, each on
the rows whose answer is still open. A finished chunk appears by rename as ``chunk-00000.parquet``: the class of each
row that left early, the logits of each row that saw every cell, and how many cells each row saw.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
import onnxruntime
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ensemble import files
from ensemble.boxes import Boxes
from ensemble.devices import Device
from ensemble.early_exit import Cell, Running
from ensemble.errors import DataError, FileError, Interrupted, PredictionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.faults import tell_oddities
from ensemble.listing import Listing
from ensemble.model_file import ModelFile
from ensemble.pace import Pace
from ensemble.pipeline import Batch, Pipeline, Work
from ensemble.predictions import ORIGIN_KEY
from ensemble.recipe import Recipe
from ensemble.resident import start_resident
from ensemble.session import Session, start_session
from ensemble.tta import View
from ensemble.writer import Writer

CHUNK_ROWS = {"cpu": 64, "openvino": 64, "cuda": 256, "tensorrt": 256}  # on a CPU each core has a chunk of its own
OPEN = -1


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
class Chunk:
    """Some rows: ``classes`` ``(n,)`` with `OPEN` where every cell was needed, ``passes`` ``(n,)``.

    ``logits`` ``(open rows, cells, C)`` float32 are those of the open rows, by the models' own order of classes.
    """

    ids: tuple[str, ...]
    classes: NDArray[np.intp]
    passes: NDArray[np.intp]
    logits: NDArray[np.float32]


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

    A chunk with such rows is not kept, and is done again when they are mended.

    Raises:
        DeviceError: see `Session.run`.
        FileError: E701 to E703 for the folder, E704 when it holds another run.
        Interrupted: E801 on Ctrl-C or SIGTERM; finished chunks are kept.
    """
    with files.locked(folder):
        run = plan.fingerprint(listing, device)
        origins = []
        for rows in _chunks(listing, device):
            sizes = ",".join(map(str, listing.sizes[rows.start : rows.stop]))
            origins.append(json.dumps(run | {"sizes": hashlib.sha256(sizes.encode()).hexdigest()}))
        chunks = _resume(folder, origins, run, fresh=fresh, listener=listener)
        faults, decisions = _compute(plan, listing, folder, origins, chunks, pipeline, device, batch, listener)
    return Chunks([chunks[index] for index in sorted(chunks)], faults, decisions)


def _chunks(listing: Listing, device: Device) -> list[range]:
    """The rows of each chunk."""
    size = rows_of_chunk(device)
    return [range(start, min(start + size, len(listing))) for start in range(0, len(listing), size)]


def _path(folder: Path, index: int) -> Path:
    return folder / f"chunk-{index:05d}.parquet"


def _resume(
    folder: Path, origins: Sequence[str], run: Mapping[str, Any], *, fresh: bool, listener: Listener
) -> dict[int, Chunk]:
    """The chunks that are there already, by number."""
    found: dict[int, Chunk] = {}
    for path in sorted(folder.glob("chunk-*.parquet")):
        if fresh:
            files.remove(path)
            continue
        try:
            chunk, origin = _read_chunk(path)
        except PredictionError as err:
            listener.notice(Notice("W705", f"{err.message}; it is done again", path))
            continue
        before = json.loads(origin)
        differing = [name for name, value in run.items() if before.get(name) != value]
        if differing:
            raise FileError("E704", f"{folder} holds another run: other {' and '.join(differing)}", path=folder)
        index = int(path.stem.removeprefix("chunk-"))
        if origins[index] == origin:
            found[index] = chunk
        else:
            listener.notice(Notice("W705", f"images of {path.name} changed since; it is done again", path))
    return found


def _compute(
    plan: Plan,
    listing: Listing,
    folder: Path,
    origins: Sequence[str],
    chunks: dict[int, Chunk],
    pipeline: Pipeline,
    device: Device,
    batch: int,
    listener: Listener,
) -> tuple[dict[int, DataError], dict[str, Mapping[str, str]]]:
    """Add the chunks that are missing to ``chunks`` and to the folder; return faults and decisions, see `Chunks`."""
    parts = _chunks(listing, device)
    pending = [index for index in range(len(origins)) if index not in chunks]
    models = plan.models if pending else {}
    if device.is_gpu:
        sessions = start_resident(models, device=device, rows=batch, listener=listener)
    else:
        sessions = {name: start_session(model, device=device, listener=listener) for name, model in models.items()}
    asked = tuple(sessions.values())
    faults: dict[int, DataError] = {}
    oddities: dict[str, list[str]] = {}
    before = done = sum(len(chunk.ids) for chunk in chunks.values())
    pace = Pace(pipeline.watch, plan.models, workers=pipeline.workers, on_gpu=device.is_gpu)

    def answer(work: Work, read: Batch) -> _Answer:
        chunk = _run_cells(plan, listing, read, sessions, pipeline, batch)
        return _Answer(work, chunk, read.faults, read.oddities)

    answers = pipeline.map(answer, (Work(parts[index], asked) for index in pending))
    with Writer() as writer:
        try:
            listener.progress("submit", done, len(listing))
            for index, one in zip(pending, answers, strict=True):
                faults |= one.faults
                for row, codes in one.oddities.items():
                    for code in codes:
                        oddities.setdefault(code, []).append(listing.ids[row])
                chunks[index] = one.chunk
                if not one.faults:
                    writing = functools.partial(_write_chunk, _path(folder, index), one.chunk, origins[index])
                    with pipeline.watch.waiting("blocked"):
                        writer.write(writing, rows=len(one.chunk.ids))
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


def _leaving(plan: Plan, running: Running) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    if plan.stops is None:
        return running.certain()
    leads, answers = running.leaders()
    return leads >= plan.stops.get(running.seen, np.inf), answers


def _write_chunk(path: Path, chunk: Chunk, origin: str) -> None:
    values = iter(chunk.logits.reshape(len(chunk.logits), -1).tolist())
    table = pa.table(
        {
            "id": pa.array(chunk.ids, pa.string()),
            "class": pa.array(chunk.classes, pa.int64()),
            "passes": pa.array(chunk.passes, pa.int64()),
            "logits": pa.array([next(values) if k == OPEN else None for k in chunk.classes], pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({ORIGIN_KEY: origin, "shape": json.dumps(chunk.logits.shape)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    files.write_atomic(path, memoryview(sink.getvalue()))


def _read_chunk(path: Path) -> tuple[Chunk, str]:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        metadata = table.schema.metadata
        shape = json.loads(metadata[b"shape"])
        flat = table.column("logits").combine_chunks().flatten().to_numpy()
        chunk = Chunk(
            tuple(table.column("id").to_pylist()),
            table.column("class").to_numpy().astype(np.intp),
            table.column("passes").to_numpy().astype(np.intp),
            np.asarray(flat, dtype=np.float32).reshape(shape),
        )
        if len(chunk.logits) != int((chunk.classes == OPEN).sum()):
            raise ValueError("its logits are not those of the open rows")
        return chunk, metadata[ORIGIN_KEY.encode()].decode()
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as err:
        raise PredictionError("E514", f"{path.name} cannot be read as a chunk: {err}", path=path) from err


def rows_of_chunk(device: Device) -> int:
    """How many rows a chunk has, but for the last."""
    return CHUNK_ROWS[device.kind]


def rows_of_cells(chunks: Sequence[Chunk], cells: int) -> list[int]:
    """How many rows saw each cell."""
    passes = np.concatenate([chunk.passes for chunk in chunks])
    return [int((passes > k).sum()) for k in range(cells)]
