"""Double-buffered batches on GPUs: worker threads decode, one thread copies, and one thread per GPU computes.

Each GPU has two lanes, so that the next batch is copied while the one before is computed. The answers come out in the
order of the work, whichever GPU they were computed on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import TypeVar

from ensemble.arrays import Pixels
from ensemble.card import Preprocess
from ensemble.runtime.device import Device
from ensemble.runtime.io_binding import DeviceBuffers, use_buffers
from ensemble.thread_pool import leave

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
LANES = 2  # per GPU: one is computed, one is copied to
# by preprocessing, by input of the model
ModelInputs = Mapping[Preprocess, Mapping[str, Pixels]]


def through_lanes(
    work: Iterable[A],
    read: Callable[[A], B],
    load: Callable[[DeviceBuffers, B], None],
    compute: Callable[[DeviceBuffers, B], C],
    *,
    device: Device,
    workers: int,
    ahead: int,
    waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Generator[C, None, None]:
    """Yield, in order, the result of ``compute`` for each piece of work that ``read`` read and ``load`` put on a lane.

    ``read`` runs in ``workers`` threads, ``load`` in one, ``compute`` in one for each of the devices, always the same.
    No more than ``ahead`` pieces are begun and not yet handed on. What the loading thread waits for is timed by
    ``waiting``: ``idle``, a piece that is read; ``full``, a lane that is free.
    """
    lanes = [DeviceBuffers(one) for _ in range(LANES) for one in device.each]
    free: SimpleQueue[DeviceBuffers] = SimpleQueue()
    for lane in lanes:
        free.put(lane)
    readers = ThreadPoolExecutor(workers, thread_name_prefix="ens-read")
    loader = ThreadPoolExecutor(1, thread_name_prefix="ens-copy")
    computing = {one: ThreadPoolExecutor(1, thread_name_prefix=f"ens-{one}") for one in device.each}
    begun: deque[Future[Future[C]]] = deque()

    def finish(lane: DeviceBuffers, item: B) -> C:
        try:
            with use_buffers(lane):
                return compute(lane, item)
        finally:
            lane.clear()
            free.put(lane)

    def pass_on(reading: Future[B]) -> Future[C]:
        with waiting("idle"):
            item = reading.result()
        with waiting("full"):
            lane = free.get()
        try:
            load(lane, item)
        except BaseException:
            free.put(lane)
            raise
        return computing[lane.device].submit(finish, lane, item)

    try:
        for one in work:
            begun.append(loader.submit(pass_on, readers.submit(read, one)))
            if len(begun) >= ahead:
                yield begun.popleft().result().result()
        while begun:
            yield begun.popleft().result().result()
    finally:
        # in this order: whoever waits for a lane gets one from those who compute
        leave(readers)
        leave(loader)
        for loaded in begun:
            if not loaded.cancelled() and loaded.exception() is None:
                loaded.result().cancel()
        # CUDA graphs belong to the thread that captured them
        closing = [computing[lane.device].submit(lane.close) for lane in lanes]
        for pool in computing.values():
            pool.shutdown(wait=True)
        for closed in closing:
            closed.result()


def load_ahead(lane: DeviceBuffers, inputs: ModelInputs, *, rows: int) -> None:
    """Copy a batch to its lane; where that fails, the computing thread tries again and reports the error."""
    for preprocess, pixels in inputs.items():
        try:
            lane.load(preprocess, pixels, rows=rows)
        except Exception:  # noqa: BLE001, S112 - onnxruntime raises its errors as bare Exceptions
            continue
