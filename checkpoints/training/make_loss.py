"""The loss that the settings of a training name."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoints.training.label_distribution import require_valid_spreads
from checkpoints.training.losses import (
    Asymmetry,
    Loss,
    MultiLabelWeights,
    class_weights,
    parse_loss,
    parse_multilabel_loss,
    positive_weights,
)
from checkpoints.training.ordered_axes import require_valid_ordinal
from checkpoints.training.settings import TrainSettings
from ensemble.errors import OptionError


def require_valid_loss(settings: TrainSettings) -> None:
    """Check the settings of the loss, and those that depend on the labels per image, before images are read.

    Raises:
        OptionError: E204 when one is not understood or does not fit.
    """
    count = len(settings.labels)
    one, several = np.arange(count), np.eye(count, dtype=np.int64)
    make_loss(one if settings.activation == "softmax" else several, settings, torch.device("cpu"))
    if settings.activation == "sigmoid" and (settings.head == "axes" or len(settings.labels.axes) > 1):
        raise OptionError("E204", "labels with axes (--labels, --head axes) need images of one class each")
    require_valid_ordinal(settings)
    require_valid_spreads(settings)


def make_loss(targets: NDArray[np.int64], settings: TrainSettings, device: torch.device) -> Loss:
    """Return the loss with the weights that the counts in the targets ``(N,)`` or ``(N, L)`` give.

    Raises:
        OptionError: E204 when a setting of it is not understood.
    """
    if settings.activation == "softmax":
        if settings.pos_weight != "none":
            hint = "for one class per image there is --class-weights"
            raise OptionError("E204", "--pos-weight needs images with several labels", hint=hint)
        counts = torch.from_numpy(np.bincount(targets, minlength=len(settings.labels)))
        weights = class_weights(settings.class_weights, counts).to(device)
        return parse_loss(settings.loss, weights=weights, gamma=settings.gamma, smoothing=settings.label_smoothing)
    counts = torch.from_numpy(targets.sum(axis=0))
    return parse_multilabel_loss(
        settings.loss,
        weights=MultiLabelWeights(
            class_weights(settings.class_weights, counts).to(device),
            positive_weights(settings.pos_weight, counts, len(targets)).to(device),
        ),
        gamma=settings.gamma,
        smoothing=settings.label_smoothing,
        asymmetry=Asymmetry(settings.gamma_negative, settings.gamma_positive, settings.clip_negative),
    )
