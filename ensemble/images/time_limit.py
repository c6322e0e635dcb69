"""A time limit for a call that cannot be interrupted, such as that of a decoder written in C.

The call is made by a helper, a thread beside the one that asks. A helper that does not answer in time is left behind,
and another takes its place. It ends with the process, and until then it holds its core and its memory.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

LIMIT = 60.0  # seconds; 64 million pixels of the slowest format take under 10 on one core
T = TypeVar("T")


class _Helper:
    """A thread that makes one call after the other; it ends with the thread that made it."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[bool, Any, float]] = queue.SimpleQueue()
        # the thread has the queues alone, so that the helper can go
        threading.Thread(target=_serve, args=(self.calls, self.answers), name="ens-decode", daemon=True).start()

    def __del__(self) -> None:
        self.calls.put(None)


class _Here(threading.local):
    helper: _Helper | None = None
    spent: float = 0.0


_here = _Here()


def run_limited(call: Callable[[], T], *, seconds: float | None = None) -> T:
    """Return what the call returns, or raise what it raises.

    Raises:
        TimeoutError: when it takes longer than the limit.
    """
    helper = _here.helper or _Helper()
    _here.helper = None  # not used again if the wait ends in an exception, such as that of a signal
    helper.calls.put(call)
    try:
        works, answer, spent = helper.answers.get(timeout=LIMIT if seconds is None else seconds)
    except queue.Empty:
        raise TimeoutError from None
    _here.helper = helper
    _here.spent += spent
    if works:
        found: T = answer
        return found
    raise answer


def thread_time() -> float:
    """Return the seconds of the processor that this thread has used, with those of its helper."""
    return time.thread_time() + _here.spent


def _serve(
    calls: queue.SimpleQueue[Callable[[], Any] | None], answers: queue.SimpleQueue[tuple[bool, Any, float]]
) -> None:
    while (call := calls.get()) is not None:
        began = time.thread_time()
        try:
            answer = (True, call())
        except BaseException as err:  # noqa: BLE001 - it is raised where the call was asked for
            answer = (False, err)
        answers.put((*answer, time.thread_time() - began))
        del call, answer
