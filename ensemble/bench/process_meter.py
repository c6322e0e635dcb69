"""Meter: one pass over the images in a process of its own, with its time, processors, memory and GPU."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias, TypeVar

from ensemble.bench.agreement import Answers
from ensemble.errors import DeviceError, EnsError

J = TypeVar("J")
_EVERY = 0.5  # seconds between two looks at the memory of worker processes


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a pass answered: ``answers[member][view]`` is ``(N, C)`` logits; ``classes`` are those of a submission.

    ``workers`` threads or processes worked on batches of ``batch`` images, which went through a model at once, or
    ``at_once`` of them, by member; ``stages`` are seconds by stage where the pass counts them itself.
    """

    answers: Answers
    batch: int
    workers: int
    stages: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    at_once: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lap:
    """What a pass cost: ``seconds`` of the clock, ``cpu`` seconds of all its threads and processes.

    ``start`` are the seconds before, in which models are loaded and warmed up; they are not in the others. ``memory``
    is the peak in MB from the process's first moment, worker processes included; ``gpu_busy`` is a share of the time
    and ``gpu_memory`` the GPU's peak in MB, with that of other programs. None stands for what could not be measured.
    """

    seconds: float
    cpu: float
    start: float
    memory: float | None
    batch: int
    workers: int
    stages: Mapping[str, float]
    gpu_busy: float | None = None
    gpu_memory: float | None = None


class Clock:
    """Started by a pass when its models are ready, stopped when the last answer is there: only what is between counts.

    ``tell`` hears "start" and "stop".
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self._tell = tell
        self._marks = [_now()]
        self.memory: float | None = None

    def start(self) -> None:
        """Begin to count; only the first call does."""
        if len(self._marks) == 1:
            self._tell("start")
            self._marks.append(_now())

    def stop(self) -> None:
        """Stop counting."""
        self._marks.append(_now())
        self.memory = _peak_memory()
        self._tell("stop")

    def lap(self, outcome: Outcome) -> Lap:
        """What was counted."""
        assert len(self._marks) == 3, "a pass starts the clock and stops it once"
        born, begun, ended = self._marks
        return Lap(
            seconds=ended[0] - begun[0],
            cpu=ended[1] - begun[1],
            start=begun[0] - born[0],
            memory=self.memory,
            batch=outcome.batch,
            workers=outcome.workers,
            stages=outcome.stages,
        )


Loop: TypeAlias = Callable[[J, Clock], Outcome]


def measure(loop: Loop[J], job: J, *, name: str, gpu: int | None = None) -> tuple[Lap, Outcome]:
    """Run ``loop`` in a fresh process: no pass finds the memory, the caches or the threads that another one left.

    ``loop`` and ``job`` are pickled. ``name`` is for messages, ``gpu`` the one to watch.

    Raises:
        EnsError: what the loop raised; E621 when its process died.
    """
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    # not a daemon: those may not have the worker processes that a DataLoader starts
    process = context.Process(target=_run, args=(loop, job, there))
    process.start()
    there.close()
    workers = 0.0
    try:
        with _watching(gpu) as watch:
            while True:
                if not here.poll(_EVERY):
                    workers = max(workers, _memory_of_family(process.pid))
                    continue
                try:
                    said = here.recv()
                except EOFError as err:
                    process.join()
                    raise DeviceError("E621", f"{name}: its process ended with status {process.exitcode}") from err
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, str):
                    watch.counting = said == "start"
                    continue
                lap, outcome = said
                return _complete(lap, workers, watch), outcome
    finally:
        process.terminate()
        process.join()
        here.close()


def _run(loop: Loop[J], job: J, pipe: Connection) -> None:
    """In the new process: run the loop and report, last its figures or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the parent ends this process
    set_start_method(None, force=True)  # a spawned process would spawn its own workers; a user's script forks them
    clock = Clock(pipe.send)
    try:
        outcome = loop(job, clock)
    except EnsError as err:
        pipe.send(err)
    except Exception:  # noqa: BLE001 - raised again in the parent
        pipe.send(RuntimeError(traceback.format_exc()))
    else:
        pipe.send((clock.lap(outcome), outcome))


def _complete(lap: Lap, workers: float, watch: _Watch) -> Lap:
    return replace(
        lap,
        memory=lap.memory and max(lap.memory, workers),
        gpu_busy=statistics.fmean(watch.busy) / 100 if watch.busy else None,
        gpu_memory=max(watch.memory, default=None),
    )


def _now() -> tuple[float, float]:
    """The clock, and the processor time of this process and of its children that have ended."""
    ended = os.times()
    return time.perf_counter(), time.process_time() + ended.children_user + ended.children_system


def _peak_memory() -> float | None:
    """The most that this process ever held, in MB."""
    found = _field(Path("/proc/self/status"), "VmHWM:")
    if found is None and sys.platform == "darwin":
        import resource

        # not on Linux, where this figure would begin with the parent's
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def _memory_of_family(pid: int | None) -> float:
    """What a process and its descendants hold now, in MB, shared pages divided among them; 0 without descendants."""
    family = [int(pid or 0)]
    for member in family:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                family += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        except (OSError, ValueError):
            continue  # it has just ended, or this is not Linux
    if len(family) == 1:
        return 0.0
    return sum(_field(Path(f"/proc/{member}/smaps_rollup"), "Pss:") or 0.0 for member in family)


def _field(path: Path, name: str) -> float | None:
    """A figure in kB from a file of the kernel's, in MB."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)


@dataclass(slots=True)
class _Watch:
    """What the GPU's driver says while the clock runs: percent of the time, and MB."""

    counting: bool = False
    busy: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def listen(self, lines: Iterable[str]) -> None:
        """Take in what nvidia-smi writes, until it ends."""
        for line in lines:
            try:
                busy, memory = (float(part) for part in line.split(","))
            except ValueError:
                continue  # "[N/A]" on devices that do not tell
            if self.counting:
                self.busy.append(busy)
                self.memory.append(memory)


@contextmanager
def _watching(gpu: int | None) -> Iterator[_Watch]:
    """Ask the driver's own tool five times a second."""
    watch = _Watch()
    tool = None if gpu is None else shutil.which("nvidia-smi")
    if gpu is None or tool is None:
        yield watch
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[gpu].strip() if gpu < len(visible) and visible[gpu].strip() else str(gpu)
    query = [
        tool,
        "-i",
        name,
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
        "-lms",
        "200",
    ]
    with subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as asking:
        thread = threading.Thread(target=watch.listen, args=(asking.stdout,), daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            asking.terminate()
            thread.join()
