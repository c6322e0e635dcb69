"""Progress as lines of text, for log files and pipes: one every half minute, and one per epoch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ensemble.events import Listener

EVERY = 30.0  # seconds between two lines
EVERY_IN_DETAIL = 10.0  # the same with -v


@dataclass(slots=True)
class _Stage:
    """A stage since ``began``; since ``counted``, when ``first`` of its ``total`` units were done, they are counted.

    ``lines`` were written.
    """

    name: str
    began: float
    counted: float
    first: int = 0
    done: int = 0
    total: int = 0
    detail: str = ""
    lines: int = 0


class ProgressLines(Listener):
    """Writes how far the command ``name`` is, at most every so many seconds of a ``clock``.

    `tick` writes the line when it is time; a thread calls it, so that a stage that reports nothing for minutes still
    shows that it runs. A stage that ends before its first line writes nothing.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        name: str,
        with_details: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock, self._with_details = write, clock, with_details
        self._every = EVERY_IN_DETAIL if with_details else EVERY
        self._lock = threading.RLock()
        self._last = clock()
        self._stage = _Stage(name, self._last, self._last)
        self._unfinished = {name: self._stage}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress, and end a stage that has written lines with one that says how long it took.

        After its end a stage may begin again, such as the same work for another view. A stage with others inside, such
        as the models of an export, continues behind each of them; one with the name of the command began with it.
        """
        with self._lock:
            had_ended = 0 < self._stage.total <= self._stage.done
            if self._stage.name != stage or not self._stage.total or (had_ended and done < self._stage.done):
                self._stage, had_ended = self._enter(stage, done, total), False
            here = self._stage
            here.done, here.total = done, total
            if done >= total:
                self._unfinished.pop(stage, None)
            if done >= total and here.lines and not had_ended:
                self._tell(f"{stage}: {_count(here)} done in {duration(self._clock() - here.began)}")
            self.tick()

    def _enter(self, name: str, done: int, total: int) -> _Stage:
        """Return the stage that is entered again, or begins."""
        now, known = self._clock(), self._unfinished.get(name)
        if known is None or (known.total and (known.total != total or done < known.done)):
            known = _Stage(name, now, now, first=done)
        elif not known.total:
            known.counted, known.first = now, done
        self._unfinished[name] = known
        return known

    def detail(self, text: str) -> None:
        """Take note of a text about the stage; without -v, lines show its first part, up to a comma."""
        self._stage.detail = text

    def step_done(self, text: str) -> None:
        """Write a line of its own, such as that of an epoch."""
        with self._lock:
            self._tell(text)

    def tick(self) -> None:
        """Write a line if it is time for one."""
        with self._lock:
            if self._clock() - self._last >= self._every:
                self._tell(self._line())

    def until_next(self) -> float:
        """Return the seconds until it may be time for a line."""
        with self._lock:
            return max(0.0, self._last + self._every - self._clock())

    def _tell(self, line: str) -> None:
        self._last = self._clock()
        self._stage.lines += 1
        self._write(line)

    def _line(self) -> str:
        here, spent = self._stage, self._clock() - self._stage.counted
        parts = [f"{_count(here)} done ({here.done / here.total:.0%})"] if here.total else []
        gained = here.done - here.first
        if gained > 0 and spent > 0 and here.done < here.total:
            parts.append(f"about {duration((here.total - here.done) * spent / gained)} left")
        elif here.done < here.total or not here.total:
            parts.append(f"running for {duration(self._clock() - here.began)}")
        if here.detail:
            parts.append(here.detail if self._with_details else here.detail.partition(", ")[0])
        return f"{here.name}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Return a time of day-long runs in words: ``45 s``, ``9 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def _count(stage: _Stage) -> str:
    return f"{stage.done:,} of {stage.total:,}"
