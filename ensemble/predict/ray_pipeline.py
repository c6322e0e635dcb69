"""The pipeline on a Ray cluster: workers compute parts, answers come back in order, and dead workers are replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ensemble.errors import DataError, DeviceError, EnsError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.sandbox import find_faults
from ensemble.predict import parts
from ensemble.predict.batch_size import Trial
from ensemble.predict.inputs import Inputs
from ensemble.predict.pipeline import Answer, Work
from ensemble.predict.ray_worker import Cluster, Done, Job, Share, versions
from ensemble.predict.timing import Stopwatch
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import ModelFile

_TRIES = 3
_AHEAD = 4  # parts per worker that may be finished before the part that is due


@dataclass(slots=True, eq=False)
class _Task:
    """A part to compute, and how many workers have died while they computed it."""

    number: int
    share: Share
    deaths: int = 0


class RemotePipeline:
    """As `Pipeline`, on the workers of a cluster: each takes a part at a time, with ``workers`` threads.

    ``rows`` is the batch size, for which models on GPUs are started.
    """

    def __init__(
        self,
        cluster: Cluster,
        models: Sequence[ModelFile],
        inputs: Inputs,
        *,
        device: Device,
        workers: int | None,
        rows: int,
        sizes: Sequence[int] = (),
        listener: Listener = SILENT,
    ) -> None:
        self.watch = Stopwatch()
        self.known: dict[int, DataError] = {}
        self.trials: dict[str, Trial] = {}  # the workers keep theirs
        self.places, self.workers = cluster.places(device, workers)
        self._cluster = cluster
        self._models = models
        self._device = device
        self._listing, self._boxes = inputs.listing, inputs.boxes
        self._part_rows = parts.PART_ROWS
        self._listener = listener
        self._job = Job(
            device=str(device) if not device.is_gpu else device.kind,
            provider=device.provider,
            views=tuple(view.name for view in inputs.views),
            threads=self.workers,
            rows=rows,
            sizes=tuple(sizes),
            image=inputs.listing.cut(0, 1).place(0),
            versions=versions(),
        )

    def run(self, work: Iterable[Work]) -> Generator[Answer, None, None]:
        """Yield the answers in the order of ``work``; a worker that dies is replaced, and its part is computed again.

        Raises:
            DeviceError: E610 when workers keep dying, E611 when one cannot start; see `Session.run`.
        """
        tasks = deque(_Task(number, share) for number, share in enumerate(self._shares(work)))
        count, due = len(tasks), 0
        finished: dict[int, Done] = {}
        pool = _WorkerPool(self._cluster, self._job, self._models if count else (), self._device, self._listener)
        try:
            for _ in range(min(self.places, count)):
                pool.start_worker()
            while due < count:
                while pool.free and tasks and tasks[0].number < due + _AHEAD * self.places:
                    pool.submit(tasks.popleft())
                done, lost = pool.wait()
                finished |= done
                tasks.extendleft(lost)
                while due in finished:
                    yield from self._take(finished.pop(due))
                    due += 1
        except KeyboardInterrupt as err:
            raise KeyboardInterrupt(*(err.args or self._cluster.stopped[:1])) from err
        finally:
            pool.shut_down()

    def _take(self, done: Done) -> Iterator[Answer]:
        for notice in done.notices:
            self._listener.notice(notice)
        for stage, seconds in done.seconds.items():
            self.watch.seconds[stage] = self.watch.seconds.get(stage, 0.0) + seconds
        yield from done.answers

    def _shares(self, work: Iterable[Work]) -> Iterator[Share]:
        for _, part in groupby(work, key=lambda one: one.rows.start // self._part_rows):
            batches = list(part)
            first, last = batches[0].rows.start, batches[-1].rows.stop
            yield Share(
                start=first,
                listing=self._listing.cut(first, last),
                boxes=None if self._boxes is None else tuple(self._boxes[first:last]),
                members=tuple(session.card.member for session in batches[0].sessions),
                batches=tuple(range(one.rows.start - first, one.rows.stop - first) for one in batches),
                known={row - first: fault for row, fault in self.known.items() if first <= row < last},
            )


class _WorkerPool:
    """The workers of a run: those that are ``free``, and the tasks of the others."""

    def __init__(
        self, cluster: Cluster, job: Job, models: Sequence[ModelFile], device: Device, listener: Listener
    ) -> None:
        self.free: list[Any] = []
        self._cluster, self._ray = cluster, cluster.ray
        self._job = job
        self._models = [self._ray.put(model) for model in models]
        self._device = device
        self._listener = listener
        self._busy: dict[Any, tuple[Any, _Task | None]] = {}
        self._failed_starts = 0

    def start_worker(self) -> None:
        """Start a worker; it is free once its models have started."""
        actor = self._cluster.start_worker(self._device, self._job.threads)
        self._busy[actor.start.remote(self._job, *self._models)] = (actor, None)

    def submit(self, task: _Task) -> None:
        """Hand a task to a free worker."""
        actor = self.free.pop()
        self._busy[actor.run.remote(task.share)] = (actor, task)

    def wait(self) -> tuple[dict[int, Done], list[_Task]]:
        """Wait for the next worker; return what it finished, by number of the part, or the task that was lost with it.

        Raises:
            DeviceError: see `RemotePipeline.run`.
        """
        (future,), _ = self._ray.wait(list(self._busy), num_returns=1)
        actor, task = self._busy.pop(future)
        try:
            result = self._ray.get(future)
        except self._ray.exceptions.RayTaskError:
            raise  # a bug of ours, there
        except self._ray.exceptions.RayError as err:
            # the worker is gone, or its machine is and the answer with it
            self._ray.kill(actor)
            self._on_worker_death(task, err)
            self.start_worker()
            return {}, [] if task is None else [task]
        if isinstance(result, EnsError):
            raise result
        self.free.append(actor)
        if task is not None:
            return {task.number: result}, []
        for notice in result:
            self._listener.notice(notice)
        return {}, []

    def shut_down(self) -> None:
        """End every worker."""
        for actor in (*self.free, *(actor for actor, _ in self._busy.values())):
            self._ray.kill(actor)

    def _on_worker_death(self, task: _Task | None, err: Exception) -> None:
        """Report that a worker died; too many deaths of one kind end the run."""
        if task is None:
            self._failed_starts += 1
            if self._failed_starts == _TRIES:
                raise DeviceError("E610", f"{_TRIES} workers ended while they started the models: {err}") from err
            return
        task.deaths += 1
        if task.deaths == _TRIES:
            names = enumerate_some(list(task.share.listing.ids), limit=3)
            raise DeviceError(
                "E610",
                f"{_TRIES} workers ended over the same images: {names}",
                hint="run the command with --engine local: if an image crashes its decoder, the second run names it",
            ) from err
        self._listener.notice(Notice("W610", f"a worker ended; part {task.number + 1} is computed again"))
        if task.deaths == _TRIES - 1:
            self._name_crashing_images(task)

    def _name_crashing_images(self, task: _Task) -> None:
        """Decode the images of a task here, in a subprocess: those that crash it are not sent to a worker again."""
        images = task.share.listing
        rows = [row for row in range(len(images)) if row not in task.share.known]
        faults = find_faults(images, rows, listener=self._listener)
        if faults:
            task.share = replace(task.share, known={**task.share.known, **faults})
            task.deaths = 0
