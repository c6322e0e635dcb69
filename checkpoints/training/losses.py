"""Losses for soft targets, and class weights."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.nn import functional

from ensemble.errors import OptionError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_TERM = re.compile(r"(?:(\d*\.?\d+)\*)?(ce|focal|f1)")


def parse_loss(text: str, *, weights: torch.Tensor, gamma: float = 2.0, smoothing: float = 0.0) -> Loss:
    """Return a loss of ``(B, C)`` logits and targets: ``ce``, ``focal``, ``f1`` or a sum like ``0.6*focal+0.4*f1``.

    Targets are probabilities, rows summing to 1; ``weights`` is ``(C,)``. Label smoothing (Szegedy et al. 2016,
    "Rethinking the Inception Architecture") spreads the share ``smoothing`` of every target evenly over all classes,
    except for ``f1``.

    Raises:
        OptionError: E204 when the text is not a loss, or gamma or smoothing is out of range.
    """
    terms = [_TERM.fullmatch(part.strip()) for part in text.split("+")]
    factors = [float(term[1] or 1) for term in terms if term]
    if len(factors) != len(terms) or not sum(factors) > 0:
        raise OptionError("E204", f"--loss takes ce, focal, f1 or a sum such as 0.6*focal+0.4*f1, got {text!r}")
    if not 0 <= gamma <= 100 or not 0 <= smoothing < 1:
        raise OptionError("E204", f"gamma must be 0 to 100 and smoothing 0 to below 1, got {gamma} and {smoothing}")
    names = [term[2] for term in terms if term]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        losses = {
            "ce": lambda: focal(logits, targets, weights=weights, gamma=0.0, smoothing=smoothing),
            "focal": lambda: focal(logits, targets, weights=weights, gamma=gamma, smoothing=smoothing),
            "f1": lambda: soft_macro_f1(logits, targets),
        }
        return torch.stack([f * losses[name]() for f, name in zip(factors, names, strict=True)]).sum()

    return loss


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


def soft_macro_f1(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return 1 minus the mean F1 of the classes in the batch, with probabilities in place of counts.

    ``2 TP / (2 TP + FP + FN)`` is ``2 sum(p t) / (sum p + sum t)``: the soft Dice of Milletari et al. 2016, "V-Net".
    Classes that are absent from the batch have no F1 and are left out.
    """
    p = functional.softmax(logits, dim=1)
    present = targets.sum(dim=0) > 0
    f1 = 2 * (p * targets).sum(dim=0) / (p.sum(dim=0) + targets.sum(dim=0))
    return 1 - f1[present].mean()


def class_weights(kind: str, counts: torch.Tensor) -> torch.Tensor:
    """Return ``(C,)`` weights of mean 1 from ``(C,)`` counts: none, ins (1 / n), isns (1 / sqrt n) or ens:<beta>.

    ``ens:<beta>`` is ``(1 - beta) / (1 - beta^n)``, Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of
    Samples", equation 3. A class without images counts as having one.

    Raises:
        OptionError: E204 when the kind is unknown or beta is not in [0, 1).
    """
    n = counts.clamp(min=1).double()
    name, _, number = kind.partition(":")
    if kind == "none":
        found = torch.ones_like(n)
    elif kind == "ins":
        found = 1 / n
    elif kind == "isns":
        found = n.rsqrt()
    elif name == "ens" and re.fullmatch(r"0?\.\d+|0", number):
        found = (1 - float(number)) / (1 - float(number) ** n)
    else:
        raise OptionError("E204", f"class weights are none, ins, isns or ens:<beta> with beta below 1, got {kind!r}")
    return (found / found.mean()).float()
