"""Choose the L2 strength of each fold's head by folds within its training part: no person is in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds, make_folds
from checkpoints.probe.linear_head import STRENGTHS, Target, fit_path
from ensemble.arrays import Floats, Mask
from ensemble.events import SILENT, Listener
from ensemble.kept_arrays import KeptArrays

_WORSE = 2


@dataclass(frozen=True, slots=True, eq=False)
class InnerFit:
    """One fit of the search: the rows ``(N,)`` it is trained on, and for which outer folds it is scored on which."""

    training: Mask
    scored: tuple[tuple[int, Mask], ...]


def plan_fits(data: Dataset, folds: Folds, *, seed: int) -> list[InnerFit]:
    """Return the fits of the search for every outer fold.

    The inner folds of an outer fold are the other ones: a fit without the folds a and b is scored on b for a, and on a
    for b. Of two folds, the other one is dealt in two.

    Raises:
        DataError: E341 when the people of one of two folds are too few to be dealt in two.
    """
    held = [folds.holdout(data.rows, fold) for fold in range(folds.count)]
    if folds.count > 2:
        return [
            InnerFit(~held[a] & ~held[b], ((a, held[b]), (b, held[a]))) for a, b in combinations(range(folds.count), 2)
        ]
    fits = []
    for fold in range(2):
        training = ~held[fold]
        rows = [row for row, chosen in zip(data.rows, training, strict=True) if chosen]
        inner = make_folds(rows, folds=2, seed=seed, labels=data.labels, unit=data.unit)
        for half in range(2):
            scored = np.zeros(len(data.rows), dtype=np.bool_)
            scored[training] = inner.holdout(rows, half)
            fits.append(InnerFit(training & ~scored, ((fold, scored),)))
    return fits


def choose_strengths(
    features: Floats,
    targets: Sequence[Target],
    fits: Sequence[InnerFit],
    folds: int,
    *,
    kept: KeptArrays | None = None,
    listener: Listener = SILENT,
) -> list[list[float]]:
    """Return for each outer fold the strength of each target: that of the least loss on rows no inner fit has seen.

    The losses of fits that are ``kept`` are not computed again.
    """
    losses = np.zeros((folds, len(targets), len(STRENGTHS)))
    for done, fit in enumerate(fits, 1):
        scored = [fold for fold, _ in fit.scored]
        for place, target in enumerate(targets):
            step = f"losses {done} {target.name}"
            found = None if kept is None else kept.get(step)
            if found is None:
                found = _path_losses(features, target, fit)
                if kept is not None:
                    kept.add(step, found)
            losses[scored, place] += found
        listener.progress("L2 strength", done, len(fits))
    return [[STRENGTHS[int(best)] for best in of_fold.argmin(axis=1)] for of_fold in losses]


def _path_losses(features: Floats, target: Target, fit: InnerFit) -> Floats:
    """Return the loss ``(S, strengths)`` on each scored part.

    It is infinite for the strengths after two that were worse than the best before them on every part.
    """
    losses = np.full((len(fit.scored), len(STRENGTHS)), np.inf)
    parts = [(features[rows], rows) for _, rows in fit.scored]
    for step, block in enumerate(fit_path(features, target, fit.training, STRENGTHS)):
        for part, (values, rows) in enumerate(parts):
            losses[part, step] = target.loss(block.logits(values), rows)
        if step >= _WORSE and (losses[:, step - _WORSE + 1 : step + 1].min(axis=1) > losses.min(axis=1)).all():
            break
    return losses
