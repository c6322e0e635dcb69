"""The optimiser and the course of its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2

from checkpoints.training.settings import Optimizer, Schedule


def make_optimizer(
    model: torch.nn.Module, name: Optimizer, *, learning_rate: float, weight_decay: float, layer_decay: float | None
) -> torch.optim.Optimizer:
    """timm's optimiser for the parameters that train; each layer group below learns ``layer_decay`` times as fast.

    Layer-wise decay: Bao et al. 2022, "BEiT". Biases and norms are not decayed.
    """
    optimizer: Any = create_optimizer_v2(
        model,
        opt="momentum" if name == "sgd" else name,
        lr=learning_rate,
        weight_decay=weight_decay,
        momentum=0.9,
        layer_decay=layer_decay,
    )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.pop("lr_scale", 1.0)  # only timm's own schedulers look at it
    found: torch.optim.Optimizer = optimizer
    return found


def make_schedule(
    optimizer: torch.optim.Optimizer, name: Schedule, *, steps: int, warm_up: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up over the share ``warm_up`` of all steps, then down to zero on a cosine, or level where ``constant``.

    ``cosine``: Loshchilov and Hutter 2017, "SGDR", rising linearly first. ``onecycle``: Smith and Topin 2018,
    "Super-Convergence", as torch does it.
    """
    if name == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=warm_up,
            cycle_momentum=False,
        )
    rising = round(warm_up * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        if name == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
