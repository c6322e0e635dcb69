"""View gains: whether a view is worth its passes, measured on images whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats, Mask
from ensemble.learn.candidates import Fitted
from ensemble.learn.cross_validation import Answers, Ballots, answer, resample, score
from ensemble.learn.objective import Measure

_IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class ViewGain:
    """What one more view does to the mean of all members' probabilities.

    ``gain`` is that of the score, ``error`` its standard error over people. ``right_to_wrong`` and ``wrong_to_right``
    count images. ``cost`` is how many times the passes of the first view alone are needed.
    """

    view: str
    gain: float
    error: float
    right_to_wrong: int
    wrong_to_right: int
    cost: float


def measure_views(
    ballots: Ballots, views: Sequence[str], shares: Floats, measure: Measure, *, seed: int
) -> tuple[ViewGain, ...]:
    """Each view beside the first: the identity where there is one, else the first by name.

    ``views`` names the view of each voter ``(V,)`` and ``shares`` ``(V,)`` are those of the mean.
    """
    found = np.array(views)
    first = _IDENTITY if _IDENTITY in views else min(views)
    alone, spread = _mean(ballots, shares, found == first, measure, seed)
    gains = []
    for view in sorted(set(views) - {first}):
        both, resampled = _mean(ballots, shares, (found == first) | (found == view), measure, seed)
        before, after = (answers.classes[0] == ballots.truth for answers in (alone, both))
        gains.append(
            ViewGain(
                view=view,
                gain=score(measure, ballots, both) - score(measure, ballots, alone),
                error=float((resampled - spread).std(ddof=1)),
                right_to_wrong=int((before & ~after).sum()),
                wrong_to_right=int((~before & after).sum()),
                cost=float(1 + (found == view).sum() / (found == first).sum()),
            )
        )
    return tuple(gains)


def render_views(gains: Sequence[ViewGain], title: str) -> str:
    """One line a view, for people."""
    return "\n".join(
        f"view {one.view}: {title} {one.gain:+.4f} ± {one.error:.4f}; "
        f"{one.wrong_to_right:,} images wrong to right, {one.right_to_wrong:,} right to wrong; {one.cost:g}x the passes"
        for one in gains
    )


def _mean(ballots: Ballots, shares: Floats, used: Mask, measure: Measure, seed: int) -> tuple[Answers, Floats]:
    weights = np.where(used, shares, 0.0)
    fitted = Fitted("linear", weights / weights.sum(), 1.0, np.zeros(ballots.log_p.shape[-1]))
    answers = answer(fitted, ballots)
    return answers, resample(measure, ballots, answers, seed=seed)
