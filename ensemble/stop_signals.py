"""Signals that stop a command: the first one ends it and decides its exit status, later ones change nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_PATIENCE = 10.0  # seconds after which another signal is heard: the first may have been lost in a library


class StopSignals:
    """Raises `KeyboardInterrupt` with the number of the ``first`` signal; None while there was none."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._heard = 0.0
        self._over = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals in a block, as far as they are not ignored: nohup ignores SIGHUP, a shell's ``&`` SIGINT.

        Outside of the main thread signals cannot be heard, and the block is as it would be without.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            for number in numbers:
                if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                    before[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
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
