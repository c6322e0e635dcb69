"""Prior: what is said about an image that could not be read, where --on-bad-image is fill."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ensemble.card import ModelCard
from ensemble.errors import enumerate_some


def log_prior(card: ModelCard) -> NDArray[np.float32]:
    """The logits ``(C,)`` of an image about which nothing is known: the log of the mix of classes in the training data.

    Each class counts once more than it was seen, so that none is impossible; without counts that is uniform.
    """
    counts = np.array(card.class_counts or [0] * len(card.labels), dtype=np.float64) + 1
    return np.asarray(np.log(counts / counts.sum()), dtype=np.float32)


def describe_priors(cards: Iterable[ModelCard]) -> str:
    """Which prior each member has, for people."""
    known, unknown = list[str](), list[str]()
    for card in cards:
        (known if card.class_counts else unknown).append(card.member)
    parts = [f"the mix of classes in training ({enumerate_some(known)})"] * bool(known)
    parts += [f"uniform, as the card knows no mix of classes ({enumerate_some(unknown)})"] * bool(unknown)
    return "; ".join(parts)
