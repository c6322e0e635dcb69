"""ScoredAnswers: what a metric compares, the ground truth beside probabilities and decisions; and resample weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats

_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class ScoredAnswers:
    """Predictions of N images beside their ground truth, for C exclusive classes or C independent labels.

    ``truth`` is the class of each image ``(N,)``; for independent labels the ones that apply, ``(N, C)`` bool.
    ``decided`` has the same shape and meaning. ``probabilities`` ``(N, C)`` are None if only decisions are known, and
    ``decided`` is None where labels were not decided. ``positive`` is the class that counts where there are two.
    Probabilities that are only ``ranked`` have an order within an image, and no meaning.
    """

    truth: NDArray[np.generic]
    decided: NDArray[np.generic] | None
    probabilities: Floats | None
    classes: int
    positive: int = 1
    ranked: bool = False

    @property
    def exclusive(self) -> bool:
        """True if each image has exactly one class."""
        return self.truth.ndim == 1

    @property
    def rows(self) -> int:
        """The number of images."""
        return len(self.truth)

    def known(self) -> Floats:
        """Return the probabilities, which the caller knows to be there."""
        assert self.probabilities is not None, "this metric needs probabilities"
        return self.probabilities

    def applies(self) -> NDArray[np.bool_]:
        """Return the ground truth as ``(N, C)`` bool."""
        return self._hot(self.truth)

    def chosen(self) -> NDArray[np.bool_]:
        """Return the decisions as ``(N, C)`` bool."""
        assert self.decided is not None, "this metric needs decisions"
        return self._hot(self.decided)

    def columns(self) -> list[int]:
        """Return the columns that a mean over classes is of: of two exclusive classes only the positive one."""
        return [self.positive] if self.exclusive and self.classes == 2 else list(range(self.classes))

    def take(self, rows: NDArray[np.intp]) -> ScoredAnswers:
        """Return the answers of some images."""
        decided = None if self.decided is None else self.decided[rows]
        p = None if self.probabilities is None else self.probabilities[rows]
        return ScoredAnswers(self.truth[rows], decided, p, self.classes, self.positive, self.ranked)

    def _hot(self, values: NDArray[np.generic]) -> NDArray[np.bool_]:
        if values.ndim == 2:
            return values.astype(bool)
        return np.asarray(values[:, np.newaxis] == np.arange(self.classes))


def resample_weights(
    rows: int,
    clusters: Sequence[str] | NDArray[np.generic] | None,
    *,
    resamples: int,
    seed: int,
    left_out: bool = False,
    at_most: int | None = None,
) -> Iterator[Floats]:
    """Yield how often each row is drawn, ``(r, N)`` in chunks of r resamples: whole clusters with replacement.

    The draws are those of `ensemble.metrics.bootstrap` for the same seed and clusters; with ``left_out`` the rows that
    were not drawn count once. ``at_most`` limits r.
    """
    owner = np.arange(rows) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, min(at_most or resamples, resamples, _CELLS // max(rows, 1)))
    for first in range(0, resamples, step):
        found = np.empty((min(step, resamples - first), rows))
        for row in found:
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            row[:] = (times == 0)[owner] if left_out else times[owner]
        yield found


def true_classes(answers: ScoredAnswers) -> Classes:
    """Return the class of each image ``(N,)`` of exclusive classes."""
    return answers.truth.astype(np.intp)
