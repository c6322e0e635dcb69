"""Threads that do not keep a stopped command from ending: what they are in the middle of is left to itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAVE_SECONDS = 1.0  # in which a thread is waited for that is no longer needed


@contextmanager
def thread_pool(workers: int, name: str = "ens") -> Iterator[ThreadPoolExecutor]:
    """Return a pool that ends with the block: when all is done, or, after an exception, with what is begun.

    After an exception, such as that of a signal, it is waited for a second: a decoder of a large image cannot be
    interrupted, and takes longer.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        yield pool
    except BaseException:
        leave(pool)
        raise
    pool.shutdown(wait=True)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield the results of a function in the order of the items; up to ``ahead`` are in progress or wait to be taken.

    Two are the fewest with which one is computed while the caller uses the result before it. An exception of the
    function is raised in its turn.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ens")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        leave(pool)


def leave(pool: ThreadPoolExecutor, seconds: float | None = None) -> None:
    """End a pool: nothing more is begun, and what is in progress is waited for so many seconds, by default one."""
    pool.shutdown(wait=False, cancel_futures=True)
    closer = threading.Thread(target=pool.shutdown, daemon=True)
    try:
        closer.start()
    except RuntimeError:  # no memory for a thread: what is in progress is waited for
        pool.shutdown(wait=True)
        return
    closer.join(LEAVE_SECONDS if seconds is None else seconds)
