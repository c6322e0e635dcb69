"""Signals that stop a command: the first one ends it and decides its exit status, later ones change nothing.

Python hears a signal between two steps of its own. Where the main thread is inside a long call of a library, such as
the start of a session or a sum over a large array, a watching thread ends the process instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_PATIENCE = 10.0  # seconds after which another signal is heard: the first may have been lost in a library
_UNHEARD = 1.5  # seconds in which the main thread has to hear a signal
_LONGEST = 15.0  # seconds for what is computed to be written, after which the process ends all the same
_STEP = 0.05


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Let SIGINT end the process at once in a block: while modules are imported there is nothing to keep or to say."""
    is_main = threading.current_thread() is threading.main_thread()
    # one that is ignored, as in a shell's background, stays so
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopSignals:
    """Raises `KeyboardInterrupt` with the number of the ``first`` signal; None while there was none.

    ``give_up`` is called, from a thread, with the number of a signal that the main thread does not hear within 1.5
    seconds, or that has not ended the block 15 seconds later. Without it nothing watches.
    """

    def __init__(self, give_up: Callable[[int], None] | None = None) -> None:
        self.first: int | None = None
        self._heard = 0.0
        self._over = False
        self._give_up = give_up

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals in a block, as far as they are not ignored: nohup ignores SIGHUP, a shell's ``&`` SIGINT.

        Outside of the main thread signals cannot be heard, and the block is as it would be without.
        """
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            handlers = {number: signal.getsignal(number) for number in numbers}
            before = {number: one for number, one in handlers.items() if one not in {signal.SIG_IGN, None}}
        try:
            for number in before:
                signal.signal(number, self._hear)
            with self._watched(frozenset(before)):
                try:
                    yield
                finally:
                    self._over = True
        finally:  # also where one comes before the block begins
            self._over = True
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Hear no more: the status of the command is known."""
        self._over = True

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._over or (self.first is not None and now - self._heard < _PATIENCE):
            return
        self._heard = now
        if self.first is None:
            self.first = number
        raise KeyboardInterrupt(self.first)

    @contextlib.contextmanager
    def _watched(self, numbers: frozenset[int]) -> Iterator[None]:
        """Watch, in a block, that the main thread hears signals and the block ends."""
        if self._give_up is None or not numbers or os.name != "posix":
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # the interpreter's own handler, in C, writes the number of each signal there as it comes
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            with contextlib.suppress(RuntimeError):  # no memory for a thread
                threading.Thread(target=self._watch, args=(reading, numbers), name="ens-signals", daemon=True).start()
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writing)

    def _watch(self, reading: int, numbers: frozenset[int]) -> None:
        assert self._give_up is not None
        try:
            number = None
            while number is None:
                came = os.read(reading, 64)
                if not came:
                    return
                number = next((one for one in came if one in numbers and not self._over), None)
            came_at = time.monotonic()
            while not self._over:
                waited = time.monotonic() - came_at
                if waited > (_UNHEARD if self.first is None else _LONGEST):
                    self._give_up(self.first or number)
                    return
                time.sleep(_STEP)
        finally:
            os.close(reading)  # not before: of each later signal a line about a broken pipe would be printed


def _forget_in_child() -> None:
    # a fork shares the pipe: its signals are not those of the command
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
