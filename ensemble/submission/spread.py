"""Compare how answers are spread over the classes with how those of the training images are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats
from ensemble.events import Listener, Notice
from ensemble.submission.sheet import Submission

_FAR = 0.1
_SIGMAS = 4


@dataclass(frozen=True, slots=True)
class Spread:
    """The distance of the answers' shares of the classes from those of training, and the class that differs most.

    For exclusive classes it is the total variation distance, half of the sum of the differences; for independent labels
    the mean difference of a label's share of images. ``noise`` is what chance alone gives on average.
    """

    distance: float
    noise: float
    name: str
    answers: float
    training: float
    independent: bool = False

    @property
    def is_far(self) -> bool:
        """True if the distance is large, and larger than chance makes it."""
        return self.distance > max(_FAR, _SIGMAS * self.noise)

    def __str__(self) -> str:
        return (
            f"the shares of the classes are {self.distance:.3f} from those of the training images "
            f"({'mean difference' if self.independent else 'total variation distance'}); most differs {self.name}: "
            f"{self.answers:.1%} of answers, {self.training:.1%} of training images"
        )


def compare_spread(submission: Submission, training: Floats) -> Spread:
    """Compare the shares of the classes among the answers with their shares ``(C,)`` of the training images.

    Probabilities count as such; otherwise it is the classes, or the labels that were decided.
    """
    if submission.decisions is not None:
        answers = submission.decisions.mean(axis=0)
    elif submission.probabilities is not None and not submission.ranked:
        answers = submission.probabilities.mean(axis=0)
    else:
        answers = np.bincount(submission.classes, minlength=len(submission.labels)) / len(submission)
    gaps = np.abs(answers - training)
    scale = 1 / len(gaps) if submission.independent else 0.5
    most = int(gaps.argmax())
    # the mean absolute deviation of a share p of n images is sqrt(2 p (1 - p) / (pi n))
    noise = np.sqrt(2 * training * (1 - training) / (np.pi * len(submission))).sum() * scale
    return Spread(
        distance=float(gaps.sum() * scale),
        noise=float(noise),
        name=submission.labels.names[most],
        answers=float(answers[most]),
        training=float(training[most]),
        independent=submission.independent,
    )


def notice_spread(spread: Spread, listener: Listener) -> None:
    """Warn if answers are spread far from the training classes, and further than chance makes them (W546)."""
    if spread.is_far:
        listener.notice(Notice("W546", str(spread)))
