"""Distillation: a network is trained on the probabilities of a teacher as well as on the labels.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from checkpoints.training.batches import LabeledImages
from checkpoints.training.losses import Loss
from ensemble.arrays import Floats
from ensemble.card import Activation
from ensemble.errors import OptionError

_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True)
class Distillation:
    """The temperature of the teacher's probabilities, and the ``share`` of the loss that is measured against them.

    Raises:
        OptionError: E204 when one is out of range.
    """

    temperature: float = 2.0
    share: float = 0.9

    def __post_init__(self) -> None:
        if not 0.1 <= self.temperature <= 100 or not 0 < self.share <= 1:
            message = "the temperature must be 0.1 to 100, and the teacher's share above 0 and up to 1"
            hint = "2 and 0.9 are the defaults of --temperature and --teacher-share"
            raise OptionError("E204", f"{message}, got {self.temperature:g} and {self.share:g}", hint=hint)


@dataclass(frozen=True, slots=True, eq=False)
class SoftLabels:
    """The teacher's probabilities, per fold of the student, for the images that the fold's student is trained on.

    ``labeled[k]`` is ``(N, C)``, a row per row of the job; rows that fold k holds out are not read. ``pseudo[k]`` is
    ``(M, C)``, for the pseudo-labeled images of the job. Where they are ``optimistic``, models that were trained on
    what fold k holds out gave them, so that its predictions of these images are not those of new ones.
    """

    labeled: tuple[Floats, ...]
    pseudo: tuple[Floats, ...] | None = None
    how: Distillation = Distillation()
    optimistic: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """Return all that decides the weights, the probabilities by their hash."""
        digest = hashlib.sha256()
        for one in (*self.labeled, *(self.pseudo or ())):
            digest.update(np.asarray(one, dtype="<f4").tobytes())
        return {"temperature": self.how.temperature, "share": self.how.share, "probabilities": digest.hexdigest()}

    def of_fold(self, fold: int, training: NDArray[np.bool_]) -> Floats:
        """Return the probabilities of a fold's training part: of its labeled images, then of the pseudo-labeled."""
        labeled = self.labeled[fold][training]
        return labeled if self.pseudo is None else np.concatenate([labeled, self.pseudo[fold]])


def with_teacher(
    images: LabeledImages, probabilities: Floats, how: Distillation, *, activation: Activation
) -> LabeledImages:
    """Return the images with what `distillation_loss` takes: labels and softened probabilities, ``(N, 2 C)`` float32.

    Softened are ``p^(1 / T)``, normalized; of labels that do not exclude each other, each with its complement.
    """
    softened = soften(probabilities, how.temperature, activation=activation)
    hard = images.loss_targets.astype(np.float64)
    if activation == "softmax" and images.soft_targets is None:
        hard = np.eye(probabilities.shape[1])[images.targets]
    return images.with_soft_targets(np.concatenate([hard, softened], axis=1).astype(np.float32))


def soften(probabilities: Floats, temperature: float, *, activation: Activation) -> Floats:
    """Return the probabilities ``(N, C)`` of logits that are divided by the temperature."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), _SMALLEST, 1.0)
    powered = p ** (1 / temperature)
    if activation == "softmax":
        return np.asarray(powered / powered.sum(axis=1, keepdims=True))
    other = np.clip(1 - p, _SMALLEST, 1.0) ** (1 / temperature)
    return np.asarray(powered / (powered + other))


def distillation_loss(hard: Loss, how: Distillation, *, activation: Activation) -> Loss:
    """Return the loss ``share T^2 H(teacher, student at T) + (1 - share) hard`` of targets of `with_teacher`.

    ``H`` is the cross-entropy, of several labels the mean of the binary ones. ``T^2`` keeps the size of its gradient
    where the temperature changes (section 2 of the paper).
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        labels, teacher = targets.chunk(2, dim=1)
        scaled = logits.float() / how.temperature
        if activation == "softmax":
            soft = functional.cross_entropy(scaled, teacher)
        else:
            soft = functional.binary_cross_entropy_with_logits(scaled, teacher)
        total = how.share * how.temperature**2 * soft
        return total if how.share == 1 else total + (1 - how.share) * hard(logits, labels)

    return loss
