"""The optimizer and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2

from checkpoints.training.settings import Optimizer, Schedule


def make_optimizer(
    model: torch.nn.Module, name: Optimizer, *, learning_rate: float, weight_decay: float, layer_decay: float | None
) -> torch.optim.Optimizer:
    """Return timm's optimizer for the trainable parameters; weight decay excludes biases and norm layers.

    With ``layer_decay`` the learning rate of each layer group is that factor times the one of the group above
    (layer-wise learning rate decay: Bao et al. 2022, "BEiT").
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
        group["lr"] = learning_rate * group.pop("lr_scale", 1.0)  # only timm's own schedulers read it
    found: torch.optim.Optimizer = optimizer
    return found


def make_schedule(
    optimizer: torch.optim.Optimizer, name: Schedule, *, steps: int, warm_up: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule with a warm-up over the share ``warm_up`` of all steps.

    ``cosine``: linear warm-up, then cosine annealing to zero (Loshchilov and Hutter 2017, "SGDR"). ``constant``: linear
    warm-up, then a constant rate. ``onecycle``: Smith and Topin 2018, "Super-Convergence", in torch's implementation.
    """
    if name == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=warm_up,
            cycle_momentum=False,
        )
    warm_up_steps = round(warm_up * steps)

    def factor(step: int) -> float:
        if step < warm_up_steps:
            return (step + 1) / (warm_up_steps + 1)
        if name == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up_steps) / max(1, steps - warm_up_steps))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
