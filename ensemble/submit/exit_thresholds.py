"""Calibrated early exit: how far an answer must lead before the rest of the ensemble may be skipped.

The thresholds come from out-of-fold predictions. Those of a group represent each of its folds, so a row leaves only
after a whole group: out-of-fold rows hold no disagreement between the folds of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.blend.recipe import Recipe
from ensemble.errors import OptionError, PredictionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.install import require_module
from ensemble.learn.objective import LIKELIHOOD, METRICS, Metric, parse_metric
from ensemble.metrics import bootstrap
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.match_members import join_folds, match_to_groups
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth, read_truth
from ensemble.submit.early_exit import ForwardPass, Running, ends_of_units
from ensemble.text.plain_numbers import to_float

_CONFIDENCE = 0.95
_RESAMPLES = 500
_SEED = 0
_RATES = np.geomspace(0.0005, 0.5, 31)  # of rows that may change, where a score decides: a quarter more at each step


@dataclass(frozen=True, slots=True)
class Keep:
    """At least ``share`` of rows keep the whole ensemble's answer."""

    share: float

    def __str__(self) -> str:
        return f"{self.share:g}"


@dataclass(frozen=True, slots=True)
class Lose:
    """``metric``, one that `parse_metric` knows, falls by at most ``most``, whichever answers change."""

    metric: str
    most: float

    def __str__(self) -> str:
        return f"{self.metric}:{self.most:g}"


Goal: TypeAlias = Keep | Lose


def parse_goal(text: str) -> Goal:
    """Parse a share such as ``0.999``, or a metric with the loss it may have, such as ``macro-f1:0.003``.

    Raises:
        OptionError: E204 when the text has another form, the share is not of 0.5 to below 1, or the loss not above 0
            and below 1.
    """
    metric, _, number = text.rpartition(":")
    try:
        value = to_float(number)
    except ValueError:
        value = -1.0
    if metric and metric != LIKELIHOOD and 0 < value < 1:
        return Lose(metric, value)
    if not metric and 0.5 <= value < 1:
        return Keep(value)
    raise OptionError(
        "E204",
        "--early-exit takes exact, a share of 0.5 to below 1 such as 0.999, or what a metric may lose such as "
        f"macro-f1:0.003, got {text!r}",
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """``stops``: the lead that an answer needs to leave, by the number of passes so far.

    ``kept`` and ``saved`` are shares of rows that keep the whole ensemble's answer and of forward passes not run;
    ``score`` of ``metric`` is the whole ensemble's and that with early exit, where the truth is known. Each is measured
    on one half of the people with the thresholds of the other half. ``certified`` says whether ``rows`` are enough for
    the ``goal``: a share is held with 95 % confidence, a score to within one standard error.
    """

    goal: str
    rows: int
    stops: dict[int, float]
    kept: float
    saved: float
    certified: bool
    metric: str | None = None
    score: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; a threshold that nothing reaches is null."""
        stops = {str(k): lead if np.isfinite(lead) else None for k, lead in self.stops.items()}
        return asdict(self) | {"stops": stops}

    def render(self) -> str:
        """Return one line of text."""
        score = "" if self.score is None else f", {self.metric} {self.score[0]:.4f} -> {self.score[1]:.4f}"
        return (
            f"on {self.rows:,} out-of-fold rows, each half with the thresholds of the other (asked: {self.goal}): "
            f"{self.kept:.3%} keep their answer, {self.saved:.1%} of passes saved{score}"
        )


@dataclass(frozen=True, slots=True)
class ExitThresholds:
    """``stops``: the lead that an answer needs to leave after so many passes; ``certified``: see `Calibration`."""

    stops: dict[int, float]
    certified: bool


@dataclass(frozen=True, slots=True, eq=False)
class EarlyAnswers:
    """The answers ``classes`` ``(N,)`` under some thresholds, and the ``passes`` ``(N,)`` that each row needs."""

    classes: Classes
    passes: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class RunningAnswers:
    """The ensemble's answers while its passes run: ``answers[j]`` and ``leads[j]`` ``(N,)`` after ``ends[j]`` passes.

    ``scale`` ``(len(ends) - 1,)`` is how large a lead there has to be in proportion, at each end but the last.
    """

    ends: tuple[int, ...]
    scale: Floats
    leads: Floats
    answers: Classes

    def of(self, rows: NDArray[np.intp]) -> RunningAnswers:
        """Return the same for some rows."""
        return RunningAnswers(self.ends, self.scale, self.leads[:, rows], self.answers[:, rows])


def calibrate(
    recipe: Recipe,
    passes: Sequence[ForwardPass],
    oof: Sequence[Predictions],
    goal: Goal,
    *,
    truth: Path | None = None,
    listener: Listener = SILENT,
) -> Calibration:
    """Choose thresholds under which the answers of all ``passes``, in the order of `in_order`, meet the goal.

    ``truth`` has the class of each out-of-fold image, which a goal about a metric needs, and the person on it, so that
    the halves of the check share no person.

    Raises:
        EnsError: as `read_truth` and `gather_folds`.
        OptionError: E204 when the goal's metric is not known, or is asked for without a truth, E205 without scipy.
        PredictionError: E516 when a view is missing, E517 when a group of the recipe is.
    """
    require_module("scipy", f"--early-exit {goal}")
    measure = parse_metric(goal.metric if isinstance(goal, Lose) else "macro-f1", recipe.labels)
    if measure.contest is not None:
        raise OptionError("E204", f"there is no early exit for {measure.name}; choose one of {', '.join(METRICS)}")
    if isinstance(goal, Lose) and truth is None:
        raise OptionError("E204", f"--early-exit {goal} needs --truth with the classes of the out-of-fold images")
    gathered, known = _gather(recipe, oof, truth, listener)
    path = _walk(recipe, passes, gathered)
    people = np.array(known.ids if known.persons is None else known.persons)

    def choose(rows: NDArray[np.intp]) -> ExitThresholds:
        if isinstance(goal, Keep):
            allowed, certified = _allowed(goal.share, len(rows))
            return ExitThresholds(choose_stops(path.of(rows), allowed), certified)
        return choose_by_score(path.of(rows), known.classes[rows], people[rows].tolist(), measure, goal.most)

    rows = len(known.ids)
    chosen = choose(np.arange(rows))
    answers, saved = _cross_validate(path, choose, np.unique(people, return_inverse=True)[1])
    kept = float((answers == path.answers[-1]).mean())
    score = None
    if truth is not None:
        whole, early = (measure.score_classes(known.classes, found) for found in (path.answers[-1], answers))
        score = (whole, early)
    title = None if truth is None else measure.title
    found = Calibration(str(goal), rows, chosen.stops, kept, saved, chosen.certified, title, score)
    _warn(found, goal, listener)
    return found


def _warn(found: Calibration, goal: Goal, listener: Listener) -> None:
    """Give W533 where the out-of-fold rows cannot certify the goal."""
    text = ""
    if isinstance(goal, Keep):
        if not found.certified:
            best = max(0.0, 1 - 3 / found.rows)
            text = f"{found.rows:,} rows certify no share above {best:.3%}, asked was {goal.share:.3%}"
        elif found.kept < goal.share:
            text = f"only {found.kept:.3%} of held-out rows keep their answer, asked was {goal.share:.3%}"
    elif not found.certified:
        text = f"{found.rows:,} rows certify no early exit that costs at most {goal.most:g} of {found.metric}"
    elif found.score is not None and found.score[0] - found.score[1] > goal.most:
        loss = found.score[0] - found.score[1]
        text = f"on held-out rows {found.metric} loses {loss:.4f}, asked was at most {goal.most:g}"
    if text:
        listener.notice(Notice("W533", text))


def choose_stops(course: RunningAnswers, allowed: int) -> dict[int, float]:
    """Return the lowest leads that no more than ``allowed`` rows reach with another answer than the final one.

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
    return {end: float(factor * scale) for end, scale in zip(course.ends[:-1], course.scale, strict=True)}


def choose_by_score(
    course: RunningAnswers, truth: Classes, people: Sequence[str], measure: Metric, most: float
) -> ExitThresholds:
    """Return the lowest leads with which the score falls by at most ``most``, certified if any are that low.

    The fall and one standard error of it must not be more (the rule of Breiman et al., "Classification and Regression
    Trees", 1984), by a bootstrap over ``people``, those on the images of the classes ``truth`` ``(N,)``. Ever
    lower leads are tried, and the first that fails ends the search: more tries then find nothing by luck (Angelopoulos
    et al., "Learn then Test", arXiv 2110.01052, on fixed sequences). A bootstrap draws no change that was not seen: of
    fewer rows than bound unseen ones, nothing passes.
    """
    best = dict.fromkeys(course.ends[:-1], np.inf)
    if not _allowed(1 - most, len(truth))[1]:
        return ExitThresholds(best, certified=False)

    def draw(answers: Classes) -> Floats:
        counts = bootstrap(
            measure.value_of_class[truth],
            measure.value_of_class[answers],
            classes=measure.values,
            clusters=people,
            resamples=_RESAMPLES,
            seed=_SEED,
        )
        return measure.score_confusion(counts)

    whole = draw(course.answers[-1])
    for rate in _RATES:
        stops = choose_stops(course, int(rate * len(truth)))
        gain = draw(replay(course, stops).classes) - whole
        if gain.mean() - gain.std() < -most:
            break
        best = stops
    return ExitThresholds(best, certified=bool(np.isfinite(list(best.values())).any()))


def replay(path: RunningAnswers, stops: dict[int, float]) -> EarlyAnswers:
    """Apply thresholds to the running answers."""
    answers, passes = path.answers[-1].copy(), np.full(path.leads.shape[1], path.ends[-1])
    left = np.ones(len(answers), dtype=np.bool_)
    for j, end in enumerate(path.ends[:-1]):
        gone = left & (path.leads[j] >= stops[end])
        answers[gone], passes[gone] = path.answers[j, gone], end
        left &= ~gone
    return EarlyAnswers(answers, passes)


def _allowed(share: float, rows: int) -> tuple[int, bool]:
    """Return how many of ``rows`` may change so that the share holds with 95 % confidence, and whether any number does.

    The limit is Poisson's: none of n seen bounds the rate by 3 / n (Garwood, "Fiducial limits for the Poisson
    distribution", Biometrika 1936).
    """
    from scipy.special import gammaincinv

    counts = np.arange(rows + 1)
    fits = np.flatnonzero(gammaincinv(counts + 1, _CONFIDENCE) <= (1 - share) * rows * (1 + 1e-12))
    return (int(fits[-1]), True) if len(fits) else (0, False)


def _cross_validate(
    path: RunningAnswers, choose: Callable[[NDArray[np.intp]], ExitThresholds], owner: NDArray[np.intp]
) -> tuple[NDArray[np.intp], float]:
    """Return the answers ``(N,)`` of each half of the people by the thresholds of the other, and the passes saved."""
    order = np.random.default_rng(_SEED).permutation(int(owner.max()) + 1)
    first = order[owner] < len(order) / 2
    answers, passes = np.empty_like(path.answers[-1]), np.empty(len(owner), dtype=np.intp)
    for train, test in ((first, ~first), (~first, first)):
        early = replay(path.of(np.flatnonzero(test)), choose(np.flatnonzero(train)).stops)
        answers[test], passes[test] = early.classes, early.passes
    return answers, float(1 - passes.mean() / path.ends[-1])


def scale_of(passes: Sequence[ForwardPass], ends: Sequence[int]) -> Floats:
    """Return the scale of the lead that can be undone at each end but the last: the standard error of a mean.

    The lead of the whole ensemble is the mean of the leads of all passes. After a share f of them it is known to within
    ``sqrt((1 - f) / f)`` times a constant: Cochran, "Sampling Techniques" (3rd edition, 1977), chapter 2, with
    weights for counts.
    """
    seen = np.cumsum([one.weight for one in passes])[np.array(ends[:-1], dtype=np.intp) - 1]
    return np.asarray(np.sqrt(np.maximum(1 - seen, 0) / seen))


def _walk(recipe: Recipe, passes: Sequence[ForwardPass], gathered: Sequence[Predictions]) -> RunningAnswers:
    by_group = {member.group: member for member in gathered}
    ends = ends_of_units(passes)
    running = Running(recipe, passes, len(gathered[0]))
    leads, answers = [], []
    for one in passes:
        member = by_group[one.group]
        if one.view not in member.logits:
            raise PredictionError("E516", f"{member.member} has no out-of-fold predictions of the view {one.view}")
        running.add(member.logits[one.view][:, recipe.labels.permutation(member.labels, owner=member.member)])
        if running.seen in ends:
            now = running.leaders()
            leads.append(now.leads)
            answers.append(now.classes)
    return RunningAnswers(ends, scale_of(passes, ends), np.stack(leads), np.stack(answers))


def _gather(
    recipe: Recipe, oof: Sequence[Predictions], truth: Path | None, listener: Listener
) -> tuple[list[Predictions], Truth]:
    names = {name: list(group.members) for name, group in recipe.groups.items()}
    matched = match_to_groups(join_folds(oof, listener=listener), names, listener=listener)
    used = [member for member in matched if member.group in recipe.groups]
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
    return gather_folds(used, known, listener=listener), known
