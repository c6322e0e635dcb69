"""Losses and class weights against their formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from checkpoints.training.losses import class_weights, parse_loss
from ensemble.errors import OptionError

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4))
CLASSES = np.array([0, 1, 1, 3, 0, 3])
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.5])
ONE_HOT = np.eye(4)[CLASSES]
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def value(text: str, *, gamma: float = 2.0, smoothing: float = 0.0) -> float:
    loss = parse_loss(text, weights=torch.tensor(WEIGHTS).float(), gamma=gamma, smoothing=smoothing)
    return loss(torch.tensor(LOGITS), torch.tensor(ONE_HOT).float()).item()


def test_cross_entropy_is_that_of_torch() -> None:
    """With weights and smoothing, the loss of hard targets is torch's weighted cross-entropy."""
    expected = functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(CLASSES), torch.tensor(WEIGHTS), label_smoothing=0.1
    )
    assert value("ce", smoothing=0.1) == pytest.approx(expected.item(), rel=1e-5)


def test_focal_f1_and_mixtures_follow_their_formulas() -> None:
    """Focal loss and soft F1 equal loops in numpy, and a mixture is their weighted sum."""
    true = P[np.arange(6), CLASSES]
    focal = np.sum(WEIGHTS[CLASSES] * (1 - true) ** 1.5 * -np.log(true)) / WEIGHTS[CLASSES].sum()
    assert value("focal", gamma=1.5) == pytest.approx(focal, rel=1e-5)
    scores = []
    for c in (0, 1, 3):  # class 2 has no images
        tp, fp = P[c == CLASSES, c].sum(), P[c != CLASSES, c].sum()
        fn = (1 - P[c == CLASSES, c]).sum()
        scores.append(2 * tp / (2 * tp + fp + fn))
    assert value("f1") == pytest.approx(1 - np.mean(scores), rel=1e-5)
    assert value("0.6*focal+0.4*f1", gamma=1.5) == pytest.approx(0.6 * focal + 0.4 * (1 - np.mean(scores)), rel=1e-5)


def test_class_weights_follow_their_formulas() -> None:
    """Weights of 1, 4 and 100 images are in the proportions of the formulas, with mean 1."""
    counts = torch.tensor([1, 4, 100])
    for kind, raw in (
        ("none", [1, 1, 1]),
        ("ins", [1, 1 / 4, 1 / 100]),
        ("isns", [1, 1 / 2, 1 / 10]),
        ("ens:0.9", [1, 0.1 / (1 - 0.9**4), 0.1 / (1 - 0.9**100)]),
    ):
        np.testing.assert_allclose(class_weights(kind, counts).numpy(), np.array(raw) / np.mean(raw), rtol=1e-6)


@pytest.mark.parametrize("text", ["", "focal+", "2focal", "hinge", "0*ce", "ce-f1"])
def test_other_losses_are_refused(text: str) -> None:
    """A text that is not a sum of known losses is E204."""
    with pytest.raises(OptionError):
        value(text)


@pytest.mark.parametrize("kind", ["inverse", "ens", "ens:1", "ens:x", "none:1"])
def test_other_weights_are_refused(kind: str) -> None:
    """An unknown kind of weights, or a beta of 1 or more, is E204."""
    with pytest.raises(OptionError):
        class_weights(kind, torch.tensor([1, 2]))
