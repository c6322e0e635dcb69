"""A thread that writes while others compute: in order, few things at a time, and no error is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_AHEAD = 2


class Writer:
    """Does one writing after the other in a thread of its own; ``rows`` are those of the writings that are finished.

    A writing that fails stops all later ones, and its error comes out of the next `write` or of `finish`. Leaving the
    ``with`` block waits for what is under way, whatever happened in it.
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

    def write(self, writing: Callable[[], None], *, rows: int) -> None:
        """Have something written that holds so many rows; waits while two others are not finished.

        Raises:
            FileError: what an earlier writing raised.
        """
        while len(self._waiting) >= _AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, writing, rows))

    def settle(self) -> int:
        """Wait for what is under way, and return how many rows are written; errors stay where they are."""
        wait(self._waiting)
        return self.rows

    def finish(self) -> None:
        """Wait for all writings.

        Raises:
            FileError: what the first that failed raised.
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
