"""A background thread that writes in order, with a short queue, and loses no error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_AHEAD = 2


class Writer:
    """Runs one write after the other in a background thread; ``rows`` counts those of the finished ones.

    A write that fails cancels all later ones, and the next `write` or `finish` raises its error. Leaving the ``with``
    block waits for the write in progress.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._failed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ens-write")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    @property
    def is_idle(self) -> bool:
        """True while nothing is queued."""
        return all(write.done() for write in self._waiting)

    def write(self, writing: Callable[[], None], *, rows: int) -> None:
        """Queue a write of so many rows; waits while two others are not finished.

        Raises:
            FileError: the error of an earlier write.
        """
        while len(self._waiting) >= _AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, writing, rows))

    def settle(self) -> int:
        """Wait for the queue, and return how many rows are written; errors are not raised."""
        wait(self._waiting)
        return self.rows

    def finish(self) -> None:
        """Wait for all writes.

        Raises:
            FileError: the error of the first that failed.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def _run(self, writing: Callable[[], None], rows: int) -> None:
        if self._failed:
            return
        try:
            writing()
        except BaseException:
            self._failed = True
            raise
        self.rows += rows
