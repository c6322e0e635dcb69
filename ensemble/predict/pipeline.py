"""From files to logits, batch by batch and in order: decoding ahead, every core busy, memory bounded.

On the CPU each worker thread takes a whole batch from reading to logits, one core a batch: this keeps all cores busy
without threads that wait for one another inside a layer. On GPUs the workers decode ahead, and the batches go through
lanes (`through_lanes`). The answers are the same either way, and for any number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.card import Preprocess
from ensemble.errors import DataError, DeviceMemoryError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.decode import name_image, read_file
from ensemble.images.face_crop import prepare_image
from ensemble.images.planes import decode_for
from ensemble.images.resize import plain_preprocess
from ensemble.images.time_limit import thread_time
from ensemble.predict.batch_size import Trial
from ensemble.predict.gpu_lanes import ModelInputs, load_ahead, through_lanes
from ensemble.predict.inputs import Inputs
from ensemble.predict.timing import Stopwatch
from ensemble.runtime.device_pool import DevicePool
from ensemble.runtime.gpu_start import model_inputs, relative_costs, retry_on_oom, shared_batch_size
from ensemble.runtime.io_binding import DeviceBuffers
from ensemble.runtime.session import Session, run_together
from ensemble.thread_pool import map_ahead, thread_pool

_READ_ROWS = 64  # of a large piece of work, that one worker reads
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Some rows of the listing, and the models that are to see them."""

    rows: range
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The results of some rows: ``logits[member][view]`` is ``(len(rows), C)`` for the rows that could be read.

    ``faults`` are the rows that could not be; ``oddities`` are the codes of what was unusual, by row.
    """

    asked: range
    rows: tuple[int, ...]
    logits: Mapping[str, Mapping[str, Logits]]
    faults: Mapping[int, DataError]
    oddities: Mapping[int, tuple[str, ...]]


class Pipeline:
    """Decodes each image once, prepares it once for each preprocessing in use, and asks every model for every view.

    ``ahead`` is how many batches may be begun and not yet handed on. On the CPU only those that a worker computes hold
    pixels, and the others keep no worker waiting for a slower one; on a GPU each of them holds pixels, as does the one
    handed on. On the CPU a batch goes through each model in pieces of whichever of ``sizes`` turns out fastest, see
    `Trial`; without ``sizes``, and elsewhere, as a whole. ``known`` are rows known to be faulty: they are not decoded.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        on_gpu: bool,
        workers: int,
        ahead: int | None = None,
        sizes: Sequence[int] = (),
        listener: Listener = SILENT,
    ) -> None:
        self.watch = Stopwatch()
        self.known: dict[int, DataError] = {}
        self.trials: dict[str, Trial] = {}
        self._sizes = sizes
        self._ahead_by = ahead or (workers + 2 if on_gpu else 4 * workers)
        self._listing, self._boxes, self._views = inputs.listing, inputs.boxes, inputs.views
        self._on_gpu = on_gpu
        self._workers = workers
        self._listener = listener
        self._largest_batch: dict[str, int] = {}

    @property
    def workers(self) -> int:
        """The number of threads that decode, and on the CPU also compute."""
        return self._workers

    def run(self, work: Iterable[Work]) -> Generator[Answer, None, None]:
        """The answers, in the order of ``work``; see `Pipeline` for how many batches are in memory at once.

        Raises:
            DeviceError: see `Session.run`.
        """
        if self._on_gpu:
            with closing(self._in_lanes(work)) as answers:
                yield from answers
        else:
            yield from self.map(self._infer, work)

    def map(self, function: Callable[[Work, Batch], T], work: Iterable[Work]) -> Generator[T, None, None]:
        """Yield ``function`` of the pixels of each batch, in the order of ``work``; it may run in several threads."""
        if self._on_gpu:
            # what the function asks goes through the lane that its thread has; all workers decode one piece of work
            with thread_pool(self._workers, "ens-read") as pool:
                read = partial(self._read_together, pool)
                passed = self._through(work, read, lambda *_: None, lambda _, item: function(*item), readers=1)
                with closing(passed) as done:
                    yield from done
        else:
            yield from self._ahead(lambda one: function(*self._read(one)), work)

    def ask(self, session: Session, pixels: Pixels) -> Logits:
        """One model's logits for a batch, timed; see `run`."""
        clock = time.thread_time if session.device.kind == "cpu" else time.perf_counter
        with self.watch.timing(session.card.member, clock=clock, rows=len(pixels)):
            return self._ask(session, pixels)

    def ask_pool(self, session: Session, pool: DevicePool) -> Logits:
        """One model's logits for what a pool has chosen, timed."""
        with self.watch.timing(session.card.member, clock=time.perf_counter, rows=pool.count(session.card.preprocess)):
            return retry_on_oom(session, partial(session.run_views, pool), self._listener)["identity"]

    def _in_lanes(self, work: Iterable[Work]) -> Generator[Answer, None, None]:
        """As `run` on GPUs: all views of a batch in one run of each model, over one copy of the batch."""

        def read(one: Work) -> tuple[Work, Batch, ModelInputs]:
            _, batch = self._read(one)
            with self.watch.timing("resize"):
                return one, batch, model_inputs(batch.pixels, self._views)

        def load(lane: DeviceBuffers, item: tuple[Work, Batch, ModelInputs]) -> None:
            with self.watch.timing("copy", clock=time.perf_counter, rows=len(item[1].rows)):
                load_ahead(lane, item[2], rows=shared_batch_size(item[0].sessions))

        def compute(lane: DeviceBuffers, item: tuple[Work, Batch, ModelInputs]) -> Answer:
            one, batch, _ = item
            logits: dict[str, Mapping[str, Logits]] = {session.card.member: {} for session in one.sessions}
            if batch.rows:
                with self.watch.sharing(relative_costs(one.sessions), rows=len(batch.rows)):
                    ask = partial(run_together, one.sessions, lane)
                    found = retry_on_oom(one.sessions[0], ask, self._listener)
                cards = {session.card.member: session.card for session in one.sessions}
                logits = {
                    name: {
                        view.name: view.restore(views[view.name], cards[name].labels, member=name)
                        for view in self._views
                    }
                    for name, views in found.items()
                }
            return Answer(one.rows, batch.rows, logits, batch.faults, batch.oddities)

        return self._through(work, read, load, compute)

    def _through(
        self,
        work: Iterable[Work],
        read: Callable[[Work], S],
        load: Callable[[DeviceBuffers, S], None],
        compute: Callable[[DeviceBuffers, S], T],
        *,
        readers: int | None = None,
    ) -> Generator[T, None, None]:
        rest = iter(work)
        for first in rest:
            device = first.sessions[0].device
            yield from through_lanes(
                chain([first], rest),
                read,
                load,
                compute,
                device=device,
                workers=readers or self._workers,
                ahead=self._ahead_by,
                waiting=self.watch.waiting,
            )

    def _ahead(self, function: Callable[[Work], T], work: Iterable[Work]) -> Generator[T, None, None]:
        return map_ahead(function, work, workers=self._workers, ahead=self._ahead_by)

    def _read(self, work: Work) -> tuple[Work, Batch]:
        return work, self._prepare(work.rows, {s.card.preprocess for s in work.sessions})

    def _read_together(self, pool: ThreadPoolExecutor, work: Work) -> tuple[Work, Batch]:
        """Read a large piece of work with all workers, into one batch."""
        rows, preprocesses = work.rows, {s.card.preprocess for s in work.sessions}
        parts = pool.map(
            lambda start: self._prepare(range(start, min(start + _READ_ROWS, rows.stop)), preprocesses),
            range(rows.start, rows.stop, _READ_ROWS),
        )
        plain = {preprocess: plain_preprocess(preprocess) for preprocess in preprocesses}
        whole: dict[Preprocess, Pixels] = {p: np.empty((len(rows), *p.shape), p.dtype) for p in plain.values()}
        good: list[int] = []
        faults: dict[int, DataError] = {}
        oddities: dict[int, tuple[str, ...]] = {}
        for part in parts:
            # those that come to the same pixels are written once
            for target, source in {plain[preprocess]: pixels for preprocess, pixels in part.pixels.items()}.items():
                whole[target][len(good) : len(good) + len(part.rows)] = source
            good += part.rows
            faults |= part.faults
            oddities |= part.oddities
        pixels = {preprocess: whole[same][: len(good)] for preprocess, same in plain.items()} if good else {}
        return work, Batch(tuple(good), pixels, faults, oddities)

    def _prepare(self, rows: range, preprocesses: set[Preprocess]) -> Batch:
        """Read, decode and resize; preprocessings that come to the same pixels share them."""
        plain = {preprocess: plain_preprocess(preprocess) for preprocess in preprocesses}
        prepared: dict[Preprocess, Pixels] = {p: np.empty((len(rows), *p.shape), p.dtype) for p in plain.values()}
        by_channels = {p.channels: p for p in prepared}  # an image is decoded once for each kind of channels
        good: list[int] = []
        faults: dict[int, DataError] = {}
        oddities: dict[int, tuple[str, ...]] = {}
        timing = self.watch.timing
        for row in rows:
            if row in self.known:
                faults[row] = self.known[row]
                continue
            path = self._listing.place(row)
            try:
                with timing("read", clock=time.perf_counter):
                    data = read_file(path)
                with timing("decode", clock=thread_time, rows=1):
                    photos = {p.channels: decode_for(data, path, p) for p in by_channels.values()}
            except DataError as err:
                faults[row] = err
                continue
            try:
                with timing("resize", rows=1):
                    for preprocess, images in prepared.items():
                        box = None if self._boxes is None else self._boxes[row]
                        images[len(good)] = prepare_image(photos[preprocess.channels].image, preprocess, box)
            except DataError as err:
                faults[row] = name_image(err, path)
                continue
            good.append(row)
            noticed = dict.fromkeys(code for photo in photos.values() for code in photo.notices)
            if noticed:
                oddities[row] = tuple(noticed)
        pixels = {preprocess: prepared[same][: len(good)] for preprocess, same in plain.items()} if good else {}
        return Batch(tuple(good), pixels, faults, oddities)

    def _infer(self, work: Work, batch: Batch) -> Answer:
        logits: dict[str, dict[str, Logits]] = {session.card.member: {} for session in work.sessions}
        alike: dict[Preprocess, list[Session]] = {}
        for session in work.sessions if batch.rows else ():
            alike.setdefault(plain_preprocess(session.card.preprocess), []).append(session)
        for sessions in alike.values():
            pixels = batch.pixels[sessions[0].card.preprocess]
            for view in self._views:
                seen = view.apply(pixels)
                for session in sessions:
                    card = session.card
                    found = self.ask(session, seen)
                    logits[card.member][view.name] = view.restore(found, card.labels, member=card.member)
        return Answer(work.rows, batch.rows, logits, batch.faults, batch.oddities)

    def _trial_of(self, session: Session) -> Trial | None:
        if not self._sizes or session.device.kind != "cpu":
            return None
        member = session.card.member
        return self.trials.get(member) or self.trials.setdefault(member, Trial(self._sizes))

    def _ask(self, session: Session, pixels: Pixels) -> Logits:
        """One model's logits; a batch that the device has no memory for is halved, and later ones start there."""
        if session.fixed_batch is not None:
            return retry_on_oom(session, partial(session.run, pixels), self._listener)
        trial = self._trial_of(session)
        size = len(pixels) if trial is None else trial.next_size(len(pixels))
        size = min(size, self._largest_batch.get(session.card.member, size))
        began = time.thread_time()
        try:
            logits = session.run_in_pieces(pixels, size)
        except DeviceMemoryError as err:
            if size == 1:
                raise
            self._largest_batch[session.card.member] = size // 2
            self._listener.notice(Notice("W602", f"{err.message}; continuing with {size // 2}"))
            return self._ask(session, pixels)
        if trial is not None:
            trial.learn(size, len(pixels), time.thread_time() - began)
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pixels ``(len(rows), H, W, 3)`` for each preprocessing, of the rows that could be read; else as `Answer`."""

    rows: tuple[int, ...]
    pixels: Mapping[Preprocess, Pixels]
    faults: Mapping[int, DataError]
    oddities: Mapping[int, tuple[str, ...]]
