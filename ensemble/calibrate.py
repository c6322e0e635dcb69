"""Calibrated early exit: how far an answer must lead before the rest of the ensemble may be skipped.

The thresholds come from out-of-fold predictions. Those of a group stand for each of its folds, so a row leaves only
when a whole group has looked: between the folds of one group the out-of-fold rows know of no disagreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from ensemble.early_exit import Cell, Running, ends_of_units
from ensemble.errors import PredictionError, enumerate_some
from ensemble.evaluate import Truth, read_truth
from ensemble.events import SILENT, Listener, Notice
from ensemble.holdouts import gather_folds
from ensemble.predictions import Predictions
from ensemble.recipe import Recipe

_CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True, slots=True)
class Calibration:
    """``stops``: after how many cells a row may leave, and how far its answer must lead then.

    ``kept`` and ``saved`` are shares of rows that keep the whole ensemble's answer and of forward passes not run, each
    measured on one half of the people with the thresholds of the other half. ``certified`` says whether ``rows`` are
    enough to hold ``share`` with 95 % confidence.
    """

    share: float
    rows: int
    stops: dict[int, float]
    kept: float
    saved: float
    certified: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; a threshold that nothing reaches is null."""
        stops = {str(k): lead if np.isfinite(lead) else None for k, lead in self.stops.items()}
        return asdict(self) | {"stops": stops}

    def render(self) -> str:
        """One line for people."""
        return (
            f"on {self.rows:,} out-of-fold rows, each half with the thresholds of the other: {self.kept:.3%} keep "
            f"their answer (asked: {self.share:.3%}), {self.saved:.1%} of passes saved"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What the ensemble says on its way: after ``ends[j]`` cells ``leads[j]`` and ``answers[j]``, each ``(N,)``.

    ``scale`` ``(len(ends) - 1,)`` is how large a lead there has to be in proportion, at each end but the last.
    """

    ends: tuple[int, ...]
    scale: NDArray[np.float64]
    leads: NDArray[np.float64]
    answers: NDArray[np.intp]

    def of(self, rows: NDArray[np.intp]) -> Course:
        """The same for some rows."""
        return Course(self.ends, self.scale, self.leads[:, rows], self.answers[:, rows])


def calibrate(
    recipe: Recipe,
    cells: Sequence[Cell],
    oof: Sequence[Predictions],
    share: float,
    *,
    truth: Path | None = None,
    listener: Listener = SILENT,
) -> Calibration:
    """Thresholds with which at least ``share`` of rows keeps the answer of all ``cells``, those of `in_order`.

    ``truth``, where given, names the person on each image, so that the halves of the check share no person.

    Raises:
        EnsError: as `read_truth` and `gather_folds`.
        PredictionError: E516 when a view is missing, E517 when a group of the recipe is.
    """
    gathered, known = _gather(recipe, oof, truth, listener)
    path = _walk(recipe, cells, gathered)
    rows = len(known.ids)
    allowed, certified = _allowed(share, rows)
    kept, saved = _cross_validate(path, share, _owners(known))
    found = Calibration(share, rows, choose_stops(path, allowed), kept, saved, certified)
    if not certified:
        listener.notice(
            Notice("W533", f"{rows:,} rows certify no share above {max(0.0, 1 - 3 / rows):.3%}, asked was {share:.3%}")
        )
    elif kept < share:
        listener.notice(Notice("W533", f"only {kept:.3%} of held-out rows keep their answer, asked was {share:.3%}"))
    return found


def choose_stops(course: Course, allowed: int) -> dict[int, float]:
    """The lowest leads with which no more than ``allowed`` rows ever lead that far with another answer than the last.

    One number is fitted, not one a stop, or each stop would add an error of its own on other rows: the lead that is
    asked for is that number times ``course.scale``, so that it falls with the weight still outstanding. The numbers
    that rows need are exchangeable: with n rows, at most ``(allowed + 1) / (n + 1)`` of new ones are expected to change
    (Vovk et al., "Algorithmic Learning in a Random World", 2005, on conformal prediction).
    """
    ratio = course.leads[:-1] / course.scale[:, np.newaxis]
    wrong = course.answers[:-1] != course.answers[-1]
    needed = np.sort(np.where(wrong, ratio, 0.0).max(axis=0, initial=0.0))[::-1]
    least = float(needed[allowed]) if allowed < len(needed) else 0.0
    # the smallest number above it, and above its rounding
    factor = least * (1 + 1e-12) + np.finfo(np.float64).tiny
    return {end: factor * float(scale) for end, scale in zip(course.ends[:-1], course.scale, strict=True)}


def replay(path: Course, stops: dict[int, float]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which rows ``(N,)`` keep the last answer with these thresholds, and how many cells each needs."""
    answers, passes = path.answers[-1].copy(), np.full(path.leads.shape[1], path.ends[-1])
    left = np.ones(len(answers), dtype=np.bool_)
    for j, end in enumerate(path.ends[:-1]):
        gone = left & (path.leads[j] >= stops[end])
        answers[gone], passes[gone] = path.answers[j, gone], end
        left &= ~gone
    return answers == path.answers[-1], passes


def _allowed(share: float, rows: int) -> tuple[int, bool]:
    """How many of ``rows`` may change so that the share holds with 95 % confidence, and whether any number does.

    The limit is Poisson's: none of n seen bounds the rate by 3 / n (Garwood, "Fiducial limits for the Poisson
    distribution", Biometrika 1936).
    """
    counts = np.arange(rows + 1)
    fits = np.flatnonzero(gammaincinv(counts + 1, _CONFIDENCE) <= (1 - share) * rows * (1 + 1e-12))
    return (int(fits[-1]), True) if len(fits) else (0, False)


def _cross_validate(path: Course, share: float, owner: NDArray[np.intp]) -> tuple[float, float]:
    order = np.random.default_rng(_SEED).permutation(int(owner.max()) + 1)
    first = order[owner] < len(order) / 2
    kept = saved = 0
    for train, test in ((first, ~first), (~first, first)):
        half = path.of(np.flatnonzero(train))
        allowed, _ = _allowed(share, half.leads.shape[1])
        same, passes = replay(path.of(np.flatnonzero(test)), choose_stops(half, allowed))
        kept += int(same.sum())
        saved += int((path.ends[-1] - passes).sum())
    return kept / len(owner), saved / (len(owner) * path.ends[-1])


def scale_of(cells: Sequence[Cell], ends: Sequence[int]) -> NDArray[np.float64]:
    """The weight outstanding at each end but the last, over the weight that was seen: in proportion to it, a lead of
    the mean so far can be undone.
    """
    seen = np.cumsum([cell.weight for cell in cells])[np.array(ends[:-1], dtype=np.intp) - 1]
    return np.asarray((1 - seen) / seen)


def _walk(recipe: Recipe, cells: Sequence[Cell], gathered: Sequence[Predictions]) -> Course:
    by_group = {member.group: member for member in gathered}
    ends = ends_of_units(cells)
    running = Running(recipe, cells, len(gathered[0]))
    leads, answers = [], []
    for cell in cells:
        member = by_group[cell.group]
        if cell.view not in member.logits:
            raise PredictionError("E516", f"{member.member} has no out-of-fold predictions of the view {cell.view}")
        running.add(member.logits[cell.view][:, recipe.labels.permutation(member.labels, owner=member.member)])
        if running.seen in ends:
            lead, answer = running.leaders()
            leads.append(lead)
            answers.append(answer)
    return Course(ends, scale_of(cells, ends), np.stack(leads), np.stack(answers))


def _gather(
    recipe: Recipe, oof: Sequence[Predictions], truth: Path | None, listener: Listener
) -> tuple[list[Predictions], Truth]:
    used = [member for member in oof if member.group in recipe.groups]
    missing = sorted(recipe.groups.keys() - {member.group for member in used})
    if missing:
        raise PredictionError(
            "E517",
            f"there are no out-of-fold predictions of {enumerate_some(missing)}",
            hint="give --oof those that the recipe was learned from; groups meet by name",
        )
    if truth is not None:
        known = read_truth(truth, recipe.labels, listener=listener)
    else:
        one = used[0].group
        ids = tuple(sorted({name for member in used if member.group == one for name in member.ids}))
        known = Truth(ids, np.zeros(len(ids), dtype=np.intp), None, recipe.labels)
    return gather_folds(used, known), known


def _owners(truth: Truth) -> NDArray[np.intp]:
    names = truth.ids if truth.persons is None else truth.persons
    return np.asarray(np.unique(np.array(names), return_inverse=True)[1], dtype=np.intp)
