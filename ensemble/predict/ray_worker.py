"""Cluster: the same batches on any number of machines, computed by Ray actors.

A task is one part of the run. A worker holds the models and runs the `Pipeline` of a single machine over its part; what
comes back is logits, and the caller writes them as it writes its own, so that a part is written once however often it
was computed. These are plain actors and not Ray Data: Ray Data cuts and joins its blocks as memory suggests, so that
parts would have to be put together from rows again, and ends a run only where every block has passed a barrier of its
own; here a part in order is all that is needed.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from ensemble.errors import DataError, DeviceError, EnsError, OptionError
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.images.face_boxes import Box
from ensemble.images.listing import Listing
from ensemble.images.storage import RemoteImage
from ensemble.images.views import parse_views
from ensemble.install import install_command
from ensemble.predict.batch_size import Trial
from ensemble.predict.fingerprint import library_versions
from ensemble.predict.inputs import Inputs
from ensemble.predict.pipeline import Answer, Pipeline, Work
from ensemble.runtime.device import CPU, Device, parse_device
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.providers import choose_device
from ensemble.runtime.run_device import choose_cpu_engine, warn_of_int8, warn_of_onnxruntime
from ensemble.runtime.session import Session
from ensemble.runtime.start import start_sessions

_SMALLEST_STORE = 80 << 20  # bytes; Ray refuses less than 78 MB
_CORES = 4  # of a worker, by default: the models are in memory once for all of them


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """The settings of every worker; models are sent separately.

    ``views`` by name, ``threads`` per worker, ``rows`` per batch; ``sizes`` as in `Pipeline`.
    """

    device: str
    provider: str
    views: tuple[str, ...]
    threads: int
    rows: int
    sizes: tuple[int, ...]
    image: Path | RemoteImage
    versions: str


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One part: ``batches`` are ranges of rows of its own ``listing``, whose first row is row ``start`` of the run.

    ``known`` are rows of the listing that are known to be faulty.
    """

    start: int
    listing: Listing
    boxes: tuple[Box | None, ...] | None
    members: tuple[str, ...]
    batches: tuple[range, ...]
    known: Mapping[int, DataError]


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The answers of a share, by rows of the whole run, with the worker's seconds and notices."""

    answers: tuple[Answer, ...]
    seconds: dict[str, float]
    notices: tuple[Notice, ...]


class PartWorker:
    """A worker: an actor on some machine of the cluster, with every model started."""

    def start(self, job: Job, *models: ModelFile) -> tuple[Notice, ...] | EnsError:
        """Start the models; errors are returned, since Ray would wrap a raised one."""
        recorder = Recorder()
        try:
            if versions() != job.versions:
                raise DeviceError("E611", f"{platform.node()} has {versions()}, but here is {job.versions}")
            if not job.image.exists():
                raise DeviceError("E611", f"{platform.node()} does not see {job.image}")
            device = choose_device(job.device)
            if device.provider != job.provider:
                raise DeviceError("E611", f"{platform.node()} has {device.provider}, but asked for is {job.provider}")
            self._job, self._device = job, device
            self._trials: dict[str, Trial] = {}
            self._views = parse_views(",".join(job.views))
            self._sessions = start_sessions(
                {model.card.member: model for model in models},
                device=device,
                rows=job.rows,
                views=self._views,
                listener=recorder,
            )
        except EnsError as err:
            return err
        return tuple(recorder.notices)

    def run(self, share: Share) -> Done | EnsError:
        """Compute one part."""
        recorder = Recorder()
        pipeline = Pipeline(
            Inputs(share.listing, share.boxes, self._views),
            on_gpu=self._device.is_gpu,
            workers=self._job.threads,
            sizes=self._job.sizes,
            listener=recorder,
        )
        pipeline.known |= share.known
        pipeline.trials = self._trials
        asked = tuple(self._sessions[member] for member in share.members)
        try:
            answers = tuple(shift(a, share.start) for a in pipeline.run(Work(rows, asked) for rows in share.batches))
        except EnsError as err:
            return err
        return Done(answers, pipeline.watch.seconds, tuple(recorder.notices))


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """A connection to Ray, and the signals ``stopped`` that arrived meanwhile: Ray does not say which it was."""

    ray: Any
    stopped: list[int] = field(default_factory=list)

    def choose_device(
        self,
        asked: str | Device,
        models: Sequence[ModelFile] = (),
        *,
        begun: Sequence[str] = (),
        listener: Listener = SILENT,
    ) -> Device:
        """Choose the device of every worker for these models, see `choose_run_device`; it need not exist here.

        ``auto`` is CUDA where the cluster has GPUs, and else as `choose_cpu_engine` says on this machine: all have
        its packages.

        Raises:
            OptionError: E203 when the name is not known, E204 when it names one GPU of several.
        """
        device, cards = parse_device(str(asked)), [model.card for model in models]
        if device is None:
            has_gpus = self.ray.cluster_resources().get("GPU", 0)
            device = Device("cuda") if has_gpus else choose_cpu_engine(cards, begun=begun, listener=listener)
        elif device == CPU:
            warn_of_onnxruntime(cards, listener=listener)
        if device.index:
            raise OptionError("E204", f"--engine ray deals out the GPUs itself: {device.kind} without an index")
        warn_of_int8(cards, device, listener)
        return device

    def places(self, device: Device, threads: int | None) -> tuple[int, int]:
        """Return how many workers the machines have room for, and the threads of each.

        Raises:
            DeviceError: E611 when there is no room for one.
        """
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        nodes = [node for node in nodes if node.get("CPU") and (node.get("GPU") or not device.is_gpu)]
        if threads is None:
            spare = [int(node["CPU"] / node["GPU"] if device.is_gpu else min(node["CPU"], _CORES)) for node in nodes]
            threads = max(1, min(spare, default=1))
        rooms = [int(node["CPU"] // threads) for node in nodes]
        if device.is_gpu:
            rooms = [min(room, int(node["GPU"])) for room, node in zip(rooms, nodes, strict=True)]
        if not sum(rooms):
            what = f"{threads} cores" + (" and a GPU" if device.is_gpu else "")
            raise DeviceError(
                "E611",
                f"no machine of the cluster has {what} for a worker",
                hint="ask for fewer --workers or for the CPU",
            )
        return sum(rooms), threads

    def start_worker(self, device: Device, threads: int) -> Any:
        """Start a worker on any machine."""
        actor = self.ray.remote(PartWorker)
        return actor.options(num_cpus=threads, num_gpus=int(device.is_gpu), max_restarts=0).remote()


@contextmanager
def connect(address: str | None, *, store: int = 0) -> Iterator[Cluster]:
    """Connect to the cluster at ``address``, or start one on this machine, which ends with the block.

    ``store`` bytes of models are to be held in the memory that the workers of a machine share.

    Raises:
        OptionError: E205 when Ray is not installed.
        DeviceError: E611 when there is no cluster at the address.
    """
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as err:
        raise OptionError("E205", f"Ray is not installed ({err})", hint=install_command(extra="ray")) from err
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {}
    if address is None:
        options = {
            "num_cpus": available_cores(),
            "object_store_memory": _SMALLEST_STORE + 2 * store,
            "include_dashboard": False,
        }
    with redirect_stdout(sys.stderr):  # Ray prints, and stdout belongs to the results
        before = signal.getsignal(signal.SIGTERM)
        cluster = Cluster(ray)

        def stop(number: int, frame: FrameType | None) -> None:
            cluster.stopped.append(number)
            if callable(before):
                before(number, frame)

        in_main = threading.current_thread() is threading.main_thread()
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as err:
            ray.shutdown()
            raise DeviceError(
                "E611",
                f"no Ray cluster at {address or 'this machine'}: {err}",
                hint="give the --address of a cluster that runs; without one it is started here",
            ) from err
        try:
            if in_main:  # Ray would end the process at once, and what is done would not be told
                signal.signal(signal.SIGTERM, stop if callable(before) else before)
            yield cluster
        finally:
            ray.shutdown()
            if in_main:
                signal.signal(signal.SIGTERM, before)


def versions() -> str:
    """Return the versions that the bits of an answer depend on."""
    return f"ens {importlib.metadata.version('ens-onnx')}, {library_versions()}, numpy {np.__version__}"


def shift(answer: Answer, start: int) -> Answer:
    """Return the answer with ``start`` added to its rows."""
    return Answer(
        range(answer.asked.start + start, answer.asked.stop + start),
        tuple(row + start for row in answer.rows),
        answer.logits,
        {row + start: fault for row, fault in answer.faults.items()},
        {row + start: codes for row, codes in answer.oddities.items()},
    )


def stand_in(model: ModelFile, device: Device) -> Session:
    """Return a session that only names its model; the workers hold those that run."""
    return Session(model.card, model.sha256, device, None)
