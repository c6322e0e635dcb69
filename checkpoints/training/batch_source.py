"""One epoch's batches, augmented in a thread or in worker processes while the network trains."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.image_cache import DecodedImages
from checkpoints.training.augment import Policy, Simple, image_seed, parse_policy
from checkpoints.training.batches import LabeledImages
from checkpoints.training.sampler import Order
from ensemble.arrays import Pixels
from ensemble.errors import ModelError
from ensemble.files import write_atomic
from ensemble.runtime.machine import available_cores

__all__ = ["BatchSource", "choose_workers"]

_MOST_WORKERS = 8
_PER_WORKER = 2


def choose_workers(device: str, policy: Policy | Simple | None, *, processes: int = 1) -> int:
    """Return how many processes augment for one of ``processes`` trainings of this machine; 0 stands for one thread.

    On the CPU the network takes all cores, and one thread keeps up with it. A GPU would wait for one thread of
    albumentations. The other policies are numpy's and fast enough.
    """
    if device == "cpu" or not isinstance(policy, Policy):
        return 0
    return min(_MOST_WORKERS, max(1, available_cores() // processes - 1))


class BatchSource:
    """Makes the batches of all epochs of a fold, ahead of the network; use it in a with statement.

    The pixels depend on the seed, the epoch and the image alone: any number of ``workers`` gives the same batches.
    Worker processes read the decoded images from one memory-mapped file in the folder for temporary files.

    Raises:
        FileError: E701 or E702 when that file cannot be written.
        ModelError: E440 when a worker process was killed, most likely for lack of memory.
    """

    def __init__(self, images: LabeledImages, augment: str, *, seed: int, workers: int = 0) -> None:
        self._images, self._augment, self._seed, self._workers = images, augment, seed, workers
        self._pool: Executor | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._make: Callable[[Order, int], Pixels]

    def __enter__(self) -> BatchSource:
        decoded = self._images.decoded
        if not self._workers:
            self._pool = ThreadPoolExecutor(1)
            self._make = _Maker(decoded, parse_policy(self._augment), self._seed)
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="ens-train-", ignore_cleanup_errors=True)
        arrays = _StoredArrays.write(Path(self._folder.name), decoded)
        self._make = _make_in_worker
        self._pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(arrays, self._augment, self._seed),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._folder is not None:
            self._folder.cleanup()

    def epoch(
        self, order: Sequence[Order], number: int
    ) -> Iterator[tuple[Pixels, NDArray[np.int64] | NDArray[np.float32]]]:
        """Yield one epoch's batches: pixels ``(B, H, W, 3)`` and rows of the targets; the next are made meanwhile."""
        assert self._pool is not None, "use the source in a with statement"
        pool, ahead = self._pool, 1 + _PER_WORKER * self._workers
        upcoming: deque[tuple[Order, Future[Pixels]]] = deque()
        waiting = iter(order)
        try:
            for batch in islice(waiting, ahead):
                upcoming.append((batch, pool.submit(self._make, batch, number)))
            while upcoming:
                batch, made = upcoming.popleft()
                pixels = made.result()
                for following in islice(waiting, 1):
                    upcoming.append((following, pool.submit(self._make, following, number)))
                yield pixels, self._images.loss_targets[batch.images]
        except BrokenProcessPool as err:
            hint = "close other programs, or train on the CPU (--device cpu), where no processes augment"
            message = "a process that augments images was killed, most likely for lack of memory"
            raise ModelError("E440", message, hint=hint) from err


@dataclass(frozen=True, slots=True, eq=False)
class _Maker:
    """Makes a batch's pixels from decoded images."""

    decoded: DecodedImages
    policy: Policy | Simple | None
    seed: int

    def __call__(self, batch: Order, epoch: int) -> Pixels:
        chosen, decoded = batch.images, self.decoded
        pixels, fallback = decoded.pixels[chosen], decoded.fallback_index[chosen]
        pixels[fallback >= 0] = decoded.fallback[fallback[fallback >= 0]]
        if self.policy is not None:
            for row, (image, repeat) in enumerate(zip(chosen.tolist(), batch.repeats.tolist(), strict=True)):
                # an image that is repeated in an epoch is augmented in another way
                extra = (repeat,) if repeat else ()
                pixels[row] = self.policy(pixels[row], image_seed(self.seed, epoch, image + 1, *extra))
        return pixels


@dataclass(frozen=True, slots=True)
class _StoredArrays:
    """The files of the decoded images, each array with its shape: workers map them instead of copying them."""

    pixels: Path
    pixels_shape: tuple[int, ...]
    fallback: Path
    fallback_shape: tuple[int, ...]
    fallback_index: NDArray[np.int64]
    dtype: str

    @classmethod
    def write(cls, folder: Path, decoded: DecodedImages) -> _StoredArrays:
        pixels, fallback = folder / "pixels", folder / "fallback"
        for path, array in ((pixels, decoded.pixels), (fallback, decoded.fallback)):
            write_atomic(path, np.ascontiguousarray(array).data.cast("B") if array.size else b"", sync=False)
        return cls(
            pixels,
            decoded.pixels.shape,
            fallback,
            decoded.fallback.shape,
            decoded.fallback_index,
            decoded.pixels.dtype.name,
        )

    def open(self) -> DecodedImages:
        return DecodedImages(
            _map(self.pixels, self.pixels_shape, self.dtype),
            _map(self.fallback, self.fallback_shape, self.dtype),
            self.fallback_index,
        )


def _map(path: Path, shape: tuple[int, ...], dtype: str) -> Pixels:
    if 0 in shape:  # an empty file cannot be mapped
        return np.empty(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


_worker: _Maker | None = None


def _start_worker(arrays: _StoredArrays, augment: str, seed: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the training ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Maker(arrays.open(), parse_policy(augment), seed)


def _end_with_parent() -> None:
    """End the process when the training has been killed: its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"
    parent.join()
    signal.raise_signal(signal.SIGTERM)


def _make_in_worker(batch: Order, epoch: int) -> Pixels:
    assert _worker is not None, "the pool starts its workers with _start_worker"
    return _worker(batch, epoch)
