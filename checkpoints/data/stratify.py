"""Iterative stratification: folds that have their share of every label, where an image may have several.

Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data", algorithm 1; here whole groups are
assigned, each with its number of images per label, so that no group is in two folds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratify(counts: NDArray[np.int64], sizes: NDArray[np.int64], *, folds: int, seed: int) -> NDArray[np.intp]:
    """Return the fold ``(G,)`` of each group.

    ``counts`` ``(G, L)`` is the number of a group's images with each label, ``sizes`` ``(G,)`` that of its images. The
    label with the fewest images left is divided first, and each of its groups, the largest first, goes to the fold that
    lacks the most images of it, then to the one that lacks the most images at all, then to a random one.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(counts))
    wanted = np.tile(counts.sum(axis=0) / folds, (folds, 1))
    room = np.full(folds, sizes.sum() / folds)
    fold = np.full(len(counts), -1, dtype=np.intp)
    left = counts.sum(axis=0)
    while left.any():
        label = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        having = [group for group in order if fold[group] < 0 and counts[group, label]]
        for group in sorted(having, key=lambda group: -int(counts[group, label])):
            _assign(group, _choose(wanted[:, label], room, rng), fold, wanted, room, counts, sizes)
            left = left - counts[group]
    for group in sorted((g for g in order if fold[g] < 0), key=lambda g: -int(sizes[g])):  # those without labels
        _assign(group, _choose(room, room, rng), fold, wanted, room, counts, sizes)
    return fold


def _choose(first: NDArray[np.float64], second: NDArray[np.float64], rng: np.random.Generator) -> int:
    best = np.flatnonzero(first == first.max())
    best = best[second[best] == second[best].max()]
    return int(best[rng.integers(len(best))]) if len(best) > 1 else int(best[0])


def _assign(
    group: int,
    chosen: int,
    fold: NDArray[np.intp],
    wanted: NDArray[np.float64],
    room: NDArray[np.float64],
    counts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> None:
    fold[group] = chosen
    wanted[chosen] -= counts[group]
    room[chosen] -= sizes[group]
