"""The batch size, found by trying several on a run's own first images: nothing is computed twice.

On the CPU a batch's size changes no answer, only the time: too small a batch reads the weights too often, too large
a one falls out of the caches. Which is best depends on the models and the machine, so it is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

CANDIDATES = (4, 8, 16, 32)
_ROUNDS = 4  # the first of which only warms up: memory is fetched and layers are planned for each size
_PAYS = 4  # times the trial's own images


@dataclass(frozen=True, slots=True)
class Sample:
    """One size that was tried: ``seconds`` of one core an image, the median of ``batches``."""

    batch: int
    seconds: float
    batches: int


class Trial:
    """Says how large each next batch is: the candidates in turn, and once all are measured the fastest.

    Runs of fewer than `_PAYS` times the images that a trial takes have ``usual`` throughout.
    """

    def __init__(self, images: int, *, usual: int, candidates: Sequence[int] = CANDIDATES) -> None:
        wanted = list(candidates) * _ROUNDS
        self._left = wanted if len(candidates) > 1 and images >= _PAYS * sum(wanted) else []
        self._usual = usual
        self._spent: dict[int, list[float]] = {size: [] for size in candidates} if self._left else {}

    def cut(self, rows: range) -> Iterator[range]:
        """A part's rows batch by batch; how large each is, is decided when it is asked for."""
        start = rows.start
        while start < rows.stop:
            stop = start + self.next_batch(rows.stop - start)
            yield range(start, stop)
            start = stop

    def next_batch(self, room: int) -> int:
        """The size of the next batch, of which ``room`` images are left in its part."""
        if self._left and self._left[0] <= room:
            return self._left.pop(0)
        return min(room, self.batch)

    def learn(self, batch: int, seconds: float) -> None:
        """``batch`` images took so many seconds of one core."""
        if batch in self._spent and len(self._spent[batch]) < _ROUNDS:
            self._spent[batch].append(seconds / batch)

    @property
    def batch(self) -> int:
        """The best size, as far as it is known; of equals the smaller."""
        found = self.samples
        return min(found, key=lambda sample: (sample.seconds, sample.batch)).batch if found else self._usual

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What was measured; nothing before each candidate has been."""
        if not self._spent or any(len(spent) < _ROUNDS for spent in self._spent.values()):
            return ()
        return tuple(Sample(size, median(spent[1:]), len(spent) - 1) for size, spent in self._spent.items())
