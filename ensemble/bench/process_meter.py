"""Run one benchmark pass in a process of its own and measure its time, CPU time, memory and GPU use."""

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

from ensemble.bench.agreement import MemberLogits
from ensemble.errors import DeviceError, EnsError

J = TypeVar("J")
_EVERY = 0.5  # seconds between two samples of the memory of worker processes


@dataclass(frozen=True, slots=True, eq=False)
class PassResult:
    """The predictions of a pass: ``logits[member][view]`` is ``(N, C)``; ``classes`` are those of a submission.

    ``workers`` threads or processes worked on batches of ``batch`` images. ``at_once`` is the number of images per
    forward pass, by member, where it is not ``batch``. ``stages`` are seconds per stage where the pass counts them
    itself.
    """

    logits: MemberLogits
    batch: int
    workers: int
    stages: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    at_once: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PassCost:
    """The cost of a pass: ``seconds`` of wall time, and ``cpu`` seconds of all its threads and processes.

    ``start`` are the seconds before that, in which models are loaded and warmed up; no other field includes them.
    ``memory`` is the peak in MB since the process began, worker processes included. ``gpu_busy`` is a share of the
    time, and ``gpu_memory`` the peak of the GPU in MB, including that of other programs. None is what could not be
    measured.
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


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One pass over the images: its predictions and its cost."""

    result: PassResult
    cost: PassCost


@dataclass(frozen=True, slots=True)
class _Instant:
    """Seconds of wall time, and the CPU seconds of this process and of its children that have ended."""

    wall: float
    cpu: float


class PassTimer:
    """Measures a pass, which starts it when its models are ready and stops it after its last prediction.

    ``notify`` is called with "start" and "stop".
    """

    def __init__(self, notify: Callable[[str], None] = lambda _: None) -> None:
        self._notify = notify
        self._created = _now()
        self._started: _Instant | None = None
        self._stopped: _Instant | None = None
        self._memory: float | None = None

    def start(self) -> None:
        """Start measuring; only the first call has an effect."""
        if self._started is None:
            self._notify("start")
            self._started = _now()

    def stop(self) -> None:
        """Stop measuring."""
        assert self._stopped is None, "a pass stops the timer once"
        self._stopped = _now()
        self._memory = _peak_memory()
        self._notify("stop")

    def cost(self, result: PassResult) -> PassCost:
        """Return the cost of the pass that gave ``result``."""
        assert self._started is not None, "a pass starts the timer"
        assert self._stopped is not None, "a pass stops the timer"
        return PassCost(
            seconds=self._stopped.wall - self._started.wall,
            cpu=self._stopped.cpu - self._started.cpu,
            start=self._started.wall - self._created.wall,
            memory=self._memory,
            batch=result.batch,
            workers=result.workers,
            stages=result.stages,
        )


PassFunction: TypeAlias = Callable[[J, PassTimer], PassResult]


def measure(function: PassFunction[J], job: J, *, name: str, gpu: int | None = None) -> Pass:
    """Run ``function`` in a fresh process, so that no pass profits from the memory, caches or threads of another.

    ``function`` and ``job`` are pickled. ``name`` is for messages; ``gpu`` is the index of the GPU to sample.

    Raises:
        EnsError: as ``function`` raises; E621 when its process dies.
    """
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    # not a daemon: those may not have the worker processes that a DataLoader starts
    process = context.Process(target=_run, args=(function, job, there))
    process.start()
    there.close()
    workers = 0.0
    try:
        with sample_gpu(gpu) as samples:
            while True:
                if not here.poll(_EVERY):
                    workers = max(workers, _memory_of_tree(process.pid))
                    continue
                try:
                    message = here.recv()
                except EOFError as err:
                    process.join()
                    raise DeviceError("E621", f"{name}: its process ended with status {process.exitcode}") from err
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, str):
                    samples.counting = message == "start"
                    continue
                assert isinstance(message, Pass)
                return replace(message, cost=_complete(message.cost, workers, samples))
    finally:
        process.terminate()
        process.join()
        here.close()


def _run(function: PassFunction[J], job: J, pipe: Connection) -> None:
    """In the new process: run the pass, and send its result and cost, or the error, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the parent ends this one
    set_start_method(None, force=True)  # a spawned process would spawn its own workers; a user's script forks them
    timer = PassTimer(pipe.send)
    try:
        result = function(job, timer)
    except EnsError as err:
        pipe.send(err)
    except Exception:  # noqa: BLE001 - raised again in the parent
        pipe.send(RuntimeError(traceback.format_exc()))
    else:
        pipe.send(Pass(result, timer.cost(result)))


def _complete(cost: PassCost, workers: float, samples: GpuSamples) -> PassCost:
    """Add what only the parent could measure: ``workers`` is the peak of all processes together, in MB."""
    return replace(
        cost,
        memory=cost.memory and max(cost.memory, workers),
        gpu_busy=statistics.fmean(samples.busy) / 100 if samples.busy else None,
        gpu_memory=max(samples.memory, default=None),
    )


def _now() -> _Instant:
    ended = os.times()
    return _Instant(time.perf_counter(), time.process_time() + ended.children_user + ended.children_system)


def _peak_memory() -> float | None:
    """Return the peak resident memory of this process in MB."""
    found = _field(Path("/proc/self/status"), "VmHWM:")
    if found is None and sys.platform == "darwin":
        import resource

        # not on Linux, where this figure starts at that of the parent process
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def _memory_of_tree(pid: int | None) -> float:
    """Return the memory of a process and its descendants in MB, each shared page counted once; 0 without descendants.

    The proportional set size (Pss) divides a shared page among the processes that map it.
    """
    pids = [int(pid or 0)]
    for parent in pids:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        except (OSError, ValueError):
            continue  # the process has just ended, or this is not Linux
    if len(pids) == 1:
        return 0.0
    return sum(_field(Path(f"/proc/{one}/smaps_rollup"), "Pss:") or 0.0 for one in pids)


def _field(path: Path, name: str) -> float | None:
    """Read a field of a /proc file, which is in kB, as MB."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)


@dataclass(slots=True)
class GpuSamples:
    """Samples of a GPU taken while ``counting``: utilization in percent and memory in MB."""

    counting: bool = False
    busy: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def collect(self, lines: Iterable[str]) -> None:
        """Read the output of nvidia-smi to its end."""
        for line in lines:
            try:
                busy, memory = (float(part) for part in line.split(","))
            except ValueError:
                continue  # "[N/A]" on devices without these counters
            if self.counting:
                self.busy.append(busy)
                self.memory.append(memory)


@contextmanager
def sample_gpu(gpu: int | None) -> Iterator[GpuSamples]:
    """Sample a GPU with nvidia-smi five times per second; without a GPU or nvidia-smi the samples stay empty."""
    samples = GpuSamples()
    tool = None if gpu is None else shutil.which("nvidia-smi")
    if gpu is None or tool is None:
        yield samples
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
    with subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        thread = threading.Thread(target=samples.collect, args=(process.stdout,), daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            process.terminate()
            thread.join()
