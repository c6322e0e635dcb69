"""Losses for soft targets, of one class or of several labels per image, and class weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from checkpoints.training.setting_words import parse_terms, require_class_weights
from ensemble.card import Activation
from ensemble.errors import OptionError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def parse_loss(text: str, *, weights: torch.Tensor, gamma: float = 2.0, smoothing: float = 0.0) -> Loss:
    """Return a loss of ``(B, C)`` logits and targets: ``ce``, ``focal``, ``f1`` or a sum like ``0.6*focal+0.4*f1``.

    Targets are probabilities, rows summing to 1; ``weights`` is ``(C,)``. Label smoothing (Szegedy et al. 2016,
    "Rethinking the Inception Architecture") spreads the share ``smoothing`` of every target evenly over all classes,
    except for ``f1``.

    Raises:
        OptionError: E204 when the text is not a loss, or gamma or smoothing is out of range.
    """
    factors, names = parse_terms(text, gamma, smoothing)
    several = sorted({"bce", "asl"} & set(names))
    if several:
        raise OptionError("E204", f"--loss {several[0]} needs images with several labels", hint="use ce or focal")

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        losses = {
            "ce": lambda: focal(logits, targets, weights=weights, gamma=0.0, smoothing=smoothing),
            "focal": lambda: focal(logits, targets, weights=weights, gamma=gamma, smoothing=smoothing),
            "f1": lambda: soft_macro_f1(logits, targets),
        }
        return torch.stack([f * losses[name]() for f, name in zip(factors, names, strict=True)]).sum()

    return loss


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabelWeights:
    """The weights of the labels and, per label, that of its positives against its negatives, both ``(L,)``."""

    labels: torch.Tensor
    positives: torch.Tensor


@dataclass(frozen=True, slots=True)
class Asymmetry:
    """The parameters of the asymmetric loss: its two exponents, and the probability below which negatives count 0.

    Raises:
        OptionError: E204 when one is out of range.
    """

    negative: float = 4.0
    positive: float = 0.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.negative <= 100 and 0 <= self.positive <= 100 and 0 <= self.clip < 1):
            raise OptionError(
                "E204",
                f"--gamma-negative and --gamma-positive must be 0 to 100 and --clip-negative 0 to below 1, "
                f"got {self.negative}, {self.positive} and {self.clip}",
            )


def parse_multilabel_loss(
    text: str,
    *,
    weights: MultiLabelWeights,
    gamma: float = 2.0,
    smoothing: float = 0.0,
    asymmetry: Asymmetry | None = None,
) -> Loss:
    """Return a loss of ``(B, L)`` logits and targets in 0..1 for any number of labels per image.

    ``bce`` (or ``ce``, the default of the settings) is the binary cross-entropy, ``focal`` its focal form, ``asl`` the
    asymmetric loss, ``f1`` the soft macro F1, and a sum is written as for `parse_loss`. Label smoothing moves the
    targets towards one half, except for ``f1``.

    Raises:
        OptionError: E204 as `parse_loss` does.
    """
    factors, names = parse_terms(text, gamma, smoothing)
    shape = asymmetry or Asymmetry()

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        soft = targets * (1 - smoothing) + smoothing / 2
        losses = {
            "ce": lambda: binary_focal(logits, soft, weights=weights, gamma=0.0),
            "bce": lambda: binary_focal(logits, soft, weights=weights, gamma=0.0),
            "focal": lambda: binary_focal(logits, soft, weights=weights, gamma=gamma),
            "asl": lambda: asymmetric(logits, soft, weights=weights, shape=shape),
            "f1": lambda: soft_macro_f1(logits, targets, activation="sigmoid"),
        }
        return torch.stack([f * losses[name]() for f, name in zip(factors, names, strict=True)]).sum()

    return loss


def binary_focal(
    logits: torch.Tensor, targets: torch.Tensor, *, weights: MultiLabelWeights, gamma: float
) -> torch.Tensor:
    """Return the mean of ``-w (v t (1 - p)^gamma log p + (1 - t) p^gamma log(1 - p))``, cross-entropy at gamma 0.

    ``w`` are the weights of the labels and ``v`` those of the positives. Lin et al. 2017, "Focal Loss for Dense Object
    Detection", equation 4, for a sigmoid per label.
    """
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    hard, easy = (log_q.exp().clamp(min=1e-7) ** gamma, log_p.exp().clamp(min=1e-7) ** gamma) if gamma else (1.0, 1.0)
    losses = weights.positives * targets * hard * log_p + (1 - targets) * easy * log_q
    return -(weights.labels * losses).mean()


def asymmetric(
    logits: torch.Tensor, targets: torch.Tensor, *, weights: MultiLabelWeights, shape: Asymmetry
) -> torch.Tensor:
    """Return the mean of ``-w (v t (1 - p)^a log p + (1 - t) q^b log(1 - q))``, where ``q = max(p - clip, 0)``.

    ``a`` is the positive and ``b`` the negative exponent. Ridnik et al. 2021, "Asymmetric Loss For Multi-Label
    Classification", equations 5 and 7.
    """
    log_p = functional.logsigmoid(logits)
    shifted = (log_p.exp() - shape.clip).clamp(min=0)
    positive = torch.sigmoid(-logits).clamp(min=1e-7) ** shape.positive if shape.positive else 1.0
    negative = shifted.clamp(min=1e-7) ** shape.negative if shape.negative else 1.0
    # without a clip, log(1 - p) is that of the logits, which does not round to log 0
    log_q = torch.log1p(-shifted) if shape.clip else functional.logsigmoid(-logits)
    losses = weights.positives * targets * positive * log_p + (1 - targets) * negative * log_q
    return -(weights.labels * losses).mean()


def focal(
    logits: torch.Tensor, targets: torch.Tensor, *, weights: torch.Tensor, gamma: float, smoothing: float = 0.0
) -> torch.Tensor:
    """Return ``-w t (1 - p)^gamma log p``, summed and divided by the sum of ``w t``; the cross-entropy at gamma 0.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5, for a softmax.
    """
    log_p = functional.log_softmax(logits, dim=1)
    soft = targets * (1 - smoothing) + smoothing / targets.shape[1]
    factor = (1 - log_p.exp()).clamp(min=1e-7) ** gamma if gamma else 1.0  # 0^gamma has no gradient below gamma 1
    return -(weights * soft * factor * log_p).sum() / (weights * targets).sum()


def soft_macro_f1(logits: torch.Tensor, targets: torch.Tensor, *, activation: Activation = "softmax") -> torch.Tensor:
    """Return 1 minus the mean F1 of the classes in the batch, with probabilities in place of counts.

    ``2 TP / (2 TP + FP + FN)`` is ``2 sum(p t) / (sum p + sum t)``: the soft Dice of Milletari et al. 2016, "V-Net".
    Classes that are absent from the batch have no F1 and are left out.
    """
    p = torch.sigmoid(logits) if activation == "sigmoid" else functional.softmax(logits, dim=1)
    present = targets.sum(dim=0) > 0
    f1 = 2 * (p * targets).sum(dim=0)[present] / (p.sum(dim=0) + targets.sum(dim=0))[present]
    if activation == "sigmoid" and not present.any():
        return logits.sum() * 0  # a batch of images without labels
    return 1 - f1.mean()


def class_weights(kind: str, counts: torch.Tensor) -> torch.Tensor:
    """Return ``(C,)`` weights of mean 1 from ``(C,)`` counts: none, ins (1 / n), isns (1 / sqrt n) or ens:<beta>.

    ``ens:<beta>`` is ``(1 - beta) / (1 - beta^n)``, Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of
    Samples", equation 3. A class without images counts as having one.

    Raises:
        OptionError: E204 when the kind is unknown or beta is not in [0, 1).
    """
    require_class_weights(kind)
    n = counts.clamp(min=1).double()
    number = kind.partition(":")[2]
    if kind == "none":
        found = torch.ones_like(n)
    elif kind == "ins":
        found = 1 / n
    elif kind == "isns":
        found = n.rsqrt()
    else:
        found = (1 - float(number)) / (1 - float(number) ** n)
    return (found / found.mean()).float()


def positive_weights(kind: str, counts: torch.Tensor, images: int) -> torch.Tensor:
    """Return the weight ``(L,)`` of a label's positives from its ``(L,)`` counts among ``images``.

    ``none`` is 1, ``balanced`` the ratio of negatives to positives, ``sqrt`` its square root, and a number itself. A
    label without images counts as having one.

    Raises:
        OptionError: E204 when the kind is unknown, or the number is not above 0.
    """
    positives = counts.clamp(min=1).double()
    ratio = ((images - positives) / positives).clamp(min=1e-3)
    if kind == "none":
        found = torch.ones_like(positives)
    elif kind == "balanced":
        found = ratio
    elif kind == "sqrt":
        found = ratio.sqrt()
    elif re.fullmatch(r"\d*\.?\d+", kind) and 0 < float(kind) <= 10_000:
        found = torch.full_like(positives, float(kind))
    else:
        raise OptionError("E204", f"--pos-weight takes none, balanced, sqrt or a number above 0, got {kind!r}")
    return found.float()
