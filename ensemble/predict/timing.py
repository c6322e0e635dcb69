"""Throughput of the stages of a run, and its bottleneck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

_WINDOW = 5.0  # seconds


class Pace:
    """Reads a run's stopwatch now and then; ``members`` are the stages that are models."""

    def __init__(
        self,
        watch: Stopwatch,
        members: Collection[str],
        *,
        workers: int,
        on_gpu: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._members = members
        self._workers = workers
        self._on_gpu = on_gpu
        self._clock = clock
        self._since = clock()
        self._before: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def tell(self) -> str:
        """Return what the last seconds went into, and the images per second of each stage if it ran alone."""
        seconds, images = self._watch.seconds, self._watch.rows.get("decode", 0)
        if not images:
            return ""
        decode = seconds.get("decode", 0.0) + seconds.get("resize", 0.0)
        forward = sum(seconds.get(name, 0.0) for name in self._members)
        parts = [f"waiting for {self.waiting_for()}"]
        parts += [f"decode {self._workers * images / decode:,.0f}/s"] if decode > 0 else []
        if forward > 0:
            parts.append(f"forward {(1 if self._on_gpu else self._workers) * images / forward:,.0f}/s")
        return ", ".join(parts)

    def waiting_for(self) -> str:
        """Return ``disk``, ``decode`` or ``device``: whichever took most of the last seconds.

        On the CPU that is where the workers are. On GPUs it is what the thread that feeds them does: it copies or has
        no free lane, it waits for a batch and so for what the workers do meanwhile, or all wait for the writer.
        """
        now, elapsed = self._clock(), dict(self._watch.elapsed)
        if now - self._since >= _WINDOW:
            self._before, self._last, self._since = self._last, elapsed, now

        def spent(*stages: str) -> float:
            return sum(elapsed.get(stage, 0.0) - self._before.get(stage, 0.0) for stage in stages)

        where = {"disk": spent("read"), "decode": spent("decode", "resize"), "device": spent(*self._members)}
        if self._on_gpu:
            batch, device = spent("idle"), spent("full", "copy")
            if device >= max(batch, spent("blocked")):
                return "device"
            if spent("blocked") > batch:
                return "disk"
            del where["device"]
        else:
            where["disk"] += spent("blocked")
        return max(where, key=lambda name: where[name])


class Stopwatch:
    """Seconds by stage, summed over threads: of the processor where a core does the work, else of the clock.

    The stages are ``read``, ``decode``, ``resize``, ``copy`` on GPUs, ``write``, and each member by its name.
    ``elapsed`` has the clock's seconds of each, and of waiting: ``blocked`` for the writer; of the thread that feeds
    GPUs ``idle``, for a batch, and ``full``, for a GPU to take one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        self.elapsed: dict[str, float] = {}
        self.rows: dict[str, int] = {}

    @contextmanager
    def timing(self, stage: str, *, clock: Callable[[], float] = time.thread_time, rows: int = 0) -> Iterator[None]:
        """Add the time of the block to ``stage``, and the number of ``rows`` that it processes."""
        began, start = time.perf_counter(), clock()
        try:
            yield
        finally:
            spent, elapsed = clock() - start, time.perf_counter() - began
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
                self.elapsed[stage] = self.elapsed.get(stage, 0.0) + elapsed
                self.rows[stage] = self.rows.get(stage, 0) + rows

    @contextmanager
    def sharing(self, costs: Mapping[str, float], *, rows: int) -> Iterator[None]:
        """Add the time of the block to several stages by their ``costs``, where it cannot be told which took it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent, whole = time.perf_counter() - began, sum(costs.values())
            with self._lock:
                for stage, cost in costs.items():
                    share = spent * cost / whole
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + share
                    self.elapsed[stage] = self.elapsed.get(stage, 0.0) + share
                    self.rows[stage] = self.rows.get(stage, 0) + rows

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Add the time of the block, spent waiting, to ``elapsed``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.elapsed[reason] = self.elapsed.get(reason, 0.0) + time.perf_counter() - began
