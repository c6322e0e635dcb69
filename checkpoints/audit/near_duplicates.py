"""Near-duplicates: images that are re-encoded, resized, cropped or mirrored copies of others.

Descriptors find candidates: the mean brightness of 6 x 6 cells, without its mean and scaled to length one, of the whole
image and its mirror image on one side, and of a grid of windows of the other image on the other side. The window of a
candidate is then moved until the pixels agree best (Lucas and Kanade 1981, on the four sides of the window), and a
candidate is a copy if they agree everywhere: a photograph of the same person with another mask agrees in most places,
but not in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from checkpoints.audit.thumbnails import SumTables, Thumbnails, sum_tables, window_means
from ensemble.arrays import Floats
from ensemble.events import SILENT, Listener
from ensemble.kept_arrays import KeptArrays

_CELLS = 6  # per side of a descriptor; with 8, windows between those of the grid are missed
_COARSE, _FINE = 12, 16  # cells per side while a window is moved
_FINEST = 24  # cells per side of the last comparison
_CANDIDATE = 0.8  # cosine of two descriptors from which the pixels are compared
_PROMISING = 0.9  # correlation after the first moves, from which a window is moved on
_LIKELY = 0.97  # correlation from which single sides are tried at last
_FARTHEST = 0.08  # move of a side at once, in shares
_LEAST_SIDE = 0.3  # of a window
_NEAREST = 24  # candidates of an image, at most
_BLOCK, _QUERIES = 512, 2048  # images whose descriptors are compared with those of as many others at once
_PIECE = 4096  # candidates after which what is found is kept
_AT_ONCE = 256  # candidates whose pixels are compared at once: they stay in a core's cache
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
    """Return the windows in which a copy is looked for: the whole, and crops of one or both sides.

    Neighboring windows of one shape are at most one cell of their descriptors apart: a crop between them is half a cell
    or less from one of them, whose descriptor is then more like that of the crop than those of other images are.
    """
    shares = [(1.0, 0.9), (1.0, 0.8), (1.0, 0.7), (1.0, 0.62), (0.9, 0.74), (0.82, 0.66)]
    shares += [(high, wide) for wide, high in shares]
    shares += [(share, share) for share in (0.92, 0.84, 0.76, 0.68, 0.6)]
    windows = [
        [left, top, left + wide, top + high] for wide, high in shares for left in _places(wide) for top in _places(high)
    ]
    return np.concatenate([_WHOLE, windows])


def _places(share: float) -> Floats:
    """Return where windows of a share of a side begin, from border to border."""
    steps = int(np.ceil((1 - share) * _CELLS / share - 1e-9))
    return np.linspace(0, 1 - share, steps + 1)


WINDOWS = _grid()


def find_near_duplicates(
    images: Thumbnails,
    *,
    limits: CopyLimits = DEFAULT,
    crops: bool = True,
    kept: KeptArrays | None = None,
    listener: Listener = SILENT,
) -> tuple[NearDuplicate, ...]:
    """Return pairs of images that are copies of one another, the most alike first; without ``crops`` only whole ones.

    Candidates and pairs that are ``kept`` are not searched for again.
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
        found = _keep_candidates(kept, flip, partial(_candidates, sources, tables, rows, windows))
        for start in range(0, len(found.copies), _PIECE):
            piece = found.take(np.arange(start, min(start + _PIECE, len(found.copies))))
            step = f"pairs {flip} {start}"
            known = None if kept is None else kept.get(step)
            if known is None:
                known = _copies(sources, tables, piece, limits, crops=crops)
                if kept is not None:
                    kept.add(step, known)
            pairs += _pairs(known, flip=flip)
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


def _keep_candidates(kept: KeptArrays | None, flip: bool, search: Callable[[], _Candidates]) -> _Candidates:
    """Return the candidates that are kept of images as they are or flipped, or search and keep them."""
    if kept is None:
        return search()
    steps = [f"candidates {flip} {field.name}" for field in fields(_Candidates)]
    known = [values for values in map(kept.get, steps) if values is not None]
    if len(known) == len(steps):
        return _Candidates(*known)
    found = search()
    for step, field in zip(steps, fields(_Candidates), strict=True):
        kept.add(step, getattr(found, field.name))
    return found


def _copies(sources: SumTables, tables: SumTables, found: _Candidates, limits: CopyLimits, *, crops: bool) -> Floats:
    """Return a row ``(7,)`` for each copy: its image, the other one, the four sides of the window and the likeness."""
    if crops:
        found, likeness = _move(sources, tables, found, _COARSE, moves=2)
        found, likeness = _move(sources, tables, found.take(np.flatnonzero(likeness >= _PROMISING)), _FINE, moves=4)
        found = _try_sides(sources, tables, found.take(np.flatnonzero(likeness >= _LIKELY)))
    likeness, worst = _compare(sources, tables, found)
    chosen = np.flatnonzero((likeness >= limits.correlation) & (worst <= limits.difference))
    return np.column_stack((found.copies[chosen], found.others[chosen], found.windows[chosen], likeness[chosen]))


def _pairs(rows: Floats, *, flip: bool) -> list[NearDuplicate]:
    return [
        NearDuplicate(int(copy), int(of), (left, top, right, bottom), flip, likeness)
        for copy, of, left, top, right, bottom, likeness in rows.tolist()
    ]


def _descriptors(tables: SumTables, rows: NDArray[np.intp], windows: Floats) -> NDArray[np.float32]:
    """Return ``(len(rows) * len(windows), 36)`` of length one, image by image."""
    means = window_means(tables, np.repeat(rows, len(windows)), np.tile(windows, (len(rows), 1)), _CELLS)
    flat = means.reshape(len(means), means.shape[1] * means.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9), np.float32)


def _candidates(sources: SumTables, tables: SumTables, rows: NDArray[np.intp], windows: Floats) -> _Candidates:
    """Return for each image, whole, the images whose windows are most like it, each with its best window."""
    queries = _descriptors(sources, rows, _WHOLE)
    likeness = np.full((len(rows), _NEAREST), -1, np.float32)
    others = np.zeros((len(rows), _NEAREST), np.intp)
    places = np.zeros((len(rows), _NEAREST), np.intp)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        described = _descriptors(tables, block, windows).reshape(len(block), len(windows), -1)
        by_window = described.transpose(1, 2, 0).copy()
        for first in range(0, len(rows), _QUERIES):
            part = slice(first, min(first + _QUERIES, len(rows)))
            best = queries[part] @ by_window[0]
            for window in by_window[1:]:
                np.maximum(best, queries[part] @ window, out=best)
            best[rows[part, None] == block] = -1  # an image is no copy of itself, nor of its own mirror image
            joined = np.concatenate([likeness[part], best], axis=1)
            order = np.argpartition(-joined, _NEAREST - 1, axis=1)[:, :_NEAREST]
            likeness[part] = np.take_along_axis(joined, order, axis=1)
            known = np.minimum(order, _NEAREST - 1)
            everyone, windowed = (np.take_along_axis(table[part], known, axis=1) for table in (others, places))
            query, column = np.nonzero((order >= _NEAREST) & (likeness[part] >= _CANDIDATE))
            entered = order[query, column] - _NEAREST
            everyone[query, column] = block[entered]
            windowed[query, column] = _best_windows(described, entered, queries[part][query])
            others[part], places[part] = everyone, windowed
    chosen = likeness >= _CANDIDATE
    copies = np.broadcast_to(rows[:, None], likeness.shape)[chosen]
    return _Candidates(copies, others[chosen], windows[places[chosen]])


def _best_windows(
    described: NDArray[np.float32], images: NDArray[np.intp], queries: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return which of the windows of ``images[m]`` is most like query m, of ``described`` ``(images, windows, 36)``."""
    best = np.empty(len(images), np.intp)
    order = np.argsort(images, kind="stable")
    for of_image in np.split(order, np.flatnonzero(np.diff(images[order])) + 1):
        if len(of_image):
            best[of_image] = (queries[of_image] @ described[images[of_image[0]]].T).argmax(axis=1)
    return best


def _move(
    sources: SumTables, tables: SumTables, found: _Candidates, cells: int, *, moves: int
) -> tuple[_Candidates, Floats]:
    """Return the windows, moved to where the pixels of a grid of cells correlate better, and the correlations."""
    kept, best = found.windows.copy(), np.full(len(found.copies), -1.0)
    for start in range(0, len(best), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        piece = _Candidates(found.copies[part], found.others[part], found.windows[part])
        kept[part], best[part] = _moved(sources, tables, piece, cells, moves=moves)
    return _Candidates(found.copies, found.others, kept), best


def _moved(
    sources: SumTables, tables: SumTables, found: _Candidates, cells: int, *, moves: int
) -> tuple[Floats, Floats]:
    wanted = _normalized(window_means(sources, found.copies, np.repeat(_WHOLE, len(found.copies), axis=0), cells))
    windows, kept = found.windows, found.windows.copy()
    best = np.full(len(kept), -1.0)
    for move in range(moves + 1):
        got = window_means(tables, found.others, windows, cells)
        value = (_normalized(got) * wanted).sum(axis=1)
        better = value > best
        kept[better], best[better] = windows[better], value[better]
        if move < moves:
            moved = np.clip(windows + _least_squares_move(got, wanted, windows), 0, 1)
            windows = np.where(_large_enough(moved)[:, None], moved, windows)
    return kept, best


def _least_squares_move(got: Floats, wanted: Floats, windows: Floats) -> Floats:
    """Return the moves of the four sides, in shares, after which cells would be most like the wanted ones.

    Cells are taken to change in proportion to their slope; brightness and contrast are free.
    """
    count, cells, _ = got.shape
    place = (np.arange(cells) + 0.5) / cells
    down, right = (
        np.gradient(got, axis=axis) * cells / (windows[:, end] - windows[:, start])[:, None, None]
        for axis, start, end in ((1, 1, 3), (2, 0, 2))
    )
    columns = (got, right * (1 - place), down * (1 - place)[:, None], right * place, down * place[:, None])
    flat = np.stack([column.reshape(count, cells**2) for column in columns], axis=1)
    flat -= flat.mean(axis=2, keepdims=True)
    normal = flat @ flat.transpose(0, 2, 1)
    scale = np.maximum(np.trace(normal, axis1=1, axis2=2), 1e-9)
    normal += 1e-6 * scale[:, None, None] * np.eye(5)
    solved = np.linalg.solve(normal, flat @ wanted[:, :, None])[:, :, 0]
    contrast = solved[:, :1]
    moves = np.where(contrast > 0, solved[:, 1:] / np.where(contrast > 0, contrast, 1), 0)
    return np.asarray(np.clip(moves, -_FARTHEST, _FARTHEST))


def _large_enough(windows: Floats) -> NDArray[np.bool_]:
    return np.asarray(((windows[:, 2:] - windows[:, :2]) > _LEAST_SIDE).all(axis=1))


def _try_sides(sources: SumTables, tables: SumTables, found: _Candidates) -> _Candidates:
    """Return the windows, with single sides and both moved in small steps to where the pixels correlate best."""
    wanted = _normalized(window_means(sources, found.copies, np.repeat(_WHOLE, len(found.copies), axis=0), _FINE))
    windows = found.windows.copy()

    def correlate(tried: Floats) -> Floats:
        got = _normalized(window_means(tables, found.others, tried, _FINE))
        return np.asarray((got * wanted).sum(axis=1))

    best = correlate(windows)
    for step in _STEPS:
        for move in _MOVES:
            tried = np.clip(windows + step * move, 0, 1)
            value = np.where(_large_enough(tried), correlate(tried), -1)
            better = value > best
            windows[better], best[better] = tried[better], value[better]
    return _Candidates(found.copies, found.others, windows)


_STEPS = (0.008, 0.008, 0.004, 0.004)
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


def _compare(sources: SumTables, tables: SumTables, found: _Candidates) -> tuple[Floats, Floats]:
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
