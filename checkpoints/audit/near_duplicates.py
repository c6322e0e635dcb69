"""Near-duplicates: images that are re-encoded, resized, cropped or mirrored copies of others.

Descriptors find candidates: the mean brightness of 6 x 6 cells, without its mean and scaled to length one, of the whole
image and its mirror image on one side, and of a grid of windows of the other image on the other side. The window of a
candidate is then moved until the pixels agree best, and a candidate is a copy if they agree everywhere: a photograph of
the same person with another mask agrees in most places, but not in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checkpoints.audit.thumbnails import Thumbnails, sum_tables, window_means
from ensemble.arrays import Floats
from ensemble.events import SILENT, Listener

_CELLS = 6  # per side of a descriptor; with 8, windows between those of the grid are missed
_FINE = 16  # cells per side while a window is moved
_FINEST = 24  # cells per side of the last comparison
_CANDIDATE = 0.85  # cosine of two descriptors from which the pixels are compared
_PROMISING = 0.9  # correlation after the first steps, from which a window is moved on
_NEAREST = 20  # candidates of an image, at most
_BLOCK = 512  # images whose descriptors are compared at once
_PIECE = 4096  # candidates whose pixels are compared at once
_WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Image ``copy`` shows what ``window`` of image ``of`` shows; both are rows, and ``mirrored`` is a flip.

    ``likeness`` is the correlation of the aligned pixels.
    """

    copy: int
    of: int
    window: tuple[float, float, float, float]
    mirrored: bool
    likeness: float

    @property
    def cropped(self) -> bool:
        """True if the window is clearly less than the whole image."""
        left, top, right, bottom = self.window
        return (right - left) * (bottom - top) < 0.97


@dataclass(frozen=True, slots=True)
class CopyLimits:
    """The limits of a copy: the least correlation of the pixels, and the largest difference of one of 6 x 6 blocks.

    The difference is in shades of 0 to 255, after brightness and contrast are made equal.
    """

    correlation: float = 0.99
    difference: float = 8.0


DEFAULT = CopyLimits()


def _grid() -> Floats:
    """Return the windows in which a copy is looked for: the whole, and crops of one or both sides."""
    windows = [_WHOLE[0]]
    shares = [(1.0, 0.9), (0.9, 1.0), (1.0, 0.8), (0.8, 1.0), *((s, s) for s in (0.92, 0.84, 0.76, 0.68, 0.6))]
    for wide, high in shares:
        for x in (0.0, 0.5, 1.0) if wide < 1 else (0.0,):
            for y in (0.0, 0.5, 1.0) if high < 1 else (0.0,):
                left, top = (1 - wide) * x, (1 - high) * y
                windows.append(np.array([left, top, left + wide, top + high]))
    return np.array(windows)


WINDOWS = _grid()


def find_near_duplicates(
    images: Thumbnails, *, limits: CopyLimits = DEFAULT, crops: bool = True, listener: Listener = SILENT
) -> tuple[NearDuplicate, ...]:
    """Return pairs of images that are copies of one another, the most alike first; without ``crops`` only whole ones.

    Each pair is there once, with the image that shows less as the copy. Images without any contrast are left out.
    """
    usable = np.array([row not in images.faults for row in range(len(images.grey))], dtype=bool)
    usable &= images.grey.std(axis=(1, 2)) > 2
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        return ()
    tables = sum_tables(images.grey)
    mirrored = sum_tables(images.grey[:, :, ::-1])
    windows = WINDOWS if crops else WINDOWS[:1]
    pairs: list[NearDuplicate] = []
    for flip, sources in ((False, tables), (True, mirrored)):
        listener.progress("duplicates", len(rows) * flip, 2 * len(rows))
        found = _candidates(sources, tables, rows, windows)
        for start in range(0, len(found.copies), _PIECE):
            piece = found.take(np.arange(start, min(start + _PIECE, len(found.copies))))
            pairs += _copies(sources, tables, piece, limits, flip=flip, crops=crops)
    listener.progress("duplicates", 2 * len(rows), 2 * len(rows))
    return _once(pairs)


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Rows of possible copies and of what they may be copies of, and the windows ``(M, 4)`` of the latter."""

    copies: NDArray[np.intp]
    others: NDArray[np.intp]
    windows: Floats

    def take(self, places: NDArray[np.intp]) -> _Candidates:
        return _Candidates(self.copies[places], self.others[places], self.windows[places])


def _copies(
    sources: Floats, tables: Floats, found: _Candidates, limits: CopyLimits, *, flip: bool, crops: bool
) -> list[NearDuplicate]:
    if crops:
        found, likeness = _align(sources, tables, found, _STEPS[:1])
        found, _ = _align(sources, tables, found.take(np.flatnonzero(likeness >= _PROMISING)), _STEPS[1:])
    likeness, worst = _compare(sources, tables, found)
    pairs = []
    for k in np.flatnonzero((likeness >= limits.correlation) & (worst <= limits.difference)):
        left, top, right, bottom = (float(side) for side in found.windows[k])
        window = (left, top, right, bottom)
        pairs.append(NearDuplicate(int(found.copies[k]), int(found.others[k]), window, flip, float(likeness[k])))
    return pairs


def _descriptors(tables: Floats, rows: NDArray[np.intp], windows: Floats) -> NDArray[np.float32]:
    """Return ``(len(rows) * len(windows), 64)`` of length one, image by image."""
    means = window_means(tables, np.repeat(rows, len(windows)), np.tile(windows, (len(rows), 1)), _CELLS)
    flat = means.reshape(len(means), means.shape[1] * means.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9), np.float32)


def _candidates(sources: Floats, tables: Floats, rows: NDArray[np.intp], windows: Floats) -> _Candidates:
    """Return for each image, whole, the images whose windows are most like it, each with its best window."""
    queries = _descriptors(sources, rows, _WHOLE)
    likeness = np.full((len(rows), _NEAREST), -1, np.float32)
    others = np.zeros((len(rows), _NEAREST), np.intp)
    places = np.zeros((len(rows), _NEAREST), np.intp)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        described = _descriptors(tables, block, windows)
        best, which = np.full((len(rows), len(block)), -1, np.float32), np.zeros((len(rows), len(block)), np.intp)
        for index in range(len(windows)):
            here = queries @ described[index :: len(windows)].T
            better = here > best
            best[better], which[better] = here[better], index
        # an image is no copy of itself, nor of its own mirror image
        best[np.arange(start, start + len(block)), np.arange(len(block))] = -1
        joined = np.concatenate([likeness, best], axis=1)
        order = np.argpartition(-joined, _NEAREST - 1, axis=1)[:, :_NEAREST]
        likeness = np.take_along_axis(joined, order, axis=1)
        everyone = np.concatenate([others, np.broadcast_to(block, best.shape)], axis=1)
        others = np.take_along_axis(everyone, order, axis=1)
        places = np.take_along_axis(np.concatenate([places, which], axis=1), order, axis=1)
    chosen = likeness >= _CANDIDATE
    copies = np.broadcast_to(rows[:, None], likeness.shape)[chosen]
    return _Candidates(copies, others[chosen], windows[places[chosen]])


def _align(sources: Floats, tables: Floats, found: _Candidates, steps: tuple[float, ...]) -> tuple[_Candidates, Floats]:
    """Return the windows, moved in ever smaller steps to where the pixels correlate best, and the correlations."""
    whole = np.repeat(_WHOLE, len(found.copies), axis=0)
    wanted = _normalized(window_means(sources, found.copies, whole, _FINE))
    windows = found.windows.copy()

    def correlate(tried: Floats) -> Floats:
        got = _normalized(window_means(tables, found.others, tried, _FINE))
        return np.asarray((got * wanted).sum(axis=1))

    best = correlate(windows)
    for step in (step for step in steps for _ in range(2)):
        for move in _MOVES:
            tried = np.clip(windows + step * move, 0, 1)
            valid = (tried[:, 2] - tried[:, 0] > 0.3) & (tried[:, 3] - tried[:, 1] > 0.3)
            value = np.where(valid, correlate(np.where(valid[:, None], tried, windows)), -1)
            better = value > best
            windows[better], best[better] = tried[better], value[better]
    return _Candidates(found.copies, found.others, windows), best


_STEPS = (0.06, 0.03, 0.015, 0.008, 0.004)
_MOVES = np.array(
    [
        *(
            [1, 0, 0, 0],
            [-1, 0, 0, 0],
            [0, 1, 0, 0],
            [0, -1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, -1, 0],
            [0, 0, 0, 1],
            [0, 0, 0, -1],
        ),
        *([1, 0, 1, 0], [-1, 0, -1, 0], [0, 1, 0, 1], [0, -1, 0, -1], [1, 1, -1, -1], [-1, -1, 1, 1]),
    ],
    dtype=np.float64,
)


def _normalized(means: Floats) -> Floats:
    flat = means.reshape(len(means), means.shape[1] * means.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))


def _compare(sources: Floats, tables: Floats, found: _Candidates) -> tuple[Floats, Floats]:
    """Return the correlation of the aligned pixels, and the largest mean difference of 6 x 6 blocks, in shades."""
    one = window_means(sources, found.copies, np.repeat(_WHOLE, len(found.copies), axis=0), _FINEST)
    two = window_means(tables, found.others, found.windows, _FINEST)
    a, b = _normalized(one), _normalized(two)
    correlation = (a * b).sum(axis=1)
    # brightness and contrast are made those of the copy, with a standard deviation of 50 shades
    rest = np.abs(a - correlation[:, None] * b) * 50 * _FINEST
    blocks = rest.reshape(-1, 6, _FINEST // 6, 6, _FINEST // 6).mean(axis=(2, 4))
    return correlation, blocks.max(axis=(1, 2), initial=0)


def _once(pairs: Iterable[NearDuplicate]) -> tuple[NearDuplicate, ...]:
    best: dict[tuple[int, int], NearDuplicate] = {}
    for pair in pairs:
        key = (min(pair.copy, pair.of), max(pair.copy, pair.of))
        # of the two directions, the one whose copy shows less is right: the other has a window beyond the border
        known = best.get(key)
        if known is None or pair.likeness > known.likeness:
            best[key] = pair
    return tuple(sorted(best.values(), key=lambda pair: (-pair.likeness, pair.copy, pair.of)))
