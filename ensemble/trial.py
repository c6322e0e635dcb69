"""How many images go through a model at once on the CPU, found by trying several sizes on a run's own first images.

There the size changes no answer, only the time: with many images what the layers hold falls out of the processor's
caches, with few the weights are read more often. Which is best differs between models and machines, so it is measured
for each model; nothing is computed twice for it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SIZES = (1, 2, 4, 8, 16)
_ROUNDS = 4  # the first of which only warms up: memory is fetched and layers are planned for each size
_HOPELESS = 1.05  # times the quickest look of all: a size that has not come nearer is not tried again


@dataclass(frozen=True, slots=True)
class Sample:
    """One size that was tried: ``seconds`` of one core an image, the median of ``looks`` at a batch."""

    size: int
    seconds: float
    looks: int


class Trial:
    """Says how many images go through one model at once: the sizes in turn, and then the fastest.

    It may be asked and told from several threads.
    """

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        self._lock = threading.Lock()
        self._left = list(sizes) * _ROUNDS if len(sizes) > 1 else []
        self._spent: dict[int, list[float]] = {size: [] for size in sizes}

    def next_size(self, images: int) -> int:
        """How many of ``images`` go at once now."""
        with self._lock:
            quickest = {size: min(spent[1:]) for size, spent in self._spent.items() if len(spent) > 1}
            bar = _HOPELESS * min(quickest.values(), default=0.0)
            self._left = [size for size in self._left if quickest.get(size, 0.0) <= bar]
            for place, size in enumerate(self._left):
                if size <= images:
                    return self._left.pop(place)
            return min(images, self._best())

    def learn(self, size: int, images: int, seconds: float) -> None:
        """``images``, so many at once, took so many seconds of one core."""
        with self._lock:
            if size in self._spent and len(self._spent[size]) < _ROUNDS:
                self._spent[size].append(seconds / images)

    @property
    def size(self) -> int:
        """The best size, as far as it is known; of equals, and before anything is known, the smallest."""
        with self._lock:
            return self._best()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What was measured so far."""
        with self._lock:
            return self._samples()

    def _best(self) -> int:
        found = self._samples()
        return min(found, key=lambda sample: (sample.seconds, sample.size)).size if found else min(self._spent)

    def _samples(self) -> tuple[Sample, ...]:
        measured = {size: spent[1:] for size, spent in self._spent.items() if len(spent) > 1}
        return tuple(Sample(size, median(spent), len(spent)) for size, spent in measured.items())
