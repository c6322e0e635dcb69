"""The batch size of a model on the CPU, chosen by timing several sizes on the first images of a run.

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
_LOOKS = 4  # at each size, the first of which only warms up: memory is fetched and layers are planned
_HOPELESS = 1.05  # times the quickest look of all: a size that has not come nearer is not tried again


@dataclass(frozen=True, slots=True)
class Sample:
    """One batch size that was timed: ``seconds`` of one core per image, the median of ``looks`` batches."""

    size: int
    seconds: float
    looks: int


class Trial:
    """Chooses the batch size of one model: first tries the sizes in ascending order, then keeps the fastest.

    Once a size is clearly slower than a smaller one, larger ones are not tried: they would be slower still, and take
    memory that onnxruntime keeps. It may be asked and told from several threads.
    """

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        self._lock = threading.Lock()
        first = [size for size in sorted(sizes) for _ in range(2)]
        self._left = first + sorted(sizes) * (_LOOKS - 2) if len(sizes) > 1 else []
        self._spent: dict[int, list[float]] = {size: [] for size in sizes}

    def next_size(self, images: int) -> int:
        """Return the next batch size, at most ``images``."""
        with self._lock:
            if self._left:
                self._drop_the_hopeless()
            for place, size in enumerate(self._left):
                if size <= images:
                    return self._left.pop(place)
            return min(images, self._best())

    def learn(self, size: int, images: int, seconds: float) -> None:
        """Record that ``images`` took ``seconds`` of one core at batch size ``size``."""
        with self._lock:
            if size in self._spent and len(self._spent[size]) < _LOOKS:
                self._spent[size].append(seconds / images)

    @property
    def size(self) -> int:
        """The fastest size so far; the smallest one wins on ties, and before anything was timed."""
        with self._lock:
            return self._best()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measurements so far."""
        with self._lock:
            return self._samples()

    def _drop_the_hopeless(self) -> None:
        quickest = {size: min(spent[1:]) for size, spent in self._spent.items() if len(spent) > 1}
        if not quickest:
            return
        best = min(quickest, key=lambda size: quickest[size])
        hopeless = {size for size, seconds in quickest.items() if seconds > _HOPELESS * quickest[best]}
        end = min((size for size in hopeless if size > best), default=max(self._spent) + 1)
        self._left = [size for size in self._left if size < end and size not in hopeless]

    def _best(self) -> int:
        found = self._samples()
        return min(found, key=lambda sample: (sample.seconds, sample.size)).size if found else min(self._spent)

    def _samples(self) -> tuple[Sample, ...]:
        measured = {size: spent[1:] for size, spent in self._spent.items() if len(spent) > 1}
        return tuple(Sample(size, median(spent), len(spent)) for size, spent in measured.items())
