"""Scores of a hold-out part: macro F1 and accuracy, and for several labels per image the mean average precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from ensemble.arrays import Logits
from ensemble.card import Activation
from ensemble.metrics import confusion_matrix, macro_f1

NAME: Mapping[Activation, str] = {"softmax": "macro F1", "sigmoid": "mean average precision"}
KEY: Mapping[Activation, str] = {"softmax": "macro_f1", "sigmoid": "average_precision"}
"""What chooses the best epoch, in words and in JSON."""


@dataclass(frozen=True, slots=True)
class HoldoutScores:
    """The scores of a hold-out part; ``average_precision`` is None where each image has one class.

    For several labels per image, macro F1 is that of probabilities above one half, and the accuracy is the share of
    images with no wrong label.
    """

    macro_f1: float
    accuracy: float
    average_precision: float | None = None

    @property
    def main(self) -> float:
        """The score that chooses the best epoch."""
        return self.macro_f1 if self.average_precision is None else self.average_precision


def score_classes(truth: NDArray[np.int64], predicted: NDArray[np.int64], *, classes: int) -> HoldoutScores:
    """Return the scores of one class ``(N,)`` per image."""
    return HoldoutScores(
        float(macro_f1(confusion_matrix(truth, predicted, classes=classes))), float(np.mean(predicted == truth))
    )


def score_labels(truth: NDArray[np.int64], logits: Logits) -> HoldoutScores:
    """Return the scores of ``(N, L)`` logits; labels that no image has are left out of both means."""
    predicted = (logits > 0).astype(np.int64)
    known = truth.sum(axis=0) > 0
    accuracy = float((predicted == truth).all(axis=1).mean())
    if not known.any():
        return HoldoutScores(0.0, accuracy, 0.0)
    f1 = f1_score(truth[:, known], predicted[:, known], average=None, zero_division=0)
    precisions = [average_precision_score(truth[:, i], logits[:, i]) for i in np.flatnonzero(known)]
    return HoldoutScores(float(np.mean(f1)), accuracy, float(np.mean(precisions)))
