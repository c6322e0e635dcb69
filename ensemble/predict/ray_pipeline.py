"""The pipeline of a cluster: parts go out, answers come back in order, and a worker that died is replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ensemble.errors import DataError, DeviceError, EnsError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.face_boxes import Box
from ensemble.images.listing import Listing
from ensemble.images.views import View
from ensemble.predict.batch_size import Trial
from ensemble.predict.pipeline import Answer, Work
from ensemble.predict.ray_worker import Cluster, Done, Job, Share, versions
from ensemble.predict.timing import Stopwatch
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import ModelFile

_TRIES = 3
_AHEAD = 4  # parts a worker that may be done before the part that is due


@dataclass(slots=True, eq=False)
class _Errand:
    """A part on its way: which one, and how many workers have died over it."""

    number: int
    share: Share
    deaths: int = 0


class RemotePipeline:
    """As `Pipeline`, on the workers of a cluster: each takes ``part_rows`` rows at a time, with ``workers`` threads."""

    def __init__(
        self,
        cluster: Cluster,
        models: Sequence[ModelFile],
        listing: Listing,
        views: Sequence[View],
        *,
        device: Device,
        workers: int | None,
        part_rows: int,
        boxes: Sequence[Box | None] | None = None,
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
        self._listing = listing
        self._boxes = boxes
        self._part_rows = part_rows
        self._listener = listener
        self._job = Job(
            device=str(device) if not device.is_gpu else device.kind,
            provider=device.provider,
            views=tuple(view.name for view in views),
            threads=self.workers,
            sizes=tuple(sizes),
            image=listing.cut(0, 1).place(0),
            versions=versions(),
        )

    def run(self, work: Iterable[Work]) -> Generator[Answer, None, None]:
        """The answers, in the order of ``work``; a worker that dies is replaced and its part is done again.

        Raises:
            DeviceError: E610 when workers keep dying, E611 when one cannot start; see `Session.run`.
        """
        errands = deque(_Errand(number, share) for number, share in enumerate(self._shares(work)))
        count, due = len(errands), 0
        finished: dict[int, Done] = {}
        crew = _Crew(self._cluster, self._job, self._models if count else (), self._device, self._listener)
        try:
            for _ in range(min(self.places, count)):
                crew.hire()
            while due < count:
                while crew.free and errands and errands[0].number < due + _AHEAD * self.places:
                    crew.send(errands.popleft())
                done, lost = crew.wait()
                finished |= done
                errands.extendleft(lost)
                while due in finished:
                    yield from self._take(finished.pop(due))
                    due += 1
        except KeyboardInterrupt as err:
            raise KeyboardInterrupt(*(err.args or self._cluster.stopped[:1])) from err
        finally:
            crew.dismiss()

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


class _Crew:
    """The workers: those that are ``free``, and what the others are at."""

    def __init__(
        self, cluster: Cluster, job: Job, models: Sequence[ModelFile], device: Device, listener: Listener
    ) -> None:
        self.free: list[Any] = []
        self._cluster, self._ray = cluster, cluster.ray
        self._job = job
        self._models = [self._ray.put(model) for model in models]
        self._device = device
        self._listener = listener
        self._busy: dict[Any, tuple[Any, _Errand | None]] = {}
        self._failed_starts = 0

    def hire(self) -> None:
        """Ask for a worker; it is free once its models have started."""
        actor = self._cluster.hire(self._device, self._job.threads)
        self._busy[actor.start.remote(self._job, *self._models)] = (actor, None)

    def send(self, errand: _Errand) -> None:
        """Give a free worker something to do."""
        actor = self.free.pop()
        self._busy[actor.run.remote(errand.share)] = (actor, errand)

    def wait(self) -> tuple[dict[int, Done], list[_Errand]]:
        """What the next worker that is ready has finished, by number of the part, and what was lost with one that died.

        Raises:
            DeviceError: see `RemotePipeline.run`.
        """
        (future,), _ = self._ray.wait(list(self._busy), num_returns=1)
        actor, errand = self._busy.pop(future)
        try:
            result = self._ray.get(future)
        except self._ray.exceptions.RayTaskError:
            raise  # a bug of ours, there
        except self._ray.exceptions.RayError as err:
            # the worker is gone, or its machine is and the answer with it
            self._ray.kill(actor)
            self._mourn(errand, err)
            self.hire()
            return {}, [] if errand is None else [errand]
        if isinstance(result, EnsError):
            raise result
        self.free.append(actor)
        if errand is not None:
            return {errand.number: result}, []
        for notice in result:
            self._listener.notice(notice)
        return {}, []

    def dismiss(self) -> None:
        """End every worker."""
        for actor in (*self.free, *(actor for actor, _ in self._busy.values())):
            self._ray.kill(actor)

    def _mourn(self, errand: _Errand | None, err: Exception) -> None:
        """Say that a worker died; too many deaths of one kind end the run."""
        if errand is None:
            self._failed_starts += 1
            if self._failed_starts == _TRIES:
                raise DeviceError("E610", f"{_TRIES} workers ended while they started the models: {err}") from err
            return
        errand.deaths += 1
        if errand.deaths == _TRIES:
            names = enumerate_some(list(errand.share.listing.ids), limit=3)
            raise DeviceError(
                "E610",
                f"{_TRIES} workers ended over the same images: {names}",
                hint="run the command with --engine local: if an image crashes its decoder, the second run names it",
            ) from err
        self._listener.notice(Notice("W610", f"a worker ended; part {errand.number + 1} is done again"))
